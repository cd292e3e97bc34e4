"""Skeletons and attention maps of people in photographs, as DiffBody's training reads them.

    osdhuman poses --pictures photos/ --output poses/ --from blazepose:mediapipe-0.10.21-..whl
    osdhuman poses --pictures photos/ --output poses/ --from onnx:POSE.onnx,DETECTOR.onnx

Writes a line of OUTPUT/poses.jsonl for each picture, and a gray PNG of its name and size that says
where people are (255) and where nobody is (0). `data.poses` names such a folder. Maps and lines
that are there stay, so the same command goes on where it was stopped.

Sources: `blazepose` (of the installed mediapipe 0.10) or `blazepose:FILE` (of its wheel or a folder
of its two .tflite files), `onnx:POSE.onnx` or `onnx:POSE.onnx,DETECTOR.onnx` (RTMPose or DWPose,
and a YOLOX). The latter find no pixels: they need `--attention SEGMENT.onnx --classes MAP.json`, as
`osdhuman parts` has it, or maps of your own in OUTPUT, else attention is 0 everywhere.

Exit status: 0 all there, 1 some could not be made (named on stderr), 2 none was, 130 interrupted.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from osdhuman_jax.cli import Parser, check_folder, check_input, end, some_path, some_text
from osdhuman_jax.commands.per_picture import (
    PictureJob,
    add_lines,
    check_apart,
    plan,
    status,
    without_line,
)
from osdhuman_jax.filenames import spelled

if TYPE_CHECKING:
    from osdhuman_jax.commands.per_picture import ReadPicture
    from osdhuman_jax.config import Json
    from osdhuman_jax.data.structures import Attention, People
    from osdhuman_jax.images.codec import Pixels

    # A picture's people, and where they are; None = nothing is known of that.
    Estimator = Callable[[Pixels], tuple[People, Attention | None]]

COUNTS = {"blazepose": (0, 1), "onnx": (1, 2)}  # files that a source may have


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    args = _parse_args(argv)
    made = 0
    try:
        check_input("pictures", args.pictures)
        check_folder("output", args.output)
        check_apart(args.output, args.pictures)
        jobs = plan(args.pictures, "map", lambda name: args.output / name.with_suffix(".png"))
        left = _missing(jobs, args.output)
        # Where all is there no source is opened.
        if left:
            made = _make(left, args.output, open_estimator(args))
    except (OSError, ValueError) as error:
        print(f"poses: {error}", file=sys.stderr)
        return 2
    there = len(jobs) - len(left)
    if made + there:
        print(f"poses of {made} pictures made, {there} were in {spelled(args.output)}")
    return status(made, there, len(left) - made)


def _parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser("poses", "Find skeletons of people in photographs, and where they are.")
    add = parser.add_argument
    add("--pictures", required=True, type=some_path, help="folder of photographs")
    add("--output", required=True, type=some_path, help="folder for poses.jsonl and maps")
    source = "blazepose, blazepose:FILE, onnx:POSE.onnx or onnx:POSE.onnx,DETECTOR.onnx"
    add("--from", required=True, type=some_text, dest="source", help=source)
    add("--attention", type=some_path, help="with onnx: a segmentation network")
    add("--classes", type=some_path, help="json of its classes and what they are")
    args = parser.parse_args(argv)
    # What the source is, and whether it is whole.
    args.kind, colon, rest = args.source.partition(":")
    args.files = [Path(file) for file in rest.split(",") if file]
    whole = bool(colon) == bool(rest) and len(args.files) == rest.count(",") + bool(rest)
    if not whole or len(args.files) not in COUNTS.get(args.kind, ()):
        parser.error(f"--from {args.source}: give {source}")
    both = args.attention is not None, args.classes is not None
    if any(both) and not (all(both) and args.kind == "onnx"):
        parser.error("--attention FILE.onnx and --classes MAP.json go together, with --from onnx:")
    return args


def _missing(jobs: list[PictureJob], output: Path) -> list[PictureJob]:
    """The jobs whose pictures have no line."""
    from osdhuman_jax.data.structures import POSES, read_poses

    lines = output / POSES
    known = read_poses(lines, unfinished=True) if lines.exists() else {}
    return without_line(jobs, known)


def open_estimator(args: argparse.Namespace) -> "Estimator":
    """What finds people. Raises ValueError or OSError where its files cannot be used."""
    if args.kind == "blazepose":
        from osdhuman_jax.inference.poses import load_blazepose, structure

        find = load_blazepose(args.files[0] if args.files else None)
        return lambda rgb: structure(find(rgb), rgb.shape[:2])
    from osdhuman_jax.inference.poses_onnx import OnnxPoses
    from osdhuman_jax.inference.segmentation import Segmenter

    estimate = OnnxPoses(*args.files)
    segmenter = Segmenter(args.attention, args.classes) if args.attention else None

    def by_networks(rgb: "Pixels") -> "tuple[People, Attention | None]":
        # Whatever the network calls a part of a person is a person.
        attention = (segmenter(rgb) > 0).astype("float32") if segmenter else None
        return estimate(rgb), attention

    return by_networks


def _make(left: list[PictureJob], output: Path, estimate: "Estimator") -> int:
    """Write what is missing; returns of how many pictures."""
    from osdhuman_jax.data.structures import POSES, pose_line, write_attention

    def lines(pictures: "Sequence[ReadPicture]") -> "list[Json]":
        return [line(job, rgb) for job, rgb in pictures]

    def line(job: PictureJob, rgb: "Pixels") -> "Json":
        people, attention = estimate(rgb)
        # The line comes last: a picture without one is looked at again.
        if attention is not None and not job.target.exists():
            job.target.parent.mkdir(parents=True, exist_ok=True)
            write_attention(job.target, attention)
        return pose_line(job.file, people)

    return add_lines("poses", left, output / POSES, lines)


def command() -> NoReturn:
    """Run the command as the whole process."""
    end("poses", main, "the same command goes on")


if __name__ == "__main__":
    command()
