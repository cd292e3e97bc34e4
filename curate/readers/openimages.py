"""Open Images V4 to V7: boxes as csv with shares of width and height (or pixels), labels as mids.

Releases differ in their columns, which are therefore found by the header. Person, Man, Woman, Boy,
Girl and Human body are people, by name in the set's own table; parts of bodies, dolls and statues
are not. Two boxes of different person labels on one person are merged. Groups and depictions are
"ignore". The pictures' table, if given, adds rotation, Flickr number and licence.
"""

import csv
import math
import sys
from collections.abc import Container, Iterable, Iterator
from pathlib import Path

from curate.readers.common import Notes, ReaderError, flickr_id, iou, note_size
from curate.readers.pictures import PictureFinder
from curate.readers.text_files import open_text
from curate.readers.values import flag
from curate.schema import Box, SourceImage

# The more telling first: of two boxes on one person the one with the earlier label stays.
PERSON_CLASSES = ("Man", "Woman", "Boy", "Girl", "Person", "Human body")
# By these, names are found whatever their letter case.
KNOWN = {name.lower(): name for name in PERSON_CLASSES}
# IoU from which two boxes of different person labels are on one person.
SAME = 0.8
FLAGS = {
    "IsOccluded": "occluded",
    "IsTruncated": "truncated",
    "IsGroupOf": "group",
    "IsDepiction": "depiction",
}
# A group is more than five people that touch; a depiction is a drawing or a statue.
IGNORED = {"group", "depiction"}
# Shares of width and height are 1 at most, give or take an annotator's hand; a box of people that
# ends at 2 pixels is none.
SHARE_MOST = 2.0
SIDES = ("XMin", "YMin", "XMax", "YMax")


def labels(boxes: Path, classes: Path, images: Path, info: Path | None = None) -> list[Path]:
    """The files with labels: the csv files."""
    return [boxes, classes, *([info] if info else [])]


def read(
    name: str, notes: Notes, boxes: Path, classes: Path, images: Path, info: Path | None = None
) -> Iterator[SourceImage]:
    """Images of `BOXES.csv,CLASSES.csv,IMAGES[,IMAGE_INFO.csv]`."""
    # Both tables as a whole, since the rows of one image need not be next to each other.
    found, pixels = _boxes(boxes, _classes(classes), notes)
    facts = _info(info, found) if info else {}
    if info and (unknown := len(found) - len(facts)):
        notes[f"pictures not in {info.name}"] += unknown
    pictures, split = PictureFinder(images, notes), _split(boxes)
    # All names are told first: which picture a name means depends on the others.
    for image in found:
        pictures.claim(image)
    for image, people in found.items():
        rotation, url, license = facts.get(image, (0, "", ""))
        yield SourceImage(
            image_id=f"{name}/{split}/{image}",
            dataset=name,
            split_of_source=split,
            path=pictures.find(image),
            normalized=not pixels,
            rotation=rotation,
            boxes=tuple(merge_people(people)),
            flickr_id=flickr_id(url),
            license=license,
        )


def _split(path: Path) -> str:
    """The split that the name of a table of boxes says, as train in oidv6-train-annotations."""
    words = path.stem.replace("_", "-").split("-")
    return next((word for word in words if word in ("train", "validation", "test")), path.stem)


def _rows(path: Path, needed: Iterable[str]) -> Iterator[dict[str, str]]:
    """Yields a table's rows as values by column.

    Raises ReaderError where a column of those needed is missing.
    """
    needed = list(needed)
    try:
        with open_text(path) as file:
            reader = csv.DictReader(file)
            missing = [column for column in needed if column not in (reader.fieldnames or ())]
            if missing:
                raise ReaderError(f"{path}: no columns {', '.join(missing)}")
            yield from reader
    except (csv.Error, UnicodeError) as error:
        raise ReaderError(f"{path}: not a csv file: {error}") from None


def _classes(path: Path) -> dict[str, str]:
    """Name of each class by its mid.

    Some releases have a header: its line becomes one more class, which no box has.
    """
    try:
        with open_text(path) as file:
            rows = [row for row in csv.reader(file) if row]
    except (csv.Error, UnicodeError) as error:
        raise ReaderError(f"{path}: not a csv file: {error}") from None
    if any(len(row) < 2 for row in rows):
        raise ReaderError(f"{path}: lines are to be MID,NAME")
    # Two names of one mid would make it a person or not by the order of rows.
    names: dict[str, str] = {}
    for mid, name in ((row[0].strip(), row[1].strip()) for row in rows):
        name = KNOWN.get(name.lower(), name)
        if names.setdefault(mid, name) != name:
            raise ReaderError(f"{path}: {mid} is two classes, {names[mid]} and {name}")
    if not set(PERSON_CLASSES) & set(names.values()):
        raise ReaderError(f"{path}: none of {', '.join(PERSON_CLASSES)} is in it")
    return names


