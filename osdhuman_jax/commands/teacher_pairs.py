"""Pairs for training: degraded crops of photographs, and what a teacher makes of each.

What `osdhuman label` does when its flags are read. Goes in: photographs and a restorer's model
folder. Comes out: OUTPUT/lq, OUTPUT/teacher and OUTPUT/labels.jsonl, which `data.labelled` reads.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from osdhuman_jax.cli import bar, check_folder
from osdhuman_jax.config import DataConfig, Json
from osdhuman_jax.data.crops import random_crop
from osdhuman_jax.data.loader import epoch_order
from osdhuman_jax.data.sources import Source, open_source, read_pixels
from osdhuman_jax.degrade.operations import Image8
from osdhuman_jax.degrade.second_order import degrade, sample_rng
from osdhuman_jax.disk import append_line, file_digest, json_lines
from osdhuman_jax.images.codec import Picture, write_png
from osdhuman_jax.inference.pipeline import Pipeline

SIDE = 512  # pixels of a crop, for a teacher that restores at a quarter of the side
ZOOM = (1.0, 2.2)  # how much larger than the photograph: a face then is as large as in a portrait
LOG = "labels.jsonl"
# By their names on disk, where `data.sources` finds them.
KINDS = ("lq", "teacher")  # folders


def crop(source: Source, seed: int, number: int) -> Image8:
    """The LQ number `number`: a window of a photograph, maybe mirrored, degraded as in training."""
    # Each epoch takes every photograph once, in an order of its own.
    epoch, place = divmod(number, len(source))
    index = int(epoch_order(seed, epoch, len(source))[place])
    rng = sample_rng(seed, epoch, index)
    # Drawn in one fixed order, so that a number means one crop.
    zoom = rng.uniform(*ZOOM)
    photograph, _ = read_pixels(source, index)
    window = random_crop(photograph, rng, (SIDE, SIDE), round(min(photograph.shape[:2]) * zoom))
    if rng.random() < 0.5:
        window = np.ascontiguousarray(window[:, ::-1])
    return degrade(window, rng, DataConfig().degradation)[0]


def missing(output: Path, count: int, identity: Json) -> Iterator[int]:
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


def make_pairs(arguments: argparse.Namespace) -> int:
    """Make the pairs that are missing; returns how many. Raises ValueError or OSError."""
    check_folder("output", arguments.output)
    source, output = open_source(arguments.input), arguments.output
    # Whatever can be wrong is known before a folder is made.
    pipeline = Pipeline.from_folder(arguments.model, arguments.precision)
    identity = {"seed": arguments.seed, "photographs": len(source), "model": pipeline.model.digest}
    for kind in KINDS:
        (output / kind).mkdir(parents=True, exist_ok=True)
    left = list(missing(output, arguments.count, identity))
    with bar(len(left), "picture") as progress:
        for number in left:
            lq = crop(source, arguments.seed, number)
            label = pipeline.restore([Picture(lq)])[0].rgb
            pictures = zip(KINDS, (lq, label), strict=True)
            digests = {kind: write_png(output / kind / name(number), rgb) for kind, rgb in pictures}
            # After its files: a pair without a line is made again.
            append_line(output / LOG, json.dumps({"number": number, **identity, **digests}))
            progress.update()
    return len(left)
