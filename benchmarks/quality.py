"""Degrade photographs with a fixed seed, restore them by several methods, measure, draw sheets.

    python -m benchmarks.quality --output results                  # pictures that dependencies ship
    python -m benchmarks.quality --input PHOTOS --output results   # yours, in squares of --side
    python -m benchmarks.quality --input PHOTOS --real LOW --niqe niqe_pris_params.npz \
        --peer Real-ESRGAN=models/realesrgan --output results

The bundled model and the peers are model folders, restored through `infer.py`; OpenCV's non-local
means, the denoiser that everybody has, is always beside them. `--restored NAME=DIR` takes what
another program made of the same pictures: DIR/degraded, moved, clean and real, as far as they are
there.

`--motion SOURCE` adds a table of the same photographs with motion blur: one part of a person moves
in the place of the degradation's first order, by the maps that `osdhuman parts --from SOURCE` makes
of them.

The output has a folder for each table, `degraded`, `moved` and `real` (pictures of low quality
whose originals nobody has), and `clean`, where the photographs themselves are put in; in each of
them `input` and a folder for each method. A second run restores only what changed. With `--write
README.md` the tables replace those between the marks that this file knows.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

import cv2
import matplotlib.cbook
import numpy as np
import skimage.data

from benchmarks.measures import (
    Named,
    Outcome,
    Pixels,
    legend,
    no_niqe,
    paragraph,
    table,
    with_originals,
    without_originals,
)
from benchmarks.sheets import clean_sheet, faces_sheet, side_by_side
from osdhuman_jax.commands.compare import named_folder
from osdhuman_jax.commands.degrade import LOG_NAME
from osdhuman_jax.disk import write_text
from osdhuman_jax.evaluation.niqe import Niqe, NiqeError, read_parameters
from osdhuman_jax.images.codec import read_image, write_png
from osdhuman_jax.images.listing import named_images

ROOT = Path(__file__).parent.parent
SIDE = 512
INPUT = "input"  # the folder of what methods are given
# A method is given a folder of pictures, fills another, and says how many seconds a picture took,
# or None if it cannot say or has nothing for this folder.
Method = Callable[[Path, Path], float | None]


def shipped() -> dict[str, Path | Pixels]:
    """Two photographs of people that scikit-image and matplotlib carry."""
    hopper = matplotlib.cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)
    return {"astronaut": skimage.data.astronaut(), "grace_hopper": Path(hopper)}


def photographs(folder: Path | None) -> Mapping[str, Path | Pixels]:
    """Pictures, or their files, by name."""
    return shipped() if folder is None else named_images(folder)


def square(image: Pixels, side: int = SIDE) -> Pixels:
    """Shorter side scaled to `side`, a centred square cut out (higher up in a portrait)."""
    scale = side / min(image.shape[:2])
    size = [max(side, round(n * scale)) for n in image.shape[1::-1]]
    image = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    top, left = (image.shape[0] - side) // 4, (image.shape[1] - side) // 2
    return np.ascontiguousarray(image[top : top + side, left : left + side])


def as_it_is(image: Pixels) -> Pixels:
    """The picture itself."""
    return image


def run(*arguments: str | Path) -> None:
    """A command of this project, as a user gives it."""
    subprocess.run([sys.executable, *map(str, arguments)], cwd=ROOT, check=True)


def fill(
    folder: Path, pictures: Mapping[str, Path | Pixels], change: Callable[[Pixels], Pixels]
) -> None:
    """Write changed pictures as PNGs. Raises ValueError where the folder holds others already."""
    if folder.is_dir() and any(folder.iterdir()) and set(named_images(folder)) - set(pictures):
        raise ValueError(f"{folder}: holds other pictures; give another --output")
    for name, image in pictures.items():
        save(folder, name, change(read_image(image).rgb if isinstance(image, Path) else image))


def save(folder: Path, name: str, image: Pixels) -> None:
    """Write a PNG; the name may have folders of its own."""
    path = folder / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_png(path, image)


def degraded(originals: Path, folder: Path, seed: int, *more: str | Path) -> None:
    """Fill a folder with pictures degraded by the seed; `more` are flags of the command."""
    places = ("--input", originals, "--output", folder)
    run("-m", "osdhuman_jax.commands.degrade", *places, "--seed", str(seed), "--overwrite", *more)


def moved(originals: Path, maps: Path, source: str, folder: Path, seed: int) -> int:
    """The same with motion blur of one part of a person; returns in how many a part moved."""
    # The command runs in another folder than this one's user.
    kind, colon, file = source.partition(":")
    source = f"{kind}:{Path(file).resolve()}" if colon else kind
    places = ("--pictures", originals, "--output", maps)
    run("-m", "osdhuman_jax.commands.parts", *places, "--from", source)
    degraded(originals, folder, seed, "--parts", maps)
    lines = map(json.loads, (folder / LOG_NAME).read_text().splitlines())
    return sum(line["record"]["state"] == "motion" for line in lines)


def read(folder: Path) -> dict[str, Pixels]:
    """All pictures of a folder, by name."""
    return {name: read_image(path).rgb for name, path in named_images(folder).items()}


# Methods


def non_local_means(inputs: Path, outputs: Path) -> float:
    """OpenCV's denoiser at its documented strength for coloured noise."""
    seconds = []
    for name, image in read(inputs).items():
        start = time.perf_counter()
        restored = cv2.fastNlMeansDenoisingColored(image, None, 10, 10, 7, 21)
        seconds.append(time.perf_counter() - start)
        save(outputs, name, restored)
    return statistics.median(seconds)


