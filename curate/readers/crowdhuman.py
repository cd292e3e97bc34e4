"""CrowdHuman's odgt: a json object a line. An ID holds a comma; its picture is ID.jpg.

The visible box (vbox) is used: the full one (fbox) is a guess that leaves the picture. It is kept
as a flag. Masks and boxes marked as to be ignored are "ignore".
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from curate.readers.common import Files, ReaderError
from curate.schema import Box, SourceImage


def labels(annotations: Path, images: Path) -> list[Path]:
    """The odgt."""
    return [annotations]


def read(name: str, annotations: Path, images: Path) -> Iterator[SourceImage]:
    """Images of `ANNOTATIONS.odgt,IMAGES`."""
    files, split = Files(images), annotations.stem.removeprefix("annotation_")
    with open(annotations, encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                entry = json.loads(line)
                yield SourceImage(
                    image_id=f"{name}/{split}/{entry['ID']}",
                    dataset=name,
                    split_of_source=split,
                    path=files.find(f"{entry['ID']}.jpg"),
                    boxes=tuple(map(_box, entry["gtboxes"])),
                    license="research only",
                )
            except (ValueError, KeyError, TypeError) as error:
                raise ReaderError(f"{annotations}, line {number}: {error!r}") from None


def _box(entry: dict[str, Any]) -> Box:
    tag = entry["tag"]
    if tag not in ("person", "mask"):
        raise ValueError(f"unknown tag {tag!r}")
    ignored = tag == "mask" or (entry.get("extra") or {}).get("ignore") == 1
    full = [float(v) for v in entry["fbox"]]
    x, y, w, h = (float(v) for v in entry.get("vbox") or full)
    flags = [f"fbox {' '.join(f'{v:g}' for v in full)}"]
    flags += ["ignore"] if ignored else []
    return Box((x, y, x + w, y + h), "ignore" if ignored else "person", tag, tuple(flags))
