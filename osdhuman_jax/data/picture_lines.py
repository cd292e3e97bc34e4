"""Files that say something of each picture of a folder, one JSON object a line.

    {"file": "a/b.jpg", ...}

`file` is the picture's path below the folder, with /; what else a line must have its reader knows,
and all other keys are passed over. Poses (structures.py) and captions are kept so. A picture is
known without its suffix, as its part map is, so that packed records have theirs by `crop_id`.
"""

import json
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import TypeVar

from osdhuman_jax.config import Json
from osdhuman_jax.data.sources import DataError, FolderSource, Source
from osdhuman_jax.disk import write_bytes
from osdhuman_jax.filenames import spelled, unspelled
from osdhuman_jax.images.listing import SUFFIXES

T = TypeVar("T")
Table = dict[str, T]  # by a picture's path without its suffix


def stem(file: str) -> str:
    """A picture's path without its suffix; a name that has another one, such as an id, is whole."""
    path = PurePosixPath(unspelled(file))
    return (path.with_suffix("") if path.suffix.lower() in SUFFIXES else path).as_posix()


def read_lines(path: Path, parse: Callable[[Json], T]) -> Table[T]:
    """What a file says of each picture; `parse` raises ValueError, TypeError or KeyError.

    Raises DataError, in one line that names the file's line.
    """
    try:
        lines = path.read_bytes().decode("utf-8-sig").split("\n")
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
            name = _name(entry["file"])
            value = parse(entry)
        # A line is anybody's: not JSON, no object, a key that is missing or of another type.
        except (ValueError, TypeError, KeyError, RecursionError) as error:
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


def end_whole(path: Path) -> None:
    """Take off a file's last line where a killed process left it torn, so that lines can follow."""
    data = path.read_bytes() if path.is_file() else b""
    kept, _, last = data.rpartition(b"\n")
    try:
        json.loads(last or b"{}")
    except ValueError:
        write_bytes(path, kept + b"\n" if kept else b"")
