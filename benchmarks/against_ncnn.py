"""Real-ESRGAN by this project and by the ncnn package, picture by picture: how far apart they are.

    pip install ncnn
    python -m benchmarks.against_ncnn --input photos/ --weights realesrgan-x4plus.param \\
        --model models/realesrgan

Pictures should be small, 128 x 128 say: both enlarge them by four, whole, without tiles.
"""

import argparse
from pathlib import Path

import ncnn  # pyright: ignore[reportMissingImports]
import numpy as np

from osdhuman_jax.images.codec import decode
from osdhuman_jax.images.listing import list_images
from osdhuman_jax.images.sizes import Pixels
from osdhuman_jax.inference.pipeline import Pipeline


def by_ncnn(weights: Path, picture: Pixels) -> np.ndarray:
    """(4h, 4w, 3) int levels, clamped and rounded; in float32 on the CPU."""
    net = ncnn.Net()
    for name in ("fp16_packed", "fp16_storage", "fp16_arithmetic", "bf16_storage"):
        setattr(net.opt, f"use_{name}", False)
    net.opt.use_vulkan_compute = False
    if net.load_param(str(weights)) or net.load_model(str(weights.with_suffix(".bin"))):
        raise SystemExit(f"{weights}: ncnn cannot load it")
    values = np.ascontiguousarray(picture.transpose(2, 0, 1).astype(np.float32) / 255)
    run = net.create_extractor()
    run.input(net.input_names()[0], ncnn.Mat(values).clone())  # a Mat borrows NumPy's memory
    _, found = run.extract(net.output_names()[0])
    return np.clip(np.round(np.array(found).transpose(1, 2, 0) * 255), 0, 255).astype(int)


def main() -> None:
    """Print the largest difference in levels of 255, and the share of values that differ."""
    parser = argparse.ArgumentParser(description="Compare with the ncnn package.")
    parser.add_argument("--input", required=True, help="small pictures")
    parser.add_argument("--weights", required=True, type=Path, help=".param, its .bin beside it")
    parser.add_argument("--model", required=True, type=Path, help="folder made of the same")
    args = parser.parse_args()
    pipeline = Pipeline.from_folder(args.model, "fp32")
    for path, name in list_images(args.input):
        picture = decode(path.read_bytes())
        theirs = by_ncnn(args.weights, picture.rgb)
        ours = pipeline.restore([picture], upscale=4.0)[0].rgb.astype(int)
        apart = np.abs(ours - theirs)
        print(f"{name}: {apart.max()} of 255 at most, {(apart > 0).mean():.3%} of values differ")


if __name__ == "__main__":
    main()
