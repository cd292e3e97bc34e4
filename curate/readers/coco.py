"""COCO's instances and person_keypoints json, and Objects365's, the same with flags of its own.

A box is [x, y, width, height] in pixels from 0. Crowds (and Objects365's fakes and reflections) are
"ignore". A crowd may have a run-length mask and no box: its box is then that of the mask. Which
keypoints are visible becomes a flag, as "sees nose left_eye". Files have millions of boxes, so they
are read as a stream, and only numbers are held of each box. A damaged entry is an error that names
the file.
"""

import json
from array import array
from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
from jaxtyping import Float64

from curate.readers.common import Notes, ReaderError, flickr_id, note_size
from curate.readers.entries import members
from curate.readers.pictures import PictureFinder
from curate.readers.values import canonical_id, flag, length
from curate.schema import SEES, Box, Facts, Json, SourceImage

# Flags of an annotation that make it "ignore", by their names in `Box.flags`.
FLAGS = {"iscrowd": "crowd", "isfake": "fake", "isreflected": "reflected", "ignore": "ignored"}
# Members that a file must have, and those that an annotation must have.
NEEDED = {"images", "annotations", "categories"}
KEYS = {"image_id", "category_id"}
SHAPES = {"bbox", "segmentation"}
# Beginnings of the names of COCO's files, before the split.
FILES = ("instances_", "person_keypoints_")
# Keypoints of a person that are read, of COCO's 17; those that a number can hold besides the flags.
POINTS_MOST = 40
# What COCO gives a keypoint that is labelled and visible.
VISIBLE = 2
# Numbers that are held of a box: image, x, y, width, height, flags (a bit each).
WIDTH = 6
# What damaged entries set off; RecursionError comes of values nested too deep.
FAULTS = (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError)
# Examples that an error names.
TOLD = 3

Id = int | str


def labels(annotations: Path, images: Path) -> list[Path]:
    """The files with labels: the json alone."""
    return [annotations]


def read_coco(name: str, notes: Notes, annotations: Path, images: Path) -> Iterator[SourceImage]:
    """Images of `INSTANCES.json,IMAGES`."""
    return _read(name, notes, annotations, PictureFinder(images, notes))


def read_objects365(
    name: str, notes: Notes, annotations: Path, images: Path
) -> Iterator[SourceImage]:
    """Images of Objects365 v1 or v2, whose file names may lack their patch folder."""
    return _read(name, notes, annotations, PictureFinder(images, notes, distinct=True))


def _read(
    name: str, notes: Notes, annotations: Path, pictures: PictureFinder
) -> Iterator[SourceImage]:
    """Images of one json file.

    The first pass over it collects the boxes, since they may come before or after the images; the
    second yields the images with their boxes.
    """
    try:
        labels = _Labels(annotations, pictures, notes)
        # The two files of one split name the same pictures.
        split = annotations.stem
        for start in FILES:
            split = split.removeprefix(start)
        # All names have been claimed by now, so that each picture can be asked for. What comes
        # after the last of them need not be read again.
        listed = (image for key, rest in members(annotations) if key == "images" for image in rest)
        for image in islice(listed, labels.listed):
            size = length(image.get("width")), length(image.get("height"))
            notes["pictures without width and height"] += not all(size)
            yield SourceImage(
                image_id=f"{name}/{split}/{canonical_id(image['id'])}",
                dataset=name,
                split_of_source=split,
                path=pictures.find(image["file_name"]),
                label_w=size[0],
                label_h=size[1],
                boxes=labels.people(canonical_id(image["id"])),
                flickr_id=flickr_id(image.get("flickr_url", "")),
                license=labels.license(image.get("license")),
            )
    except FAULTS as error:
        # A ReaderError is a ValueError too, and says more than this could.
        if isinstance(error, ReaderError):
            raise
        raise ReaderError(f"{annotations}: an entry is not as it should be: {error!r}") from None


