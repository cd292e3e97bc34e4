"""Jobs of a folder carried out: read, restored, written, each with a line in the record.

Three threads share the work, so that the next picture is decoded and the last one encoded while one
is computed. What fails is recorded and does not stop the others.
"""

import hashlib
import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from osdhuman_jax.config import Json
from osdhuman_jax.data.sources import DataError
from osdhuman_jax.disk import staged
from osdhuman_jax.filenames import spelled
from osdhuman_jax.images.codec import (
    MAX_PIXELS,
    ImageError,
    Picture,
    check_alpha,
    decode,
    encode,
)
from osdhuman_jax.images.sizes import Floats, Pixels, enlarge
from osdhuman_jax.inference.condition import remark
from osdhuman_jax.inference.finishing import RestoreError, finish
from osdhuman_jax.inference.folder_plan import is_inside, one_line
from osdhuman_jax.inference.jobs import Job
from osdhuman_jax.inference.ledger import Ledger
from osdhuman_jax.inference.notes import Notes, Request
from osdhuman_jax.inference.onnx_networks import OnnxError
from osdhuman_jax.inference.pipeline import Pipeline
from osdhuman_jax.inference.plans import Progress
from osdhuman_jax.inference.restraint import Restrainer
from osdhuman_jax.inference.settings import Settings, identity

AHEAD = 1  # batches that are read, and that are written, while one is computed
ALONE = MAX_PIXELS // (1 + 2 * AHEAD)  # pixels; a larger batch has no other beside it in memory


@dataclass(frozen=True)
class Loaded:
    """A job's decoded and enlarged input."""

    job: Job
    size: tuple[int, int]  # height, width as decoded
    enlarged: Picture
    seen: Pixels  # by the network
    digest: str
    request: Request


Computed = tuple[Floats, Json]  # a model's output, and what is to be remembered of it


def picture_name(job: Job) -> str:
    """The picture's path below the folder of inputs without its suffix."""
    return job.output.with_suffix("").as_posix()


def batches(jobs: list[Job], pipeline: Pipeline) -> Iterator[list[Job]]:
    """Jobs of one padded size together, so that batches are full and programs compile once."""
    # In the order of names, so that a person can follow a run.
    sound = sorted((job for job in jobs if not job.broken), key=lambda job: job.output)
    for indices in pipeline.batches([job.size for job in sound]):
        yield [sound[i] for i in indices]


