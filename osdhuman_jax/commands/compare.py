"""Methods side by side: a sheet to print, or a page on which a person judges them blind.

    osdhuman compare --columns LQ=lq/ OSDHuman=restored/ HQ=hq/ --output sheet.png
    osdhuman compare --blind OSDHuman=restored/ Other=other/ --output ab/
    osdhuman compare --answers answers.csv --key ab/key.json

Of a sheet, as the paper's Figures 8 and 9, a row is a picture, a column a folder. The same detail
is framed and enlarged in every column: the one that is given, or the one where the columns disagree
most. The page, ab/index.html, shows pairs whose sides `--seed` draws, and saves answers.csv, of
which `--answers` tells the preference (evaluation/preference.py).
"""

import argparse
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import cv2
import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from osdhuman_jax.cli import (
    Parser,
    bar,
    check_file,
    check_folder,
    check_input_file,
    end,
    some_path,
    some_text,
)
from osdhuman_jax.evaluation import preference
from osdhuman_jax.filenames import spelled
from osdhuman_jax.images.codec import ImageError, read_srgb, write_png
from osdhuman_jax.images.listing import named_images, real

Pixels = UInt8[np.ndarray, "_ _ 3"]
Box = tuple[float, float, float]  # left, top, side as fractions of width, height, shorter side

# The look of a sheet: as in the paper's figures, a red frame and an inset in a corner.
GAP, HEAD, CAPTION = 6, 34, 22  # pixels
FRAME = (230, 60, 40)
DETAIL = 0.2  # side of the detail found, of the picture's shorter side
INSET = 0.45  # side of its enlargement, of the cell's shorter side
# What each kind of call uses of the flags that others have too, and what these are if not given.
USED = {
    "columns": ("names", "rows", "width", "box", "no_detail"),
    "blind": ("names", "seed"),
    "answers": (),
}
DEFAULTS = {
    "names": None,
    "rows": 6,
    "width": 320,
    "seed": 0,
    "box": None,
    "no_detail": False,
}


@dataclass(frozen=True)
class Row:
    """Pictures of one scene, one for each column, and the lines written under them."""

    images: Sequence[Pixels]
    captions: Sequence[str] = ()


def sheet(
    rows: Sequence[Row], columns: Sequence[str], cell: int = 320, box: Box | None | str = "auto"
) -> UInt8[np.ndarray, "h w 3"]:
    """The sheet's pixels; every picture is scaled to `cell` pixels of width.

    `box` is the detail of all rows, "auto" to find each row's own, None for no detail.
    """
    # Sizes: columns are of one width, rows as high as their pictures, captions where there are any.
    scaled = [[fit(image, cell, row.images) for image in row.images] for row in rows]
    heights = [images[0].shape[0] for images in scaled]
    lines = [CAPTION * any(row.captions) for row in rows]
    size = (len(columns) * (cell + GAP) - GAP, HEAD + sum(heights) + sum(lines) + GAP * len(rows))
    # Heads of the columns.
    canvas = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(canvas)
    for column, name in enumerate(columns):
        _write(draw, (column * (cell + GAP) + 4, 5), name, cell, 20)
    # Rows, from the top.
    y = HEAD
    for row, images, height, line in zip(rows, scaled, heights, lines, strict=True):
        found = focus(images) if box == "auto" else box
        for column, image in enumerate(images):
            x = column * (cell + GAP)
            framed = _with_inset(image, row.images[column], found)
            canvas.paste(Image.fromarray(framed), (x, y))
            if column < len(row.captions):
                _write(draw, (x + 4, y + height + 2), row.captions[column], cell, 14)
        y += height + line + GAP
    return np.asarray(canvas)


def _write(
    draw: ImageDraw.ImageDraw, at: tuple[int, int], text: str, width: int, size: int
) -> None:
    """One line, shortened until it fits the column."""
    font = ImageFont.load_default(size)
    while len(text) > 1 and draw.textlength(text, font) > width - 8:
        text = text.rstrip("…")[:-1] + "…"
    draw.text(at, text, fill="black", font=font)


def fit(image: Pixels, width: int, scene: Sequence[Pixels]) -> Pixels:
    """Scaled to `width` and the proportions of the scene's largest picture."""
    # A method may give smaller pictures than others: rows stay even.
    h, w = max((other.shape[:2] for other in scene), key=np.prod)
    size = (width, max(1, round(h * width / w)))
    return np.array(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))


def focus(images: Sequence[Pixels]) -> Box:
    """The square where pictures of one size disagree most, or one picture has most detail."""
    gray = np.stack([cv2.cvtColor(i, cv2.COLOR_RGB2GRAY).astype(np.float32) for i in images])
    # A single picture has nothing to disagree with: there edges decide.
    energy = gray.var(axis=0) if len(images) > 1 else cv2.Laplacian(gray[0], cv2.CV_32F) ** 2
    h, w = energy.shape
    side = max(1, round(DETAIL * min(h, w)))
    # Sums over all squares of that side by a summed-area table.
    sums = np.pad(energy.astype(np.float64).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    boxes = sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side]
    top, left = np.unravel_index(np.argmax(boxes), boxes.shape)
    return float(left / w), float(top / h), side / min(h, w)


