"""Which pictures a folder holds: one rule for restoring, degrading, training, measuring, curating.

A file is listed by its suffix. Links to folders are followed, each folder once. Passed over are
hidden folders and those that systems keep beside pictures, and hidden files that are no pictures by
their first bytes, such as the companions `._photo.jpg` that macOS leaves on foreign disks.
"""

import glob
import importlib.util
import os
from collections import Counter
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

from osdhuman_jax.filenames import spelled

# What codec.py decodes, and what it does not but a person may believe to be restored.
SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp")  # the usual one first
SUFFIXES += (".tif", ".tiff", ".bmp", ".avif")
HEIC = (".heic", ".heif", ".hif")  # by an extra
HINT = "pip install 'osdhuman-jax[heif]'"
READS_HEIC = importlib.util.find_spec("pillow_heif") is not None
SUFFIXES += HEIC if READS_HEIC else ()
OTHERS = (  # pictures that nothing here reads
    *(".gif", ".jp2", ".jxl", ".psd"),
    *(".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".raf", ".rw2"),
    *(() if READS_HEIC else HEIC),
)
# First bytes of pictures: PNG, JPEG, TIFF of two orders of bytes, BMP.
MAGIC = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"II*\0", b"MM\0*", b"BM")
# Of Windows, macOS and Synology: thumbnails and rubbish, never a person's own pictures.
SYSTEM_FILES = ("Thumbs.db", "ehthumbs.db", "desktop.ini")
SYSTEM_FOLDERS = ("__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information")


def list_images(source: str | Path) -> list[tuple[Path, Path]]:
    """(absolute path, path relative to the search's root) of each image, sorted.

    A folder gives the files below it that have an image's suffix, a file gives itself, anything
    else is a glob pattern (`**` descends) whose root is its part that is there by that very name,
    or has no wildcards. Raises OSError on a folder that cannot be read.
    """
    # Not `resolve`: names that a person gave stay as they are, links and all.
    path = Path(os.path.abspath(source))
    if path.is_file():
        return [(path, Path(path.name))]
    root, found = (path, _walk(path)) if path.is_dir() else _expand(path)
    pairs = {(file, file.relative_to(root)) for file in found}
    return sorted(pairs, key=lambda pair: pair[1])


def named_images(folder: str | Path) -> dict[str, Path]:
    """Files of a folder by relative path without suffix, so that a.png and a.jpg are partners.

    Names are spelled (see osdhuman_jax.filenames). Raises ValueError where there is no image, or
    two of one name; OSError on an unreadable folder.
    """
    found: dict[str, Path] = {}
    for path, relative in list_images(folder) if Path(folder).is_dir() else []:
        # Restored pictures may have another format than their references.
        name = spelled(relative.with_suffix("").as_posix())
        if name in found:
            both = " and ".join(spelled(other.name) for other in (found[name], path))
            raise ValueError(f"{spelled(folder)}: {both} have one name")
        found[name] = path
    if not found:
        raise ValueError(f"{spelled(folder)}: no folder with images")
    return found


def other_pictures(source: str | Path) -> str:
    """What `list_images` leaves out of a folder: "12 .dng, 3 .gif", or "".

    Where an extra would read some of it, that is said.
    """
    if not os.path.isdir(source):
        return ""
    names = (path.rsplit("/", 1)[-1] for path in tree(Path(source), _is_entered).files)
    suffixes = (Path(name).suffix.lower() for name in names if not name.startswith("."))
    counts = Counter(suffix for suffix in suffixes if suffix in OTHERS)
    hint = f"; HEIC is read by an extra: {HINT}" if counts.keys() & {*HEIC} else ""
    return ", ".join(f"{count} {suffix}" for suffix, count in sorted(counts.items())) + hint


class Tree(NamedTuple):
    """What lies below a folder, as relative paths with /."""

    folders: list[str]  # the folder itself is "", the first
    files: list[str]
    dangling: list[str]  # links to files that are not there
    aliases: dict[str, str]  # folders that are another of these folders, which has the files


