"""Which pictures a folder holds, by their names."""

import glob
import os
from pathlib import Path

SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp")


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


def _walk(folder: Path) -> list[Path]:
    """Files with an image's suffix anywhere below `folder`."""

    def fail(error: OSError) -> None:
        raise error

    levels = os.walk(folder, onerror=fail)
    files = (Path(base, name) for base, _, names in levels for name in names)
    return [file for file in files if file.suffix.lower() in SUFFIXES]


def _expand(pattern: Path) -> tuple[Path, list[Path]]:
    """Root and files of a glob pattern."""
    root = next(parent for parent in pattern.parents if not glob.has_magic(str(parent)))
    matches = (Path(match) for match in glob.glob(str(pattern), recursive=True))
    return root, [match for match in matches if match.is_file()]
