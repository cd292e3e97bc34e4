"""Structure of the people in training pictures: joints, and where people are (DiffBody, Eq. 3).

`data.poses` names a folder for each of `data.sources`, which `osdhuman poses` makes. In it

    poses.jsonl     {"file": "a/b.jpg", "people": [[[x, y, score], .. 18], ..]} for each picture
    a/b.png         an attention map of the picture's size, gray: 0 nobody, 255 surely a person

Joints are OpenPose's 18, x and y in pixels of the upright picture, of which whole numbers are
centres. A picture without people has an empty list, and a picture without a map attention 0
everywhere. Both are cut, scaled and mirrored as their picture is.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32

from osdhuman_jax.config import DataConfig, Json
from osdhuman_jax.data.crops import Window, cut_weights
from osdhuman_jax.data.part_maps import read_map
from osdhuman_jax.data.picture_lines import Table, check_pictures, read_lines
from osdhuman_jax.data.sources import ChainSource, check_count
from osdhuman_jax.disk import write_bytes
from osdhuman_jax.filenames import spelled
from osdhuman_jax.images.codec import Picture, encode

People = Float32[np.ndarray, "p 18 3"]
Attention = Float32[np.ndarray, "h w"]

POSES = "poses.jsonl"
MOST = 4  # people of a sample
JOINTS = 18
FARTHEST = 1_000_000  # pixels, of a joint; no picture is as large
SEEN = 0.3  # score above which a joint counts as there
# Which of COCO's 17 joints is each of OpenPose's; -1 is the neck, which COCO does not have.
COCO = (0, -1, 6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3)
SHOULDERS = (5, 6)
# Which joint each one is in a mirror: left is right.
MIRROR = (0, 1, 5, 6, 7, 2, 3, 4, 11, 12, 13, 8, 9, 10, 15, 14, 17, 16)


class Structure(NamedTuple):
    """What is known of the people of one picture."""

    people: People  # x, y in pixels and a score in [0, 1]; at most MOST of them
    attention: Attention  # in [0, 1], of the picture's size


def openpose(
    points: Float[np.ndarray, "17 2"], scores: Float[np.ndarray, " 17"]
) -> Float32[np.ndarray, "18 3"]:
    """OpenPose's joints of a person whose joints are in COCO's order.

    The neck is the middle of the shoulders, as sure as the less sure of them.
    """
    both = list(SHOULDERS)
    neck = *points[both].mean(axis=0), scores[both].min()
    rows = np.concatenate([np.column_stack([points, scores]), [neck]])
    return rows[list(COCO)].astype(np.float32)


def nobody(size: tuple[int, int]) -> Structure:
    """The structure of a picture of `size`, height and width, without people."""
    return Structure(np.zeros((0, JOINTS, 3), np.float32), np.zeros(size, np.float32))


# Crops -------------------------------------------------------------------------------------------


def cut_structure(
    structure: Structure, window: Window, size: tuple[int, int], mirrored: bool
) -> Structure:
    """What a window shows of a structure, scaled to `size` and then maybe mirrored.

    Joints beyond the window have the score 0, as an estimator that saw the crop would have it, and
    people without a joint in it are left out.
    """
    height, width = size
    rows, columns = window
    scale = width / (columns.stop - columns.start), height / (rows.stop - rows.start)
    people = structure.people.copy()
    # Scaled about the corners of pixels, as OpenCV scales the picture.
    corner = np.array([columns.start, rows.start]) - 0.5
    people[..., :2] = (people[..., :2] - corner) * scale - 0.5
    beyond = (people[..., :2] < -0.5) | (people[..., :2] >= np.array([width, height]) - 0.5)
    people[beyond.any(axis=-1), 2] = 0
    people = people[(people[..., 2] > SEEN).any(axis=1)][:MOST]
    attention = cut_weights(structure.attention, window, size)
    if mirrored:
        people = people[:, list(MIRROR)]
        people[..., 0] = width - 1 - people[..., 0]
        attention = attention[:, ::-1]
    return Structure(people, np.ascontiguousarray(attention))


def padded(people: People) -> Float32[np.ndarray, "most 18 3"]:
    """People of a fixed number: those who are not there are zeros, whose score 0 hides them."""
    return np.concatenate([people, np.zeros((MOST - len(people), JOINTS, 3), np.float32)])


# Files -------------------------------------------------------------------------------------------


def read_poses(path: Path, *, unfinished: bool = False) -> Table[People]:
    """People by a picture's path without its suffix. Raises DataError."""
    return read_lines(path, "people", _people, unfinished=unfinished)


