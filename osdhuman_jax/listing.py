"""Which pictures a folder holds: one rule for restoring, degrading, training, measuring, curating.

A file is listed by its suffix. Passed over are hidden folders and those that systems keep beside
pictures, links to folders, and hidden files that are no pictures by their first bytes, such as the
companions `._photo.jpg` that macOS leaves on foreign disks and in archives.
"""

import glob
import os
from collections import Counter
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

from osdhuman_jax.names import spelled

SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp")
OTHERS = (  # pictures that nothing here reads
    *(".avif", ".bmp", ".gif", ".heic", ".heif", ".hif", ".jp2", ".jxl", ".psd", ".tif", ".tiff"),
    *(".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".raf", ".rw2"),
)
SYSTEM_FILES = ("Thumbs.db", "ehthumbs.db", "desktop.ini")
SYSTEM_FOLDERS = ("__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information")


def list_images(source: str | Path) -> list[tuple[Path, Path]]:
    """(absolute path, path relative to the search's root) of each image, sorted.

    A folder gives the files below it that have an image's suffix, a file gives itself, anything
    else is a glob pattern (`**` descends) whose root is its part that is there by that very name,
    or has no wildcards. Raises OSError on a folder that cannot be read.
    """
    path = Path(os.path.abspath(source))
    if path.is_file():
        return [(path, Path(path.name))]
    root, found = (path, _walk(path)) if path.is_dir() else _expand(path)
    pairs = {(file, file.relative_to(root)) for file in found}
    return sorted(pairs, key=lambda pair: pair[1])


def named_images(folder: str | Path) -> dict[str, Path]:
    """Files of a folder by relative path without suffix, so that a.png and a.jpg are partners.

    Names are spelled (see osdhuman_jax.names). Raises ValueError where there is no image, or two of
    one name; OSError on an unreadable folder.
    """
    found: dict[str, Path] = {}
    for path, relative in list_images(folder) if Path(folder).is_dir() else []:
        name = spelled(relative.with_suffix("").as_posix())
        if name in found:
            both = " and ".join(spelled(other.name) for other in (found[name], path))
            raise ValueError(f"{spelled(folder)}: {both} have one name")
        found[name] = path
    if not found:
        raise ValueError(f"{spelled(folder)}: no folder with images")
    return found


def other_pictures(source: str | Path) -> str:
    """What `list_images` leaves out of a folder: "12 .heic, 3 .tif, 1 linked folder", or ""."""
    counts: Counter[str] = Counter()
    links = 0
    for base, folders, names in _levels(Path(source)):
        shown = (name for name in names if not name.startswith("."))
        suffixes = (Path(name).suffix.lower() for name in shown)
        counts.update(suffix for suffix in suffixes if suffix in OTHERS)
        links += sum(os.path.islink(os.path.join(base, folder)) for folder in folders)
    told = [f"{count} {suffix}" for suffix, count in sorted(counts.items())]
    told += [f"{links} linked folder{'s' * (links > 1)}"] if links else []
    return ", ".join(told)


def _walk(folder: Path) -> list[Path]:
    """Files with an image's suffix anywhere below `folder`."""
    files = (Path(base, name) for base, _, names in _levels(folder) for name in names)
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
    webp = head[:4] == b"RIFF" and head[8:] == b"WEBP"
    return not (webp or head.startswith((b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")))


def _is_passed_over(folder: str) -> bool:
    """Whether a folder of this name holds nothing that a person keeps as a picture."""
    return folder.startswith(".") or folder in SYSTEM_FOLDERS


def _levels(folder: Path) -> Iterator[tuple[str, list[str], list[str]]]:
    """(path, names of folders, names of files) of a folder, if it is one, and of those below."""

    def fail(error: OSError) -> None:
        raise error

    if not folder.is_dir():
        return
    for base, folders, names in os.walk(folder, onerror=fail):
        folders[:] = [name for name in folders if not _is_passed_over(name)]
        yield base, folders, names


def _expand(pattern: Path) -> tuple[Path, list[Path]]:
    """Root and files of a glob pattern."""
    there = next(parent for parent in pattern.parents if parent.is_dir())
    root, parts = there, pattern.relative_to(there).parts
    matches = (Path(match) for match in _matches(there, parts))
    return root, [match for match in matches if match.is_file() and not _is_odd(match)]


def _matches(folder: Path, parts: tuple[str, ...]) -> Iterator[Path]:
    """What a pattern's parts match below a folder; a part that is there by name is that name."""
    if not parts:
        yield folder
        return
    part, rest = parts[0], parts[1:]
    if os.path.lexists(folder / part):
        yield from _matches(folder / part, rest)
    elif part == "**":
        for base, _, names in _levels(folder):
            found = _matches(Path(base), rest) if rest else (Path(base, name) for name in names)
            yield from found
    elif glob.has_magic(part) and folder.is_dir():
        for name in os.listdir(folder):
            if fnmatchcase(name, part) and not (rest and _is_closed(folder / name)):
                yield from _matches(folder / name, rest)


def _is_closed(folder: Path) -> bool:
    """Whether a folder is entered only where it is named."""
    return folder.is_symlink() or _is_passed_over(folder.name)
