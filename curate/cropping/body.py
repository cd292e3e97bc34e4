"""Whether a finished crop shows a person: head or shoulders inside, large enough, hardly cut.

A person's box may hold a plate and two hands, or the seat of jeans, since boxes end where pictures
do. So each crop is looked at once more. Where labels have keypoints, they decide. Else BlazePose's
detector does (Bazarevsky et al. 2020, Apache-2.0), which finds people by head and shoulders, if a
wheel of mediapipe 0.10 is given (`body.weights`). Without either only the box can be judged.
What the network is right and wrong about is in docs/curation.md.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float64

from curate.config import BodyConfig
from curate.cropping.litert import load_network
from curate.schema import SEES, WHOLE_PICTURE, Box, Candidate, Facts, Pixels
from osdhuman_jax.disk import known_digest

# Where the network lies in a wheel of mediapipe, and what it says of itself.
MEMBER = "pose_detection.tflite"
SIDE, COUNT = 224, 2254
SHAPES = ((1, SIDE, SIDE, 3), (1, COUNT, 12), (1, COUNT, 1))
# Cells a side of the maps that people are predicted from, and predictions of each cell.
GRIDS = ((28, 2), (14, 2), (7, 6))
# Sides of the squares that are looked at, in those of the crop: with black around it the head of a
# portrait is no larger than the network expects. What is no person is rarely taken for one at all
# three sizes, which is why scores are averaged.
LOOKS = (1.0, 1.25, 1.5)
# COCO's names of a person's keypoints on head and shoulders.
UPPER_BODY = frozenset(
    ("nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder")
)
# Predictions less sure than this are not looked at.
UNLIKELY = 0.1
# The least height of the circle's point over the hips, in radii: legs without a trunk are often
# taken for people upside down, who are rare.
UPRIGHT = -0.5

# Why a crop is dropped, in the manifest's column `detail`.
NO_POINTS = "neither head nor shoulders by its keypoints"
NOBODY = "no head and shoulders found"
SMALL = "too small a share of the crop"
CUT = "cut off by the crop"

Point = Float64[np.ndarray, "2"]
Corners = tuple[float, float, float, float]
# Why a crop shows nobody; "" if it shows a person.
Judge = Callable[[Candidate], str]


class Person(NamedTuple):
    """A person as the network sees one; points are x, y in pixels of the crop."""

    score: float
    head: Point
    shoulders: Point
    hips: Point
    # A point of the circle around the body, whose centre are the hips.
    rim: Point

    @property
    def reach(self) -> float:
        """The circle's radius."""
        return float(np.hypot(*(self.rim - self.hips)))


def describe(config: BodyConfig) -> list[Facts]:
    """All that the gate depends on, as part of the crop job's key; nothing where it is off."""
    if not config.gate:
        return []
    facts: Facts = {"share_min": config.share_min, "cut_most": config.cut_most}
    if config.weights:
        facts |= {"conf": config.conf, "sha256": known_digest(Path(config.weights))}
    return [{"body": facts}]


def make_judge(config: BodyConfig) -> Judge:
    """The gate as a function of candidates with crops; loads the network. Raises ConfigError."""
    if not config.gate:
        return lambda candidate: ""
    find = load_people(Path(config.weights)) if config.weights else None

    def judge(candidate: Candidate) -> str:
        points = seen_points(candidate.box)
        if points and not points & UPPER_BODY:
            return NO_POINTS
        if find is None or points or candidate.crop is None:
            return judge_label(candidate, config)
        return judge_looks(find(candidate.crop), candidate.crop.shape[:2], config)

    return judge


def seen_points(box: Box) -> set[str]:
    """Names of the keypoints of a person that are visible by the label."""
    told = [flag.removeprefix(SEES) for flag in box.flags if flag.startswith(SEES)]
    return {name for names in told for name in names.split()}


def judge_label(candidate: Candidate, config: BodyConfig) -> str:
    """Why a crop does not show the person in its candidate's box, or ""."""
    # A box around the whole picture does not say where the person is.
    if WHOLE_PICTURE in candidate.box.flags:
        return ""
    c, box = candidate, candidate.box.xyxy
    left, top, width = c.x0 or 0, c.y0 or 0, c.s or 1
    crop = (left, top, left + width, top + width * c.aspect)
    if not _is_large(box, crop, config):
        return SMALL
    return "" if _is_whole(box, crop, config) else CUT


