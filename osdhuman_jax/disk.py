"""Files on the disk: written whole or not at all, cleaned up after, locked, digested.

The one place for all of it, for restoring, training and curation alike. What is written lies under
a hidden name beside its target, is flushed to the disk and takes the target's name last: whatever
ends the process, the target is as it was or as it should be.

    .0123456789abcdef-01234567.tmp      a ticket: the file that is being written, or is empty
    .0123456789abcdef-01234567.folder   and stands for a folder that is being filled

Whoever writes holds a lock on the ticket, which the kernel drops when the process ends, however it
ends. A ticket that nobody holds was left by a dead process, and it is removed with its folder by
the next one that writes there; a living writer's is never touched. Locks need not be seen on other
machines, and some file systems have none: there a ticket must be a day old besides.
"""

import errno
import fcntl
import functools
import hashlib
import json
import math
import os
import re
import secrets
import shutil
import socket
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedWriter, FileIO
from pathlib import Path
from typing import Any

NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
NO_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)  # of a folder
# Seconds without a change after which a ticket is a dead process's where no lock can tell.
STALE = 24 * 3600.0
# Random digits, and those of the machine, which earlier versions left out.
_TICKET = re.compile(r"\.[0-9a-f]{16}(?:-([0-9a-f]{8}))?\.tmp")
_FOLDER = ".folder"


# digests


def file_digest(path: str | Path) -> str:
    """SHA-256 of a file's bytes, read in pieces."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def known_digest(path: Path) -> str:
    """The same, remembered for as long as the file's size and time of change stay."""
    status = path.stat()
    return _known_digest(path, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=64)
def _known_digest(path: Path, size: int, changed: int) -> str:
    return file_digest(path)


# whole files


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write a file whole or not at all. Raises OSError; an old file then stands as it was."""
    with staged(path, data):
        pass


def write_text(path: str | Path, text: str) -> None:
    """Write a UTF-8 file whole or not at all."""
    write_bytes(path, text.encode())


def write_json(path: str | Path, value: object) -> None:
    """Write a JSON file whole or not at all."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def parse_json(text: str | bytes) -> Any:
    """What JSON of anybody's says.

    Raises ValueError where it is none, nested without end, or has numbers that are not finite.
    """
    try:
        return json.loads(text, parse_constant=_finite, parse_float=_finite)
    except RecursionError as error:
        raise ValueError("nested too deep") from error


def _finite(text: str) -> float:
    """A number of JSON. Raises ValueError on NaN and Infinity, which JSON does not have."""
    value = float(text)
    # A number may also have too many digits before its point, as 1e999.
    if not math.isfinite(value):
        raise ValueError(f"{text:.40} is no finite number")
    return value


def copy_file(source: str | Path, target: str | Path) -> None:
    """Copy a file's bytes so that the copy is whole or not there at all."""
    with open(source, "rb") as file, staged_file(target) as copy:
        shutil.copyfileobj(file, copy)


@contextmanager
def staged(path: str | Path, data: bytes) -> Iterator[None]:
    """Have `data` safe on the disk inside the block; at its end the file takes the name `path`.

    An exception, inside or from the disk (OSError), leaves `path` as it was and nothing beside it.
    """
    with _renamed(Path(path)) as file:
        file.write(data)
        _flush(file)
        yield


@contextmanager
def staged_file(path: str | Path) -> Iterator[BufferedWriter]:
    """An open file to fill; at the block's end it is flushed and takes the name `path`."""
    with _renamed(Path(path)) as file:
        yield file
        _flush(file)


@contextmanager
def _renamed(path: Path) -> Iterator[BufferedWriter]:
    """A ticket to fill, which becomes the file `path` unless the block raises."""
    _clean_once(path.parent.absolute())
    file, ticket = _take_ticket(path.parent)
    try:
        with file:
            yield file
            os.replace(ticket, path)
    except BaseException:
        ticket.unlink(missing_ok=True)
        raise
    sync(path.parent)


@contextmanager
def staged_files(path: Path) -> Iterator[Path]:
    """A place to write a file to, and others beside it; at the block's end all are beside `path`.

    `path` comes last, and where others come with it an old one goes first: whatever ends the
    process, none stands beside what belongs to the other. An exception inside the block leaves
    everything as it was.
    """
    with workspace(path.parent) as folder:
        made = folder / path.name
        yield made
        _sync_tree(folder)
        beside = [file for file in folder.iterdir() if file != made]
        if beside:
            path.unlink(missing_ok=True)
        for file in (*beside, made):
            os.replace(file, path.parent / file.name)
        sync(path.parent)


def _flush(file: BufferedWriter) -> None:
    file.flush()
    os.fsync(file.fileno())


def sync(path: Path) -> None:
    """Have a file, or a folder's entries, on the disk before going on."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems cannot flush a folder, and lose nothing by it.
        if error.errno not in NO_SYNC:
            raise
    finally:
        os.close(descriptor)


# whole folders


@contextmanager
def workspace(parent: Path) -> Iterator[Path]:
    """A hidden folder inside `parent` that is gone afterwards, and after a kill at the next one.

    Other users cannot look into it.
    """
    _clean_once(parent.absolute())
    file, ticket = _take_ticket(parent)
    folder = ticket.with_suffix(_FOLDER)
    with file:
        try:
            folder.mkdir(mode=0o700)
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            # A ticket is the last to go: without one nobody would look for the folder.
            if not folder.exists():
                ticket.unlink(missing_ok=True)


@contextmanager
def staged_folder(path: Path, replace: bool = False) -> Iterator[Path]:
    """A folder to fill; at the block's end it is flushed and takes the name `path`.

    A folder of that name is put aside and removed where it may be replaced. An exception, inside
    or from the disk (OSError), leaves it as it was. Raises FileExistsError where it may not be.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path.parent)
    if os.path.lexists(path) and not replace:
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
    with workspace(path.parent) as folder:
        new, old = folder / "new" / path.name, folder / "old" / path.name
        new.mkdir(parents=True)
        yield new
        _sync_tree(new)
        if os.path.lexists(path):
            old.parent.mkdir()
            os.rename(path, old)
        try:
            os.rename(new, path)
        except BaseException:
            if os.path.lexists(old):
                os.rename(old, path)
            raise
        sync(path.parent)


