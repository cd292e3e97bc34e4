"""Files that say something of each picture of a folder, one JSON object a line.

    {"file": "a/b.jpg", ...}

`file` is the picture's path below the folder, with /; what else a line must have its reader knows,
and all other keys are passed over. Poses (structures.py) and captions are kept so. A picture is
known without its suffix, as its part map is, so that packed records have theirs by `crop_id`.
"""

import errno
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import TypeVar

from osdhuman_jax.config import Json
from osdhuman_jax.data.sources import DataError, FolderSource, Source
from osdhuman_jax.disk import hold
from osdhuman_jax.filenames import spelled, unspelled
from osdhuman_jax.images.listing import SUFFIXES

T = TypeVar("T")
Table = dict[str, T]  # by a picture's path without its suffix


def stem(file: str) -> str:
    """A picture's path without its suffix; a name that has another one, such as an id, is whole."""
    path = PurePosixPath(unspelled(file))
    return (path.with_suffix("") if path.suffix.lower() in SUFFIXES else path).as_posix()


def read_lines(
    path: Path, key: str, parse: Callable[[Json], T], *, unfinished: bool = False
) -> Table[T]:
    """What a file says of each picture under `key`, which `parse` reads of a line.

    `parse` raises ValueError, TypeError or KeyError, and OverflowError on a number that is too
    large. Where the file is `unfinished` its last line may be torn. Raises DataError, in one line
    that names the file's line.
    """
    try:
        data = path.read_bytes()
        if unfinished and _is_torn(last := data.rpartition(b"\n")[2]):
            data = data.removesuffix(last)
        lines = data.decode("utf-8-sig").split("\n")
    except OSError as error:
        raise DataError(f"{spelled(path)}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{spelled(path)}: no text in UTF-8") from error
    found: Table[T] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{spelled(path)}, line {number}"
        try:
            entry = json.loads(line)
            if not isinstance(entry, dict):
                raise TypeError(f"not a table with file and {key}")
            name = _name(entry["file"])
            value = parse(entry)
        # A line is anybody's: not JSON, no object, a key that is missing or of another type.
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
            reason = f"no {error}" if isinstance(error, KeyError) else f"{error!s:.120}"
            raise DataError(f"{where}: {reason}") from error
        if name in found:
            raise DataError(f"{where}: {entry['file']} is there twice")
        found[name] = value
    return found


def _name(file: object) -> str:
    """The path of a line's picture without its suffix. Raises ValueError."""
    if not isinstance(file, str) or not file:
        raise ValueError("its file is no text")
    path = PurePosixPath(file)
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(f"{file} is no path below the folder of pictures")
    return stem(file)


def check_pictures(where: str, table: Table[T], source: Source) -> int:
    """How many pictures of a folder have no line. Raises DataError where a line has no picture.

    What packed records are called is not known without reading them: of those nothing is said.
    """
    if not isinstance(source, FolderSource):
        return 0
    names = {source.stem(index) for index in range(len(source))}
    if strangers := sorted(table.keys() - names):
        more = f" (and {len(strangers) - 1} more)" if strangers[1:] else ""
        text = f"{spelled(strangers[0])}{more} is no picture of {spelled(source.root)}"
        raise DataError(f"{where}: {text}")
    return len(names - table.keys())


@contextmanager
def appended(path: Path) -> Iterator[Callable[[Json], None]]:
    """A function that adds lines to a file, which this process holds alone.

    A last line that a killed process left torn goes first. Raises DataError where another process
    is adding lines, and OSError.
    """
    try:
        with hold(path) as file:
            data = file.readall()
            last = data.rpartition(b"\n")[2]
            if _is_torn(last):
                file.truncate(len(data) - len(last))
            elif last:
                file.write(b"\n")

            def add(entry: Json) -> None:
                line = json.dumps(entry, ensure_ascii=False).encode() + b"\n"
                if file.write(line) != len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

            yield add
    except BlockingIOError:
        raise DataError(f"{spelled(path)}: another run is writing to it") from None


def _is_torn(last: bytes) -> bool:
    """Whether what stands after a file's last line break is no whole line."""
    try:
        json.loads(last or b"{}")
    except ValueError:
        return True
    return False
