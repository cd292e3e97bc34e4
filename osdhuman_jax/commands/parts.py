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
from pathlib import Path
from typing import NoReturn

from osdhuman_jax.cli import (
    CommandError,
    Parser,
    bar,
    check_folder,
    check_input,
    end,
    some_path,
    some_text,
)
from osdhuman_jax.degrade.motion import PartMap
from osdhuman_jax.filenames import spelled
from osdhuman_jax.images.listing import list_images, real

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
        jobs = plan(args.pictures, args.output)
        left = [job for job in jobs if not job[2].exists()]
        labeller = open_labeller(args.kind, args.file, args.classes) if left else None
    except (OSError, ValueError) as error:
        print(f"parts: {error}", file=sys.stderr)
        return 2
    # The maps, and what is to be said of them.
    made, unknown = _make(left, labeller) if labeller else (0, 0)
    there = len(jobs) - len(left)
    # What a source does not list is no fault of one picture, but of all of them it is.
    failed = len(left) - made - unknown
    without = f", {unknown} pictures are not in {spelled(args.file)}" if unknown else ""
    if not made + there:
        if unknown and not failed:
            print(f"parts: {args.pictures}: none{without[1:]}", file=sys.stderr)
        return 2
    print(f"{made} part maps made, {there} were in {spelled(args.output)}{without}")
    return 1 if failed else 0


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


def plan(pictures: Path, output: Path) -> list[tuple[Path, Path, Path]]:
    """(picture, its name below the folder, its map) of each one. Raises CommandError."""
    if real(output).is_relative_to(real(pictures)):
        raise CommandError(f"--output {spelled(output)} lies in --pictures {spelled(pictures)}")
    # By their maps, of which no two pictures may have the same.
    jobs: dict[Path, tuple[Path, Path, Path]] = {}
    for path, name in list_images(pictures):
        target = output / name.with_suffix(".png")
        if target in jobs:
            both = f"{spelled(jobs[target][1])} and {spelled(name)}"
            raise CommandError(f"{both} would both have the map {spelled(target)}")
        jobs[target] = path, name, target
    if not jobs:
        raise CommandError(f"--pictures {spelled(pictures)}: no pictures in this folder")
    return list(jobs.values())


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


def _make(left: list[tuple[Path, Path, Path]], labeller: Labeller) -> tuple[int, int]:
    """Write what is missing; how many were made, and how many the source does not know."""
    from osdhuman_jax.data.part_maps import write_part_map

    made = unknown = 0
    with bar(len(left), "picture") as progress:
        for path, name, target in left:
            # A picture that cannot be read does not stop the others.
            try:
                labels = labeller(path, name)
                if labels is not None:
                    target.parent.mkdir(parents=True, exist_ok=True)
                    write_part_map(target, labels)
                made, unknown = made + (labels is not None), unknown + (labels is None)
            except (OSError, ValueError) as error:
                print(f"parts: {spelled(path)}: {error}", file=sys.stderr)
            progress.update(1)
    return made, unknown


def command() -> NoReturn:
    """Run the command as the whole process."""
    end("parts", main, "the same command goes on")


if __name__ == "__main__":
    command()
