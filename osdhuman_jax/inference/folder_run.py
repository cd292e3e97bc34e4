"""A folder of photographs as jobs: planned before anything is done, recorded, resumed, never lost.

Each finished picture has a line in the output folder's `provenance.jsonl`, which is written before
the picture takes its name: a picture that is there and matches its line is finished, whatever
happened to the run that made it. One run at a time holds the folder.
"""

import errno
import hashlib
import json
import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from io import FileIO
from pathlib import Path
from threading import Lock
from typing import Any

from osdhuman_jax.disk import file_digest, hold, json_lines, remove_leftovers, staged
from osdhuman_jax.filenames import spelled
from osdhuman_jax.images.codec import (
    MAX_PIXELS,
    ImageError,
    Picture,
    check_alpha,
    check_side,
    decode,
    encode,
    read_size,
)
from osdhuman_jax.images.listing import list_images, other_pictures, real
from osdhuman_jax.images.sizes import Floats, Pixels, enlarge, scaled_size
from osdhuman_jax.inference.condition import remark
from osdhuman_jax.inference.finishing import RestoreError, finish
from osdhuman_jax.inference.memory import EXHAUSTED, is_exhausted
from osdhuman_jax.inference.pipeline import Pipeline

SUFFIXES = {"png": ".png", "webp": ".webp", "jpeg": ".jpg"}
PROVENANCE = "provenance.jsonl"
LISTED = 20  # names in one refusal
AHEAD = 1  # batches that are read, and that are written, while one is computed
ALONE = MAX_PIXELS // (1 + 2 * AHEAD)  # pixels; a larger batch has no other beside it in memory
RECORD = (  # of a line of provenance.jsonl; `reason` follows where the status is "failed"
    *("input", "input_sha256", "output", "output_sha256", "model", "model_digest"),
    *("width", "height", "output_width", "output_height", "precision"),
    *("upscale", "color_fix", "blend", "format", "quality", "tile", "seconds", "status"),
)


class UsageError(ValueError):
    """A request that is refused before any work; the message is printed as it is."""


@dataclass(frozen=True)
class Settings:
    """What, beside the model, makes one input one output."""

    upscale: float = 1.0
    color_fix: str = "none"
    blend: float = 1.0
    format: str = "png"
    quality: int = 95


@dataclass(frozen=True)
class Job:
    """One file to restore."""

    source: Path  # absolute
    output: Path  # relative to the output folder
    size: tuple[int, int] = (0, 0)  # height, width after upscaling
    broken: str = ""  # why the header alone rules the file out


@dataclass(frozen=True)
class Loaded:
    """A job's decoded and enlarged input."""

    job: Job
    size: tuple[int, int]  # height, width as decoded
    enlarged: Picture
    seen: Pixels  # by the network
    digest: str


def plan(source: str, output: Path, settings: Settings) -> list[Job]:
    """What is to be done, from the files' headers. Raises UsageError if it must not be."""
    pairs = [(path, name) for path, name in list_images(source) if not _is_own(path, name, output)]
    if not pairs:
        others = other_pictures(source)
        raise UsageError(f"no images found: {source}" + (f" (but {others})" if others else ""))
    named: dict[Path, list[Path]] = {}
    for path, name in pairs:
        named.setdefault(name.with_suffix(SUFFIXES[settings.format]), []).append(path)
    if _root(*pairs[0]) == real(output) and _are_found(source, named):
        why = "the next run would take outputs for inputs"
        raise UsageError(f"--output {output} is the folder of the inputs: {why}")
    _refuse("several inputs would have one output", [p for g in named.values() if g[1:] for p in g])
    folders = {folder for name in named for folder in name.parents}
    _refuse("outputs would also be folders of others", [name for name in named if name in folders])
    inputs = {real(path) for path, _ in pairs}
    clash = [name for name in named if real(output / name) in inputs]
    _refuse("outputs would replace inputs", clash)
    outside = {name.parent for name in named if not _stays(output, name.parent)}
    _refuse("links lead out of the output folder", [output / name for name in sorted(outside)])
    return [_inspect(paths[0], name, settings) for name, paths in named.items()]


def _is_own(path: Path, name: Path, output: Path) -> bool:
    """Whether an input lies in an output folder that lies inside the input folder."""
    root, out = _root(path, name), real(output)
    return out != root and out.is_relative_to(root) and real(path).is_relative_to(out)


def _root(path: Path, name: Path) -> Path:
    """The folder in which an input was found by its relative name."""
    return real(path.parents[len(name.parts) - 1])


def _are_found(source: str, outputs: Iterable[Path]) -> bool:
    """Whether outputs that lie where the inputs do would be found beside them."""
    if Path(source).is_file():
        return False
    pattern = "*" if Path(source).is_dir() else Path(source).name
    return any(fnmatch(output.name, pattern) for output in outputs)


def _stays(output: Path, folder: Path) -> bool:
    """Whether a folder below the output folder truly is there, all links followed."""
    return real(output / folder).is_relative_to(real(output))


