"""What is asked of single pictures beside their pixels: a name, a caption, people.

Captions and poses are those of data/captions.py and data/structures.py, files of a line a picture;
both are known by a picture's path without its suffix, and so is its name here.
"""

import hashlib
from pathlib import Path
from typing import NamedTuple

from osdhuman_jax.data.captions import read_captions
from osdhuman_jax.data.sources import DataError
from osdhuman_jax.data.structures import POSES, Structure, nobody, read_attention, read_poses
from osdhuman_jax.disk import file_digest
from osdhuman_jax.filenames import spelled


class Request(NamedTuple):
    """What is known of one picture; what a file does not say is None."""

    name: str = ""  # by which, and by the seed, its noise is drawn
    caption: str | None = None
    structure: Structure | None = None  # of people, in pixels of the picture


class Notes:
    """A file of captions and one of poses, either of which may be missing."""

    def __init__(self, captions: Path | None = None, poses: Path | None = None) -> None:
        """`poses` is poses.jsonl or its folder, where attention maps are. Raises DataError."""
        self._captions_file, self._captions = captions, read_captions(captions) if captions else {}
        self._poses_file = poses_file(poses) if poses else None
        self._poses = read_poses(self._poses_file) if self._poses_file else {}

    def check(self, names: list[str], whole: bool) -> None:
        """Raise DataError on a caption of no picture, or a picture without a line of poses.

        `names` are those of all pictures of a folder if they are the `whole` of it.
        """
        strangers = sorted(set(self._captions) - set(names))
        if whole and strangers:
            text = f"{spelled(strangers[0])} is none of the pictures"
            raise DataError(f"{self._captions_file}: {text}{_more(strangers)}")
        without = sorted(set(names) - set(self._poses)) if self._poses_file else []
        if without:
            text = f"has no line for {spelled(without[0])}"
            raise DataError(f"{self._poses_file}: {text}{_more(without)}")

    def of(self, name: str, size: tuple[int, int]) -> Request:
        """The request of a picture of `size`. Raises DataError on a map of another size."""
        if self._poses_file is None:
            return Request(name, self._captions.get(name))
        structure = nobody(size)._replace(people=self._poses[name])
        path = map_file(self._poses_file, name)
        if path.is_file():
            structure = structure._replace(attention=read_attention(path, size))
        return Request(name, self._captions.get(name), structure)


def poses_file(path: Path) -> Path:
    """The file of a folder of poses, or the file itself."""
    return path / POSES if path.is_dir() else path


def map_file(poses: Path, name: str) -> Path:
    """Where the attention map of a picture lies, if there is one beside its file of poses."""
    return poses.parent / f"{name}.png"


def poses_digest(path: Path) -> str:
    """The digest of poses.jsonl and of the attention maps beside it. Raises DataError, OSError."""
    file = poses_file(path)
    if not file.exists():
        raise DataError(f"{spelled(file)}: no such file")
    own = file_digest(file)
    maps = {name: map_file(file, name) for name in sorted(read_poses(file))}
    found = [f"{name} {file_digest(at)}" for name, at in maps.items() if at.is_file()]
    # Without maps it is the file's own, as in records of earlier versions.
    if not found:
        return own
    return hashlib.sha256("\n".join([own, *found]).encode(errors="surrogateescape")).hexdigest()


def _more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if names[1:] else ""
