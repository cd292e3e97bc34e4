"""Small jobs for the engine's tests, in a module of their own so that workers can import them."""

import ctypes
import os
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from curate.engine.ledger import ShardLedger, digest
from curate.engine.worker import Failure, ItemRunner


def double(delay: float, item: int) -> int:
    """Twice the item; some items do what bad pictures do to a decoder."""
    time.sleep(delay)
    if item == 13:
        ctypes.string_at(0)  # a null pointer: SIGSEGV
    if item == 14:
        time.sleep(3600)
    if item == 15:
        raise ValueError("bad\npicture")
    return 2 * item


def factory(delay: float) -> partial:
    return partial(double, delay)


@dataclass(frozen=True)
class Doubling:
    """Shard "a-b": a line for each of the items a .. b - 1."""

    delay: float = 0.0
    version: int = 1
    name: str = "double"
    gpus: float = 0.0
    network: bool = False

    def key(self, ledger: ShardLedger, shard: str) -> str:
        return digest(self.version, shard)

    def work(self, ledger: ShardLedger, shard: str, folder: Path, run: ItemRunner) -> dict:
        items = range(*map(int, shard.split("-")))
        results = list(run.each(partial(factory, self.delay), items))
        lines = [r.reason if isinstance(r, Failure) else str(r) for r in results]
        (folder / "lines.txt").write_text("\n".join(lines) + "\n")
        return {"images": len(lines), "isolated": run.isolated, "process": os.getpid()}


@dataclass(frozen=True)
class DiskFull(Doubling):
    """Fails half way as a full disk does, while a file named `full` lies beside the results."""

    def work(self, ledger: ShardLedger, shard: str, folder: Path, run: ItemRunner) -> dict:
        (folder / "first.txt").write_text("written")
        if (ledger.root / "full").exists():
            raise OSError(28, "No space left on device")
        return super().work(ledger, shard, folder, run)


@dataclass(frozen=True)
class Dying(Doubling):
    """Takes its process down outside of any item."""

    def work(self, ledger: ShardLedger, shard: str, folder: Path, run: ItemRunner) -> dict:
        os._exit(9)