class Runner:
    """Carries out jobs and keeps the record of each.

    Three threads: one reads and decodes, the caller's computes, one encodes and writes.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        settings: Settings,
        output: Path,
        ledger: Ledger,
        notes: Notes | None = None,
        progress: Progress | None = None,
        restrain: Restrainer | None = None,
    ) -> None:
        """`notes` and `progress` (of one picture's steps) are for models of many steps.

        `restrain` is what `settings.restraint` stands for.
        """
        self._notes, self._progress, self._restrain = notes or Notes(), progress, restrain
        self.pipeline, self.settings, self.output, self.ledger = pipeline, settings, output, ledger
        self.failures: list[tuple[Job, str]] = []
        self.remarks: list[tuple[Job, str]] = []  # on pictures that the model is not made for
        made = identity(pipeline.model.digest, pipeline.precision, settings)
        self._identity = made | {"model": pipeline.model.name}

    def run(self, jobs: list[Job], done: Callable[[int], object] = lambda count: None) -> None:
        """Do all jobs; `done` is told how many more are finished, well or not."""
        # What the header rules out.
        broken = [job for job in jobs if job.broken]
        for job in broken:
            self._fail(job, job.broken)
        done(len(broken))
        # The rest, with at most AHEAD batches read and AHEAD batches to be written.
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
                    # A batch so large waits until nothing else is in memory.
                    if not ahead:
                        finish_up_to(0)
                    reading.append(reader.submit(self._load, batch))
                    finish_up_to(ahead)
                finish_up_to(0)
            # Leave what has not begun: the caller waits for what has.
            except BaseException:
                reader.shutdown(wait=False, cancel_futures=True)
                writer.shutdown(wait=False, cancel_futures=True)
                raise

    def _advance(self, reading: Future[list[Loaded]], writer: ThreadPoolExecutor) -> Future[int]:
        """Compute one batch and hand it to the writer."""
        # Seconds are wall-clock, the wait for the reader in them: what a person waits for a
        # picture.
        start, loaded = time.perf_counter(), reading.result()
        # In the caller's thread, which hears signals.
        outputs = self._compute(loaded)
        seconds = (time.perf_counter() - start) / max(1, len(loaded))
        tile = self.pipeline.tiling(loaded[0].enlarged.size) if outputs else None
        made = {"tile": tile, "seconds": round(seconds, 4)}
        return writer.submit(self._write_all, loaded, outputs, made)

    def _load(self, batch: list[Job]) -> list[Loaded]:
        """Read, decode and enlarge; what cannot be is recorded as failed."""
        loaded = []
        for job in batch:
            # Known as soon as the bytes are, so that a failure too is recorded with its input.
            digest = None
            try:
                # Read once: digest and pixels are of the same bytes, whatever happens to the file
                # meanwhile.
                data = job.source.read_bytes()
                digest = hashlib.sha256(data).hexdigest()
                picture = decode(data, deep=True)
                if self._restrain:
                    self._restrain.check(picture.size)
                # What the format cannot hold is refused before the picture is computed.
                check_alpha(picture, self.settings.format)
                enlarged = enlarge(picture, self.settings.upscale)
                seen = self.pipeline.seen(picture, enlarged)
                larger = enlarged.size != picture.size
                if text := remark(picture.rgb, self.pipeline.model.use, larger):
                    self.remarks.append((job, text))
                request = self._notes.of(picture_name(job), picture.size)
                loaded.append(Loaded(job, picture.size, enlarged, seen, digest, request))
            except (ImageError, DataError, OSError, MemoryError) as error:
                self._fail(job, one_line(error), input_sha256=digest)
        return loaded

    def _compute(self, loaded: list[Loaded]) -> list[Computed]:
        """Model outputs; none where the computation failed, which must not stop the others."""
        if not loaded:
            return []
        seen, settings = [item.seen for item in loaded], self.settings
        try:
            if settings.sampling is None:
                outputs = self.pipeline.compute(seen, guidance=settings.guidance)
                return [(output, {}) for output in outputs]
            requests = [item.request for item in loaded]
            asked = settings.sampling, settings.color_fix, self._progress
            return [*self.pipeline.sample(seen, requests, *asked)]
        except (RuntimeError, MemoryError) as error:
            for item in loaded:
                self._fail(item.job, one_line(error), input_sha256=item.digest)
            return []

    def _write_all(self, loaded: list[Loaded], outputs: list[Computed], made: Json) -> int:
        """Encode, write and record a batch; returns how many jobs that ended."""
        # No outputs at all where the computation failed: those jobs are recorded already.
        settings, fix = self.settings, self.pipeline.late_fix(self.settings.color_fix)
        for item, (output, facts) in zip(loaded, outputs, strict=False):
            try:
                output = self.pipeline.fitted(output, item.enlarged.size)
                result = finish(output, item.enlarged, fix, settings.blend)
                if self._restrain:
                    result, more, remarks = self._restrain(item.enlarged, result)
                    facts = facts | more
                    self.remarks += [(item.job, text) for text in remarks]
                data = encode(result, settings.format, settings.quality)
                self._write(item, result, data, made | facts)
            except (RestoreError, OnnxError) as error:
                self._fail(item.job, one_line(error), input_sha256=item.digest)
            except (ImageError, OSError, MemoryError) as error:
                path = self.output / item.job.output
                reason = f"cannot write {spelled(path)}: {one_line(error)}"
                self._fail(item.job, reason, input_sha256=item.digest)
        return len(loaded)

    def _write(self, item: Loaded, result: Picture, data: bytes, made: Json) -> None:
        """The line first, then the picture: a picture without a line would block the next run."""
        path = self.output / item.job.output
        path.parent.mkdir(parents=True, exist_ok=True)
        # A link may have been put there since the plan was made.
        if not is_inside(self.output, item.job.output.parent):
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
