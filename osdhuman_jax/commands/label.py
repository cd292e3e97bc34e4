"""A teacher's labels: degraded crops of photographs, and what a restorer makes of each.

    osdhuman label --input photos/ --model models/realesrgan \\
        --output data/labelled --count 1900 --seed 7

Writes OUTPUT/lq and OUTPUT/teacher, 512 x 512 PNG files of one name, and a line of labels.jsonl for
each pair; `data.labelled` reads such a folder. Crop number i is a function of (seed, i), so the
same command goes on where it was stopped, and a greater --count adds to what is there.

Exit status: 0 all there, 2 nothing was done, 130 interrupted.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from osdhuman_jax.cli import Parser, bar, check_folder, end, some_path
from osdhuman_jax.config import DataConfig
from osdhuman_jax.data.crops import random_crop
from osdhuman_jax.data.loader import epoch_order
from osdhuman_jax.data.sources import Source, open_source, read_pixels
from osdhuman_jax.degrade.second_order import Image8, degrade, sample_rng
from osdhuman_jax.disk import append_line, file_digest, json_lines
from osdhuman_jax.images.codec import Picture, write_png
from osdhuman_jax.inference.pipeline import Pipeline
from osdhuman_jax.inference.settings import PRECISIONS

SIDE = 512  # pixels of a crop, for a teacher that restores at a quarter of the side
ZOOM = (1.0, 2.2)  # how much larger than the photograph: a face then is as large as in a portrait
LOG = "labels.jsonl"
KINDS = ("lq", "teacher")  # folders


def crop(source: Source, seed: int, number: int) -> Image8:
    """The LQ number `number`: a window of a photograph, maybe mirrored, degraded as in training."""
    # Each epoch takes every photograph once, in an order of its own.
    epoch, place = divmod(number, len(source))
    index = int(epoch_order(seed, epoch, len(source))[place])
    rng = sample_rng(seed, epoch, index)
    zoom = rng.uniform(*ZOOM)
    photograph, _ = read_pixels(source, index)
    window = random_crop(photograph, rng, SIDE, round(min(photograph.shape[:2]) * zoom))
    if rng.random() < 0.5:
        window = np.ascontiguousarray(window[:, ::-1])
    return degrade(window, rng, DataConfig().degradation)[0]


def missing(output: Path, count: int, identity: dict[str, Any]) -> Iterator[int]:
    """Numbers of the pairs that are not there, or are of another model, seed or source."""
    # A pair counts if both files are those that its line tells of.
    log = output / LOG
    known = {e.get("number"): e for e in json_lines(log.read_bytes() if log.is_file() else b"")}
    for number in range(count):
        entry = known.get(number, {})
        whole = all(
            (path := output / kind / name(number)).is_file()
            and file_digest(path) == entry.get(kind)
            for kind in KINDS
        )
        if not (whole and identity.items() <= entry.items()):
            yield number


def name(number: int) -> str:
    """The file's name in both folders."""
    return f"{number:06d}.png"


def run(arguments: argparse.Namespace) -> int:
    """Make the pairs that are missing; returns how many. Raises ValueError or OSError."""
    check_folder("output", arguments.output)
    source, output = open_source(arguments.input), arguments.output
    pipeline = Pipeline.from_folder(arguments.model, arguments.precision)
    identity = {"seed": arguments.seed, "photographs": len(source), "model": pipeline.model.digest}
    for kind in KINDS:
        (output / kind).mkdir(parents=True, exist_ok=True)
    left = list(missing(output, arguments.count, identity))
    with bar(len(left), "picture") as advance:
        for number in left:
            lq = crop(source, arguments.seed, number)
            label = pipeline.restore([Picture(lq)])[0].rgb
            pictures = zip(KINDS, (lq, label), strict=True)
            digests = {kind: write_png(output / kind / name(number), rgb) for kind, rgb in pictures}
            # After its files: a pair without a line is made again.
            append_line(output / LOG, json.dumps({"number": number, **identity, **digests}))
            advance(1)
    return len(left)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = Parser("osdhuman label", "Degraded crops and a teacher's labels.")
    parser.add_argument("--input", required=True, type=some_path, help="photographs, or records")
    parser.add_argument("--model", required=True, type=some_path, help="the teacher's model folder")
    parser.add_argument(
        "--output", required=True, type=some_path, help="folder of lq/ and teacher/"
    )
    parser.add_argument("--count", type=int, default=1000, help="pairs in all")
    parser.add_argument("--seed", type=int, default=0, help="of all that is drawn")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32", help="of the teacher")
    try:
        arguments = parser.parse_args(argv)
        if arguments.count < 1 or arguments.seed < 0:
            parser.error("--count takes at least 1, --seed at least 0")
        made = run(arguments)
    except (ValueError, OSError) as error:
        print(f"label: {error}", file=sys.stderr)
        return 2
    print(f"{made} pairs made, {arguments.count} are in {arguments.output}")
    return 0


def command() -> NoReturn:
    """Run the command as the whole process."""
    end("label", main, "the same command goes on")


if __name__ == "__main__":
    command()
