"""Shards through a job, on this machine's cores or on Ray, with the same bytes as result.

Exactly-once comes from the ledger, not from the executor: a shard's worker is a pure function of
the shard, so any executor may run it again. A job and the names of its shards go in; what comes out
are files that the ledger knows, and a line for each shard in OUT/log.jsonl. A job is at fault, not
an item, if its shards go on killing their workers.
"""

import itertools
import json
import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence, Set
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.process import BaseProcess
from pathlib import Path

from curate.engine.cluster import run_ray
from curate.engine.ledger import ShardLedger
from curate.engine.worker import BREAKS, Outcome, ShardJob, Task, run_shard
from curate.schema import InputError
from osdhuman_jax.disk import append_line
from osdhuman_jax.workers import EngineError, prepare_process

# Shards after which a worker is replaced, since decoders leak memory.
SHARDS_A_WORKER = 50
# Seconds without an outcome after which the workers are looked for.
WATCH = 5.0


def run_here(tasks: Sequence[Task]) -> Iterator[Outcome]:
    """Run tasks one after the other in this process."""
    for task in tasks:
        yield run_shard(*task)


def run_local(
    tasks: Sequence[Task], workers: int, shards_a_worker: int = SHARDS_A_WORKER
) -> Iterator[Outcome]:
    """Run tasks on `workers` processes, which are replaced after `shards_a_worker` shards each.

    They are replaced, too, when one of them dies. Raises EngineError when workers go on dying, or
    are gone, and no shard gets done.
    """
    left, breaks = {task[2]: task for task in tasks}, 0
    while left:
        # As many shards as the workers of one pool may do before they are replaced.
        before = len(left)
        batch = list(itertools.islice(left.values(), workers * shards_a_worker))
        for outcome in _one_pool(batch, min(workers, len(batch))):
            del left[outcome.shard]
            yield outcome
        # A death is forgiven as long as some shard was finished since the last one.
        breaks = 0 if len(left) < before else breaks + 1
        if left and breaks >= BREAKS:
            raise EngineError(
                f"worker processes die again and again (out of memory?); "
                f"{len(left)} shards are left, such as {next(iter(left))}"
            )


def _one_pool(tasks: Sequence[Task], workers: int) -> Iterator[Outcome]:
    """Run tasks in a pool of their own; yields outcomes until all are done or a worker dies.

    A pool lives for one call: `max_tasks_per_child` would replace its workers as well, but a
    worker that leaves while all work is handed out already is never replaced (CPython gh-115634).
    """
    # Workers are spawned: a forked one would inherit locks that threads of OpenCV or Arrow hold.
    others = set(multiprocessing.active_children())
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, spawn, prepare_process, (signal.SIGINT,))
    pending: set[Future] = set()
    lost = False
    try:
        # A worker may die before all work is handed out.
        with suppress(BrokenProcessPool):
            for task in tasks:
                pending.add(pool.submit(run_shard, *task, True))
        while pending and not lost:
            done, pending = wait(pending, timeout=WATCH, return_when=FIRST_COMPLETED)
            # No worker is alive to finish anything, and the pool waits for one all the same.
            lost = not done and not _ours(others)
            for future in done:
                # A worker died: what was under way is redone.
                with suppress(BrokenProcessPool):
                    yield future.result()
    finally:
        # Something is pending only after Ctrl-C or an error: the workers end at once.
        for process in _ours(others) if pending else ():
            process.kill()
        pool.shutdown(wait=not lost, cancel_futures=True)


def _ours(others: Set[BaseProcess]) -> list[BaseProcess]:
    """The living children of this process that are not among `others`."""
    return [child for child in multiprocessing.active_children() if child not in others]


@dataclass(frozen=True)
class Engine:
    """Where and how jobs run."""

    root: Path
    # "local" or "ray".
    kind: str = "local"
    # Processes; 0 = in this process (local only). Of a job that needs a GPU there is one at most.
    workers: int = 0
    # Seconds an item may take.
    limit: float = 60.0
    # Whether digests of what is done are compared, and not sizes only.
    verify: bool = False

    def here(self) -> "Engine":
        """This engine without other processes, for the steps that are one shard."""
        return replace(self, kind="local", workers=0)

    def todo(self, job: ShardJob, shards: Sequence[str]) -> dict[str, str]:
        """Key by shard, of those shards that are not done with their present inputs."""
        ledger = ShardLedger(self.root)
        keys = {shard: job.key(ledger, shard) for shard in shards}
        return {s: k for s, k in keys.items() if not ledger.is_done(job.name, s, k, self.verify)}

    def run(
        self, job: ShardJob, shards: Sequence[str], report: Callable[[Outcome], None] | None = None
    ) -> int:
        """Do what is not done yet of `shards`; a shard that fails is tried once more.

        `report` is called with each outcome. Returns how many shards were worked on. Raises
        EngineError that names the shards which could not be done (the others are done), or
        InputError where what a person gave is at fault.
        """
        # A failure may be the machine's, such as a full disk, so each shard has a second chance.
        todo = self.todo(job, shards)
        failed = self._pass(job, todo, report)
        failed = self._pass(job, {o.shard: todo[o.shard] for o in failed}, report)
        if failed:
            lines = "; ".join(f"{job.name} {o.shard}: {o.error}" for o in failed[:5])
            raise EngineError(f"{len(failed)} of {len(todo)} shards failed: {lines}")
        return len(todo)

    def _pass(
        self, job: ShardJob, keys: dict[str, str], report: Callable[[Outcome], None] | None
    ) -> list[Outcome]:
        """Work these shards once; returns the outcomes of those that failed."""
        tasks = [(str(self.root), job, shard, key, self.limit) for shard, key in keys.items()]
        failed = []
        for outcome in self._execute(tasks):
            self._log(job, outcome)
            # Every shard would fail by the same fault of the input, so the first one ends it all.
            if outcome.blame:
                raise InputError(outcome.error)
            if outcome.error:
                failed.append(outcome)
            if report is not None:
                report(outcome)
        return failed

    def _execute(self, tasks: Sequence[Task]) -> Iterator[Outcome]:
        """Run tasks by the executor that the settings ask for."""
        if not tasks:
            return iter(())
        if self.kind == "ray":
            return run_ray(tasks, self.workers)
        # Several processes on one GPU would each hold the network's weights there.
        workers = min(self.workers, 1) if tasks[0][1].gpus else self.workers
        return run_local(tasks, workers) if workers else run_here(tasks)

    def _log(self, job: ShardJob, outcome: Outcome) -> None:
        """Add a line on an outcome to log.jsonl, which nothing reads but people."""
        line = {"job": job.name, "shard": outcome.shard, "seconds": round(outcome.seconds, 3)}
        line |= {"error": outcome.error, "trace": outcome.trace} if outcome.error else {}
        append_line(self.root / "log.jsonl", json.dumps({**line, **outcome.facts}))