def _sync_tree(folder: Path) -> None:
    for base, _, names in os.walk(folder):
        for path in (Path(base, name) for name in names):
            if not path.is_symlink():
                sync(path)
        sync(Path(base))


# what dead processes left


def remove_leftovers(folder: Path, deep: bool = False) -> int:
    """Remove what dead processes left in a folder, and with `deep` anywhere below it.

    A folder whose replacement was interrupted between its two renames gets its new content, which
    was whole by then. Returns the number of bytes freed.
    """
    folders = [base for base, _, _ in os.walk(folder)] if deep else [folder]
    return sum(_remove_dead(ticket) for base in folders for ticket in tickets(Path(base)))


def tickets(folder: Path) -> list[Path]:
    """Tickets that lie in a folder, of the living and the dead; none where it cannot be listed."""
    try:
        with os.scandir(folder) as entries:
            plain = [e.name for e in entries if e.is_file(follow_symlinks=False)]
    except OSError:
        return []
    return [folder / name for name in plain if _TICKET.fullmatch(name)]


@functools.lru_cache(maxsize=4096)
def _clean_once(folder: Path) -> None:
    """Remove leftovers when this process first writes to a folder."""
    remove_leftovers(folder)


def _remove_dead(ticket: Path) -> int:
    """Remove a ticket and its folder if its process is gone; returns the number of bytes freed."""
    try:
        with open(ticket, "r+b") as file:
            locked, folder = _try_lock(file.fileno()), ticket.with_suffix(_FOLDER)
            found = [path.lstat() for path in (ticket, *folder.rglob("*"))]
            age = time.time() - max(status.st_mtime for status in found)
            if locked is False or (not (locked and _is_ours(ticket)) and age < STALE):
                return 0
            if folder.is_dir():
                _finish_replacing(folder)
                shutil.rmtree(folder)
            ticket.unlink()
            return sum(status.st_size for status in found if stat.S_ISREG(status.st_mode))
    except OSError:
        # It is another user's, or another process removes it at this very moment: no work waits
        # for it to be gone.
        return 0


def _is_ours(ticket: Path) -> bool:
    """Whether a ticket was taken on this machine, so that its lock would be seen here."""
    match = _TICKET.fullmatch(ticket.name)
    return match is not None and match[1] in (None, _machine())


@functools.cache
def _machine() -> str:
    """Eight digits that tell running kernels apart; containers on one share its locks."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    text = boot.read_text() if boot.exists() else socket.gethostname()
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _finish_replacing(folder: Path) -> None:
    """Give a folder that was put aside, and never replaced, its new content."""
    for old in (folder / "old").glob("*"):
        target, new = folder.parent / old.name, folder / "new" / old.name
        if not os.path.lexists(target):
            os.rename(new if new.exists() else old, target)


# locks


def _try_lock(descriptor: int) -> bool | None:
    """Whether an open file is now this one's alone; None where the file system has no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        return None
    return True


def _take_ticket(folder: Path) -> tuple[BufferedWriter, Path]:
    """A new hidden file, open and locked, and its path."""
    while True:
        # A short name: names end at 255 bytes.
        path = folder / f".{secrets.token_hex(8)}-{_machine()}.tmp"
        file = open(path, "xb")
        # A process that removes leftovers may have come between the two steps.
        if _try_lock(file.fileno()) is not False and _is(file.fileno(), path):
            return file, path
        file.close()


def _is(descriptor: int, path: Path) -> bool:
    """Whether a path still names an open file."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


@contextmanager
def hold(path: Path) -> Iterator[FileIO]:
    """A file, made if need be, to read and to append to, for this process alone.

    Where the file system has no locks a line on stderr says so, and two processes are not kept
    apart. Raises BlockingIOError where another process holds it.
    """
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW
    while True:
        with FileIO(os.open(path, flags, 0o644), "r+") as file:
            locked = _try_lock(file.fileno())
            if locked is False:
                raise BlockingIOError(errno.EWOULDBLOCK, "held by another process", str(path))
            if not _is(file.fileno(), path):
                # Its holder has removed it since.
                continue
            if locked is None:
                why = "this file system has no locks: start no second run on this folder"
                print(f"warning: {path}: {why}", file=sys.stderr)
            yield file
            return


# files of lines


def append_line(path: Path, text: str) -> None:
    """Append a line in one write; a torn one, which a killed process left, is ended first."""
    with open(path, "ab+") as file:
        torn = False
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            torn = file.read(1) != b"\n"
        file.write(b"\n" * torn + text.encode() + b"\n")


def json_lines(data: bytes) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines; lines that are torn or hold no object are left out."""
    found = []
    for line in data.split(b"\n"):
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            found.append(value)
    return found
