"""A teacher's labels: degraded crops of photographs, and what a restorer makes of each.

    osdhuman label --input photos/ --model models/realesrgan \\
        --output data/labelled --count 1900 --seed 7

Writes OUTPUT/lq and OUTPUT/teacher, 512 x 512 PNG files of one name, and a line of labels.jsonl for
each pair; `data.labelled` reads such a folder. Crop number i is a function of (seed, i), so the
same command goes on where it was stopped, and a greater --count adds to what is there.

Exit status: 0 all there, 2 nothing was done, 130 interrupted.
"""

import sys
from collections.abc import Sequence
from typing import NoReturn

from osdhuman_jax.cli import Parser, end, some_path
from osdhuman_jax.inference.settings import PRECISIONS


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
        # What argparse cannot refuse.
        if arguments.count < 1 or arguments.seed < 0:
            parser.error("--count takes at least 1, --seed at least 0")
        # JAX, Grain and the networks, which `--help` does without.
        from osdhuman_jax.commands.teacher_pairs import make_pairs

        made = make_pairs(arguments)
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
