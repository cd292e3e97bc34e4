"""Captions of photographs: RAM's tags of each, as training with text reads them.

    osdhuman captions --pictures photos/ --ram models/osdhuman --output captions.jsonl

Writes a line for each picture: {"file": "a/b.jpg", "text": "man, hat", "tags": ["man", "hat"],
"by": "ram"}. The model folder has RAM's or DAPE's tagging head and the list of its tags (`osdhuman
weights import --ram FILE --tags FOLDER`). `data.captions` names such a file. Lines that are there
stay, whoever wrote them, so the same command goes on where it was stopped, and fills up a file that
people began.

Exit status: 0 all there, 1 some could not be made (named on stderr), 2 none was, 130 interrupted.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from osdhuman_jax.cli import Parser, check_file, check_input, end, some_path
from osdhuman_jax.commands.per_picture import PictureJob, add_lines, plan, status, without_line
from osdhuman_jax.filenames import spelled

if TYPE_CHECKING:
    from osdhuman_jax.commands.per_picture import ReadPicture
    from osdhuman_jax.config import Json
    from osdhuman_jax.images.codec import Pixels

    # From pictures of any sizes to the tags of each.
    FindTags = Callable[[Sequence[Pixels]], list[list[str]]]

# Pictures that are looked at at once: a GPU wants several, and none is large for RAM.
BATCH = 8


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = Parser("captions", "Describe photographs by RAM's tags.")
    add = parser.add_argument
    add("--pictures", required=True, type=some_path, help="folder of photographs")
    add("--ram", required=True, type=some_path, help="model folder with a tagging head and tags")
    add("--output", required=True, type=some_path, help="file of captions, a line each")
    args = parser.parse_args(argv)
    made = 0
    try:
        check_input("pictures", args.pictures)
        check_file("output", args.output)
        jobs = plan(args.pictures, "caption", lambda name: name.with_suffix(""))
        left = _missing(jobs, args.output)
        # Where all is there no network is loaded.
        if left:
            made = _make(left, args.output, *load_tags(args.ram, min(BATCH, len(left))))
    except (OSError, ValueError) as error:
        print(f"captions: {error}", file=sys.stderr)
        return 2
    there = len(jobs) - len(left)
    if made + there:
        print(f"{made} captions made, {there} were in {spelled(args.output)}")
    return status(made, there, len(left) - made)


def _missing(jobs: list[PictureJob], output: Path) -> list[PictureJob]:
    """The jobs whose pictures have no line."""
    from osdhuman_jax.data.captions import read_captions

    known = read_captions(output, unfinished=True) if output.exists() else {}
    return without_line(jobs, known)


def _make(left: list[PictureJob], output: Path, find: "FindTags", by: str) -> int:
    """Write what is missing; returns of how many pictures."""
    from osdhuman_jax.methods.prompts import bare_text

    def lines(pictures: "Sequence[ReadPicture]") -> "list[Json]":
        found = find([rgb for _, rgb in pictures])
        return [
            {"file": job.file, "text": bare_text(tags), "tags": tags, "by": by}
            for (job, _), tags in zip(pictures, found, strict=True)
        ]

    return add_lines("captions", left, output, lines, BATCH)


def load_tags(folder: Path, size: int) -> "tuple[FindTags, str]":
    """What finds the tags of up to `size` pictures, and whose tags they are.

    Raises WeightsError.
    """
    import numpy as np

    from osdhuman_jax.images.sizes import squash
    from osdhuman_jax.weights import load_tag_finder

    finder, by = load_tag_finder(folder)

    def find(pictures: "Sequence[Pixels]") -> list[list[str]]:
        # One shape, so that one program is compiled for pictures of all sizes and the last few.
        batch = np.zeros((size, finder.input_size, finder.input_size, 3), np.float32)
        for place, pixels in enumerate(pictures):
            batch[place] = squash(pixels, finder.input_size)
        return finder(batch)[: len(pictures)]

    return find, by


def command() -> NoReturn:
    """Run the command as the whole process."""
    end("captions", main, "the same command goes on")


if __name__ == "__main__":
    command()
