"""Shards through a job, on this machine's cores or on Ray, with the same bytes as result.

Exactly-once comes from the ledger, not from the executor: a shard's worker is a pure function of
the shard, so any executor may run it again. An item that kills its process (a decoder that
crashes on one picture) is told from a process that was killed: a shard whose earlier attempt
never ended is worked with its items in a child process, and only an item that takes its child
down twice is condemned. A job is at fault, not an item, if shards die without end.
"""

import faulthandler
import itertools
import json
import multiprocessing
import os
import signal
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import cv2

from curate.ledger import Ledger
from curate.schema import InputError
from osdhuman_jax.disk import append_line

ATTEMPTS = 2  # times an item may take its process down before it is given up
BREAKS = 3  # times in a row that workers may die with no shard finished in between
SHARDS_A_WORKER = 50  # then a worker is replaced: decoders leak
WATCH = 5.0  # seconds without an outcome after which the workers are looked for


class EngineError(RuntimeError):
    """Shards that could not be done; one line a shard."""


class Job(Protocol):
    """A pure map from shards to files; picklable."""

    @property
    def name(self) -> str:
        """The job's folder."""
        ...

    @property
    def gpus(self) -> float:
        """GPUs a worker needs (Ray places by it)."""
        ...

    def key(self, ledger: Ledger, shard: str) -> str:
        """Digest of all that the outputs depend on: own parameters, inputs, versions."""
        ...

    def work(self, ledger: Ledger, shard: str, folder: Path, run: "Runner") -> dict[str, Any]:
        """Write the shard's files into `folder`; returns JSON facts (counts, seconds)."""
        ...


@dataclass(frozen=True)
class Outcome:
    """How a shard ended."""

    shard: str
    facts: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    error: str = ""  # one line; empty = done
    blame: bool = False  # the input is at fault: another attempt is of no use
    trace: str = ""


class Failure(NamedTuple):
    """What became of an item that has no result: a reason code and one line."""

    reason: str
    detail: str


@dataclass(frozen=True)
class Runner:
    """Calls a function on items so that no single one can take the shard down.

    Attributes:
        isolated: items run in a child process, after an attempt at this shard that never ended.
        watched: this process may be ended from within when an item hangs in foreign code.
        limit: seconds for an item.
    """

    isolated: bool = False
    watched: bool = False
    limit: float = 60.0

    def each(
        self, setup: Callable[[], Callable[[Any], Any]], items: Iterable[Any]
    ) -> Iterator[Any]:
        """Results, or Failures, of `setup()(item)` for each item, in order; all picklable."""
        if self.isolated:
            yield from self._each_isolated(setup, items)
            return
        function = setup()
        for item in items:
            with self._watch():
                result = attempt(function, item)
            yield result

    @contextmanager
    def _watch(self) -> Iterator[None]:
        if not self.watched:
            yield
            return
        with open(os.devnull, "w") as nowhere:
            faulthandler.dump_traceback_later(self.limit, exit=True, file=nowhere)
            try:
                yield
            finally:
                faulthandler.cancel_dump_traceback_later()

    def _each_isolated(self, setup: Callable, items: Iterable[Any]) -> Iterator[Any]:
        child: Child | None = None
        try:
            for item in items:
                failure = None
                for _ in range(ATTEMPTS):
                    child = child or Child(setup)
                    try:
                        failure = None
                        result = child(item, self.limit)
                        break
                    except ChildDied as death:
                        child, failure = None, death.failure
                yield failure or result  # pyright: ignore[reportPossiblyUnboundVariable]
        finally:
            if child is not None:
                child.close()


def attempt(function: Callable[[Any], Any], item: Any) -> Any:
    """The function's result, or a Failure named by the exception.

    Raises InputError: what a person gave is at fault then, not the item.
    """
    try:
        return function(item)
    except InputError:
        raise
    except Exception as error:  # whatever a picture sets off costs that picture alone
        line = " ".join(str(error).split())[:300]
        return Failure(f"stage_error:{type(error).__name__}", line)