class _Labels:
    """The people of a file by image, and its licences by number.

    Every method raises ReaderError on entries that cannot be what they should be.
    """

    def __init__(self, path: Path, pictures: PictureFinder, notes: Notes) -> None:
        """Read the whole file, and claim the pictures of all images that are listed."""
        self._path, self._notes = path, notes
        self._licenses: dict[Id, str] = {}
        # Images are numbered in the order in which they are met.
        self._images: dict[Id, int] = {}
        # By number: 1 where the image is among the file's "images"; how many are.
        self._listed = bytearray()
        self.listed = 0
        # Names of the keypoints of people, where the file has any.
        self._points: list[str] = []
        # The first annotation of each category whose bbox is not four numbers.
        self._bad: dict[Id, Facts] = {}
        names: dict[Id, str] = {}
        seen: set[str] = set()
        # Boxes are kept by category, since the categories' names come last in the file.
        boxes: dict[Id, array] = defaultdict(lambda: array("d"))
        # One pass over the file, whatever the order of its members.
        for key, entries in members(path):
            seen.add(key)
            if key == "images":
                for entry in entries:
                    self._list(entry)
                    pictures.claim(entry["file_name"])
            elif key == "annotations":
                for entry in entries:
                    self._add(entry, boxes)
            elif key == "categories":
                names = self._names(entries)
            elif key == "licenses":
                known = (entry for entry in entries if entry)
                self._licenses = {canonical_id(e["id"]): str(e.get("name") or "") for e in known}
        if not seen >= NEEDED:
            raise ReaderError(f"{path}: needs {', '.join(sorted(NEEDED))}")
        # By now the categories are known: of the boxes only people's are kept, by image.
        self._rows = self._sorted(boxes, names)
        self._starts = np.searchsorted(self._rows[:, 0], np.arange(len(self._images) + 1))

    def _list(self, image: Facts) -> None:
        """Take in an entry of "images"."""
        if not isinstance(image["file_name"], str):
            raise ReaderError(
                f"{self._path}: image {image['id']}: its file_name is "
                f"{json.dumps(image['file_name'])[:200]}, not the name of a file"
            )
        number = self._number(image["id"])
        if self._listed[number]:
            raise ReaderError(
                f"{self._path}: two images are named {image['id']}, the second is "
                f"{image['file_name']}: give each an id of its own"
            )
        self._listed[number] = 1
        self.listed += 1

    def _number(self, image_id: object) -> int:
        """The number of an image, which is a new one if the image has not been met before."""
        number = self._images.setdefault(canonical_id(image_id), len(self._images))
        if number == len(self._listed):
            self._listed.append(0)
        return number

    def _names(self, entries: Iterable[Json]) -> dict[Id, str]:
        """Names of the categories by their ids."""
        # Releases of Objects365 differ in letter case and in blanks at the end of a name.
        names: dict[Id, str] = {}
        for entry in entries:
            name = entry["name"].strip().lower()
            if name == "person" and entry.get("keypoints"):
                self._points = [str(point) for point in entry["keypoints"]][:POINTS_MOST]
            if names.setdefault(canonical_id(entry["id"]), name) != name:
                raise ReaderError(f"{self._path}: two categories have the id {entry['id']}")
        return names

    def _add(self, entry: Json, boxes: dict[Id, array]) -> None:
        """Take in an entry of "annotations": its numbers go to the boxes of its category."""
        if isinstance(entry, dict) and "segments_info" in entry:
            raise ReaderError(
                f"{self._path}: a panoptic file, whose boxes are of segments: give "
                "instances_*.json or person_keypoints_*.json"
            )
        if not isinstance(entry, dict) or not entry.keys() >= KEYS or not entry.keys() & SHAPES:
            raise ReaderError(
                f"{self._path}: an annotation lacks image_id, category_id or bbox: "
                f"{str(entry)[:200]}"
            )
        category, image = canonical_id(entry["category_id"]), self._number(entry["image_id"])
        bits = sum(1 << bit for bit, name in enumerate(FLAGS) if flag(entry.get(name)))
        bits |= _visible(entry.get("keypoints") or []) << len(FLAGS)
        try:
            x, y, w, h = map(float, entry.get("bbox") or mask_box(entry.get("segmentation")))
        except (TypeError, ValueError):
            # It becomes an error if the category turns out to be a person.
            self._bad.setdefault(category, entry)
        else:
            boxes[category].extend((image, x, y, w, h, bits))

    def _sorted(self, boxes: dict[Id, array], names: dict[Id, str]) -> Float64[np.ndarray, "n 6"]:
        """Rows of the people by image, in the order of the file."""
        # Every category must have a name, or its boxes might be people.
        if "person" not in names.values():
            known = ", ".join(names.values())[:200]
            raise ReaderError(f"{self._path}: no category is named person: {known}")
        if unknown := [str(category) for category in (*boxes, *self._bad) if category not in names]:
            raise ReaderError(f"{self._path}: category {unknown[0]} is not in its table")
        if bad := [entry for category, entry in self._bad.items() if names[category] == "person"]:
            raise ReaderError(f"{self._path}: bbox is not x, y, width, height: {str(bad[0])[:200]}")
        # The numbers of a category as a table, without copying them.
        rows = {
            category: np.frombuffer(found, np.float64).reshape(-1, WIDTH)
            for category, found in boxes.items()
        }
        people = [found for category, found in rows.items() if names[category] == "person"]
        self._check_listed(
            people, [found for category, found in rows.items() if names[category] != "person"]
        )
        # A stable sort by image keeps the order of the file within each image.
        joined = np.concatenate([np.empty((0, WIDTH)), *people])
        return joined[np.argsort(joined[:, 0], kind="stable")]

    def _check_listed(self, people: list[np.ndarray], others: list[np.ndarray]) -> None:
        """Raises ReaderError where people are on images that are not listed.

        Other things on such images are only counted: nobody is lost with them.
        """
        listed = np.frombuffer(self._listed, np.uint8).astype(bool)

        def unlisted(rows: np.ndarray) -> np.ndarray:
            images = rows[:, 0].astype(np.int64)
            return images[~listed[images]]

        lost = [image for rows in people for image in unlisted(rows).tolist()]
        if lost:
            ids = list(self._images)
            first = ", ".join(repr(ids[image]) for image in list(dict.fromkeys(lost))[:TOLD])
            raise ReaderError(
                f"{self._path}: {len(lost)} annotations of people are of images that are not in "
                f'"images", such as image_id {first}: list those images, or remove the annotations'
            )
        if count := sum(len(unlisted(rows)) for rows in others):
            self._notes["annotations of other things, of images that are not listed"] += count

    def people(self, image_id: Id) -> tuple[Box, ...]:
        """An image's boxes; none if it has no annotation."""
        image = self._images[image_id]
        rows = self._rows[self._starts[image] : self._starts[image + 1]].tolist()
        return tuple(note_size(_box(row, self._points), self._notes) for row in rows)

    def license(self, license_id: object) -> str:
        """The name of a licence by its number; empty if none is known."""
        return "" if license_id is None else self._licenses.get(canonical_id(license_id), "")


