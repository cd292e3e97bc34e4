"""People of pictures as COCO's files have them: outlines, and joints where there are any.

Needed by `osdhuman parts` for `person_keypoints_*.json` and `instances_*.json`. A picture is found
by its path, or by its name alone where only one picture of the file has it. The file is held in
memory whole while it is read: COCO's largest takes about two gigabytes. Curation reads such files
by a reader of its own, curate/readers/coco.py: it wants boxes, crowds among them, as a stream, and
no outlines.
"""

import json
from collections import defaultdict
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool

from osdhuman_jax.data.sources import DataError
from osdhuman_jax.degrade.body import Person
from osdhuman_jax.filenames import spelled

Mask = Bool[np.ndarray, "h w"]
Size = tuple[int, int]  # height, width

JOINTS = 17
FAULTS = (KeyError, TypeError, ValueError, AttributeError, IndexError, RecursionError)


class Listed(NamedTuple):
    """A picture of the file: its size, and what it says of each of its people."""

    size: Size
    people: list[dict[str, Any]]


class CocoPeople:
    """The people of a COCO file by picture."""

    def __init__(self, path: Path, joints: bool) -> None:
        """`joints`: whether people's joints are wanted. Raises DataError in one line."""
        self._where, self._joints = spelled(path), joints
        try:
            with path.open(encoding="utf-8-sig") as file:
                content = json.load(file)
            people = self._people(content)
            self._paths, self._names = self._by_name(content["images"], people)
        except OSError as error:
            raise DataError(f"{self._where}: {error.strerror or error}") from error
        except FAULTS as error:
            if isinstance(error, DataError):
                raise
            reason = f"{type(error).__name__}: {error!s:.100}"
            raise DataError(f"{self._where}: not a COCO json: {reason}") from error

    def _people(self, content: dict[str, Any]) -> dict[Any, list[dict[str, Any]]]:
        """Annotations of people by picture; crowds, which are not one person each, are left out."""
        person = {c["id"] for c in content["categories"] if c["name"].strip().lower() == "person"}
        if not person:
            raise DataError(f"{self._where}: no category is named person")
        found: dict[Any, list[dict[str, Any]]] = defaultdict(list)
        # Some entries of a file with keypoints may have none; if all have none it is another file.
        any_joints = False
        for entry in content["annotations"]:
            if entry["category_id"] in person and not entry.get("iscrowd"):
                found[entry["image_id"]].append(entry)
                any_joints |= "keypoints" in entry
        if self._joints and not any_joints:
            advice = "--from instances:FILE takes outlines alone"
            raise DataError(f"{self._where}: nobody in it has keypoints; {advice}")
        return found

    def _by_name(
        self, images: list[dict[str, Any]], people: dict[Any, list[dict[str, Any]]]
    ) -> tuple[dict[str, Listed], dict[str, Listed | None]]:
        """Pictures by path, and by bare name (None = several have it), both without suffix."""
        paths: dict[str, Listed] = {}
        names: dict[str, Listed | None] = {}
        for image in images:
            listed = Listed((image["height"], image["width"]), people.get(image["id"], []))
            path = PurePosixPath(image["file_name"].replace("\\", "/")).with_suffix("")
            paths[path.as_posix()] = listed
            names[path.name] = None if path.name in names else listed
        return paths, names

    def read(self, name: Path, size: Size) -> list[Person] | None:
        """The people of a picture of `size`; None where the file does not list it.

        `name` is its path below the folder of the pictures. Raises DataError where the file means
        a picture of another shape, or has an outline that is none.
        """
        # Formats differ where pictures were converted since: suffixes do not count.
        path = PurePosixPath(name.as_posix()).with_suffix("")
        listed = self._paths.get(path.as_posix()) or self._names.get(path.name)
        if listed is None:
            return None
        # Pictures may have been scaled since; one that was cropped or turned is another one.
        scale = size[1] / listed.size[1], size[0] / listed.size[0]
        if abs(scale[0] / scale[1] - 1) > 0.02:
            (height, width), (high, wide) = listed.size, size
            raise DataError(f"has {wide} x {high} pixels, {self._where} says {width} x {height}")
        try:
            return [self._person(entry, size, np.array(scale)) for entry in listed.people]
        except FAULTS as error:
            reason = f"{type(error).__name__}: {error!s:.100}"
            raise DataError(f"its people in {self._where}: {reason}") from error

    def _person(self, entry: dict[str, Any], size: Size, scale: np.ndarray) -> Person:
        outline = outlined(entry["segmentation"], size, scale)
        if not self._joints or not any(entry.get("keypoints", ())):
            return Person(outline)
        # x, y and visibility; 0 = not labelled, 1 = hidden, whose place is known.
        rows = np.array(entry["keypoints"], np.float64).reshape(JOINTS, 3)
        return Person(outline, rows[:, :2] * scale, rows[:, 2] > 0)


def outlined(segmentation: list[Any] | dict[str, Any], size: Size, scale: np.ndarray) -> Mask:
    """The pixels within COCO's polygons (x, y, x, y, ..) or run lengths, scaled to `size`."""
    mask = np.zeros(size, np.uint8)
    if isinstance(segmentation, dict):
        height, width = segmentation["size"]
        counts = segmentation["counts"]
        runs = run_lengths(counts) if isinstance(counts, str) else counts
        values = np.arange(len(runs)) % 2
        # By columns, beginning with what is outside.
        mask = np.repeat(values, runs).reshape(width, height).T.astype(np.uint8)
        mask = cv2.resize(mask, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
    else:
        # The pieces of one person, which something before it may have divided.
        polygons = [np.array(flat, np.float64).reshape(-1, 2) * scale for flat in segmentation]
        for polygon in polygons:
            cv2.fillPoly(mask, [np.rint(polygon).astype(np.int32)], 1)
    return mask.astype(bool)


def run_lengths(text: str) -> list[int]:
    """COCO's compressed run lengths (`rleFrString` of its maskApi.c).

    Five bits a character, the lowest first; 32 says that more follow, 16 in the last one that the
    number is negative. From the fourth number on it is the difference from the one two before.
    """
    found: list[int] = []
    value = shift = 0
    for code in text.encode("ascii"):
        bits = code - 48
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        found.append(value + (found[-2] if len(found) > 2 else 0))
        value = shift = 0
    return found
