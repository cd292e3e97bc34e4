"""Degrade photographs with a fixed seed, restore them through infer.py, measure, draw a sheet.

    python -m benchmarks.quality --output results                  # pictures that dependencies ship
    python -m benchmarks.quality --input PHOTOS --output results   # yours, cut to 512 x 512

OpenCV's non-local means, the denoiser that everybody has, is measured beside the model. With
`--write README.md` the table replaces the one between the marks that this file knows.
"""

import argparse
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import cv2
import matplotlib.cbook
import numpy as np
import skimage.data

from osdhuman_jax.compare import Row, sheet
from osdhuman_jax.disk import write_text
from osdhuman_jax.images import read_image, write_png
from osdhuman_jax.listing import list_images, named_images

ROOT = Path(__file__).parent.parent
SIDE = 512
COLUMNS = ("degraded", "restored", "original")  # of the sheet
METHODS = {"degraded": "degraded", "nlm": "non-local means", "restored": "restored"}


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


def gradient(image: np.ndarray) -> np.ndarray:
    """Magnitude of the luma gradient, in grey levels per pixel."""
    gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
    return np.hypot(cv2.Sobel(gray, -1, 1, 0), cv2.Sobel(gray, -1, 0, 1)) / 8


def sharpness(image: np.ndarray) -> float:
    """Mean gradient."""
    return float(np.mean(gradient(image)))


def degraded(pictures: dict[str, np.ndarray], out: Path, seed: int) -> None:
    """Fill out/original with the squares of pictures and out/degraded from these, by the seed."""
    (out / "original").mkdir(parents=True, exist_ok=True)
    if {path.stem for path, _ in list_images(out / "original")} - set(pictures):
        raise SystemExit(f"{out}: holds other pictures; give another --output")
    for name, image in pictures.items():
        write_png(out / "original" / f"{name}.png", square(image))
    places = ("--input", out / "original", "--output", out / "degraded")
    run("-m", "osdhuman_jax.degrade", *places, "--seed", str(seed), "--overwrite")


def rows(folders: Iterable[Path], count: int) -> list[Row]:
    """The first pictures of each folder, a column each."""
    files = [named_images(folder) for folder in folders]
    return [
        Row([read_image(f[name]).rgb for f in files], (name,)) for name in list(files[0])[:count]
    ]


def table(out: Path) -> str:
    """evaluate's table with a column of sharpness, which has no better side."""

    def mean(kind: str) -> float:
        return float(
            np.mean([sharpness(read_image(p).rgb) for p in named_images(out / kind).values()])
        )

    count = len(named_images(out / "original"))
    lines = (out / "scores" / "table.md").read_text().splitlines()
    head = lines[0].replace(f"n = {count}", f"mean of {count} photographs")
    columns = [f"sharpness (original {mean('original'):.2f})", "---"]
    columns += [f"{mean(kind):.2f}" for kind in METHODS]
    return "".join(f"{a} {b} |\n" for a, b in zip([head, *lines[1:]], columns, strict=True))


def put(path: Path, name: str, text: str) -> None:
    """Replace what stands between `<!-- quality NAME -->` and `<!-- end -->` in a file."""
    begin, end = f"<!-- quality {name} -->\n", "<!-- end -->"
    before, found, rest = path.read_text().partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise SystemExit(f"{path}: has no {begin.strip()} ... {end}")
    write_text(path, before + begin + text + end + after)


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
    parser.add_argument("--write", type=Path, nargs="+", default=[], help="files to put it in")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Write original/, degraded/, restored/, nlm/, sheet.png and scores/; print the table."""
    flags = parse(argv)
    out = flags.output.resolve()
    degraded(photographs(flags.input), out, flags.seed)
    places = ("--input", out / "degraded", "--output", out / "restored")
    run("infer.py", *places, "--model", flags.model, "--overwrite")
    (out / "nlm").mkdir(exist_ok=True)
    for name, path in named_images(out / "degraded").items():
        write_png(out / "nlm" / f"{name}.png", non_local_means(read_image(path).rgb))

    methods = [f"--restored={name}={out / kind}" for kind, name in METHODS.items()]
    folders = ("--reference", out / "original", "--output", out / "scores")
    run("-m", "osdhuman_jax.evaluate", *methods, *folders, "--metrics", "psnr,ssim")
    write_png(
        out / "sheet.png",
        sheet(rows((out / kind for kind in COLUMNS), flags.sheet_rows), COLUMNS, SIDE, box=None),
    )
    text = table(out)
    for path in flags.write:
        put(path, "photographs" if flags.input else "shipped", text)
    print(text, end="")


if __name__ == "__main__":
    main()