def _box(row: list[float], points: list[str]) -> Box:
    """A row of numbers as a box; `points` are the names of keypoints."""
    _, x, y, w, h, number = row
    bits = int(number)
    flags = tuple(flag for bit, flag in enumerate(FLAGS.values()) if bits & 1 << bit)
    kind = "ignore" if flags else "person"
    if seen := [name for bit, name in enumerate(points, len(FLAGS)) if bits & 1 << bit]:
        flags += (SEES + " ".join(seen),)
    return Box((x, y, x + w, y + h), kind, flags=flags)


def _visible(keypoints: Json) -> int:
    """A bit for each keypoint that is visible; `keypoints` are x, y, visibility of each."""
    marks = keypoints[2::3][:POINTS_MOST]
    return sum(1 << place for place, mark in enumerate(marks) if mark == VISIBLE)


def mask_box(mask: Json) -> tuple[float, float, float, float]:
    """x, y, width and height of what a run-length mask covers.

    Args:
        mask: "size" (height, width) and "counts": lengths of runs of 0 and 1 in turn, down each
            column, as a list or in pycocotools' text.

    Raises ValueError or TypeError on what is no such mask, as polygons, or on an empty one.
    """
    if not isinstance(mask, dict) or "size" not in mask:
        raise TypeError("no run-length mask")
    height, width = map(int, mask["size"])
    counts = mask["counts"]
    runs = np.array(unpack_counts(counts) if isinstance(counts, str) else counts, np.int64)
    ends = np.cumsum(runs)
    if len(ends) == 0 or ends[-1] != height * width or (runs < 0).any():
        raise ValueError("the mask's runs are not as long as its size says")
    # Every second run is of the mask; empty ones say nothing.
    first, last = (ends - runs)[1::2], ends[1::2] - 1
    first, last = first[last >= first], last[last >= first]
    if not len(first):
        raise ValueError("the mask is empty")
    left, right = int(first[0] // height), int(last[-1] // height)
    # A run that goes on in the next column covers a top and a bottom.
    whole = first // height != last // height
    top = 0 if whole.any() else int((first % height).min())
    bottom = height - 1 if whole.any() else int((last % height).max())
    return float(left), float(top), float(right - left + 1), float(bottom - top + 1)


def unpack_counts(text: str) -> list[int]:
    """Runs from pycocotools' text: five bits a character, differences from the third run on.

    Raises ValueError on a text that is cut.
    """
    runs: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        value |= (bits & 31) << shift
        shift += 5
        # The sixth bit says that the number goes on, the fifth of its last character the sign.
        if bits & 32:
            continue
        value -= (1 << shift) if bits & 16 else 0
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value = shift = 0
    if shift:
        raise ValueError("the mask's text is cut")
    return runs