def _with_inset(image: Pixels, source: Pixels, box: Box | None | str) -> Pixels:
    """`image` with the detail framed, and enlarged from `source` in the corner farthest from it."""
    if not isinstance(box, tuple):
        return image
    left, top, side = (round(v) for v in _pixels(box, image))
    canvas = Image.fromarray(image)
    draw = ImageDraw.Draw(canvas)
    draw.rectangle((left, top, left + side, top + side), outline=FRAME, width=2)
    h, w = image.shape[:2]
    large = round(INSET * min(h, w))
    # In the corner farthest from the detail, so that it hides nothing of it.
    x = 0 if left + side / 2 > w / 2 else w - large
    y = 0 if top + side / 2 > h / 2 else h - large
    # Of the picture as it was, which has more to show than the scaled one.
    left, top, side = _pixels(box, source)
    region = (left, top, left + side, top + side)
    detail = Image.fromarray(source).resize((large, large), Image.Resampling.BICUBIC, region)
    canvas.paste(detail, (x, y))
    draw.rectangle((x, y, x + large - 1, y + large - 1), outline=FRAME, width=2)
    return np.array(canvas)


def _pixels(box: Box, image: Pixels) -> Box:
    """The box in the picture's pixels, moved inside it."""
    h, w = image.shape[:2]
    side = box[2] * min(h, w)
    return min(box[0] * w, w - side), min(box[1] * h, h - side), side


def named_folder(text: str) -> tuple[str, Path]:
    """NAME=DIR, or DIR alone, named as its last part; the name is spelled.

    Raises argparse.ArgumentTypeError where a part is empty.
    """
    name, equals, folder = some_text(text).partition("=")
    if equals and not Path(text).is_dir():
        if not name:
            raise argparse.ArgumentTypeError(f"{text}: the name is empty; give NAME=DIR or DIR")
        return spelled(name), some_path(folder)
    return spelled(real(Path(text)).name), Path(text)


def _parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser("compare", "Methods side by side.")
    add = parser.add_argument
    # What is to be made, or told.
    what = parser.add_mutually_exclusive_group(required=True)
    folders = {"type": named_folder, "metavar": "NAME=DIR"}
    what.add_argument("--columns", nargs="+", help="a sheet of folders, left to right", **folders)
    what.add_argument("--blind", nargs=2, help="a page of pairs, sides unnamed", **folders)
    what.add_argument("--answers", nargs="+", type=some_path, help="what such a page has saved")
    add("--key", type=some_path, help="key.json of the page, for --answers")
    add("--output", type=some_path, help="the sheet, a PNG; of --blind, a folder")
    # Which pictures, and how large.
    add("--names", nargs="+", help="pictures to show, without suffix; default: the first, or all")
    add("--rows", type=int, help=f"of a sheet without --names ({DEFAULTS['rows']})")
    add("--width", type=int, help=f"of a sheet's column in pixels ({DEFAULTS['width']})")
    add("--seed", type=int, help=f"draws sides and order of --blind ({DEFAULTS['seed']})")
    # The detail: given, found, or none.
    detail = parser.add_mutually_exclusive_group()
    box = ("LEFT", "TOP", "SIDE")
    help_box = "detail in fractions of width, height, shorter side; default: each row's own"
    detail.add_argument("--box", nargs=3, type=float, metavar=box, help=help_box)
    detail.add_argument(
        "--no_detail", action="store_true", default=None, help="no frame, no enlargement"
    )
    args = parser.parse_args(argv)
    # What argparse cannot refuse.
    if (args.key is None) is bool(args.answers) or (args.output is None) is not bool(args.answers):
        parser.error("--answers goes with --key, all else with --output")
    _settle(parser, args)
    if args.rows < 1 or args.width < 32:
        parser.error("--rows takes at least 1, --width at least 32")
    if args.box and not (all(0 <= v <= 1 for v in args.box) and args.box[2] > 0):
        parser.error("--box takes fractions between 0 and 1")
    return args


def _settle(parser: Parser, args: argparse.Namespace) -> None:
    """Fill in the flags that were not given; exits with status 2 on one without effect."""
    call = next(kind for kind in USED if getattr(args, kind))
    for name, default in DEFAULTS.items():
        if getattr(args, name) is None:
            setattr(args, name, default)
        elif name not in USED[call]:
            parser.error(f"--{name} has no effect on --{call}; leave it out")