def tree(root: Path, enter: Callable[[str], bool] = lambda name: True) -> Tree:
    """All files below a folder, in the folders whose names `enter` accepts.

    Links to folders are followed, and each folder is listed once: by its own name if it has one
    here, for folders come before links to them. Raises OSError where a folder cannot be read.
    """
    # Folders by device and inode, so that each is listed once whatever leads to it.
    found, above = Tree([], [], [], {}), set(Path(os.path.realpath(root)).parents)
    known: dict[tuple[int, int], str] = {}
    folders, links = [""], []
    # Folders before links: what has a name of its own here is listed by that.
    while folders or links:
        folder = folders.pop() if folders else links.pop(0)
        stat = os.stat(root / folder)
        first = known.setdefault((stat.st_dev, stat.st_ino), folder)
        # Another way into the same folder: told of, and not walked again, so that no loop is
        # endless.
        if first != folder:
            found.aliases[folder] = first
            continue
        found.folders.append(folder)
        lists = {"folder": folders, "link": links, "file": found.files, "gone": found.dangling}
        # Sorted as bytes: the order is that of the names, whatever the language of the machine.
        with os.scandir(root / folder) as entries:
            inside = sorted(entries, key=lambda entry: os.fsencode(entry.name))
        for entry in inside:
            # Files are taken whatever their names; only folders can be refused.
            kind = _kind_of(entry, above)
            if kind in ("folder", "link") and not enter(entry.name):
                continue
            if kind:
                lists[kind].append(f"{folder}/{entry.name}" if folder else entry.name)
    return found


def real(path: Path) -> Path:
    """The absolute path, all links followed; unlike `Path.resolve`, as far as a loop of them goes.

    Such a link is then as any other file that cannot be opened.
    """
    return Path(os.path.realpath(path))


def _kind_of(entry: os.DirEntry[str], above: set[Path]) -> str:
    """Which of `tree`'s lists an entry belongs to; empty = none (pipes, links upwards)."""
    if not entry.is_symlink():
        return "folder" if entry.is_dir() else "file" if entry.is_file() else ""
    if os.path.isdir(entry.path):
        # A folder that this one lies in, up to /, holds what nobody meant to give.
        return "" if Path(os.path.realpath(entry.path)) in above else "link"
    return "file" if os.path.isfile(entry.path) else "" if os.path.exists(entry.path) else "gone"


def _walk(folder: Path) -> list[Path]:
    """Files with an image's suffix anywhere below `folder`, links to such that are gone too."""
    found = tree(folder, _is_entered)
    files = (folder / path for path in (*found.files, *found.dangling))
    return [file for file in files if file.name.lower().endswith(SUFFIXES) and not _is_odd(file)]


def _is_odd(file: Path) -> bool:
    """Whether a file is the system's: hidden, say, and by its first bytes no picture."""
    if not file.name.startswith("."):
        return file.name in SYSTEM_FILES
    try:
        with file.open("rb") as opened:
            head = opened.read(12)
    except OSError:
        return False
    # A picture that a person hid is a picture; by these bytes, not by its name.
    boxed = (head[:4] == b"RIFF" and head[8:] == b"WEBP") or head[4:8] == b"ftyp"
    return not (boxed or head.startswith(MAGIC))


def _is_entered(folder: str) -> bool:
    """Whether a folder of this name may hold what a person keeps as a picture."""
    return not folder.startswith(".") and folder not in SYSTEM_FOLDERS


def _expand(pattern: Path) -> tuple[Path, list[Path]]:
    """Root and files of a glob pattern, links to such that are gone too."""
    # A folder may be called [a]: as far as names are there, they are names and no patterns.
    there = next(parent for parent in pattern.parents if parent.is_dir())
    root, parts = there, pattern.relative_to(there).parts
    matches = (Path(match) for match in _matches(there, parts))
    return root, [match for match in matches if _is_meant(match) and not _is_odd(match)]


def _is_meant(match: Path) -> bool:
    """Whether a match is a file, or a link that leads nowhere, which is to fail by its name."""
    return match.is_file() or (match.is_symlink() and not match.exists())


def _matches(folder: Path, parts: tuple[str, ...]) -> Iterator[Path]:
    """What a pattern's parts match below a folder; a part that is there by name is that name."""
    if not parts:
        yield folder
        return
    part, rest = parts[0], parts[1:]
    if os.path.lexists(folder / part):
        yield from _matches(folder / part, rest)
    # Any number of folders, none among them.
    elif part == "**":
        found = tree(folder, _is_entered) if folder.is_dir() else Tree([], [], [], {})
        if not rest:
            yield from (folder / path for path in (*found.files, *found.dangling))
        for base in found.folders if rest else ():
            yield from _matches(folder / base, rest)
    # Links and hidden folders are not entered by a wildcard, as shells have it.
    elif glob.has_magic(part) and folder.is_dir():
        for name in os.listdir(folder):
            if fnmatchcase(name, part) and not (rest and _is_closed(folder / name)):
                yield from _matches(folder / name, rest)


def _is_closed(folder: Path) -> bool:
    """Whether a wildcard leaves a folder out, which is entered only where it is named."""
    return folder.is_symlink() or not _is_entered(folder.name)
