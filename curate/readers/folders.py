"""Pictures without labels: LSDIR, plain folders, and sets whose every picture is of one person."""

import os
from collections.abc import Iterator
from pathlib import Path

from curate.readers.common import ReaderError
from curate.schema import SourceImage

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
DEGRADED = {"x2", "x3", "x4", "lr", "lq"}  # LSDIR's folders of small copies


def labels(root: Path) -> list[Path]:
    """None."""
    return []


def read_folder(name: str, root: Path) -> Iterator[SourceImage]:
    """All pictures below a folder; a detector is to find the people."""
    return _read(name, root, _pictures(root), "detect")


def read_lsdir(name: str, root: Path) -> Iterator[SourceImage]:
    """The same without LSDIR's small copies."""

    def is_original(path: str) -> bool:
        parts = Path(path.lower()).parts
        copies = any(part in DEGRADED for part in parts[:-1])
        return not copies and not parts[-1].rsplit(".", 1)[0].endswith(("x2", "x3", "x4"))

    return _read(name, root, filter(is_original, _pictures(root)), "detect")


def read_person(name: str, root: Path) -> Iterator[SourceImage]:
    """SHHQ, DeepFashion and the like: the whole picture is the box."""
    return _read(name, root, _pictures(root), "whole_image")


def _pictures(root: Path) -> list[str]:
    """Relative paths, sorted by their bytes."""
    found = []
    for base, folders, files in os.walk(root):
        folders[:] = [folder for folder in folders if not folder.startswith(".")]
        for file in files:
            if file.lower().endswith(SUFFIXES) and not file.startswith("."):
                found.append(Path(base, file).relative_to(root).as_posix())
    if not found:
        raise ReaderError(f"{root}: no pictures ({', '.join(SUFFIXES)}) in this folder")
    return sorted(found, key=os.fsencode)


def _read(name: str, root: Path, files: Iterator[str] | list[str], policy: str):
    for file in files:
        yield SourceImage(f"{name}/all/{file}", name, str(root / file), policy=policy)