def by_model(model: Path, inputs: Path, outputs: Path, *flags: str | Path) -> float:
    """A model folder, through `infer.py` with these flags, whose record has the seconds."""
    places = ("--input", inputs, "--output", outputs, "--model", model)
    run("infer.py", *places, "--overwrite", *flags)
    lines = map(json.loads, (outputs / "provenance.jsonl").read_text().splitlines())
    # A picture that was restored again has a later line.
    latest = {line["output"]: line["seconds"] for line in lines if line["status"] == "ok"}
    return statistics.median(latest.values())


def by_others(root: Path, inputs: Path, outputs: Path) -> None:
    """What another program made of the inputs, if it did."""
    theirs = root / inputs.parent.name
    if theirs.is_dir():
        found = named_images(theirs)
        if missing := sorted(set(named_images(inputs)) - set(found)):
            raise ValueError(f"{theirs}: has no {missing[0]}")
        fill(outputs, {name: found[name] for name in named_images(inputs)}, as_it_is)


def methods(flags: argparse.Namespace) -> dict[str, Method]:
    """Every row of the tables below the first one, by its name."""
    found: dict[str, Method] = {"non-local means": non_local_means}
    for name, folder in map(named_folder, [flags.model, *flags.peer]):
        if folder.is_dir():
            found[name] = partial(by_model, folder.resolve())
        elif name == named_folder(flags.model)[0]:
            raise ValueError(f"--model {folder}: no such folder")
        else:
            print(f"{name} is left out: {folder} is no folder", file=sys.stderr)
    for name, folder in map(named_folder, flags.restored):
        if not folder.is_dir():
            raise ValueError(f"--restored {folder}: no such folder")
        found[name] = partial(by_others, folder.resolve())
    return found


def restored(place: Path, rows: Mapping[str, Method]) -> Iterator[tuple[str, Named, float | None]]:
    """The name of each method, what it makes of place/input, and its seconds a picture."""
    # A method that scales or drops pictures would be measured on other ones than the rest.
    expected = {name: image.shape for name, image in read(place / INPUT).items()}
    for name, method in rows.items():
        outputs = place / name.replace("/", "-").replace(" ", "-")
        seconds = method(place / INPUT, outputs)
        pictures = read(outputs) if outputs.is_dir() else {}
        if pictures and {n: image.shape for n, image in pictures.items()} != expected:
            raise ValueError(f"{outputs}: has not the pictures of {place / INPUT} in their sizes")
        yield name, pictures, seconds


# Sets of pictures


def measure_photographs(
    flags: argparse.Namespace, out: Path, rows: Mapping[str, Method], natural: Niqe | None
) -> dict[str, str]:
    """Degrade, restore, put the clean ones in as well; the tables and the sheets of all that."""
    # The originals, which are inputs of their own, and what degradation makes of them.
    fill(out / "clean" / INPUT, photographs(flags.input), partial(square, side=flags.side))
    inputs = out / "clean" / INPUT
    degraded(inputs, out / "degraded" / INPUT, flags.seed)
    # What every method makes of both.
    originals = read(inputs)
    clean = {name: pictures for name, pictures, _ in restored(out / "clean", rows)}
    outcomes = of_degraded(out / "degraded", rows, originals, clean)
    corner = f"mean of {len(originals)} photographs"
    if flags.side != SIDE:
        corner += f" of {flags.side} x {flags.side}"
    texts = {"photographs" if flags.input else "shipped": table_of(corner, outcomes, natural)}
    if flags.motion:
        places = inputs, out / "parts", flags.motion, out / "moved" / INPUT
        count = moved(*places, flags.seed)
        shaken = of_degraded(out / "moved", rows, originals, clean)
        corner += f", motion blur in {count}"
        texts["moved"] = table_of(corner, shaken, natural)
        show(out / "moved.png", shaken, originals, flags.sheet_rows, flags.side)
    # What a person looks at.
    shown = show(out / "sheet.png", outcomes, originals, flags.sheet_rows, flags.side)
    if (sheet := faces_sheet(shown, originals)) is not None:
        write_png(out / "faces.png", sheet)
    write_png(out / "clean.png", clean_sheet(originals, clean, flags.sheet_rows))
    return texts


def of_degraded(
    place: Path, rows: Mapping[str, Method], originals: Named, clean: Mapping[str, Named]
) -> dict[str, Outcome]:
    """What place/input is, and what every method makes of it that has something for it."""
    outcomes = {"degraded": Outcome(read(place / INPUT), originals)}
    for name, pictures, seconds in restored(place, rows):
        if pictures:
            outcomes[name] = Outcome(pictures, originals, clean[name], seconds)
    return outcomes