class ChildDied(Exception):
    """The child process ended, or was ended, while it worked on an item."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.detail)
        self.failure = failure


class Child:
    """A process that serves calls one by one and may die of any of them."""

    def __init__(self, setup: Callable[[], Callable[[Any], Any]]) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, far = context.Pipe()
        self._process = context.Process(target=_serve, args=(far, setup))
        self._process.start()
        far.close()
        self._ready = False

    def __call__(self, item: Any, limit: float) -> Any:
        """Result or Failure. Raises ChildDied; the child is of no use then. Raises InputError."""
        try:
            if not self._ready:  # starting is none of the item's time
                self._receive()
                self._ready = True
            self._pipe.send(item)
            if not self._pipe.poll(limit):
                raise ChildDied(Failure("stage_error:timeout", f"more than {limit:.0f} s"))
            return self._receive()
        except (EOFError, OSError):
            self._process.join()
            code = self._process.exitcode or 0
            death = f"signal {-code}" if code < 0 else f"exit status {code}"
            raise ChildDied(Failure("decoder_crash", f"process ended by {death}")) from None
        except ChildDied:
            self.close()
            raise

    def _receive(self) -> Any:
        answer = self._pipe.recv()
        if isinstance(answer, InputError):
            raise answer
        return answer

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.kill()
        self._process.join()


def _serve(pipe: Any, setup: Callable[[], Callable[[Any], Any]]) -> None:
    prepare_process()
    try:
        function = setup()
        pipe.send(None)
        while True:
            pipe.send(attempt(function, pipe.recv()))
    except InputError as error:
        pipe.send(error)
    except EOFError:
        return  # the driver has no more


def prepare_process() -> None:
    """A worker: one OpenCV thread; Ctrl-C is the driver's; ends when its parent is gone."""
    cv2.setNumThreads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def run_shard(
    root: str, job: Job, shard: str, key: str, limit: float, watched: bool = False
) -> Outcome:
    """Work one shard and commit it. Errors come back as text; the shard is then not done."""
    ledger, start = Ledger(root), time.monotonic()
    runner = Runner(ledger.begin(job.name, shard), watched, limit)
    try:
        with ledger.workspace() as folder:
            facts = job.work(ledger, shard, folder, runner)
            seconds = time.monotonic() - start
            record = {**facts, "seconds": round(seconds, 3), "host": socket.gethostname()}
            ledger.commit(job.name, shard, key, folder, record)
    except InputError as error:
        return Outcome(shard, error=str(error), blame=True)
    except Exception as error:
        line = f"{type(error).__name__}: {' '.join(str(error).split())}"
        return Outcome(shard, error=line, trace=traceback.format_exc())
    return Outcome(shard, facts, seconds)


Task = tuple[str, Job, str, str, float]  # run_shard's arguments


def run_here(tasks: Sequence[Task]) -> Iterator[Outcome]:
    """One after the other in this process."""
    for task in tasks:
        yield run_shard(*task)


def run_local(
    tasks: Sequence[Task], workers: int, shards_a_worker: int = SHARDS_A_WORKER
) -> Iterator[Outcome]:
    """On `workers` processes: new ones after `shards_a_worker` shards each, and when one dies.

    Raises EngineError when workers go on dying, or are gone, and no shard gets done.
    """
    left, breaks = {task[2]: task for task in tasks}, 0
    while left:
        before = len(left)
        batch = list(itertools.islice(left.values(), workers * shards_a_worker))
        for outcome in _one_pool(batch, min(workers, len(batch))):
            del left[outcome.shard]
            yield outcome
        breaks = 0 if len(left) < before else breaks + 1
        if left and breaks >= BREAKS:
            raise EngineError(
                f"worker processes die again and again (out of memory?); "
                f"{len(left)} shards are left, such as {next(iter(left))}"
            )


