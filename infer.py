"""Restore photographs: python infer.py --input photos/ --output restored/

Exit status: 0 all restored, 1 some failed (named at the end), 2 nothing was done, 130 interrupted.
"""

import argparse
import hashlib
import json
import logging
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import NoReturn, TextIO

from tqdm import tqdm

from osdhuman_jax.images import (
    MAX_PIXELS,
    ImageError,
    Picture,
    decode,
    list_images,
    read_size,
    write_png,
)
from osdhuman_jax.pipeline import COLOR_FIXES, PRECISIONS, Pipeline, scaled_size

DEFAULT_MODEL = Path(__file__).resolve().parent / "models" / "nano"
LISTED = 20  # names in one refusal
RECORD = (  # of a line of provenance.jsonl; `reason` follows where the status is "failed"
    *("input", "input_sha256", "output", "output_sha256", "model", "model_digest"),
    *("width", "height", "output_width", "output_height", "upscale", "precision", "color_fix"),
    *("seconds", "status"),
)


class UsageError(ValueError):
    """A request that is refused before any work; the message is printed as it is."""


@dataclass(frozen=True)
class Job:
    """One file to restore."""

    source: Path  # absolute
    output: Path  # relative to the output folder
    size: tuple[int, int] = (0, 0)  # height, width after upscaling
    broken: str = ""  # why the header alone rules the file out


class Parser(argparse.ArgumentParser):
    """Refuses in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"infer.py: {message}\n")


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Flags as a namespace; exits with status 2 on a bad one."""
    parser = Parser(
        description="Restore photographs of people in one diffusion step.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--input", required=True, help="image file, folder (searched recursively) or glob pattern")
    add("--output", required=True, type=Path, help="folder for PNG files and provenance.jsonl")
    model = parser.add_mutually_exclusive_group()
    model.add_argument("--model", type=Path, default=DEFAULT_MODEL, help="model folder")
    model.add_argument(
        "--checkpoint", metavar="WORKDIR[@STEP]", help="training run to load instead"
    )
    add("--upscale", type=factor, default=1.0, help="enlarge by this factor (>= 1) beforehand")
    add("--batch_size", type=count, default=1, help="pictures restored together")
    add("--precision", choices=PRECISIONS, default="fp32", help="arithmetic of the networks")
    add("--color_fix", choices=COLOR_FIXES, default="none", help="take the input's colours")
    add("--overwrite", action="store_true", help="replace existing outputs")
    return parser.parse_args(argv)


def factor(text: str) -> float:
    value = float(text)
    if not 1 <= value <= 16:
        raise argparse.ArgumentTypeError(f"{text} is not between 1 and 16")
    return value


def count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return value


def plan(source: str, output: Path, upscale: float, overwrite: bool) -> list[Job]:
    """What is to be done, from the files' headers. Raises UsageError if it must not be."""
    pairs = [(path, name) for path, name in list_images(source) if not _is_own(path, name, output)]
    if not pairs:
        raise UsageError(f"no images found: {source}")
    named: dict[Path, list[Path]] = {}
    for path, name in pairs:
        named.setdefault(name.with_suffix(".png"), []).append(path)
    _refuse("several inputs would have one output", [p for g in named.values() if g[1:] for p in g])
    inputs = {path.resolve() for path, _ in pairs}
    clash = [name for name in named if (output / name).resolve() in inputs]
    _refuse("outputs would replace inputs", clash)
    if not overwrite:
        taken = [output / name for name in named if (output / name).exists()]
        _refuse("outputs exist (--overwrite replaces them)", taken)
    return [_inspect(paths[0], name, upscale) for name, paths in named.items()]


def _is_own(path: Path, name: Path, output: Path) -> bool:
    """Whether an input lies in an output folder that lies inside the input folder."""
    root, out = path.parents[len(name.parts) - 1].resolve(), output.resolve()
    return out != root and out.is_relative_to(root) and path.resolve().is_relative_to(out)


def _refuse(why: str, names: list[Path]) -> None:
    """Raise UsageError with the first names, if there are any."""
    if names:
        more = f"\n  and {len(names) - LISTED} more" if len(names) > LISTED else ""
        raise UsageError(f"{why}:" + "".join(f"\n  {name}" for name in names[:LISTED]) + more)


def _inspect(path: Path, output: Path, upscale: float) -> Job:
    """The job of one file; marked broken if its header cannot be read or is too large."""
    try:
        height, width = scaled_size(read_size(path), upscale)
    except (ImageError, OSError) as error:
        return Job(path, output, broken=_line(error))
    if height * width > MAX_PIXELS:
        return Job(path, output, broken=f"more than {MAX_PIXELS} pixels after upscaling")
    return Job(path, output, (height, width))


def _line(error: BaseException) -> str:
    """An error's first line; an OSError's without the path, which is told beside it."""
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
        return "out of memory: try a smaller --batch_size or --upscale, or a smaller picture"
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return (text.strip().splitlines() or [type(error).__name__])[0]


