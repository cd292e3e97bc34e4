"""What is done: files that a shard's marker names, committed so that a kill at any moment is safe.

A job works a shard into a folder of its own. `commit` moves what lies there to names that carry
their content's digest and then, last of all, writes the marker `done/JOB/SHARD.json`. Readers see
only files that a marker names, so what a dead attempt left is never taken for a result, and two
workers on one shard put identical files in identical places.

    ROOT/done/JOB/SHARD.json        key, outputs (path, bytes, sha256), facts
    ROOT/JOB/SHARD-DIGEST-NAME      the outputs
    ROOT/running/JOB/SHARD          there while a shard is worked on, left behind by a crash
    ROOT/tmp/                       unfinished work

It is our own because no library does this: workflow engines resume by file times or by
task, while here a shard is done only for a key, the digest of its parameters, library
versions and inputs, and only while its files have the digests that were promised.
"""

import hashlib
import json
import os
import re
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NotRequired, TypedDict

from curate.schema import Facts, InputError
from osdhuman_jax import disk
from osdhuman_jax.disk import STALE, file_digest, remove_leftovers, sync

# These hold times and hosts and are no part of the result.
BOOKKEEPING = ("done", "running", "tmp", "log.jsonl")


class LedgerError(InputError):
    """An output that should be there and is not."""


class Output(TypedDict):
    """A file of a shard, as its marker describes it; `path` is relative to the ledger's root."""

    path: str
    bytes: int
    sha256: str
    # Only where `thin` put a smaller file in its place: that one's size and digest.
    thinned: NotRequired["Thinned"]


class Thinned(TypedDict):
    """What stands in the place of an output."""

    bytes: int
    sha256: str


class Marker(TypedDict):
    """The content of done/JOB/SHARD.json; `outputs` are by the names that the job gave them."""

    key: str
    outputs: dict[str, Output]
    facts: Facts


def digest(*values: object) -> str:
    """sha256 of JSON values, whatever the order of their keys. Raises TypeError on other values."""
    # Paths may hold bytes that are no UTF-8; Python carries them as surrogates.
    text = json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