def _people(entry: Json) -> People:
    """Of a line of POSES. Raises ValueError, TypeError or KeyError."""
    if not isinstance(entry["people"], list):
        raise TypeError("its people are no list")
    _check_numbers(entry["people"])
    people = np.array(entry["people"], np.float64)
    if people.shape != (0,) and people.shape[1:] != (JOINTS, 3):
        raise ValueError(f"its people do not have {JOINTS} joints of x, y and score")
    if not np.isfinite(people).all():
        raise ValueError("its people have joints that are no finite numbers")
    people = people.reshape(-1, JOINTS, 3)
    if (abs(people[..., :2]) > FARTHEST).any():
        raise ValueError(f"its people have joints more than {FARTHEST} pixels away")
    if (people[..., 2] < 0).any() or (people[..., 2] > 1).any():
        raise ValueError("its people have scores that are not between 0 and 1")
    return people.astype(np.float32)


def _check_numbers(value: object) -> None:
    """Raise TypeError on what is neither a number nor a list of such, as NumPy reads texts too."""
    for item in value if isinstance(value, list) else ():
        _check_numbers(item)
    if isinstance(value, bool) or not isinstance(value, int | float | list):
        raise TypeError(f"its people have a joint with {value!r:.40}, which is no number")


def pose_line(file: str, people: People) -> Json:
    """A line of POSES. A thousandth of a pixel is finer than any estimator."""
    return {"file": file, "people": np.round(people.astype(np.float64), 3).tolist()}


def read_attention(path: Path, size: tuple[int, int]) -> Attention:
    """The map of a picture of `size`, height and width, in [0, 1]. Raises DataError."""
    return read_map(path, size, "an attention map") / np.float32(255)


def write_attention(path: Path, attention: Attention) -> None:
    """Write a map whole or not at all. Raises OSError."""
    gray = np.rint(attention * 255).astype(np.uint8)
    write_bytes(path, encode(Picture(np.repeat(gray[..., None], 3, axis=-1), gray=True)))


class Structures:
    """The structures of `data.sources`, by the index of a picture in them."""

    def __init__(self, source: ChainSource, folders: Sequence[str]) -> None:
        """`folders`: one for each source, empty where a source has none. Raises DataError."""
        check_count("poses", "folders", len(folders), source)
        self._source, self._folders = source, tuple(folders)
        files = [Path(folder, POSES) if folder else None for folder in folders]
        self._tables = [read_poses(file) if file else {} for file in files]
        # A wrong folder is found out now, not by a model that learned without skeletons.
        self.missing: dict[str, int] = {}  # pictures without a line, by folder
        for file, table, part in zip(files, self._tables, source.parts, strict=True):
            if file and (without := check_pictures(spelled(file), table, part)):
                self.missing[str(file)] = without

    def read(self, index: int, size: tuple[int, int]) -> Structure:
        """The structure of a picture of `size`, of nobody where there is none. Raises DataError."""
        number, source, local = self._source.locate(index)
        structure = nobody(size)
        if not self._folders[number]:
            return structure
        name = source.stem(local)
        path = Path(self._folders[number], f"{name}.png")
        people = self._tables[number].get(name, structure.people)
        return Structure(people, read_attention(path, size) if path.is_file() else structure[1])


def open_structures(config: DataConfig, source: ChainSource) -> Structures | None:
    """The structures of a configuration's opened sources, None where none are wanted.

    Raises DataError.
    """
    return Structures(source, config.poses) if config.poses else None