def batches(jobs: list[Job], pipeline: Pipeline) -> Iterator[list[Job]]:
    """Jobs of one padded size together, so that batches are full and programs compile once."""
    sound = sorted((pipeline.padded_size(job.size), job.output) for job in jobs if not job.broken)
    by_output = {job.output: job for job in jobs}
    for _, group in groupby(sound, key=lambda pair: pair[0]):
        names = [name for _, name in group]
        for start in range(0, len(names), pipeline.batch_size):
            yield [by_output[name] for name in names[start : start + pipeline.batch_size]]


class Runner:
    """Carries out jobs and keeps the record of each."""

    def __init__(self, pipeline: Pipeline, args: argparse.Namespace, log: TextIO) -> None:
        self.pipeline, self.args, self.log = pipeline, args, log
        self.failures: list[tuple[Job, str]] = []

    def record(self, job: Job, status: str, **values: object) -> None:
        """Append one line to provenance.jsonl."""
        model = self.pipeline.model
        line = dict.fromkeys(RECORD) | values | {"status": status}
        line |= {"input": str(job.source), "output": job.output.as_posix()}
        line |= {"model": model.name, "model_digest": model.digest}
        line |= {name: getattr(self.args, name) for name in ("upscale", "precision", "color_fix")}
        print(json.dumps(line), file=self.log, flush=True)

    def fail(self, job: Job, reason: str, **values: object) -> None:
        """Record a failure and remember it for the report."""
        self.failures.append((job, reason))
        self.record(job, "failed", reason=reason, seconds=0.0, **values)

    def load(self, job: Job) -> tuple[Picture, str] | None:
        """The decoded input and its SHA-256, or None after a recorded failure."""
        digest = None
        try:
            data = job.source.read_bytes()
            digest = hashlib.sha256(data).hexdigest()
            return decode(data), digest
        except (ImageError, OSError) as error:
            self.fail(job, _line(error), input_sha256=digest)
            return None

    def restore(self, jobs: list[Job]) -> None:
        """Decode, restore, write and record one batch."""
        start = time.perf_counter()
        loaded = [(job, *found) for job in jobs if (found := self.load(job))]
        try:
            outputs = self.pipeline.restore(
                [picture for _, picture, _ in loaded], self.args.upscale, self.args.color_fix
            )
        except (RuntimeError, MemoryError) as error:  # out of memory must not stop the others
            for job, _, digest in loaded:
                self.fail(job, _line(error), input_sha256=digest)
            return
        seconds = (time.perf_counter() - start) / max(1, len(jobs))
        for (job, picture, digest), output in zip(loaded, outputs, strict=True):
            self.write(job, picture, output, digest, seconds)

    def write(
        self, job: Job, picture: Picture, output: Picture, digest: str, seconds: float
    ) -> None:
        """Write and record one restored picture."""
        path = self.args.output / job.output
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            output_digest = write_png(path, output.rgb, output.alpha, output.icc)
        except OSError as error:
            self.fail(job, f"cannot write {path}: {_line(error)}", input_sha256=digest)
            return
        sizes = dict(zip(("height", "width"), picture.size, strict=True))
        sizes |= dict(zip(("output_height", "output_width"), output.size, strict=True))
        digests = {"input_sha256": digest, "output_sha256": output_digest}
        self.record(job, "ok", seconds=round(seconds, 4), **sizes, **digests)


def load_pipeline(args: argparse.Namespace) -> Pipeline:
    """The pipeline that the flags name. Raises ValueError or OSError."""
    if args.checkpoint is None:
        return Pipeline.from_folder(args.model, args.precision, batch_size=args.batch_size)
    workdir, at, step = args.checkpoint.rpartition("@")
    if not (at and step.isdecimal()):
        workdir, step = args.checkpoint, ""
    number = int(step) if step else None
    return Pipeline.from_run(workdir, number, args.precision, batch_size=args.batch_size)


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    args = parse_args(argv)
    for name in (None, "absl"):  # JAX and Orbax chat about devices and folders
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.getLogger("osdhuman_jax").setLevel(logging.WARNING)
    try:
        jobs = plan(args.input, args.output, args.upscale, args.overwrite)
        pipeline = load_pipeline(args)
        args.output.mkdir(parents=True, exist_ok=True)
        log = open(args.output / "provenance.jsonl", "a", encoding="utf-8")
    except (ValueError, OSError) as error:
        print(f"infer.py: {error}", file=sys.stderr)
        return 2
    with log, tqdm(total=len(jobs), unit="image", file=sys.stderr) as bar:
        runner = Runner(pipeline, args, log)
        for job in jobs:
            if job.broken:
                runner.fail(job, job.broken)
                bar.update()
        for batch in batches(jobs, pipeline):
            runner.restore(batch)
            bar.update(len(batch))
    return report(runner.failures, len(jobs), args.output)


def report(failures: list[tuple[Job, str]], total: int, output: Path) -> int:
    """Say what became of the files; returns the exit status."""
    print(f"restored {total - len(failures)} of {total} images to {output}")
    for job, reason in failures:
        print(f"failed: {job.source}: {reason}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # cleans up as Ctrl-C does
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("infer.py: interrupted", file=sys.stderr)
        sys.exit(130)
