"""One shard in one process: what a job is, how its items are called, how it ends.

The engine hands `run_shard` to whichever process has room. The ledger makes a shard's work safe to
repeat, so all that this module has to settle is which item is at fault when a process dies. An item
that kills its process (a decoder that crashes on one picture) is told from a process that was
killed: a shard whose earlier attempt never ended is worked with its items in a child process, and
only an item that takes its child down twice is condemned.
"""

import faulthandler
import multiprocessing
import os
import signal
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import cv2

from curate.engine.ledger import ShardLedger
from curate.schema import InputError, Reason

# Times in a row that workers may die with no shard finished in between.
BREAKS = 3
# Times an item may take its process down before it is given up.
ATTEMPTS = 2


class EngineError(RuntimeError):
    """Shards that could not be done; one line a shard."""


class ShardJob(Protocol):
    """A pure map from shards to files; picklable."""

    @property
    def name(self) -> str:
        """The job's folder."""
        ...

    @property
    def gpus(self) -> float:
        """GPUs a worker needs (Ray places by it)."""
        ...

    def key(self, ledger: ShardLedger, shard: str) -> str:
        """Digest of all that the outputs depend on: own parameters, inputs, versions."""
        ...

    def work(
        self, ledger: ShardLedger, shard: str, folder: Path, run: "ItemRunner"
    ) -> dict[str, Any]:
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
class ItemRunner:
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
        # The child lives on from item to item; a new one is started after each death.
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
    except Exception as error:
        # Whatever a picture sets off is to cost that picture alone.
        line = " ".join(str(error).split())[:300]
        return Failure(f"{Reason.STAGE_ERROR}:{type(error).__name__}", line)


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
            # Starting the process does not count as the item's time.
            if not self._ready:
                self._receive()
                self._ready = True
            self._pipe.send(item)
            if not self._pipe.poll(limit):
                raise ChildDied(
                    Failure(f"{Reason.STAGE_ERROR}:timeout", f"more than {limit:.0f} s")
                )
            return self._receive()
        except (EOFError, OSError):
            self._process.join()
            code = self._process.exitcode or 0
            death = f"signal {-code}" if code < 0 else f"exit status {code}"
            raise ChildDied(Failure(Reason.DECODER_CRASH, f"process ended by {death}")) from None
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
        # The driver has no more items.
        return


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
    root: str, job: ShardJob, shard: str, key: str, limit: float, watched: bool = False
) -> Outcome:
    """Work one shard and commit it. Errors come back as text; the shard is then not done."""
    ledger, start = ShardLedger(root), time.monotonic()
    runner = ItemRunner(ledger.begin(job.name, shard), watched, limit)
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


Task = tuple[str, ShardJob, str, str, float]  # run_shard's arguments
