"""Part maps of people from their outlines and skeletons, where no network tells the parts apart.

A limb is a capsule around each of its bones, a head an ellipse, both within the outline; what is
left of the outline is the rest. Needed by `osdhuman parts` for COCO's keypoints and for BlazePose.
Points are (x, y) in pixels. The proportions are ours (of adults: a forearm's width is about a third
of its length); what they miss of a sleeve the blur's mask, which is dilated, takes back.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, Float

from osdhuman_jax.degrade.motion import LABELS, Mask, PartMap

Points = Float[np.ndarray, "17 2"]  # in COCO's order
Seen = Bool[np.ndarray, "17"]

# COCO's order of joints, of which a side's own are every second one.
NOSE, EYES, EARS, SHOULDERS, HIPS = 0, (1, 2), (3, 4), (5, 6), (11, 12)
CHAINS = {  # label: joints from the body to the end
    "left_leg": (11, 13, 15),
    "right_leg": (12, 14, 16),
    "left_arm": (5, 7, 9),
    "right_arm": (6, 8, 10),
}
ARM, LEG = 0.35, 0.3  # width of a capsule / length of the limb's longer bone
END = 0.3  # radius of a hand or foot / length of the lower bone
HEAD = 0.6  # larger half-axis of the head / width of the shoulders
NARROW = 0.8  # smaller half-axis of the head / larger one


@dataclass(frozen=True)
class Person:
    """One person of a picture."""

    outline: Mask  # (h, w), the person's pixels
    points: Points | None = None  # no skeleton: all of the person is "rest"
    seen: Seen | None = None  # which points are there to be used


def part_map(size: tuple[int, int], people: Iterable[Person]) -> PartMap:
    """Labels of a picture's pixels; of people who overlap the smaller one is in front."""
    labels = np.zeros(size, np.uint8)
    # Depth is not known: who is larger is taken to be further back, so that nobody vanishes.
    for person in sorted(people, key=lambda person: -np.count_nonzero(person.outline)):
        labels[person.outline] = _labels(person)[person.outline]
    return labels


def _labels(person: Person) -> PartMap:
    """Labels as if the person were everywhere; arms lie before the head, and that before legs."""
    canvas = np.full(person.outline.shape, LABELS.index("rest"), np.uint8)
    points, seen = person.points, person.seen
    if points is None or seen is None:
        return canvas
    # What is drawn later lies over what was drawn before.
    for name, chain in CHAINS.items():
        if name == "left_arm":
            _draw_head(canvas, points, seen)
        _draw_limb(canvas, points, seen, name, chain)
    return canvas


def _draw_limb(
    canvas: PartMap, points: Points, seen: Seen, name: str, chain: tuple[int, ...]
) -> None:
    """Capsules around the bones whose ends are both there, and a disc for the hand or foot."""
    label = LABELS.index(name)
    bones = [(a, b) for a, b in zip(chain, chain[1:], strict=False) if seen[a] and seen[b]]
    if not bones:
        return
    # Thickness does not shrink where a bone points at the camera: the longer bone gives it.
    length = max(math.dist(points[a], points[b]) for a, b in bones)
    width = max(1, round(length * (ARM if name.endswith("arm") else LEG)))
    for a, b in bones:
        cv2.line(canvas, _pixel(points[a]), _pixel(points[b]), label, width)
    if seen[chain[1]] and seen[chain[2]]:
        lower = points[chain[2]] - points[chain[1]]
        radius = END * math.hypot(*lower)
        # A hand goes on where the forearm points; a foot turns off, and begins behind its ankle.
        centre = points[chain[2]] + (END if name.endswith("arm") else END / 2) * lower
        cv2.circle(canvas, _pixel(centre), max(1, round(radius)), label, cv2.FILLED)


def _draw_head(canvas: PartMap, points: Points, seen: Seen) -> None:
    """An ellipse around the points of the face, upright along the neck."""
    face = [joint for joint in (NOSE, *EYES, *EARS) if seen[joint]]
    if not face or not all(seen[joint] for joint in SHOULDERS):
        return
    # Eyes and ears are at half the height of a head.
    centre = points[face].mean(axis=0)
    neck = points[list(SHOULDERS)].mean(axis=0)
    half = HEAD * _shoulder_width(points, seen)
    angle = math.degrees(math.atan2(*(centre - neck)[::-1]))
    axes = max(1, round(half)), max(1, round(NARROW * half))
    cv2.ellipse(canvas, _pixel(centre), axes, angle, 0, 360, LABELS.index("head"), cv2.FILLED)


def _shoulder_width(points: Points, seen: Seen) -> float:
    """In pixels; that of a person seen from the side is told by the length of the trunk."""
    width = math.dist(*points[list(SHOULDERS)])
    if all(seen[joint] for joint in HIPS):
        trunk = math.dist(points[list(SHOULDERS)].mean(axis=0), points[list(HIPS)].mean(axis=0))
        width = max(width, trunk / 2)
    return width


def _pixel(point: np.ndarray) -> tuple[int, int]:
    return round(float(point[0])), round(float(point[1]))
