"""A folder's jobs carried out by the workers of a Ray cluster: many machines, the same bytes.

    with session(cores) as ray:
        Crew(ray, places(ray, None), orders, ledger, made).run(jobs, progress.update)

The driver, which is this module, holds the output folder: it decides what is to be done, and it
alone writes lines of the record. Workers (`folder_worker.py`) write the pictures. A worker that
dies is replaced, and what it left is done again; where the driver dies, Ray ends its workers, and
the same command goes on. The driver loads no model.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from osdhuman_jax.config import Json
from osdhuman_jax.disk import file_digest, remove_leftovers
from osdhuman_jax.filenames import spelled
from osdhuman_jax.inference.folder_plan import one_line
from osdhuman_jax.inference.folder_worker import Orders, Worker
from osdhuman_jax.inference.jobs import Job
from osdhuman_jax.inference.ledger import Ledger, line_of
from osdhuman_jax.inference.portions import LANES, Portion, Schedule
from osdhuman_jax.workers import EngineError

BREAKS = 3  # workers in a row that may die at a place before they are ready
WATCH = 60.0  # seconds without news after which a person is told
FAREWELL = 5.0  # seconds that workers have to finish what they write
MOMENT = 1.0  # seconds until a killed process is gone
KILLED = "its worker was killed twice over it (out of memory?)"

log = logging.getLogger(__name__)


class Places(NamedTuple):
    """How many workers there are, and what each asks of the cluster."""

    count: int
    asks: dict[str, object]  # options of Ray's actors
    each: str  # what each has, in words


def places(ray: ModuleType, count: int | None) -> Places:
    """One worker for each GPU or TPU chip of a cluster, else for each machine; or `count`.

    On CPUs each gets an equal share of the cores. Raises EngineError where there is nothing.
    """
    total = ray.cluster_resources()
    if total.get("GPU", 0) >= 1:
        return Places(count or int(total["GPU"]), {"num_gpus": 1}, "a GPU")
    # Ray sets what lets a process see one chip alone.
    if total.get("TPU", 0) >= 1:
        return Places(count or int(total["TPU"]), {"resources": {"TPU": 1}}, "a TPU chip")
    cores = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    machines = [n for n in cores if n]
    if not machines:
        raise EngineError("the cluster has no GPU, no TPU and no CPU for a worker")
    count = count or len(machines)
    # A share that no machine has would never be given.
    share = max(1, min(*machines, sum(machines) // count))
    asks = {"num_cpus": share, "scheduling_strategy": "SPREAD"}
    return Places(count, asks, f"{share} CPU core{'s' if share > 1 else ''}")


@dataclass(eq=False)
class Seat:
    """A place of the cluster, and the worker that has it now."""

    worker: Any = None  # Ray's handle of a `folder_worker.Worker`
    name: str = ""  # of the model; empty until the worker is ready
    recorded: int = 0  # lines of this worker that are on the disk
    deaths: int = 0  # of workers in a row that were never ready
    portions: list[Portion] = field(default_factory=list)

    @property
    def free(self) -> bool:
        """Whether the worker can take a portion more."""
        alone = any(portion.alone for portion in self.portions)
        return bool(self.name) and not alone and len(self.portions) < LANES


class Call(NamedTuple):
    """What a worker was asked: to be "ready", for "lines", or to "work" on a portion."""

    seat: Seat
    worker: Any  # the seat's at that time
    kind: str
    portion: Portion | None = None


class Crew:
    """The workers of one run, and what is known of their pictures."""

    def __init__(
        self,
        ray: ModuleType,
        found: Places,
        orders: Orders,
        ledger: Ledger,
        identity: Json,
    ) -> None:
        """`identity` is what every line of this run says, but for the model's name."""
        self._ray, self._places, self._orders = ray, found, orders
        self._ledger, self._identity = ledger, identity
        self.failures: list[tuple[Job, str]] = []
        self.remarks: list[tuple[Job, str]] = []
        self._seats: list[Seat] = []
        self._calls: dict[Any, Call] = {}  # by Ray's reference of the answer
        # Jobs that are handed out, by name, and the line of those that have one.
        self._jobs: dict[str, Job] = {}
        self._lines: dict[str, Json] = {}
        self._done: Callable[[int], object] = lambda count: None

    def run(self, jobs: list[Job], done: Callable[[int], object] = lambda count: None) -> None:
        """Do all jobs; `done` is told how many more are finished, well or not.

        Raises EngineError where workers cannot do them, OSError where the record cannot be written.
        """
        self._done = done
        count = min(self._places.count, len(jobs))
        self._schedule = Schedule(jobs, count, self._orders.batch_size)
        log.info("%d workers, each with %s", count, self._places.each)
        # Once on each machine: it may hold the captions of a million pictures.
        orders = self._ray.put(self._orders)
        actor = self._ray.remote(max_concurrency=LANES + 2, **self._places.asks)(Worker)
        self._hire = lambda: actor.remote(orders)
        try:
            for _ in range(count):
                self._seats.append(Seat())
                self._fill(self._seats[-1])
            while self._schedule or any(seat.portions for seat in self._seats):
                self._hand_out()
                self._hear()
        finally:
            self._dismiss()

    def _fill(self, seat: Seat) -> None:
        """Start a worker at a place."""
        seat.worker, seat.name, seat.recorded, seat.portions = self._hire(), "", 0, []
        self._calls[seat.worker.ready.remote()] = Call(seat, seat.worker, "ready")

    def _hand_out(self) -> None:
        """Give every worker that has room its next portion."""
        for seat in self._seats:
            while seat.free and (portion := self._schedule.take(idle=not seat.portions)):
                self._jobs |= {_name(job): job for job in portion.jobs}
                seat.portions.append(portion)
                call = Call(seat, seat.worker, "work", portion)
                self._calls[seat.worker.work.remote(portion.jobs)] = call

    def _hear(self) -> None:
        """Wait for answers, and do what follows from them."""
        waiting = list(self._calls)
        ready = self._ray.wait(waiting, num_returns=1, timeout=WATCH)[0]
        if not ready:
            there = sum(bool(seat.name) for seat in self._seats)
            log.info("waiting for workers: %d of %d are ready", there, len(self._seats))
            return
        # Whatever else has come by now: lines of many workers are flushed to the disk together.
        ready = self._ray.wait(waiting, num_returns=len(waiting), timeout=0)[0] or ready
        calls = [(self._calls.pop(reference), reference) for reference in ready]
        answers = [(call, *self._answer(call, reference)) for call, reference in calls]
        self._record([(call.seat, answer) for call, answer, _ in answers if call.kind == "lines"])
        for call, answer, death in answers:
            # All calls of a dead worker end by its death; the first one told of it.
            if call.worker is not call.seat.worker:
                continue
            if death:
                self._replace(call.seat, death)
            elif call.kind == "work":
                self._settle(call, answer)
            elif call.kind == "ready":
                call.seat.name, call.seat.deaths = answer, 0
                self._ask_for_lines(call.seat)

    def _answer(self, call: Call, reference: Any) -> tuple[Any, str]:
        """What a worker answered, and why it is of no use any more, if it is.

        Raises EngineError on what another worker would run into as well.
        """
        errors = self._ray.exceptions
        try:
            return self._ray.get(reference), ""
        except errors.RayTaskError as error:
            cause = error.cause
            if isinstance(cause, EngineError):
                raise EngineError(str(cause)) from error
            # As by a GPU that is out of order, of which there may be others.
            if call.kind == "ready":
                return None, one_line(cause)
            raise EngineError(f"a worker failed: {cause!r}") from error
        except errors.RayError as error:
            # Ray's own advice is a page long; the line that names the cause comes last.
            return None, (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()

    def _record(self, answers: list[tuple[Seat, list[Json] | None]]) -> None:
        """Write lines to the disk, and then let their pictures take their names."""
        lines = [line for _, found in answers for line in found or []]
        if lines:
            self._ledger.add(*lines)
        for line in lines:
            self._lines[line["output"]] = line
            if line["status"] == "failed":
                self.failures.append((self._jobs[line["output"]], line["reason"]))
        self._done(len(lines))
        for seat, found in answers:
            if found is not None:
                seat.recorded += len(found)
                self._ask_for_lines(seat)

    def _ask_for_lines(self, seat: Seat) -> None:
        call = Call(seat, seat.worker, "lines")
        self._calls[seat.worker.lines.remote(seat.recorded)] = call

    def _settle(self, call: Call, remarks: list[tuple[Job, str]]) -> None:
        """A portion is done: all its pictures have their lines and their names."""
        assert call.portion is not None
        call.seat.portions.remove(call.portion)
        self.remarks += remarks
        for job in call.portion.jobs:
            self._forget(job)

    def _forget(self, job: Job) -> Json | None:
        """The line of a job that is handed out no longer, if it has one."""
        self._jobs.pop(_name(job))
        return self._lines.pop(_name(job), None)

    def _replace(self, seat: Seat, death: str) -> None:
        """Take back what a dead worker had, and start another one in its place."""
        self._calls = {r: c for r, c in self._calls.items() if c.worker is not seat.worker}
        # One that only cannot be reached must not go on.
        self._ray.kill(seat.worker)
        handed_out = [job for portion in seat.portions for job in portion.jobs]
        # Who had pictures was ready, and its place is none where workers cannot live.
        for job in self._schedule.lost(job for job in handed_out if not self._is_done(job)):
            self.failures.append((job, KILLED))
            made = self._identity | {"model": seat.name}
            self._ledger.add(line_of(made, job, "failed", reason=KILLED, seconds=0.0))
            self._done(1)
        seat.deaths += not seat.name
        if seat.deaths < BREAKS and self._schedule:
            log.warning("a worker died, and another one takes its place: %s", death)
            self._fill(seat)
            return
        self._seats.remove(seat)
        seat.worker = None
        if self._schedule:
            log.warning("%d workers died at a place, which is given up: %s", BREAKS, death)
        if self._schedule and not self._seats:
            raise EngineError(f"workers die before they are ready (out of memory?): {death}")

    def _is_done(self, job: Job) -> bool:
        """Whether a job of a dead worker ended, well or not; it is handed out no longer."""
        line = self._forget(job)
        if line is None:
            return False
        # The worker may have died between its line and the name of its picture.
        done = line["status"] == "failed" or _has(self._orders.output / job.output, line)
        self._done(0 if done else -1)
        return done

    def _dismiss(self) -> None:
        """End all workers; where they were still at work, no half of a picture stays."""
        busy = [reference for reference, call in self._calls.items() if call.kind == "work"]
        if busy:
            for seat in self._seats:
                seat.worker.stop.remote()
            self._ray.wait(busy, num_returns=len(busy), timeout=FAREWELL)
        for seat in self._seats:
            self._ray.kill(seat.worker)
        if busy:
            # A process that was killed keeps its locks for a moment.
            time.sleep(MOMENT)
            remove_leftovers(self._orders.output, deep=True)


def _name(job: Job) -> str:
    """The job's name in the record."""
    return spelled(job.output.as_posix())


def _has(path: Path, line: Json) -> bool:
    """Whether a file is there with the bytes that its line says."""
    try:
        return file_digest(path) == line["output_sha256"]
    except OSError:
        return False
