"""Part maps of photographs: which part of a person each pixel shows, as training reads them.

    osdhuman parts --pictures photos/ --output parts/ --from coco:person_keypoints_train2017.json
    osdhuman parts --pictures photos/ --output parts/ --from blazepose:mediapipe-0.10.21-..whl
    osdhuman parts --pictures photos/ --output parts/ --from onnx:FILE --classes MAP.json

Writes a gray PNG for each picture, of its name and size: 0 background, 1 head, 2 and 3 left and
right arm, 4 and 5 left and right leg, 6 the rest of the person. `data.parts` names such a folder.
Maps that are there stay, so the same command goes on where it was stopped.

Sources: `coco:FILE` (outlines and keypoints), `instances:FILE` (outlines alone, so that whole
bodies move), `blazepose` (of the installed mediapipe 0.10) or `blazepose:FILE` (of its wheel or a
folder of its two .tflite files), `onnx:FILE` (a segmentation network, see inference/segmentation).

Exit status: 0 all there, 1 some could not be made (named on stderr), 2 none was, 130 interrupted.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NoReturn

from osdhuman_jax.cli import Parser, check_folder, check_input, end, some_path, some_text
from osdhuman_jax.commands.per_picture import PictureJob, check_apart, each, plan, status
from osdhuman_jax.degrade.motion import PartMap
from osdhuman_jax.filenames import spelled

# Path of a picture and its name below the folder -> its map; None = the source does not know it.
Labeller = Callable[[Path, Path], PartMap | None]

KINDS = ("coco", "instances", "blazepose", "onnx")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    args = _parse_args(argv)
    # What is to be made, refused before anything is; where all is there no source is opened.
    try:
        check_input("pictures", args.pictures)
        check_folder("output", args.output)
        check_apart(args.output, args.pictures)
        jobs = plan(args.pictures, "map", lambda name: args.output / name.with_suffix(".png"))
        left = [job for job in jobs if not job.target.exists()]
        labeller = open_labeller(args.kind, args.file, args.classes) if left else None
    except (OSError, ValueError) as error:
        print(f"parts: {error}", file=sys.stderr)
        return 2
    # The maps, and what is to be said of them.
    made, unknown = each("parts", left, partial(_write, labeller)) if labeller else (0, 0)
    there = len(jobs) - len(left)
    # What a source does not list is no fault of one picture, but of all of them it is.
    failed = len(left) - made - unknown
    without = f", {unknown} pictures are not in {spelled(args.file)}" if unknown else ""
    if made + there:
        print(f"{made} part maps made, {there} were in {spelled(args.output)}{without}")
    elif unknown and not failed:
        print(f"parts: {args.pictures}: none{without[1:]}", file=sys.stderr)
    return status(made, there, failed)


def _parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser("parts", "Make part maps of photographs.")
    add = parser.add_argument
    add("--pictures", required=True, type=some_path, help="folder of photographs")
    add("--output", required=True, type=some_path, help="folder for the maps")
    source = "coco:FILE, instances:FILE, blazepose, blazepose:FILE or onnx:FILE"
    add("--from", required=True, type=some_text, dest="source", help=source)
    add("--classes", type=some_path, help="json of onnx's classes and what they are")
    args = parser.parse_args(argv)
    # What the source is, and whether it is whole.
    args.kind, colon, file = args.source.partition(":")
    if args.kind not in KINDS or (colon and not file) or not (colon or args.kind == "blazepose"):
        parser.error(f"--from {args.source}: give {source}")
    if (args.kind == "onnx") != (args.classes is not None):
        parser.error("--classes MAP.json belongs to --from onnx:FILE, which needs it")
    args.file = Path(file) if file else None
    return args


def open_labeller(kind: str, file: Path | None, classes: Path | None) -> Labeller:
    """What makes maps. Raises ValueError or OSError where its files cannot be used."""
    # A source's libraries are imported where it is chosen.
    from osdhuman_jax.data.coco_people import CocoPeople
    from osdhuman_jax.degrade.body import Person, part_map
    from osdhuman_jax.images.codec import read_rgb, read_size

    if kind == "blazepose":
        from osdhuman_jax.inference.poses import load_blazepose

        find = load_blazepose(file)

        def by_poses(path: Path, _: Path) -> PartMap:
            rgb = read_rgb(path)
            people = [Person(pose.outline, pose.points, pose.seen) for pose in find(rgb)]
            return part_map(rgb.shape[:2], people)

        return by_poses
    assert file is not None  # the flags were refused otherwise
    if kind == "onnx":
        from osdhuman_jax.inference.segmentation import Segmenter

        assert classes is not None
        segmenter = Segmenter(file, classes)
        return lambda path, _: segmenter(read_rgb(path))
    coco = CocoPeople(file, joints=kind == "coco")

    def by_file(path: Path, name: Path) -> PartMap | None:
        size = read_size(path)
        people = coco.read(name, size)
        return None if people is None else part_map(size, people)

    return by_file


def _write(labeller: Labeller, job: PictureJob) -> bool:
    """Write a picture's map; False where the source does not know it."""
    from osdhuman_jax.data.part_maps import write_part_map

    labels = labeller(job.path, job.name)
    if labels is None:
        return False
    job.target.parent.mkdir(parents=True, exist_ok=True)
    write_part_map(job.target, labels)
    return True


def command() -> NoReturn:
    """Run the command as the whole process."""
    end("parts", main, "the same command goes on")


if __name__ == "__main__":
    command()
