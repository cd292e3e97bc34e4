"""Degrade photographs with a fixed seed, restore them through infer.py, measure, draw a sheet.

    python -m benchmarks.quality --output results                  # pictures that dependencies ship
    python -m benchmarks.quality --input PHOTOS --output results   # yours, cut to 512 x 512

OpenCV's non-local means, the denoiser that everybody has, is measured beside the model.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import cv2
import matplotlib.cbook
import numpy as np
import skimage.data
from PIL import Image, ImageDraw, ImageFont

from osdhuman_jax.images import list_images, read_image, write_png
from osdhuman_jax.metrics import psnr_y, ssim_y

ROOT = Path(__file__).parent.parent
SIDE = 512
COLUMNS = ("degraded", "restored", "original")


def shipped() -> dict[str, np.ndarray]:
    """Two photographs of people that scikit-image and matplotlib carry."""
    hopper = matplotlib.cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)
    return {"astronaut": skimage.data.astronaut(), "grace_hopper": read_image(hopper).rgb}


def photographs(folder: Path | None) -> dict[str, np.ndarray]:
    """Pictures by name."""
    if folder is None:
        return shipped()
    return {relative.stem: read_image(path).rgb for path, relative in list_images(folder)}


def square(image: np.ndarray) -> np.ndarray:
    """512 x 512: shorter side scaled to 512, centre cut out (higher up in a portrait)."""
    scale = SIDE / min(image.shape[:2])
    size = [max(SIDE, round(n * scale)) for n in image.shape[1::-1]]
    image = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    top, left = (image.shape[0] - SIDE) // 4, (image.shape[1] - SIDE) // 2
    return np.ascontiguousarray(image[top : top + SIDE, left : left + SIDE])


def run(*arguments: str | Path) -> None:
    """A command of this project, as a user gives it."""
    subprocess.run([sys.executable, *map(str, arguments)], cwd=ROOT, check=True)


def non_local_means(image: np.ndarray) -> np.ndarray:
    """OpenCV's denoiser at its documented strength for coloured noise."""
    return cv2.fastNlMeansDenoisingColored(image, None, 10, 10, 7, 21)


def sharpness(image: np.ndarray) -> float:
    """Mean magnitude of the luma gradient, in grey levels per pixel."""
    gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
    return float(np.mean(np.hypot(cv2.Sobel(gray, -1, 1, 0), cv2.Sobel(gray, -1, 0, 1)))) / 8


def measure(pictures: dict[str, np.ndarray]) -> dict[str, float]:
    """PSNR-Y, SSIM-Y and sharpness of each version against the original."""
    original = pictures["original"]
    scores = {}
    for kind, image in pictures.items():
        if kind != "original":
            scores[f"{kind}_psnr_y"] = psnr_y(image, original)
            scores[f"{kind}_ssim_y"] = ssim_y(image, original)
        scores[f"{kind}_sharpness"] = sharpness(image)
    return scores


def sheet(rows: list[list[np.ndarray]]) -> np.ndarray:
    """Degraded, restored, original side by side under their names; a row each photograph."""
    gap, head = 8, 40
    height, width = len(rows) * (SIDE + gap) + head, len(COLUMNS) * (SIDE + gap) - gap
    canvas = Image.new("RGB", (width, height), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(24)
    for column, name in enumerate(COLUMNS):
        x = column * (SIDE + gap)
        draw.text((x + 8, 6), name, fill="black", font=font)
        for row, pictures in enumerate(rows):
            canvas.paste(Image.fromarray(pictures[column]), (x, head + row * (SIDE + gap)))
    return np.asarray(canvas)


def table(scores: dict[str, dict[str, float]]) -> str:
    """A line each photograph and the mean, PSNR-Y in dB / SSIM-Y."""
    mean = {k: float(np.mean([s[k] for s in scores.values()])) for k in next(iter(scores.values()))}
    kinds = ("degraded", "nlm", "restored")
    lines = [f"{'':24}" + "".join(f"{kind:>18}" for kind in kinds) + f"{'seconds':>10}"]
    shown = scores if len(scores) <= 4 else {}
    for name, s in {**shown, f"mean of {len(scores)}": mean}.items():
        cells = (f"{s[f'{k}_psnr_y']:.2f} / {s[f'{k}_ssim_y']:.4f}" for k in kinds)
        lines.append(f"{name:24}" + "".join(f"{c:>18}" for c in cells) + f"{s['seconds']:>10.2f}")
    sharp = (f"{mean[f'{k}_sharpness']:.2f}" for k in kinds)
    lines.append(f"{'sharpness':24}" + "".join(f"{c:>18}" for c in sharp))
    lines[-1] += f"   (original {mean['original_sharpness']:.2f})"
    return "\n".join(lines)


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--input", type=Path, help="folder of photographs; default: two shipped ones"
    )
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--sheet_rows", type=int, default=6)
    parser.add_argument("--model", type=Path, default=ROOT / "models" / "nano")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Write original/, degraded/, restored/, sheet.png and scores.json; print the table."""
    flags = parse(argv)
    out = flags.output.resolve()
    folders = {kind: out / kind for kind in COLUMNS}
    folders["original"].mkdir(parents=True, exist_ok=True)
    for name, image in photographs(flags.input).items():
        write_png(folders["original"] / f"{name}.png", square(image))
    seed = ("--seed", str(flags.seed), "--overwrite")
    places = ("--input", folders["original"], "--output", folders["degraded"])
    run("-m", "osdhuman_jax.degrade", *places, *seed)
    places = ("--input", folders["degraded"], "--output", folders["restored"])
    run("infer.py", *places, "--model", flags.model, "--overwrite")

    lines = (folders["restored"] / "provenance.jsonl").read_text().splitlines()
    seconds = {Path(p["output"]).stem: p["seconds"] for p in map(json.loads, lines)}
    scores, rows = {}, []
    for path, relative in list_images(folders["original"]):
        pictures = {kind: read_image(folders[kind] / path.name).rgb for kind in COLUMNS}
        pictures["nlm"] = non_local_means(pictures["degraded"])
        scores[relative.stem] = {**measure(pictures), "seconds": seconds[relative.stem]}
        rows.append([pictures[kind] for kind in COLUMNS])
    write_png(out / "sheet.png", sheet(rows[: flags.sheet_rows]))
    (out / "scores.json").write_text(json.dumps(scores, indent=2) + "\n")
    print(table(scores))


if __name__ == "__main__":
    main()
