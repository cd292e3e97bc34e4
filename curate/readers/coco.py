"""COCO's instances json, and Objects365's, which is the same with flags of its own.

bbox is x, y, width, height from 0. Crowds (and Objects365's fakes and reflections) are "ignore".
Files have millions of boxes, so they are read as a stream, and of each box numbers are held only.
"""

from array import array
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from curate.readers.common import Files, ReaderError, flickr_id
from curate.readers.entries import members
from curate.schema import Box, SourceImage

FLAGS = {"iscrowd": "crowd", "isfake": "fake", "isreflected": "reflected"}
NEEDED = {"images", "annotations", "categories"}
KEYS = {"image_id", "category_id", "bbox"}
WIDTH = 6  # numbers a box: image, x, y, width, height, flags (a bit each)


def labels(annotations: Path, images: Path) -> list[Path]:
    """The json."""
    return [annotations]


def read_coco(name: str, annotations: Path, images: Path) -> Iterator[SourceImage]:
    """Images of `INSTANCES.json,IMAGES`."""
    return _read(name, annotations, images)


def read_objects365(name: str, annotations: Path, images: Path) -> Iterator[SourceImage]:
    """Images of Objects365 v1 or v2, whose file names may lack their patch folder."""
    return _read(name, annotations, images)


def _read(name: str, annotations: Path, images: Path) -> Iterator[SourceImage]:
    try:
        labels = _Labels(annotations)
        files = Files(images)
        split = annotations.stem.removeprefix("instances_")
        listed = (image for key, rest in members(annotations) if key == "images" for image in rest)
        for image in listed:
            yield SourceImage(
                image_id=f"{name}/{split}/{image['id']}",
                dataset=name,
                split_of_source=split,
                path=files.find(image["file_name"]),
                label_w=int(image["width"]),
                label_h=int(image["height"]),
                boxes=labels.people(image["id"]),
                flickr_id=flickr_id(image.get("flickr_url", "")),
                license=labels.licenses.get(image.get("license"), ""),
            )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, ReaderError):
            raise
        raise ReaderError(f"{annotations}: an entry is not as it should be: {error!r}") from None


class _Labels:
    """The people of a file by image, and its licences by number. Raises ReaderError."""

    def __init__(self, path: Path) -> None:
        self.licenses: dict[Any, str] = {}
        self._path = path
        self._images: dict[Any, int] = {}  # id to number, in the order of the boxes
        self._bad: dict[Any, dict] = {}  # by category
        names: dict[Any, str] = {}
        seen: set[str] = set()
        boxes: dict[Any, array] = defaultdict(lambda: array("d"))  # by category: names come last
        for key, entries in members(path):
            seen.add(key)
            if key == "annotations":
                for entry in entries:
                    self._add(entry, boxes)
            elif key == "categories":
                names = {entry["id"]: entry["name"].strip().lower() for entry in entries}
            elif key == "licenses":
                self.licenses = {entry["id"]: entry["name"] for entry in entries if entry}
        if not seen >= NEEDED:
            raise ReaderError(f"{path}: needs {', '.join(sorted(NEEDED))}")
        self._rows = self._sorted(boxes, names)
        self._starts = np.searchsorted(self._rows[:, 0], np.arange(len(self._images) + 1))

    def _add(self, entry: Any, boxes: dict[Any, array]) -> None:
        if not isinstance(entry, dict) or not entry.keys() >= KEYS:
            raise ReaderError(
                f"{self._path}: an annotation lacks image_id, category_id or bbox: {entry}"
            )
        image = self._images.setdefault(entry["image_id"], len(self._images))
        bits = sum(1 << bit for bit, flag in enumerate(FLAGS) if entry.get(flag))
        try:
            x, y, w, h = map(float, entry["bbox"])
        except (TypeError, ValueError):  # an error if it turns out to be a person
            self._bad.setdefault(entry["category_id"], entry)
        else:
            boxes[entry["category_id"]].extend((image, x, y, w, h, bits))

    def _sorted(self, boxes: dict[Any, array], names: dict[Any, str]) -> Float64[np.ndarray, "n 6"]:
        """Rows of the people by image, in the order of the file."""
        if "person" not in names.values():
            known = ", ".join(names.values())[:200]
            raise ReaderError(f"{self._path}: no category is named person: {known}")
        if unknown := [str(category) for category in (*boxes, *self._bad) if category not in names]:
            raise ReaderError(f"{self._path}: category {unknown[0]} is not in its table")
        if bad := [entry for category, entry in self._bad.items() if names[category] == "person"]:
            raise ReaderError(f"{self._path}: bbox is not x, y, width, height: {str(bad[0])[:200]}")
        people = [boxes[category] for category in boxes if names[category] == "person"]
        rows = np.concatenate([np.frombuffer(b) for b in [array("d"), *people]]).reshape(-1, WIDTH)
        return rows[np.argsort(rows[:, 0], kind="stable")]

    def people(self, image_id: Any) -> tuple[Box, ...]:
        """An image's boxes; none if it has no annotation."""
        image = self._images.get(image_id)
        if image is None:
            return ()
        return tuple(map(_box, self._rows[self._starts[image] : self._starts[image + 1]].tolist()))


def _box(row: list[float]) -> Box:
    _, x, y, w, h, bits = row
    flags = tuple(flag for bit, flag in enumerate(FLAGS.values()) if int(bits) & 1 << bit)
    return Box((x, y, x + w, y + h), "ignore" if flags else "person", flags=flags)