def _wanted(
    folders: dict[str, Path], names: Sequence[str] | None, most: int | None
) -> tuple[list[str], list[dict[str, Path]], int]:
    """Names of the pictures wanted, the files of each folder, and how many some folder lacks.

    Raises ValueError or OSError.
    """
    files = {name: named_images(folder) for name, folder in folders.items()}
    common = [name for name in next(iter(files.values())) if all(name in f for f in files.values())]
    wanted = [spelled(name) for name in names or ()] or common[:most]
    # A pair that is shown twice would be answered twice, and neither answer could be counted.
    if twice := [name for name, times in Counter(wanted).items() if times > 1]:
        raise ValueError(f"--names has {twice[0]} more than once")
    if not wanted:
        raise ValueError("the columns have no picture of one name")
    if absent := [name for name in wanted if name not in common]:
        raise ValueError(f"not in every column: {', '.join(absent)}")
    return wanted, [*files.values()], len(set().union(*files.values())) - len(common)


def _scenes(
    wanted: Sequence[str], files: Sequence[dict[str, Path]]
) -> Iterator[tuple[str, list[Pixels]]]:
    """Each name with its picture of every folder. Raises ValueError (as ImageError is)."""
    # Large photographs take a second each to decode.
    with bar(len(wanted), "row", shown=len(wanted) > 1) as progress:
        for name in wanted:
            yield name, [_read(found[name]) for found in files]
            progress.update()


def _read(path: Path) -> Pixels:
    try:
        return read_srgb(path)
    except ImageError as error:
        raise ValueError(f"{spelled(path)}: {error}") from error


def _make_sheet(args: argparse.Namespace, folders: dict[str, Path]) -> str:
    """Write the sheet; returns what there is to say. Raises ValueError or OSError."""
    check_file("output", args.output)
    wanted, files, lacking = _wanted(folders, args.names, args.rows)
    rows = [Row(images, (name,)) for name, images in _scenes(wanted, files)]
    box = None if args.no_detail else tuple(args.box) if args.box else "auto"
    args.output.parent.mkdir(parents=True, exist_ok=True)
    write_png(args.output, sheet(rows, list(folders), args.width, box))
    _tell_lacking(lacking, args.names)
    return f"{len(rows)} rows, {len(folders)} columns: {spelled(args.output)}"


def _make_page(args: argparse.Namespace, folders: dict[str, Path]) -> str:
    """Write the page of pairs; returns what there is to say. Raises ValueError or OSError."""
    check_folder("output", args.output)
    # A new draw would make the answers to the old one worthless.
    if (args.output / preference.KEY).exists():
        raise ValueError(f"--output {spelled(args.output)}: has a page; name another folder")
    first, second = folders
    if real(folders[first]) == real(folders[second]):
        raise ValueError(f"--blind: {first} and {second} are one folder; name two")
    wanted, files, lacking = _wanted(folders, args.names, None)
    pairs = ((name, one, two) for name, (one, two) in _scenes(wanted, files))
    preference.write_page(args.output, (first, second), pairs, args.seed)
    _tell_lacking(lacking, args.names)
    key = spelled(args.output / preference.KEY)
    return (
        f"{len(wanted)} pairs: open {spelled(args.output / preference.PAGE)} in a browser\n"
        f"which side is whose is in {key}: osdhuman compare --answers FILE --key {key}"
    )


def _tell_answers(args: argparse.Namespace) -> str:
    """The preference in words. Raises ValueError or OSError."""
    check_input_file("key", args.key)
    key = preference.read_key(args.key)
    # The same choices again would count as those of another person.
    known: dict[bytes, Path] = {}
    for path in args.answers:
        check_input_file("answers", path)
        first = known.setdefault(path.read_bytes(), path)
        if first is not path:
            both = f"{spelled(first)} and {spelled(path)}"
            raise ValueError(f"--answers: {both} are the same; give each person's file once")
    answers = [preference.read_answers(path, key) for path in args.answers]
    return preference.told(key, preference.count(key, answers))


def _tell_lacking(lacking: int, names: Sequence[str] | None) -> None:
    """Say how many pictures were left out, where nobody named those to show."""
    if lacking and not names:
        print(f"left out: {lacking} that are not in every column", file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> int:
    """Make or tell what is asked for; 0 = done, 2 = not (one line says why)."""
    args = _parse_args(argv)
    given = args.columns or args.blind or ()
    folders = dict(given)
    try:
        if len(folders) < len(given):
            raise ValueError("two columns have one name: give them as NAME=DIR")
        if args.answers:
            said = _tell_answers(args)
        else:
            said = (_make_sheet if args.columns else _make_page)(args, folders)
    except (OSError, ValueError) as error:
        print(f"compare: {error}", file=sys.stderr)
        return 2
    print(said)
    return 0


def command() -> NoReturn:
    """Run the command as the whole process."""
    end("compare", main)


if __name__ == "__main__":
    command()
