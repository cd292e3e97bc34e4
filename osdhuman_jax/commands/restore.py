"""Restore photographs: python infer.py --input photos/ --output restored/

Exit status: 0 all restored, 1 some failed (named at the end), 2 nothing was done (what failed is
named), 130 interrupted.
"""

import argparse
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from tqdm import tqdm

from osdhuman_jax.cli import Parser, called, check_folder, some_path, some_text
from osdhuman_jax.commands.flags import memory, speak
from osdhuman_jax.filenames import spelled
from osdhuman_jax.images.codec import LOSSLESS
from osdhuman_jax.images.listing import other_pictures
from osdhuman_jax.inference.finishing import COLOR_FIXES
from osdhuman_jax.inference.folder_run import (
    LISTED,
    SUFFIXES,
    Job,
    Runner,
    Settings,
    held,
    identity,
    plan,
    remaining,
)
from osdhuman_jax.inference.pipeline import PRECISIONS, Pipeline
from osdhuman_jax.inference.programs import keep_programs
from osdhuman_jax.interruption import leave
from osdhuman_jax.models import BUNDLED

NAME = called("infer.py")


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Flags as a namespace; exits with status 2 on a bad one."""
    parser = Parser(NAME, "Restore photographs of people in one diffusion step.")
    add = parser.add_argument
    add(
        "--input",
        required=True,
        type=some_text,
        help="image file, folder (searched recursively) or glob pattern",
    )
    add("--output", required=True, type=some_path, help="folder for pictures and provenance.jsonl")
    model = parser.add_mutually_exclusive_group()
    model.add_argument("--model", type=some_path, default=BUNDLED, help="model folder")
    model.add_argument(
        "--checkpoint",
        type=some_text,
        metavar="WORKDIR[@STEP]",
        help="training run to load instead",
    )
    add("--upscale", type=factor, default=1.0, help="enlarge by this factor (>= 1) beforehand")
    add("--color_fix", choices=COLOR_FIXES, help="take the input's colours; default: the model's")
    add("--blend", type=share, help="1: the restored picture, 0: the input; default: the model's")
    add("--format", choices=SUFFIXES, default="png", help="of the outputs")
    add("--quality", type=quality, default=95, help=f"of JPEG and WebP ({LOSSLESS}: lossless WebP)")
    add("--precision", choices=PRECISIONS, default="fp32", help="arithmetic of the networks")
    add("--batch_size", type=count, default=1, help="pictures restored together")
    add("--max_memory", type=memory, help="bytes for the model, as 4GiB; default: half the host's")
    add("--overwrite", action="store_true", help="replace outputs of other inputs or settings")
    return parser.parse_args(argv)


def factor(text: str) -> float:
    value = float(text)
    if not 1 <= value <= 16:
        raise argparse.ArgumentTypeError(f"{text} is not between 1 and 16")
    return value


def share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def quality(text: str) -> int:
    value = int(text)
    if not 1 <= value <= LOSSLESS:
        raise argparse.ArgumentTypeError(f"{text} is not between 1 and {LOSSLESS}")
    return value


def count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return value


def load_pipeline(args: argparse.Namespace) -> Pipeline:
    """The pipeline that the flags name. Raises ValueError or OSError."""
    options = {"batch_size": args.batch_size, "max_memory": args.max_memory}
    if args.checkpoint is None:
        return Pipeline.from_folder(args.model, args.precision, **options)
    workdir, at, step = args.checkpoint.rpartition("@")
    if not (at and step.isdecimal()):
        workdir, step = args.checkpoint, ""
    return Pipeline.from_run(workdir, int(step) if step else None, args.precision, **options)


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    args = parse_args(argv)
    speak()
    settings = Settings(args.upscale, format=args.format, quality=args.quality)
    runner = None
    try:
        check_folder("output", args.output)
        jobs = plan(args.input, args.output, settings)
        others = other_pictures(args.input)
        if all(job.broken for job in jobs):
            return report([(job, job.broken) for job in jobs], len(jobs), 0, args.output)
        pipeline = load_pipeline(args)
        color_fix, blend = pipeline.chosen(args.color_fix, args.blend)
        settings = replace(settings, color_fix=color_fix, blend=blend)
        with held(args.output) as ledger:
            made = identity(pipeline, settings)
            left = remaining(jobs, args.output, ledger, made, args.overwrite)
            runner = Runner(pipeline, settings, args.output, ledger)
            skipped = len(jobs) - len(left)
            shown = {"unit": "image", "file": sys.stderr, "disable": len(jobs) == 1}
            with tqdm(total=len(jobs), initial=skipped, **shown) as bar:
                runner.run(left, bar.update)
    except (ValueError, OSError) as error:
        print(f"{NAME}: {error}", file=sys.stderr)
        return 1 if runner and runner.ledger.has_pictures else 2
    if others:
        print(f"not restored: {others}", file=sys.stderr)
    tell(runner.remarks)
    return report(runner.failures, len(jobs), skipped, args.output)


def tell(remarks: list[tuple[Job, str]]) -> None:
    """Say which pictures the model is not made for, one line each."""
    shown = sorted(remarks, key=lambda remark: remark[0].output)
    for job, text in shown[:LISTED]:
        print(f"note: {spelled(job.source)}: {text}", file=sys.stderr)
    if len(shown) > LISTED:
        print(f"note: and {len(shown) - LISTED} more pictures like these", file=sys.stderr)


def report(failures: list[tuple[Job, str]], total: int, skipped: int, output: Path) -> int:
    """Say what became of the files; returns the exit status."""
    there = total - len(failures)
    before = f" ({skipped} were there already)" if skipped else ""
    if there:
        print(f"restored {there} of {total} images to {spelled(output)}{before}")
    for job, reason in sorted(failures, key=lambda failure: failure[0].output):
        print(f"failed: {spelled(job.source)}: {reason}", file=sys.stderr)
    return (1 if there else 2) if failures else 0


def command() -> NoReturn:
    """Run the command as the whole process."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # cleans up as Ctrl-C does
    keep_programs()
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print(f"{NAME}: interrupted; the same command goes on where it was", file=sys.stderr)
        leave(130)


if __name__ == "__main__":
    command()
