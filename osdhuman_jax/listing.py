"""Which pictures a folder holds, by their names."""

import glob
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp")
OTHERS = (  # pictures that nothing here reads
    *(".avif", ".bmp", ".gif", ".heic", ".heif", ".hif", ".jp2", ".jxl", ".psd", ".tif", ".tiff"),
    *(".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".raf", ".rw2"),
)


def list_images(source: str | Path) -> list[tuple[Path, Path]]:
    """(absolute path, path relative to the search's root) of each image, sorted.

    A folder gives the files below it that have an image's suffix, a file gives itself, anything
    else is a glob pattern (`**` descends) whose root is its part without wildcards. Links to
    folders are not followed. Raises OSError on a folder that cannot be read.
    """
    path = Path(os.path.abspath(source))
    if path.is_file():
        return [(path, Path(path.name))]
    root, found = (path, _walk(path)) if path.is_dir() else _expand(path)
    return sorted(((file, file.relative_to(root)) for file in found), key=lambda pair: pair[1])


def named_images(folder: str | Path) -> dict[str, Path]:
    """Files of a folder by relative path without suffix, so that a.png and a.jpg are partners.

    Raises ValueError where there is no image, or two of one name; OSError on an unreadable folder.
    """
    found: dict[str, Path] = {}
    for path, relative in list_images(folder) if Path(folder).is_dir() else []:
        name = relative.with_suffix("").as_posix()
        if name in found:
            raise ValueError(f"{folder}: {found[name].name} and {path.name} have one name")
        found[name] = path
    if not found:
        raise ValueError(f"{folder}: no folder with images")
    return found


def other_pictures(source: str | Path) -> str:
    """What `list_images` leaves out of a folder: "12 .heic, 3 .tif, 1 linked folder", or ""."""
    counts: Counter[str] = Counter()
    links = 0
    for base, folders, names in _levels(Path(source)):
        suffixes = (Path(name).suffix.lower() for name in names)
        counts.update(suffix for suffix in suffixes if suffix in OTHERS)
        links += sum(os.path.islink(os.path.join(base, folder)) for folder in folders)
    told = [f"{count} {suffix}" for suffix, count in sorted(counts.items())]
    told += [f"{links} linked folder{'s' * (links > 1)}"] if links else []
    return ", ".join(told)


def _walk(folder: Path) -> list[Path]:
    """Files with an image's suffix anywhere below `folder`."""
    files = (Path(base, name) for base, _, names in _levels(folder) for name in names)
    return [file for file in files if file.suffix.lower() in SUFFIXES]


def _levels(folder: Path) -> Iterator[tuple[str, list[str], list[str]]]:
    """(path, names of folders, names of files) of a folder, if it is one, and of those below."""

    def fail(error: OSError) -> None:
        raise error

    return os.walk(folder, onerror=fail) if folder.is_dir() else iter(())


def _expand(pattern: Path) -> tuple[Path, list[Path]]:
    """Root and files of a glob pattern."""
    root = next(parent for parent in pattern.parents if not glob.has_magic(str(parent)))
    matches = (Path(match) for match in glob.glob(str(pattern), recursive=True))
    return root, [match for match in matches if match.is_file()]
