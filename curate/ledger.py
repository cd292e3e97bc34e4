"""What is done: files that a shard's marker names, committed so that a kill at any moment is safe.

A job works a shard into a folder of its own. `commit` moves what lies there to names that carry
their content's digest and then, last of all, writes the marker `done/JOB/SHARD.json`. Readers see
only files that a marker names, so a dead attempt's leavings are never taken for results, and two
workers on one shard put identical files in identical places.

    ROOT/done/JOB/SHARD.json        key, outputs (path, bytes, sha256), facts
    ROOT/JOB/SHARD-DIGEST-NAME      the outputs
    ROOT/running/JOB/SHARD          there while a shard is worked on, left behind by a crash
    ROOT/tmp/                       unfinished work
"""

import functools
import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from curate.schema import InputError

BOOKKEEPING = ("done", "running", "tmp", "log.jsonl")  # times and hosts: not part of the result
STALE = 24 * 3600.0  # seconds after which unnamed files belong to no living run


class LedgerError(InputError):
    """An output that should be there and is not."""


def digest(*values: Any) -> str:
    """sha256 of JSON values, whatever the order of their keys."""
    text = json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def file_digest(path: Path) -> str:
    """sha256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def known_digest(path: Path) -> str:
    """The same, remembered for as long as the file's size and time of change stay."""
    status = path.stat()
    return _known_digest(path, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=64)
def _known_digest(path: Path, size: int, changed: int) -> str:
    return file_digest(path)


def write_atomic(path: Path, data: bytes) -> None:
    """Write so that `path` is whole or as it was. Raises OSError; nothing is left behind then."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def sync(path: Path) -> None:
    """Have a file or a folder's entries on the disk before going on."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Ledger:
    """The markers of one output folder."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    def marker(self, job: str, shard: str) -> dict[str, Any] | None:
        """The marker, or None where there is none or it is damaged."""
        try:
            marker = json.loads((self.root / "done" / job / f"{shard}.json").read_bytes())
            return marker if isinstance(marker["outputs"], dict) and marker["key"] else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def is_done(self, job: str, shard: str, key: str, verify: bool = False) -> bool:
        """Whether these inputs were worked before and all outputs are there.

        Sizes are compared, and with `verify` digests too (which reads every byte).
        """
        marker = self.marker(job, shard)
        return (
            marker is not None
            and marker["key"] == key
            and all(self._whole(output, verify) for output in marker["outputs"].values())
        )

    def _whole(self, output: dict[str, Any], verify: bool) -> bool:
        path = self.root / output["path"]
        try:
            same = path.stat().st_size == output["bytes"]
            return same and (not verify or file_digest(path) == output["sha256"])
        except OSError:
            return False

    def output(self, job: str, shard: str, name: str) -> Path:
        """A committed file. Raises LedgerError."""
        marker = self.marker(job, shard)
        if marker is None or name not in marker["outputs"]:
            raise LedgerError(f"{self.root}: {job} {shard} is not done: run `{job}` first")
        return self.root / marker["outputs"][name]["path"]

    def outputs_key(self, job: str, shard: str) -> list[str]:
        """Digests of a shard's outputs: what jobs that read them depend on. Raises LedgerError."""
        marker = self.marker(job, shard)
        if marker is None:
            raise LedgerError(f"{self.root}: {job} {shard} is not done: run `{job}` first")
        return [marker["outputs"][name]["sha256"] for name in sorted(marker["outputs"])]

    def shards(self, job: str) -> list[str]:
        """Names of the shards with a marker, sorted."""
        return sorted(path.stem for path in (self.root / "done" / job).glob("*.json"))

    @contextmanager
    def workspace(self) -> Iterator[Path]:
        """A folder for unfinished outputs; gone afterwards."""
        folder = self.root / "tmp" / secrets.token_hex(16)
        folder.mkdir(parents=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    @contextmanager
    def replaced(self, name: str) -> Iterator[Path]:
        """A folder to fill that takes the place of ROOT/NAME once it is whole."""
        with self.workspace() as folder:
            (folder / "new").mkdir()
            yield folder / "new"
            if (self.root / name).exists():
                os.rename(self.root / name, folder / "old")
            os.rename(folder / "new", self.root / name)

    def begin(self, job: str, shard: str) -> bool:
        """Note that work starts. True if an earlier attempt never ended."""
        note = self.root / "running" / job / shard
        crashed = note.exists()
        note.parent.mkdir(parents=True, exist_ok=True)
        note.touch()
        return crashed

    def commit(self, job: str, shard: str, key: str, folder: Path, facts: dict[str, Any]) -> None:
        """Make the files in `folder` the shard's outputs. Raises OSError: then nothing is done."""
        old = self.marker(job, shard)
        outputs = {file.name: self._place(job, shard, file) for file in sorted(folder.iterdir())}
        if outputs:
            sync(self.root / job)
        marker = {"key": key, "outputs": outputs, "facts": facts}
        text = json.dumps(marker, indent=1, sort_keys=True)
        write_atomic(self.root / "done" / job / f"{shard}.json", text.encode())
        (self.root / "running" / job / shard).unlink(missing_ok=True)
        paths = {output["path"] for output in outputs.values()}
        for output in (old or {"outputs": {}})["outputs"].values():
            if output["path"] not in paths:
                (self.root / output["path"]).unlink(missing_ok=True)

    def _place(self, job: str, shard: str, file: Path) -> dict[str, Any]:
        sync(file)
        sha256 = file_digest(file)  # read back: what the marker promises is what the disk gave
        path = f"{job}/{shard}-{sha256[:16]}-{file.name}"
        (self.root / job).mkdir(parents=True, exist_ok=True)
        size = file.stat().st_size
        os.replace(file, self.root / path)
        return {"path": path, "bytes": size, "sha256": sha256}

    def forget_shard(self, job: str, shard: str) -> None:
        """Take a shard's marker and outputs away."""
        marker = self.marker(job, shard)
        (self.root / "done" / job / f"{shard}.json").unlink(missing_ok=True)
        for output in (marker or {"outputs": {}})["outputs"].values():
            (self.root / output["path"]).unlink(missing_ok=True)

    def collect_garbage(self, older_than: float = STALE) -> int:
        """Remove files of dead attempts: those no marker names, of jobs that have markers.

        Younger ones than `older_than` seconds are left, since they may be a living worker's.
        Returns the number of bytes freed.
        """
        jobs = [path.name for path in sorted((self.root / "done").glob("*"))]
        named = {
            self.root / output["path"]
            for job in jobs
            for shard in self.shards(job)
            for output in (self.marker(job, shard) or {"outputs": {}})["outputs"].values()
        }
        folders = [self.root / job for job in jobs] + [self.root / "tmp"]
        files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
        files += [*self.root.glob(".*.tmp"), *self.root.glob("done/*/.*.tmp")]
        limit, freed = time.time() - older_than, 0
        for path in files:
            if path not in named and path.stat().st_mtime <= limit:
                freed += path.stat().st_size
                path.unlink()
        return freed


def tree_digest(root: str | Path) -> str:
    """One digest of every result below `root`: names and bytes, no times, hosts, hidden files."""
    root = Path(root)
    files = (path for path in root.rglob("[!.]*") if path.is_file())
    names = sorted(path.relative_to(root).as_posix() for path in files)
    results = [name for name in names if name.split("/")[0] not in BOOKKEEPING]
    return digest([(name, file_digest(root / name)) for name in results])
