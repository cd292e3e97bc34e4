"""One shard in one process: what a job is, how its items are called, how it ends.

The engine hands `run_shard` to whichever process has room. The ledger makes a shard's work safe to
repeat, so all that this module has to settle is which item is at fault when a process dies. An item
that kills its process (a decoder that crashes on one picture) is told from a process that was
killed: a shard whose earlier attempt never ended is worked with its items in a child process, and
only an item that takes its child down twice is given up. A job that has items calls
`ItemRunner.each` and needs to know nothing of this.
"""

import faulthandler
import multiprocessing
import os
import signal
import socket
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Generic, NamedTuple, Protocol, TypeVar

from curate.engine.ledger import ShardLedger
from curate.schema import Facts, InputError, Reason
from osdhuman_jax.workers import prepare_process

# Times in a row that workers may die with no shard finished in between.
BREAKS = 3
# Times an item may take its process down before it is given up.
ATTEMPTS = 2

Item = TypeVar("Item")
Result = TypeVar("Result")


class ShardJob(Protocol):
    """A pure map from shards to files; it can be pickled, and so sent to other processes."""

    @property
    def name(self) -> str:
        """The name of the job and of its folder below the ledger's root."""
        ...

    @property
    def gpus(self) -> float:
        """How many GPUs a worker needs; Ray places workers by it."""
        ...

    @property
    def network(self) -> bool:
        """Whether a worker loads a network, so that it should live on from shard to shard."""
        ...

    def key(self, ledger: ShardLedger, shard: str) -> str:
        """Digest of all that the outputs depend on: own parameters, inputs, versions."""
        ...

    def work(self, ledger: ShardLedger, shard: str, folder: Path, run: "ItemRunner") -> Facts:
        """Write the shard's files into `folder`; returns counts and times for its marker."""
        ...


@dataclass(frozen=True)
class Outcome:
    """How a shard ended."""

    shard: str
    facts: Facts = field(default_factory=dict)
    seconds: float = 0.0
    # One line; empty where the shard is done.
    error: str = ""
    # Whether what a person gave is at fault, so that another attempt is of no use.
    blame: bool = False
    # The exception's traceback, for the log.
    trace: str = ""


class Failure(NamedTuple):
    """What became of an item that has no result: a reason code and one line."""

    reason: str
    detail: str


@dataclass(frozen=True)
class ItemRunner:
    """Calls a function on a shard's items so that no single one can take the shard down.

    Attributes:
        isolated: items run in a child process, after an attempt at this shard that never ended.
        watched: this process may be ended from within when an item hangs in foreign code.
        limit: seconds for an item.
    """

    isolated: bool = False
    watched: bool = False
    limit: float = 60.0

    def each(
        self, setup: Callable[[], Callable[[Item], Result]], items: Iterable[Item]
    ) -> Iterator[Result | Failure]:
        """Yields the result, or the Failure, of `setup()(item)` for each item, in order.

        `setup`, items and results must be picklable. Raises InputError where what a person gave is
        at fault.
        """
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
        """Ends this process if the block takes longer than the limit."""
        if not self.watched:
            yield
            return
        # faulthandler's thread is not Python's: it ends even a process that hangs in foreign code.
        with open(os.devnull, "w") as nowhere:
            faulthandler.dump_traceback_later(self.limit, exit=True, file=nowhere)
            try:
                yield
            finally:
                faulthandler.cancel_dump_traceback_later()

    def _each_isolated(
        self, setup: Callable[[], Callable[[Item], Result]], items: Iterable[Item]
    ) -> Iterator[Result | Failure]:
        child: Child[Item, Result] | None = None
        # The child lives on from item to item; a new one is started after each death.
        try:
            for item in items:
                answer: Result | Failure = Failure(Reason.DECODER_CRASH, "")
                for _ in range(ATTEMPTS):
                    child = child or Child(setup)
                    try:
                        answer = child(item, self.limit)
                        break
                    except ChildDied as death:
                        child, answer = None, death.failure
                yield answer
        finally:
            if child is not None:
                child.close()


def attempt(function: Callable[[Item], Result], item: Item) -> Result | Failure:
    """The function's result, or a Failure that names the exception.

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


class Child(Generic[Item, Result]):
    """A process that serves calls one by one and may die of any of them."""

    def __init__(self, setup: Callable[[], Callable[[Item], Result]]) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, far = context.Pipe()
        self._process = context.Process(target=_serve, args=(far, setup))
        self._process.start()
        # With its other end open here, the pipe would not end when the child does.
        far.close()
        self._ready = False

    def __call__(self, item: Item, limit: float) -> Result | Failure:
        """The result, or the Failure, of one item within `limit` seconds.

        Raises ChildDied, after which the child is of no use, or InputError where what a person gave
        is at fault.
        """
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

    def _receive(self) -> Result | Failure:
        answer = self._pipe.recv()
        if isinstance(answer, InputError):
            raise answer
        return answer

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.kill()
        self._process.join()


def _serve(pipe: Connection, setup: Callable[[], Callable[[Item], Result]]) -> None:
    """What the child does: set up once, then answer each item that comes through the pipe."""
    prepare_process(signal.SIGINT)
    try:
        function = setup()
        # The first message says that the child is ready, and from now on its time counts.
        pipe.send(None)
        while True:
            pipe.send(attempt(function, pipe.recv()))
    except InputError as error:
        pipe.send(error)
    except EOFError:
        # The driver has no more items.
        return


def run_shard(
    root: str, job: ShardJob, shard: str, key: str, limit: float, watched: bool = False
) -> Outcome:
    """Work one shard and commit it. Errors come back as text; the shard is then not done."""
    # A note of an attempt that never ended makes the items run in isolation.
    ledger, start = ShardLedger(root), time.monotonic()
    runner = ItemRunner(ledger.begin(job.name, shard), watched, limit)
    try:
        with ledger.workspace() as folder:
            facts = job.work(ledger, shard, folder, runner)
            # Times and hosts go into the marker and not into the files, which are to be the same.
            seconds = time.monotonic() - start
            record = {**facts, "seconds": round(seconds, 3), "host": socket.gethostname()}
            ledger.commit(job.name, shard, key, folder, record)
    except InputError as error:
        return Outcome(shard, error=str(error), blame=True)
    except Exception as error:
        line = f"{type(error).__name__}: {' '.join(str(error).split())}"
        return Outcome(shard, error=line, trace=traceback.format_exc())
    return Outcome(shard, facts, seconds)


# The arguments of `run_shard` up to `limit`.
Task = tuple[str, ShardJob, str, str, float]
