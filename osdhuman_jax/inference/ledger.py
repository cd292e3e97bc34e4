"""The record of an output folder, `provenance.jsonl`: what was made of what, by which model.

Each finished picture has a line, which is written before the picture takes its name: a picture that
is there and matches its line is finished, whatever happened to the run that made it. One run at a
time holds the folder. A run reads the record first, and does only what is not finished.
"""

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from threading import Lock
from typing import Protocol, runtime_checkable

from osdhuman_jax.config import Json
from osdhuman_jax.disk import file_digest, hold, json_lines, remove_leftovers
from osdhuman_jax.filenames import spelled
from osdhuman_jax.inference.folder_plan import refuse
from osdhuman_jax.inference.jobs import Job, UsageError

PROVENANCE = "provenance.jsonl"
RECORD = (  # of a line of provenance.jsonl; `reason` follows where the status is "failed"
    *("input", "input_sha256", "output", "output_sha256", "model", "model_digest"),
    *("width", "height", "output_width", "output_height", "precision"),
    *("upscale", "color_fix", "blend", "format", "quality", "tile", "seconds", "status"),
)


@runtime_checkable
class Record(Protocol):
    """What takes the lines of a run: the ledger, or on a cluster the way to it."""

    def add(self, line: Json, /) -> None:
        """Return when the line is on the disk, or raise: then its picture gets no name."""
        ...


def line_of(identity: Json, job: Job, status: str, **values: object) -> Json:
    """A line on a job: "ok", or "failed" with a `reason` among the values.

    `identity` has what `settings.identity` says, and the model's name.
    """
    files = {"input": spelled(job.source), "output": spelled(job.output.as_posix())}
    return identity | values | files | {"status": status}


class Ledger:
    """The lines of provenance.jsonl: those that were there, and those to come."""

    def __init__(self, folder: Path, file: FileIO) -> None:
        self._folder, self._file, self._lock = folder, file, Lock()
        # Read once, when the folder is held: nobody else adds lines after that.
        data = file.readall()
        self._torn = bool(data) and not data.endswith(b"\n")
        self._finished: dict[str, Json] = {}  # last line of each output
        self.has_pictures = False  # or had: some line says that a picture was written
        # Of several lines for an output the last one counts.
        for line in json_lines(data):
            if line.get("status") == "ok":
                self._finished[line.get("output", "")] = line
                self.has_pictures = True

    def add(self, *lines: Json) -> None:
        """Append lines; a torn one, which a killed run left, is ended first."""
        # All fields in one order, null where one is not known, so that lines are a table.
        text = "".join(json.dumps(dict.fromkeys(RECORD) | line) + "\n" for line in lines)
        with self._lock:
            # Until the last line is whole on the disk, it counts as torn.
            data = (b"\n" if self._torn else b"") + text.encode()
            self._torn = True
            if self._file.write(data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(self._file.fileno())
            self._torn = False
            self.has_pictures |= any(line["status"] == "ok" for line in lines)

    def finished(self, job: Job, identity: Json) -> bool:
        """Whether the job's output is there, as its line says, from this input and `identity`."""
        # First what the line says, which costs nothing; then the bytes on the disk.
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
    # Folders that are not there yet, the innermost first.
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / PROVENANCE
    try:
        with hold(path) as file:
            # Pictures lie at any depth below the folder, and so may halves of them.
            remove_leftovers(folder, deep=True)
            ledger = Ledger(folder, file)
            try:
                yield ledger
            finally:
                # Leave all as it was where nothing came of it.
                unused = made and not ledger.has_pictures
                if unused or os.fstat(file.fileno()).st_size == 0:
                    path.unlink()
    except BlockingIOError:
        raise UsageError(f"another run is writing to {folder}") from None
    finally:
        # The first that is not empty, and those above it, stay.
        with suppress(OSError):
            for empty in made:
                empty.rmdir()


def remaining(
    jobs: list[Job], output: Path, ledger: Ledger, identity: Json, overwrite: bool
) -> list[Job]:
    """The jobs that are not finished. Raises UsageError where other outputs would be replaced."""
    # Digests are taken of what has a line; a picture that is there without one is a person's.
    there = {job for job in jobs if os.path.lexists(output / job.output)}
    left = [job for job in jobs if job not in there or not ledger.finished(job, identity)]
    if not overwrite:
        taken = [output / job.output for job in left if job in there and not job.broken]
        refuse("outputs of other inputs or settings exist (--overwrite replaces them)", taken)
    return left
