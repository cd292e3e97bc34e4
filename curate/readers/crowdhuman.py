"""CrowdHuman's odgt: a json object a line. An ID holds a comma; its picture is ID.jpg.

The visible box (vbox) is used: the full one (fbox) is a guess that leaves the picture. It is kept
as a flag. Masks and boxes marked as to be ignored are "ignore".
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from curate.readers.common import Notes, ReaderError, note_size
from curate.readers.pictures import PictureFinder
from curate.readers.text_files import open_text
from curate.readers.values import canonical_id, flag
from curate.schema import Box, SourceImage


def labels(annotations: Path, images: Path) -> list[Path]:
    """The files with labels: the odgt alone."""
    return [annotations]


def read(name: str, notes: Notes, annotations: Path, images: Path) -> Iterator[SourceImage]:
    """Images of `ANNOTATIONS.odgt,IMAGES`."""
    pictures, split = PictureFinder(images, notes), annotations.stem.removeprefix("annotation_")
    for _, entry in _lines(annotations):
        pictures.claim(str(canonical_id(entry["ID"])))
    for number, entry in _lines(annotations):
        try:
            key = str(canonical_id(entry["ID"]))
            yield SourceImage(
                image_id=f"{name}/{split}/{key}",
                dataset=name,
                split_of_source=split,
                path=pictures.find(key),
                boxes=tuple(note_size(_box(box), notes) for box in entry["gtboxes"]),
                license="research only",
            )
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ReaderError(f"{annotations}, line {number}: {error!r}") from None


def _lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number and entry of each line; an entry has an ID. Raises ReaderError."""
    number = 0
    try:
        with open_text(path) as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    entry = _decoded(line)
                    canonical_id(entry["ID"])
                    yield number, entry
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        if isinstance(error, ReaderError):
            raise
        raise ReaderError(f"{path}, line {max(number, 1)}: {error!r}") from None


def _decoded(line: str) -> Any:
    """A line's value. Raises ValueError if it is no json, or deeper than any labels are."""
    try:
        return json.loads(line)
    except RecursionError:
        raise ValueError("values in values, too deep to be labels") from None


def _box(entry: dict[str, Any]) -> Box:
    tag = entry["tag"]
    if tag not in ("person", "mask"):
        raise ValueError(f"unknown tag {tag!r}")
    ignored = tag == "mask" or flag((entry.get("extra") or {}).get("ignore"))
    full = [float(v) for v in entry["fbox"]]
    x, y, w, h = (float(v) for v in entry.get("vbox") or full)
    flags = [f"fbox {' '.join(f'{v:g}' for v in full)}"]
    flags += ["ignore"] if ignored else []
    return Box((x, y, x + w, y + h), "ignore" if ignored else "person", tag, tuple(flags))