class ShardLedger:
    """The markers of one output folder, and the files that they name."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    def marker(self, job: str, shard: str) -> Marker | None:
        """A shard's marker, or None where there is none or it is damaged."""
        # A damaged marker only means that the shard is done again.
        try:
            marker = json.loads((self.root / "done" / job / f"{shard}.json").read_bytes())
            return marker if isinstance(marker["outputs"], dict) and marker["key"] else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def outputs(self, job: str, shard: str) -> dict[str, Output]:
        """A shard's outputs by name; none where it is not done."""
        marker = self.marker(job, shard)
        return marker["outputs"] if marker else {}

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

    def _whole(self, output: Output, verify: bool) -> bool:
        """Whether a file is there as it was committed."""
        path = self.root / output["path"]
        try:
            size, sha256 = path.stat().st_size, file_digest(path) if verify else ""
        except OSError:
            return False
        # Between the marker and the file of `thin` a kill leaves the one with the other.
        versions = [output, output["thinned"]] if "thinned" in output else [output]
        return any(size == v["bytes"] and sha256 in ("", v["sha256"]) for v in versions)

    def output(self, job: str, shard: str, name: str) -> Path:
        """The path of a committed file. Raises LedgerError where there is none."""
        outputs = self.outputs(job, shard)
        if name not in outputs:
            raise LedgerError(f"{self.root}: {job} {shard} is not done: run `{job}` first")
        return self.root / outputs[name]["path"]

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
        """Gives a folder for unfinished outputs, which is removed when the block ends."""
        (self.root / "tmp").mkdir(parents=True, exist_ok=True)
        with disk.workspace(self.root / "tmp") as folder:
            yield folder

    def begin(self, job: str, shard: str) -> bool:
        """Note that work on a shard starts. Returns whether an earlier attempt never ended."""
        note = self.root / "running" / job / shard
        crashed = note.exists()
        note.parent.mkdir(parents=True, exist_ok=True)
        note.touch()
        return crashed

    def commit(self, job: str, shard: str, key: str, folder: Path, facts: Facts) -> None:
        """Make the files in `folder` the shard's outputs. Raises OSError: then nothing is done."""
        # Files first, under names that no marker has yet.
        old = self.outputs(job, shard)
        outputs = {file.name: self._place(job, shard, file) for file in sorted(folder.iterdir())}
        if outputs:
            sync(self.root / job)
        # The marker makes them the shard's outputs in one step.
        marker: Marker = {"key": key, "outputs": outputs, "facts": facts}
        text = json.dumps(marker, indent=1, sort_keys=True)
        path = self.root / "done" / job / f"{shard}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        disk.write_text(path, text)
        # Nothing names the old outputs any more.
        paths = {output["path"] for output in outputs.values()}
        for output in old.values():
            if output["path"] not in paths:
                (self.root / output["path"]).unlink(missing_ok=True)
        # The last of all: while it lies there, `clean` looks for files that no marker names.
        (self.root / "running" / job / shard).unlink(missing_ok=True)

    def _place(self, job: str, shard: str, file: Path) -> Output:
        """Move a finished file to the name that carries its digest."""
        sync(file)
        # The file is read back, so that the marker promises what the disk really holds.
        sha256 = file_digest(file)
        path = f"{job}/{shard}-{sha256[:16]}-{file.name}"
        (self.root / job).mkdir(parents=True, exist_ok=True)
        size = file.stat().st_size
        os.replace(file, self.root / path)
        return {"path": path, "bytes": size, "sha256": sha256}

    def thin(self, job: str, shard: str, name: str, file: Path) -> int:
        """Put a smaller file in the place of an output; returns the bytes freed.

        The shard stays done, and so does all that was made of the output: others know it by the
        digest that it had. Raises LedgerError where there is no such output.
        """
        path, marker = self.output(job, shard, name), self.marker(job, shard)
        if marker is None:
            raise LedgerError(f"{self.root}: {job} {shard} is not done: run `{job}` first")
        sync(file)
        freed = path.stat().st_size - file.stat().st_size
        thinned: Thinned = {"bytes": file.stat().st_size, "sha256": file_digest(file)}
        marker["outputs"][name]["thinned"] = thinned
        text = json.dumps(marker, indent=1, sort_keys=True)
        disk.write_text(self.root / "done" / job / f"{shard}.json", text)
        os.replace(file, path)
        sync(path.parent)
        return freed

    def forget_shard(self, job: str, shard: str) -> None:
        """Remove a shard's marker and outputs, so that it is no longer done."""
        # The marker goes first: it must never name files that are not there.
        outputs = self.outputs(job, shard)
        (self.root / "done" / job / f"{shard}.json").unlink(missing_ok=True)
        for output in outputs.values():
            (self.root / output["path"]).unlink(missing_ok=True)

    def clean(self) -> int:
        """Remove what killed runs left, and nothing of a living one; returns bytes freed.

        That is half-written files and workspaces. Unless another run is at work on this folder it
        is also the outputs that no marker names, of shards whose attempt never ended.
        """
        folders = [self.root, self.root / "tmp", *self.root.glob("done/*")]
        freed = sum(map(remove_leftovers, folders))
        if disk.tickets(self.root / "tmp"):
            return freed
        # The notes of `begin` tell where to look, so that no folder is searched in vain.
        for notes in self.root.glob("running/*"):
            shards = "|".join(re.escape(note.name) for note in notes.iterdir())
            own = re.compile(rf"(?:{shards})-[0-9a-f]{{16}}-.+")
            files = {p for p in (self.root / notes.name).glob("*") if own.fullmatch(p.name)}
            for path in files - (self._named([notes.name]) if files else set()):
                freed += _remove(path)
        return freed

    def _named(self, jobs: Iterable[str]) -> set[Path]:
        """All outputs that markers of the jobs name."""
        return {
            self.root / output["path"]
            for job in jobs
            for shard in self.shards(job)
            for output in self.outputs(job, shard).values()
        }

    def collect_garbage(self, older_than: float = STALE) -> int:
        """Remove the files that dead attempts left: those that no marker names.

        Only folders of jobs that have markers are searched. Files younger than `older_than` seconds
        are left, since they may be a living worker's. Returns the number of bytes freed.
        """
        freed = self.clean()
        jobs = [path.name for path in sorted((self.root / "done").glob("*"))]
        named = self._named(jobs)
        # `clean` looks only where a note of `begin` lies; here every file is looked at.
        folders = [self.root / job for job in jobs] + [self.root / "tmp"]
        files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
        limit = time.time() - older_than
        for path in files:
            if path not in named and path.stat().st_mtime <= limit:
                freed += _remove(path)
        return freed


def _remove(path: Path) -> int:
    """Remove a file, unless another process just has; returns the number of bytes freed."""
    try:
        size = path.stat().st_size
        path.unlink()
    except FileNotFoundError:
        return 0
    return size


def tree_digest(root: str | Path) -> str:
    """One digest of all results below `root`, by which two runs are compared.

    It depends on names and bytes, not on times, hosts or hidden files.
    """
    root = Path(root)
    files = (path for path in root.rglob("[!.]*") if path.is_file())
    names = sorted(path.relative_to(root).as_posix() for path in files)
    results = [name for name in names if name.split("/")[0] not in BOOKKEEPING]
    return digest([(name, file_digest(root / name)) for name in results])