def _one_pool(tasks: Sequence[Task], workers: int) -> Iterator[Outcome]:
    """Outcomes until all are done or a worker dies.

    A pool lives for one call: `max_tasks_per_child` would replace its workers as well, but a
    worker that leaves while all work is handed out already is never replaced (CPython gh-115634).
    """
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), prepare_process)
    pending: set[Future] = set()
    lost = False
    try:
        with suppress(BrokenProcessPool):  # a worker may die before all work is handed out
            for task in tasks:
                pending.add(pool.submit(run_shard, *task, True))
        while pending and not lost:
            done, pending = wait(pending, timeout=WATCH, return_when=FIRST_COMPLETED)
            # No worker is alive to finish anything, and the pool waits for one all the same.
            lost = not done and not _ours(others)
            for future in done:
                with suppress(BrokenProcessPool):  # a worker died: what was under way is redone
                    yield future.result()
    finally:
        for process in _ours(others) if pending else ():  # Ctrl-C
            process.kill()
        pool.shutdown(wait=not lost, cancel_futures=True)


def _ours(others: Set[BaseProcess]) -> list[BaseProcess]:
    """Living children of this process, but for those that it had before."""
    return [child for child in multiprocessing.active_children() if child not in others]


@dataclass(frozen=True)
class Engine:
    """Where and how jobs run."""

    root: Path
    kind: str = "local"  # or "ray"
    workers: int = 0  # 0 = in this process (local only); those that share a GPU: one
    limit: float = 60.0  # seconds an item may take
    verify: bool = False  # compare digests of what is done, not sizes only

    def here(self) -> "Engine":
        """The same in this process, for the steps that are one shard."""
        return replace(self, kind="local", workers=0)

    def todo(self, job: Job, shards: Sequence[str]) -> dict[str, str]:
        """Those shards, with their keys, that are not done with their present inputs."""
        ledger = Ledger(self.root)
        keys = {shard: job.key(ledger, shard) for shard in shards}
        return {s: k for s, k in keys.items() if not ledger.is_done(job.name, s, k, self.verify)}

    def run(
        self, job: Job, shards: Sequence[str], report: Callable[[Outcome], None] | None = None
    ) -> int:
        """Do what is not done yet of `shards`; a shard that fails is tried once more.

        `report` is called with each outcome. Returns how many shards were worked on. Raises
        EngineError that names the shards which could not be done (the others are), or InputError.
        """
        todo = self.todo(job, shards)
        failed = self._pass(job, todo, report)
        failed = self._pass(job, {o.shard: todo[o.shard] for o in failed}, report)
        if failed:
            lines = "; ".join(f"{job.name} {o.shard}: {o.error}" for o in failed[:5])
            raise EngineError(f"{len(failed)} of {len(todo)} shards failed: {lines}")
        return len(todo)

    def _pass(
        self, job: Job, keys: dict[str, str], report: Callable[[Outcome], None] | None
    ) -> list[Outcome]:
        tasks = [(str(self.root), job, shard, key, self.limit) for shard, key in keys.items()]
        failed = []
        for outcome in self._execute(tasks):
            self._log(job, outcome)
            if outcome.blame:
                raise InputError(outcome.error)
            if outcome.error:
                failed.append(outcome)
            if report is not None:
                report(outcome)
        return failed

    def _execute(self, tasks: Sequence[Task]) -> Iterator[Outcome]:
        if not tasks:
            return iter(())
        if self.kind == "ray":
            from curate.cluster import run_ray  # Ray: only where it is asked for

            return run_ray(tasks, self.workers)
        workers = min(self.workers, 1) if tasks[0][1].gpus else self.workers
        return run_local(tasks, workers) if workers else run_here(tasks)

    def _log(self, job: Job, outcome: Outcome) -> None:
        line = {"job": job.name, "shard": outcome.shard, "seconds": round(outcome.seconds, 3)}
        line |= {"error": outcome.error, "trace": outcome.trace} if outcome.error else {}
        append_line(self.root / "log.jsonl", json.dumps({**line, **outcome.facts}))