def _boxes(path: Path, names: dict[str, str], notes: Notes) -> tuple[dict[str, list[Box]], bool]:
    """The people of every image that is listed, also of those without any; whether in pixels.

    Open Images' own tables have shares of width and height; exporters write pixels under the same
    header. Raises ReaderError where a table has both: one of them would be a mistake.
    """
    found: dict[str, list[Box]] = {}
    # By whether it is in pixels: the line of the first such box.
    lines: dict[bool, int] = {}
    # Line 1 is the header.
    for number, row in enumerate(_rows(path, ("ImageID", "LabelName", *SIDES)), 2):
        try:
            people = found.setdefault(row["ImageID"].strip(), [])
            label = names.get(row["LabelName"].strip())
            if label is None:
                raise ValueError(f"label {row['LabelName']!r} is not in the table")
            if label in PERSON_CLASSES:
                people.append(note_size(_box(row, label), notes))
                if (largest := max(people[-1].xyxy)) > 0:
                    lines.setdefault(largest > SHARE_MOST, number)
        except (ValueError, TypeError, AttributeError) as error:
            raise ReaderError(f"{path}, line {number}: {error}") from None
    if len(lines) == 2:
        raise ReaderError(
            f"{path}: the box of line {lines[True]} is in pixels, that of line {lines[False]} in "
            "shares of width and height: write all in one of them"
        )
    if True in lines:
        notes[f"boxes in pixels in {path.name}, taken as such"] += sum(map(len, found.values()))
    return found, True in lines


def _box(row: dict[str, str], label: str) -> Box:
    """A row as a box in the table's own unit."""
    x0, y0, x1, y1 = (float(row[side]) for side in SIDES)
    # In this table -1 means unknown, which is not set.
    flags = [name for column, name in FLAGS.items() if flag(row.get(column))]
    flags += [f"source {row['Source']}"] if row.get("Source") else []
    kind = "ignore" if IGNORED & set(flags) else "person"
    return Box((x0, y0, x1, y1), kind, label, tuple(flags))


def merge_people(boxes: list[Box]) -> list[Box]:
    """One box for each person, the one with the most telling label, in the order of the file."""
    kept: list[int] = []
    order = sorted(range(len(boxes)), key=lambda i: (PERSON_CLASSES.index(boxes[i].raw_label), i))
    for i in order:
        # Boxes of one label are never merged: they are two people who stand close.
        twin = any(
            boxes[i].raw_label != boxes[j].raw_label and iou(boxes[i], boxes[j]) >= SAME
            for j in kept
        )
        if not twin:
            kept.append(i)
    return [boxes[i] for i in sorted(kept)]


def _info(path: Path, wanted: Container[str]) -> dict[str, tuple[int, str, str]]:
    """Rotation, address and licence of each wanted image, from the table of all pictures."""
    found: dict[str, tuple[int, str, str]] = {}
    for number, row in enumerate(_rows(path, ("ImageID", "Rotation")), 2):
        image = (row["ImageID"] or "").strip()
        if image not in wanted:
            continue
        try:
            rotation = _rotation(row["Rotation"] or "")
        except (ValueError, OverflowError):
            raise ReaderError(
                f"{path}, line {number}: Rotation {row['Rotation']!r} is no number of degrees"
            ) from None
        # A few licences stand in millions of rows: interned, each is held once.
        facts = rotation, row.get("OriginalURL") or "", sys.intern(row.get("License") or "")
        if found.setdefault(image, facts) != facts:
            raise ReaderError(
                f"{path}, line {number}: {image} is there twice, with other values: keep one"
            )
    return found


def _rotation(text: str) -> int:
    """Degrees counterclockwise, in [0, 360); 0 where the table says nan or nothing.

    It says so where the photo is gone from Flickr. Raises ValueError or OverflowError on what is no
    finite number.
    """
    degrees = float(text.strip() or 0)
    return 0 if math.isnan(degrees) else int(degrees) % 360