def table_of(corner: str, outcomes: Mapping[str, Outcome], natural: Niqe | None) -> str:
    """The table of photographs whose originals are known, and what its columns are."""
    originals = outcomes["degraded"].originals
    return table(corner, outcomes, with_originals(natural, originals)) + legend(natural)


def show(
    path: Path, outcomes: Mapping[str, Outcome], originals: Named, rows: int, cell: int
) -> dict[str, Named]:
    """Write the pictures of all methods side by side; returns them by method."""
    shown = {name: made.pictures for name, made in outcomes.items()} | {"original": originals}
    write_png(path, side_by_side(shown, rows, cell))
    return shown


def measure_real(
    flags: argparse.Namespace, out: Path, rows: Mapping[str, Method], natural: Niqe | None
) -> str:
    """Restore pictures that have no original; their table and sheet."""
    fill(out / "real" / INPUT, photographs(flags.real), as_it_is)
    outcomes = {"as they are": Outcome(read(out / "real" / INPUT))}
    for name, pictures, seconds in restored(out / "real", rows):
        if pictures:
            outcomes[name] = Outcome(pictures, seconds=seconds)
    pictures = outcomes["as they are"].pictures
    shown = {name: made.pictures for name, made in outcomes.items()}
    write_png(out / "real.png", side_by_side(shown, flags.sheet_rows, SIDE // 2))
    text = table(f"{len(pictures)} real pictures", outcomes, without_originals(natural))
    lines = [
        "Sharpness: mean luma gradient in grey levels, noise's too. Faces: how many are found."
    ]
    if natural:
        large = sum(not np.isnan(natural(image)) for image in pictures.values())
        lines.append(f"NIQE is of the {large} pictures that are large enough for it.")
    return text + paragraph(lines + no_niqe(natural))


def put(path: Path, texts: Mapping[str, str]) -> None:
    """Replace what stands between `<!-- quality NAME -->` and `<!-- end -->` in a file.

    A text whose mark the file has not is left out. Raises ValueError where there is none at all.
    """
    # A README has the tables of the shipped pictures, a report those of many photographs.
    page, end = path.read_text(), "<!-- end -->"
    marks = {name: f"<!-- quality {name} -->\n" for name in texts}
    there = {name: mark for name, mark in marks.items() if mark in page}
    if not there:
        raise ValueError(f"{path}: has no {', '.join(map(str.strip, marks.values()))}")
    for name, mark in there.items():
        before, _, rest = page.partition(mark)
        _, closed, after = rest.partition(end)
        if not closed:
            raise ValueError(f"{path}: has no {end} after {mark.strip()}")
        page = before + mark + texts[name] + end + after
    write_text(path, page)


def command_line(description: str | None = __doc__) -> argparse.ArgumentParser:
    """The flags; another command that makes such tables adds its own."""
    parser = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    add = parser.add_argument
    add("--input", type=Path, help="folder of photographs; default: two shipped ones")
    add("--real", type=Path, help="folder of low-quality pictures without originals")
    add("--output", type=Path, required=True)
    add("--seed", type=int, default=7)
    add("--side", type=int, default=SIDE, help="of the squares that are cut, in pixels")
    add("--sheet_rows", type=int, default=6)
    default = f"bundled model={ROOT / 'models' / 'nano'}"
    add("--model", metavar="NAME=DIR", default=default)
    peer_help = "another model folder, left out where it is absent; repeated"
    add("--peer", metavar="NAME=DIR", action="append", default=[], help=peer_help)
    add("--motion", metavar="SOURCE", help="a table with motion blur; as osdhuman parts --from")
    restored_help = "what another program made: DIR/degraded, moved, clean, real; repeated"
    add("--restored", metavar="NAME=DIR", action="append", default=[], help=restored_help)
    add("--niqe", type=Path, help="NIQE's parameters, BasicSR's .npz or LIVE's .mat")
    add("--write", type=Path, nargs="+", default=[], help="files to put the tables in")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Write the folders and sheets, print the tables; 0 = done, 2 = not (one line says why)."""
    return report(command_line().parse_args(argv), methods)


def report(
    flags: argparse.Namespace, rows_of: Callable[[argparse.Namespace], Mapping[str, Method]]
) -> int:
    """Do what the flags ask, with the rows that `rows_of` makes of them; the exit status."""
    out = flags.output.resolve()
    try:
        if flags.side < 1:
            raise ValueError(f"--side must be at least 1, got {flags.side}")
        rows, natural = rows_of(flags), read_parameters(flags.niqe) if flags.niqe else None
        texts = measure_photographs(flags, out, rows, natural)
        if flags.real:
            texts["real"] = measure_real(flags, out, rows, natural)
        for path in flags.write:
            put(path, texts)
    except (ValueError, OSError, NiqeError) as error:
        print(f"quality: {error}", file=sys.stderr)
        return 2
    except subprocess.CalledProcessError as error:
        # The command has said what was wrong.
        return error.returncode
    print("\n".join(texts.values()), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
