"""Captions of photographs: RAM's tags of each, as training with text reads them.

    osdhuman captions --pictures photos/ --ram models/osdhuman --output captions.jsonl

Writes a line for each picture: {"file": "a/b.jpg", "text": "man, hat, street", "by": "ram"}. The
model folder has RAM's or DAPE's tagging head, its tags and CLIP (`osdhuman weights import`).
`data.captions` names such a file. Lines that are there stay, whoever wrote them, so the same
command goes on where it was stopped, and fills up a file that people began.

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
    from osdhuman_jax.config import Json
    from osdhuman_jax.images.codec import Pixels

    Describe = Callable[[Pixels], str]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = Parser("captions", "Describe photographs by RAM's tags.")
    add = parser.add_argument
    add("--pictures", required=True, type=some_path, help="folder of photographs")
    add("--ram", required=True, type=some_path, help="model folder with a tagging head and CLIP")
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
            describe, by = load_tags(args.ram)

            def line(job: PictureJob, rgb: "Pixels") -> "Json":
                return {"file": job.file, "text": describe(rgb), "by": by}

            made = add_lines("captions", left, args.output, line)
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


def load_tags(folder: Path) -> "tuple[Describe, str]":
    """What makes a picture's tags a text, and whose tags they are. Raises WeightsError."""
    from osdhuman_jax.methods.prompts import TagPrompter
    from osdhuman_jax.weights import load_prompter
    from osdhuman_jax.weights.model_folder import read_meta

    # The folder says whose tags its head gives.
    kind = str(read_meta(folder).get("tagger", "ram"))
    prompter = load_prompter(folder, kind)
    assert isinstance(prompter, TagPrompter)  # as all are whose kind has a tagging head
    return prompter.caption, kind


def command() -> NoReturn:
    """Run the command as the whole process."""
    end("captions", main, "the same command goes on")


if __name__ == "__main__":
    command()
