"""Models trained by different objectives side by side, with references and without.

    python -m benchmarks.objectives --model MSE=runs/mse/model --model VSD=models/nano \
        --photographs DIR [--real DIR] --niqe niqe_pris_params.npz --output OUT

Photographs are cut and degraded as in `benchmarks.quality`; real low-quality pictures are taken as
they are, without references. NIQE is not defined below 192 pixels of side: its mean is over the
larger ones. Its parameters are BasicSR's (`niqe_pris_params.npz`) or LIVE's.
"""

import argparse
from pathlib import Path

import numpy as np

from benchmarks.measures import edges, grain, sharpness
from benchmarks.quality import as_it_is, degraded, fill, photographs, read, run, square
from benchmarks.sheets import side_by_side
from osdhuman_jax.evaluation import niqe
from osdhuman_jax.evaluation.metrics import psnr_y, ssim_y
from osdhuman_jax.images.codec import write_png
from osdhuman_jax.images.listing import named_images

SIDE = 256  # of a picture in the sheet
SEED = 7
COLUMNS = ("PSNR ↑", "SSIM ↑", "edges (original 1)", "grain (original 1)", "NIQE ↓", "sharpness")


def with_reference(image: np.ndarray, original: np.ndarray) -> tuple[float, ...]:
    """PSNR-Y, SSIM-Y, edges, grain."""
    return tuple(f(image, original) for f in (psnr_y, ssim_y, edges, grain))


def measures(folder: Path, originals: Path | None, natural: niqe.Niqe) -> str:
    """A row of the table: means over a folder."""
    pictures = read(folder)
    found = "- | - | - | -"
    if originals:
        true = read(originals)
        values = [with_reference(x, true[n]) for n, x in pictures.items()]
        found = "{:.2f} | {:.4f} | {:.3f} | {:.2f}".format(*np.mean(values, axis=0))
    looks = np.nanmean([(natural(x), sharpness(x)) for x in pictures.values()], axis=0)
    return "{} | {:.2f} | {:.2f}".format(found, *looks)


def compare(out: Path, models: dict[str, str], natural: niqe.Niqe, count: int) -> None:
    """Restore out/degraded by every model, print a table, draw `count` pictures."""
    places = {"degraded": out / "degraded"}
    for name, model in models.items():
        places[name] = out / name.replace("/", "-")
        flags = ("--input", out / "degraded", "--output", places[name])
        # The networks' own output, whatever a model is best used with.
        plain = ("--color_fix", "none", "--blend", "1", "--overwrite")
        run("infer.py", *flags, "--model", model, *plain)
    originals = out / "original" if (out / "original").is_dir() else None
    if originals:
        places["original"] = originals
    head = f"mean of {len(named_images(out / 'degraded'))} pictures"
    print(f"\n| {head} | {' | '.join(COLUMNS)} |\n|---|{'---|' * len(COLUMNS)}")
    for name, folder in places.items():
        reference = None if name == "original" else originals
        print(f"| {name} | {measures(folder, reference, natural)} |")
    shown = {name: read(folder) for name, folder in places.items()}
    write_png(out / "sheet.png", side_by_side(shown, count, SIDE))


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", action="append", required=True, help="NAME=DIR, repeated")
    parser.add_argument("--photographs", type=Path, help="folder with originals")
    parser.add_argument("--real", type=Path, help="folder of low-quality pictures")
    parser.add_argument("--niqe", type=Path, required=True, help="NIQE's parameters")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--sheet_rows", type=int, default=6)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Write OUT/photographs and OUT/real, print their tables."""
    flags = parse(argv)
    models = dict(item.split("=", 1) for item in flags.model)
    models = {name: str(Path(folder).resolve()) for name, folder in models.items()}
    natural, out = niqe.read_parameters(flags.niqe), flags.output.resolve()
    if flags.photographs:
        place = out / "photographs"
        fill(place / "original", photographs(flags.photographs), square)
        degraded(place / "original", place / "degraded", SEED)
        compare(out / "photographs", models, natural, flags.sheet_rows)
    if flags.real:
        fill(out / "real" / "degraded", photographs(flags.real), as_it_is)
        compare(out / "real", models, natural, flags.sheet_rows)


if __name__ == "__main__":
    main()
