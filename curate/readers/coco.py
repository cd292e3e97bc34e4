"""COCO's instances json, and Objects365's, which is the same with flags of its own.

bbox is x, y, width, height from 0. Crowds (and Objects365's fakes and reflections) are "ignore".
"""

import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from curate.readers.common import Files, ReaderError, flickr_id
from curate.schema import Box, SourceImage

FLAGS = {"iscrowd": "crowd", "isfake": "fake", "isreflected": "reflected"}


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
    data = _load(annotations)
    try:
        boxes = _boxes(data, annotations)
        licenses = {entry["id"]: entry["name"] for entry in data.get("licenses") or ()}
        files = Files(images)
        split = annotations.stem.removeprefix("instances_")
        for image in data["images"]:
            yield SourceImage(
                image_id=f"{name}/{split}/{image['id']}",
                dataset=name,
                split_of_source=split,
                path=files.find(image["file_name"]),
                label_w=int(image["width"]),
                label_h=int(image["height"]),
                boxes=tuple(boxes.get(image["id"], ())),
                flickr_id=flickr_id(image.get("flickr_url", "")),
                license=licenses.get(image.get("license"), ""),
            )
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, ReaderError):
            raise
        raise ReaderError(f"{annotations}: an entry is not as it should be: {error!r}") from None


def _load(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_bytes(), object_hook=_shorten)
    except (OSError, ValueError) as error:
        raise ReaderError(f"{path}: not a json file: {error}") from None
    if not isinstance(data, dict) or not {"images", "annotations", "categories"} <= set(data):
        raise ReaderError(f"{path}: needs images, annotations and categories")
    return data


class Annotation(NamedTuple):
    """What is kept of an annotation: without the outlines a file takes a fraction of the memory."""

    image_id: Any
    category_id: Any
    bbox: list[float]
    flags: tuple[str, ...]


def _shorten(entry: dict[str, Any]) -> Any:
    if not {"image_id", "category_id", "bbox"} <= entry.keys():
        return entry
    flags = tuple(flag for key, flag in FLAGS.items() if entry.get(key))
    return Annotation(entry["image_id"], entry["category_id"], entry["bbox"], flags)


def _boxes(data: dict[str, Any], path: Path) -> dict[Any, list[Box]]:
    """People by image id."""
    names = {entry["id"]: entry["name"].strip().lower() for entry in data["categories"]}
    if "person" not in names.values():
        raise ReaderError(f"{path}: no category is named person: {', '.join(names.values())[:200]}")
    boxes: dict[Any, list[Box]] = defaultdict(list)
    for entry in data["annotations"]:
        if not isinstance(entry, Annotation):
            raise ReaderError(f"{path}: an annotation lacks image_id, category_id or bbox: {entry}")
        if entry.category_id not in names:
            raise ReaderError(f"{path}: category {entry.category_id} is not in its table")
        if names[entry.category_id] == "person":
            boxes[entry.image_id].append(_box(entry))
    return boxes


def _box(entry: Annotation) -> Box:
    x, y, w, h = map(float, entry.bbox)
    return Box((x, y, x + w, y + h), "ignore" if entry.flags else "person", flags=entry.flags)