def judge_looks(looks: list[list[Person]], size: tuple[int, int], config: BodyConfig) -> str:
    """Why a crop of `size`, height and width, shows nobody, or "" if it shows a person.

    Args:
        looks: the people that the network saw at each look.
    """
    crop = (0.0, 0.0, float(size[1]), float(size[0]))
    large = [[p for p in look if _is_large(_boxes(p)[0], crop, config)] for look in looks]
    whole = [[p for p in look if _is_whole(_boxes(p)[1], crop, config)] for look in large]
    for found, reason in ((looks, NOBODY), (large, SMALL), (whole, CUT)):
        best = [max((person.score for person in look), default=0.0) for look in found]
        if sum(best) < config.conf * len(best):
            return reason
    return ""


def _is_large(body: Corners, crop: Corners, config: BodyConfig) -> bool:
    """Whether a person's box covers enough of the crop."""
    return _common(body, crop) >= config.share_min * _area(crop)


def _is_whole(part: Corners, crop: Corners, config: BodyConfig) -> bool:
    """Whether enough of a part of a person is inside of the crop."""
    return _common(part, crop) >= (1 - config.cut_most) * _area(part)


def _boxes(person: Person) -> tuple[Corners, Corners]:
    """Boxes around a person's whole body and around head and shoulders."""
    body = _around(person.hips, person.reach)
    reach = max(1.0, float(np.hypot(*(person.head - person.shoulders))))
    return body, _around((person.head + person.shoulders) / 2, reach)


def _around(centre: Point, reach: float) -> Corners:
    """The box that goes `reach` pixels to each side of a point."""
    x, y = centre.tolist()
    return x - reach, y - reach, x + reach, y + reach


def _common(a: Corners, b: Corners) -> float:
    """The area that two boxes have in common."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    return max(0.0, width) * max(0.0, height)


def _area(box: Corners) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def load_people(path: Path) -> Callable[[Pixels], list[list[Person]]]:
    """BlazePose's detector in a wheel of mediapipe or in a .tflite file. Raises ConfigError.

    The function that is returned gives the people that it sees at each of `LOOKS`.
    """
    run = load_network(path, MEMBER, SHAPES)

    def look_at(rgb: Pixels, look: float) -> list[Person]:
        batch, scale, corner = to_square(rgb, look)
        points, logits = run(batch)
        return decode_people(points[0], logits[0, :, 0], scale, corner)

    return lambda rgb: [look_at(rgb, look) for look in LOOKS]


def to_square(rgb: Pixels, look: float) -> tuple[np.ndarray, float, Point]:
    """A crop in the middle of the network's square, black around it.

    Args:
        look: the square's side in longer sides of the crop, 1 at least.

    Returns (1, 224, 224, 3) float32 in [-1, 1], the crop's pixels to one of the square, and the
    square's corner in pixels of the crop.
    """
    height, width = rgb.shape[:2]
    scale = max(height, width) * look / SIDE
    w, h = max(1, round(width / scale)), max(1, round(height / scale))
    left, top = (SIDE - w) // 2, (SIDE - h) // 2
    how = cv2.INTER_AREA if scale > 1 else cv2.INTER_LINEAR
    canvas = np.zeros((SIDE, SIDE, 3), np.uint8)
    canvas[top : top + h, left : left + w] = cv2.resize(rgb, (w, h), interpolation=how)
    batch = canvas[None].astype(np.float32) / np.float32(127.5) - 1
    return batch, scale, -scale * np.array([left, top], np.float64)


def decode_people(
    points: np.ndarray, logits: np.ndarray, scale: float, corner: Point
) -> list[Person]:
    """The people in the network's outputs who are not upside down, surest first.

    Args:
        points: (2254, 12): centre of the head, size, four points; relative to cells, in pixels.
        logits: (2254,).
        scale, corner: of the square on the crop (see `to_square`).
    """
    scores = 1 / (1 + np.exp(-np.clip(logits.astype(np.float64), -100, 100)))
    likely = [int(at) for at in np.argsort(-scores, kind="stable") if scores[at] > UNLIKELY]
    found = points[likely].astype(np.float64).reshape(-1, 6, 2)
    found = (found + SIDE * cells()[likely][:, None]) * scale + corner
    # The size, which comes second, is of no use: it is the same for nearly all.
    people = [
        Person(float(scores[at]), row[0], row[4], row[2], row[3])
        for at, row in zip(likely, found, strict=True)
    ]
    return [p for p in people if p.hips[1] - p.rim[1] >= UPRIGHT * p.reach]


@cache
def cells() -> Float64[np.ndarray, "2254 2"]:
    """Centres of the cells that predictions belong to, x and y in [0, 1].

    As `anchors` of osdhuman_jax/inference/poses.py, which curation cannot import: it needs JAX.
    """
    found = []
    for side, count in GRIDS:
        axis = (np.arange(side) + 0.5) / side
        y, x = np.meshgrid(axis, axis, indexing="ij")
        found.append(np.repeat(np.stack([x, y], axis=-1).reshape(-1, 2), count, axis=0))
    return np.concatenate(found)
