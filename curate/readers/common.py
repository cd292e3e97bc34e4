"""What several formats need: pictures by name, Flickr numbers, merged boxes."""

import os
import re
from pathlib import Path

from curate.schema import Box, InputError
from osdhuman_jax.names import spelled

FLICKR = re.compile(r"/(\d+)_[0-9a-f]+(?:_\w+)?\.(?:jpg|jpeg|png|gif)$", re.IGNORECASE)


class ReaderError(InputError):
    """Annotations that cannot be read as what they are said to be."""


class Files:
    """The files below a folder by the names that annotations give them.

    Releases differ in the folders that a name starts with, so a name that is not there as it
    stands, or that leads out of the folder, is looked up by its last part alone.
    """

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            raise ReaderError(f"{root}: not a folder of pictures")
        self._root = root
        self._by_name: dict[str, str] = {}
        for base, folders, names in os.walk(root):
            folders.sort(reverse=True)  # of two files of a name, the first by path stays
            for name in names:
                path = os.path.relpath(os.path.join(base, name), root)
                known = self._by_name.setdefault(name, path)
                self._by_name[name] = min(known, path)

    def find(self, name: str) -> str:
        """Path of a picture, spelled; where it would be if there is none."""
        last = name.rsplit("/", 1)[-1]
        if name.startswith("/") or ".." in name.split("/"):
            name = last
        direct = self._root / name
        found = self._by_name.get(last)
        if found is None or (found != name and direct.exists()):
            return spelled(direct)
        return spelled(self._root / found)


def flickr_id(url: str) -> str:
    """The photo's number in a static Flickr address; empty if it is none."""
    match = FLICKR.search(url or "")
    return match.group(1) if match else ""


def iou(a: Box, b: Box) -> float:
    """Intersection over union of two boxes."""
    ax0, ay0, ax1, ay1 = a.xyxy
    bx0, by0, bx1, by1 = b.xyxy
    common = max(0.0, min(ax1, bx1) - max(ax0, bx0)) * max(0.0, min(ay1, by1) - max(ay0, by0))
    union = (ax1 - ax0) * (ay1 - ay0) + (bx1 - bx0) * (by1 - by0) - common
    return common / union if union > 0 else 0.0
