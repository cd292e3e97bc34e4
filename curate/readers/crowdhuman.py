"""CrowdHuman's odgt files: each line is a json object on one picture, which is named ID.jpg.

The visible box (vbox) is used. The full one (fbox) is a guess at what is hidden and may reach out
of the picture; it is kept as a flag. Masks, and boxes that say so themselves, are "ignore".
"""

import json
from collections.abc import Iterator
from pathlib import Path

from curate.readers.common import Notes, ReaderError, note_size
from curate.readers.pictures import PictureFinder
from curate.readers.text_files import open_text
from curate.readers.values import canonical_id, flag
from curate.schema import Box, Facts, Json, SourceImage


def labels(annotations: Path, images: Path) -> list[Path]:
    """The files with labels: the odgt alone."""
    return [annotations]


def read(name: str, notes: Notes, annotations: Path, images: Path) -> Iterator[SourceImage]:
    """Images of `ANNOTATIONS.odgt,IMAGES`."""
    pictures, split = PictureFinder(images, notes), annotations.stem.removeprefix("annotation_")
    # All names are told first: which picture a name means depends on the others.
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
                # Masks stay in as "ignore", since they count where a crowd is looked for.
                boxes=tuple(note_size(_box(box), notes) for box in entry["gtboxes"]),
                license="research only",
            )
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ReaderError(f"{annotations}, line {number}: {error!r}") from None


def _lines(path: Path) -> Iterator[tuple[int, Facts]]:
    """Yields the number and the entry of each line. Raises ReaderError, also if it has no ID."""
    number = 0
    try:
        with open_text(path) as lines:
            for number, line in enumerate(lines, 1):
                # Editors leave empty lines at the end.
                if line.strip():
                    entry = _decoded(line)
                    canonical_id(entry["ID"])
                    yield number, entry
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        if isinstance(error, ReaderError):
            raise
        raise ReaderError(f"{path}, line {max(number, 1)}: {error!r}") from None


def _decoded(line: str) -> Json:
    """The value in a line. Raises ValueError if it is no json, or deeper than any labels are."""
    try:
        return json.loads(line)
    except RecursionError:
        raise ValueError("values in values, too deep to be labels") from None


def _box(entry: Facts) -> Box:
    """One of a line's gtboxes."""
    tag = entry["tag"]
    if tag not in ("person", "mask"):
        raise ValueError(f"unknown tag {tag!r}")
    ignored = tag == "mask" or flag((entry.get("extra") or {}).get("ignore"))
    # fbox is always there; vbox, "extra" and its "ignore" may be missing.
    full = [float(v) for v in entry["fbox"]]
    x, y, w, h = (float(v) for v in entry.get("vbox") or full)
    flags = [f"fbox {' '.join(f'{v:g}' for v in full)}"]
    flags += ["ignore"] if ignored else []
    return Box((x, y, x + w, y + h), "ignore" if ignored else "person", tag, tuple(flags))