def _refuse(why: str, names: list[Path]) -> None:
    """Raise UsageError with the first names, if there are any."""
    if names:
        more = f"\n  and {len(names) - LISTED} more" if len(names) > LISTED else ""
        lines = [f"\n  {spelled(name)}" for name in names[:LISTED]]
        raise UsageError(f"{why}:{''.join(lines)}{more}")


def _inspect(path: Path, output: Path, settings: Settings) -> Job:
    """The job of one file; marked broken if its header rules it out."""
    try:
        height, width = scaled_size(read_size(path), settings.upscale)
        if height * width > MAX_PIXELS:
            raise ImageError(f"more than {MAX_PIXELS} pixels after upscaling")
        check_side((height, width), settings.format)
    except (ImageError, OSError) as error:
        return Job(path, output, broken=one_line(error))
    return Job(path, output, (height, width))


def one_line(error: BaseException) -> str:
    """An error's first line; an OSError's without the path, which is told beside it."""
    if is_exhausted(error):
        return EXHAUSTED
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return (text.strip().splitlines() or [type(error).__name__])[0]


class Ledger:
    """The lines of provenance.jsonl: those that were there, and those to come."""

    def __init__(self, folder: Path, file: FileIO) -> None:
        self._folder, self._file, self._lock = folder, file, Lock()
        data = file.readall()
        self._torn = bool(data) and not data.endswith(b"\n")
        self._finished: dict[str, dict[str, Any]] = {}  # last line of each output
        self.has_pictures = False  # or had: some line says that a picture was written
        for line in json_lines(data):
            if line.get("status") == "ok":
                self._finished[line.get("output", "")] = line
                self.has_pictures = True

    def add(self, line: dict[str, Any]) -> None:
        """Append a line; a torn one, which a killed run left, is ended first."""
        text = json.dumps(dict.fromkeys(RECORD) | line) + "\n"
        with self._lock:
            data = (b"\n" if self._torn else b"") + text.encode()
            self._torn = True
            if self._file.write(data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(self._file.fileno())
            self._torn = False
            self.has_pictures |= line["status"] == "ok"

    def finished(self, job: Job, identity: dict[str, Any]) -> bool:
        """Whether the job's output is there, as its line says, from this input and `identity`."""
        line = self._finished.get(spelled(job.output.as_posix()), {})
        if any(line.get(key) != value for key, value in identity.items()):
            return False
        files = {"output_sha256": self._folder / job.output, "input_sha256": job.source}
        try:
            return all(line.get(key) == file_digest(path) for key, path in files.items())
        except OSError:
            return False


@contextmanager
def held(folder: Path) -> Iterator[Ledger]:
    """The output folder, made if need be, for this run alone; what killed runs left is removed.

    A folder that was made, and gets no picture, goes at the end, whatever ends the run. Raises
    UsageError where another run holds it, OSError where it cannot be written.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / PROVENANCE
    try:
        with hold(path) as file:
            remove_leftovers(folder, deep=True)
            ledger = Ledger(folder, file)
            try:
                yield ledger
            finally:
                unused = made and not ledger.has_pictures
                if unused or os.fstat(file.fileno()).st_size == 0:  # leave all as it was
                    path.unlink()
    except BlockingIOError:
        raise UsageError(f"another run is writing to {folder}") from None
    finally:
        with suppress(OSError):  # the first that is not empty, and those above it, stay
            for empty in made:
                empty.rmdir()


def remaining(
    jobs: list[Job], output: Path, ledger: Ledger, identity: dict[str, Any], overwrite: bool
) -> list[Job]:
    """The jobs that are not finished. Raises UsageError where other outputs would be replaced."""
    there = {job for job in jobs if os.path.lexists(output / job.output)}
    left = [job for job in jobs if job not in there or not ledger.finished(job, identity)]
    if not overwrite:
        taken = [output / job.output for job in left if job in there and not job.broken]
        _refuse("outputs of other inputs or settings exist (--overwrite replaces them)", taken)
    return left


def batches(jobs: list[Job], pipeline: Pipeline) -> Iterator[list[Job]]:
    """Jobs of one padded size together, so that batches are full and programs compile once."""
    sound = sorted((job for job in jobs if not job.broken), key=lambda job: job.output)
    for indices in pipeline.batches([job.size for job in sound]):
        yield [sound[i] for i in indices]


def identity(pipeline: Pipeline, settings: Settings) -> dict[str, Any]:
    """What a provenance line must say for its output to be this model's with these settings."""
    model = {"model_digest": pipeline.model.digest, "precision": pipeline.precision}
    return model | asdict(settings)


class Runner:
    """Carries out jobs and keeps the record of each.

    Three threads: one reads and decodes, the caller's computes, one encodes and writes.
    """

    def __init__(
        self, pipeline: Pipeline, settings: Settings, output: Path, ledger: Ledger
    ) -> None:
        self.pipeline, self.settings, self.output, self.ledger = pipeline, settings, output, ledger
        self.failures: list[tuple[Job, str]] = []
        self.remarks: list[tuple[Job, str]] = []  # on pictures that the model is not made for
        self._identity = identity(pipeline, settings) | {"model": pipeline.model.name}

    def run(self, jobs: list[Job], done: Callable[[int], object] = lambda count: None) -> None:
        """Do all jobs; `done` is told how many more are finished, well or not."""
        broken = [job for job in jobs if job.broken]
        for job in broken:
            self._fail(job, job.broken)
        done(len(broken))
        todo = batches(jobs, self.pipeline)
        with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as writer:
            reading: deque[Future[list[Loaded]]] = deque()
            writing: deque[Future[int]] = deque()

            def finish_up_to(ahead: int) -> None:
                while len(reading) > ahead:
                    writing.append(self._advance(reading.popleft(), writer))
                while len(writing) > ahead:
                    done(writing.popleft().result())

            try:
                for batch in todo:
                    ahead = 0 if sum(math.prod(job.size) for job in batch) > ALONE else AHEAD
                    if not ahead:
                        finish_up_to(0)
                    reading.append(reader.submit(self._load, batch))
                    finish_up_to(ahead)
                finish_up_to(0)
            except BaseException:  # leave what has not begun
                reader.shutdown(wait=False, cancel_futures=True)
                writer.shutdown(wait=False, cancel_futures=True)
                raise

    def _advance(self, reading: Future[list[Loaded]], writer: ThreadPoolExecutor) -> Future[int]:
        """Compute one batch and hand it to the writer."""
        start, loaded = time.perf_counter(), reading.result()
        outputs = self._compute(loaded)
        seconds = (time.perf_counter() - start) / max(1, len(loaded))
        tile = self.pipeline.tiling(loaded[0].enlarged.size) if outputs else None
        made = {"tile": tile, "seconds": round(seconds, 4)}
        return writer.submit(self._write_all, loaded, outputs, made)

    def _load(self, batch: list[Job]) -> list[Loaded]:
        """Read, decode and enlarge; what cannot be is recorded as failed."""
        loaded = []
        for job in batch:
            digest = None
            try:
                data = job.source.read_bytes()
                digest = hashlib.sha256(data).hexdigest()
                picture = decode(data, deep=True)
                check_alpha(picture, self.settings.format)
                enlarged = enlarge(picture, self.settings.upscale)
                seen = self.pipeline.seen(picture, enlarged)
                larger = enlarged.size != picture.size
                if text := remark(picture.rgb, self.pipeline.model.use, larger):
                    self.remarks.append((job, text))
                loaded.append(Loaded(job, picture.size, enlarged, seen, digest))
            except (ImageError, OSError, MemoryError) as error:
                self._fail(job, one_line(error), input_sha256=digest)
        return loaded

    def _compute(self, loaded: list[Loaded]) -> list[Floats]:
        """Model outputs; none where the computation failed, which must not stop the others."""
        if not loaded:
            return []
        try:
            return self.pipeline.compute([item.seen for item in loaded])
        except (RuntimeError, MemoryError) as error:
            for item in loaded:
                self._fail(item.job, one_line(error), input_sha256=item.digest)
            return []

    def _write_all(self, loaded: list[Loaded], outputs: list[Floats], made: dict[str, Any]) -> int:
        """Encode, write and record a batch; returns how many jobs that ended."""
        for item, output in zip(loaded, outputs, strict=False):
            try:
                settings = self.settings
                output = self.pipeline.fitted(output, item.enlarged.size)
                result = finish(output, item.enlarged, settings.color_fix, settings.blend)
                data = encode(result, settings.format, settings.quality)
                self._write(item, result, data, made)
            except RestoreError as error:
                self._fail(item.job, one_line(error), input_sha256=item.digest)
            except (ImageError, OSError, MemoryError) as error:
                path = self.output / item.job.output
                reason = f"cannot write {spelled(path)}: {one_line(error)}"
                self._fail(item.job, reason, input_sha256=item.digest)
        return len(loaded)

    def _write(self, item: Loaded, result: Picture, data: bytes, made: dict[str, Any]) -> None:
        """The line first, then the picture: a picture without a line would block the next run."""
        path = self.output / item.job.output
        path.parent.mkdir(parents=True, exist_ok=True)
        if not _stays(self.output, item.job.output.parent):
            raise OSError("a link leads out of the output folder")
        sizes = dict(zip(("height", "width"), item.size, strict=True))
        sizes |= dict(zip(("output_height", "output_width"), result.size, strict=True))
        digests = {"input_sha256": item.digest, "output_sha256": hashlib.sha256(data).hexdigest()}
        with staged(path, data):
            self._record(item.job, "ok", **made, **sizes, **digests)

    def _record(self, job: Job, status: str, **values: object) -> None:
        files = {"input": spelled(job.source), "output": spelled(job.output.as_posix())}
        self.ledger.add(self._identity | values | files | {"status": status})

    def _fail(self, job: Job, reason: str, **values: object) -> None:
        """Record a failure and remember it for the report."""
        self.failures.append((job, reason))
        self._record(job, "failed", reason=reason, seconds=0.0, **values)
