"""The command: LQ pictures of HQ pictures, seeded, with a log of all that was drawn.

    osdhuman degrade --input photos/ --output lq/ --seed 0
    osdhuman degrade --input photos/ --output val/ --seed 0 --profile persona-val

    osdhuman degrade --input photos/ --output lq/ --seed 0 --parts parts/

With --parts, a folder of the pictures' maps by `osdhuman parts`, one part of a person moves in each
picture while the shutter is open, in the place of the degradation's first order. A picture without
a map, or without a part that is large enough, has that order as ever.

A profile makes the pairs of a benchmark: hq/, lq/ of the same size and lq_small/ at the model's
scale. There each picture's generator is seeded by its own content, so that neither its name nor
its neighbours matter, and the log has the digests of the files. They are the same wherever the
pinned packages run on x86-64 with AVX2 and FMA; OpenCV rounds differently where there is no FMA.
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import cv2
import numpy as np
from jaxtyping import UInt8

from osdhuman_jax.cli import Parser, bar, check_folder, check_input, end, say, some_path
from osdhuman_jax.config import DegradationConfig
from osdhuman_jax.degrade.motion import PartMap
from osdhuman_jax.degrade.operations import Image8
from osdhuman_jax.degrade.second_order import (
    MIN_SIDE,
    Params,
    Rng,
    apply_record,
    degrade,
    draw_record,
    from_unit,
    resize,
    sample_rng,
    to_unit,
)
from osdhuman_jax.disk import append_line, write_text
from osdhuman_jax.filenames import spelled
from osdhuman_jax.images.alpha import filled
from osdhuman_jax.images.codec import read_image, write_png
from osdhuman_jax.images.listing import list_images, real

LOG_NAME = "degradations.jsonl"
PROFILES = {"persona-val": 512}  # side of the squares (paper 4.2; RealESRGAN as in training)
PAIR = ("hq", "lq", "lq_small")


def main(argv: Sequence[str] | None = None) -> int:
    """Degrade files; 0 = all done, 1 = some could not be (named on stderr), 2 = none was."""
    args = _parse_args(argv)
    # What is to be made, refused before anything is.
    output = args.output
    try:
        check_folder("output", output)
        if args.parts:
            check_input("parts", args.parts)
        jobs = _plan(args.input, output, args)
    except (OSError, ValueError) as error:
        print(f"degrade: {error}", file=sys.stderr)
        return 2
    # One by one; a picture that cannot be degraded does not stop the others.
    work = _make_pair if args.profile else _degrade_file
    made, log = 0, output / LOG_NAME
    with bar(len(jobs), "picture", shown=len(jobs) > 1) as progress:
        for index, (source, name, targets) in enumerate(jobs):
            try:
                entry = work(source, targets, index, args)
            except (OSError, ValueError) as error:
                say(f"degrade: {spelled(source)}: {error}")
                progress.update()
                continue
            # At once, so that a run that is interrupted tells of what it made.
            try:
                _add_line(log, {"file": name, "seed": args.seed, **entry}, first=not made)
            except OSError as error:
                say(f"degrade: {spelled(log)}: {error}")
                return 1
            made += 1
            progress.update()
    if not made:
        return 2
    print(f"{made} of {len(jobs)} images degraded into {spelled(output)}")
    return 0 if made == len(jobs) else 1


def _add_line(log: Path, entry: Params, *, first: bool) -> None:
    """Add a picture's line; a run's first one replaces the log of a run before it."""
    line = json.dumps(entry)
    if first:
        write_text(log, line + "\n")
    else:
        append_line(log, line)


def _parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser("degrade", "Make LQ images of HQ images.")
    parser.add_argument(
        "--input", required=True, type=some_path, help="an image or a folder of images"
    )
    parser.add_argument(
        "--output", required=True, type=some_path, help=f"folder for PNG files and {LOG_NAME}"
    )
    parser.add_argument("--seed", required=True, type=int, help="of all that is drawn")
    # What is degraded, and what becomes of it before.
    parser.add_argument("--resize_short", type=int, help="first bring the shorter side to this")
    parser.add_argument("--crop", type=int, help="then cut this many pixels square, centred")
    parser.add_argument("--overwrite", action="store_true", help="replace outputs that exist")
    parser.add_argument("--parts", type=some_path, help="folder of part maps: people move")
    # Which sizes are written.
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--full", action="store_true", help="LQ of the HQ's size (the default)")
    size.add_argument("--model_scale", action="store_true", help="LQ of 1/scale the HQ's size")
    size.add_argument("--profile", choices=PROFILES, help=f"a benchmark's {', '.join(PAIR)}")
    args = parser.parse_args(argv)
    # What argparse cannot refuse, and the profile's own sizes.
    if args.seed < 0:
        parser.error("--seed is negative")
    if any(side is not None and side < MIN_SIDE for side in (args.resize_short, args.crop)):
        parser.error(f"--resize_short and --crop take at least {MIN_SIDE}")
    if args.parts and (args.crop or args.resize_short or args.profile):
        parser.error("--parts are of whole pictures: leave out --crop, --resize_short, --profile")
    if args.profile:
        args.crop = args.crop or PROFILES[args.profile]
        args.resize_short = args.resize_short or args.crop
    return args


def _plan(
    source: Path, output: Path, args: argparse.Namespace
) -> list[tuple[Path, str, list[Path]]]:
    """(source, relative name, targets) of each image, sorted. Raises ValueError if it cannot be."""
    if source.is_dir() and real(output).is_relative_to(real(source)):
        raise ValueError(f"--output {output} lies in --input {source}")
    # A job for each picture; two of one name, or one that would overwrite an input, are refused.
    folders = [output / name for name in PAIR] if args.profile else [output]
    jobs: dict[Path, tuple[Path, str, list[Path]]] = {}
    for path, name in list_images(source):
        targets = [folder / name.with_suffix(".png") for folder in folders]
        if targets[0] in jobs:
            raise ValueError(f"{jobs[targets[0]][1]} and {name} would both become {targets[0]}")
        if real(path) in (real(target) for target in targets):
            raise ValueError(f"{path} would be replaced by what is made of it")
        jobs[targets[0]] = (path, spelled(name.as_posix()), targets)
    if not jobs:
        raise ValueError(f"no images in {source}")
    # Nothing that is there is replaced unless that was asked for.
    written = [target for _, _, targets in jobs.values() for target in targets]
    existing = [path for path in (*written, output / LOG_NAME) if path.exists()]
    if existing and not args.overwrite:
        raise ValueError(f"{existing[0]} exists; --overwrite replaces it")
    return list(jobs.values())


def _degrade_file(
    source: Path, targets: list[Path], index: int, args: argparse.Namespace
) -> Params:
    """Write the LQ of one file. Raises ValueError (as ImageError is) or OSError."""
    picture = read_image(source)
    hq = _prepare(filled(picture.rgb, picture.alpha), args.resize_short, args.crop)
    config, parts = DegradationConfig(), None
    if args.parts:
        config.first_order = (0.0, 1.0, 0.0)
        # A map has the name that the LQ has below the output.
        parts = _part_map(args.parts / targets[0].relative_to(args.output), hq.shape[:2])
    # As in training, where a sample's generator is a function of seed, epoch and index.
    rng = sample_rng(args.seed, 0, index)
    lq, record, _ = degrade(hq, rng, config, full=not args.model_scale, parts=parts)
    _write([lq], targets, picture.icc)
    return {"epoch": 0, "index": index, "record": record}


def _part_map(path: Path, size: tuple[int, int]) -> PartMap | None:
    """The map of a picture of `size`, None where there is none. Raises ValueError."""
    # Grain comes with it, which takes long to load.
    from osdhuman_jax.data.part_maps import read_part_map

    return read_part_map(path, size) if path.is_file() else None


def _make_pair(source: Path, targets: list[Path], _index: int, args: argparse.Namespace) -> Params:
    """Write HQ, LQ and small LQ of one file. Raises as above."""
    picture = read_image(source)
    hq = _prepare(filled(picture.rgb, picture.alpha), args.resize_short, args.crop)
    content, rng = content_rng(args.seed, hq)
    record = draw_record(rng, DegradationConfig(), hq.shape[:2])
    # The record is drawn first and applied then, so that the log tells all that was done.
    lq = apply_record(to_unit(hq), record, rng)
    full = resize(lq, record["resize_back"], hq.shape[:2])
    digests = _write([hq, from_unit(full), from_unit(lq)], targets, picture.icc)
    return {
        "content": content,
        "record": record,
        "sha256": dict(zip(PAIR, digests, strict=True)),
    }


def content_rng(seed: int, hq: Image8) -> tuple[str, Rng]:
    """BLAKE2b of seed, size and pixels as hexadecimal digits, and the generator it seeds."""
    # The size is in the digest: pictures of the same bytes and other sides are two.
    head = f"{seed}|{hq.shape[0]}|{hq.shape[1]}|".encode()
    digest = hashlib.blake2b(head + np.ascontiguousarray(hq).tobytes(), digest_size=16).hexdigest()
    return digest, np.random.default_rng(int(digest, 16))


def _write(images: list[np.ndarray], targets: list[Path], icc: bytes | None) -> list[str]:
    """SHA-256 of each file."""
    for target in targets:
        target.parent.mkdir(parents=True, exist_ok=True)
    return [write_png(t, image, icc=icc) for t, image in zip(targets, images, strict=True)]


def _prepare(rgb: Image8, short: int | None, crop: int | None) -> UInt8[np.ndarray, "h2 w2 3"]:
    """Shorter side to `short` (area filter down, cubic up), then the central `crop` square."""
    h, w = rgb.shape[:2]
    if short and short != min(h, w):
        ratio = short / min(h, w)
        how = cv2.INTER_AREA if ratio < 1 else cv2.INTER_CUBIC
        h, w = round(h * ratio), round(w * ratio)
        rgb = cv2.resize(rgb, (w, h), interpolation=how)
    if not crop:
        return rgb
    if crop > min(h, w):
        raise ValueError(f"{w} x {h} is smaller than --crop {crop}")
    top, left = (h - crop) // 2, (w - crop) // 2
    return rgb[top : top + crop, left : left + crop]


def command() -> NoReturn:
    """Run the command as the whole process."""
    end("degrade", main, "the same command with --overwrite begins again")


if __name__ == "__main__":
    command()
