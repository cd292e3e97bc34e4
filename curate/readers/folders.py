"""Pictures without labels: LSDIR, plain folders, and sets whose every picture is of one person.

A detector finds the people in pictures of the first two; in the third the whole picture is the box.
A folder goes in, a `SourceImage` for each picture anywhere below it comes out.
"""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from curate.readers.common import Notes, ReaderError
from curate.schema import BoxPolicy, SourceImage
from osdhuman_jax.filenames import spelled
from osdhuman_jax.images.listing import SUFFIXES, list_images, other_pictures

# LSDIR's folders of small copies. They are damaged on purpose, and must not become targets.
DEGRADED = {"x2", "x3", "x4", "lr", "lq"}


def labels(root: Path) -> list[Path]:
    """The files with labels, of which there are none."""
    return []


def read_folder(name: str, notes: Notes, root: Path) -> Iterator[SourceImage]:
    """All pictures below a folder; a detector is to find the people."""
    return _read(name, root, _pictures(root), "detect")


def read_lsdir(name: str, notes: Notes, root: Path) -> Iterator[SourceImage]:
    """All pictures below a folder except LSDIR's small copies."""

    def is_original(path: str) -> bool:
        # Copies are told by their folder or, as in 0000001x4.png, by the end of their name.
        parts = Path(path.lower()).parts
        copies = any(part in DEGRADED for part in parts[:-1])
        return not copies and not parts[-1].rsplit(".", 1)[0].endswith(("x2", "x3", "x4"))

    return _read(name, root, filter(is_original, _pictures(root)), "detect")


def read_person(name: str, notes: Notes, root: Path) -> Iterator[SourceImage]:
    """SHHQ, DeepFashion and the like: the whole picture is the box."""
    return _read(name, root, _pictures(root), "whole_image")


def _pictures(root: Path) -> list[str]:
    """Relative paths, sorted by their bytes; links to pictures that are gone are among them."""
    if not root.is_dir():
        raise ReaderError(f"{spelled(root)}: not a folder of pictures")
    found = [name.as_posix() for _, name in list_images(root)]
    if not found:
        # The error says what is there instead, such as pictures of a format that is not read.
        others = other_pictures(root)
        but = f" (but {others})" if others else ""
        raise ReaderError(f"{root}: no pictures ({', '.join(SUFFIXES)}) in this folder{but}")
    return sorted(found, key=os.fsencode)


def _read(name: str, root: Path, files: Iterable[str], policy: BoxPolicy) -> Iterator[SourceImage]:
    for file in files:
        image_id, path = f"{name}/all/{spelled(file)}", spelled(root / file)
        yield SourceImage(image_id, name, path, policy=policy)
