"""Capsules on a skeleton made by hand."""

import numpy as np
import pytest

from osdhuman_jax.degrade.body import Person, part_map
from osdhuman_jax.degrade.motion import LABELS

SIZE = (400, 300)


def skeleton() -> np.ndarray:
    """A person who faces the camera: the left side is at the right of the picture."""
    points = np.zeros((17, 2))
    points[:5] = (150, 60), (156, 54), (144, 54), (164, 58), (136, 58)
    points[5], points[7], points[9] = (180, 110), (230, 110), (280, 110)  # left arm, stretched out
    points[6], points[8], points[10] = (120, 110), (110, 160), (105, 210)  # right arm, hanging
    points[11], points[13], points[15] = (170, 220), (172, 290), (174, 360)
    points[12], points[14], points[16] = (130, 220), (128, 290), (126, 360)
    return points


def labels(points: np.ndarray | None, seen: np.ndarray | None) -> np.ndarray:
    return part_map(SIZE, [Person(np.ones(SIZE, bool), points, seen)])


def at(made: np.ndarray, x: int, y: int) -> str:
    return LABELS[made[y, x]]


def test_parts_are_where_their_bones_are():
    made = labels(skeleton(), np.ones(17, bool))
    assert at(made, 150, 50) == at(made, 150, 35) == "head"
    assert at(made, 205, 110) == at(made, 255, 110) == at(made, 288, 110) == "left_arm"
    assert at(made, 115, 135) == at(made, 107, 190) == "right_arm"
    assert at(made, 171, 260) == at(made, 174, 370) == "left_leg"
    assert at(made, 129, 260) == at(made, 126, 370) == "right_leg"
    assert at(made, 150, 170) == at(made, 20, 20) == "rest"


def test_a_capsule_has_the_width_of_its_limb():
    made = labels(skeleton(), np.ones(17, bool))
    arm = np.count_nonzero(made[:, 215] == LABELS.index("left_arm"))
    leg = np.count_nonzero(made[255] == LABELS.index("left_leg"))
    assert arm == pytest.approx(0.35 * 50, abs=2) and leg == pytest.approx(0.3 * 70, abs=2)


def test_a_joint_that_is_not_seen_leaves_its_bones_out():
    seen = np.ones(17, bool)
    seen[[9, 5, 13]] = False  # left wrist and shoulder, left knee
    made = labels(skeleton(), seen)
    assert set(np.unique(made)) == {3, 5, 6}  # no head either, whose size the shoulders tell


def test_parts_end_at_the_outline_and_the_smaller_person_is_in_front():
    outline = np.zeros(SIZE, bool)
    outline[:, :200] = True
    near = np.zeros(SIZE, bool)
    near[100:140, 100:140] = True
    people = [Person(near), Person(outline, skeleton(), np.ones(17, bool))]
    made = part_map(SIZE, people)
    assert not made[:, 200:].any() and made[:, :200].all()
    assert (made[100:140, 100:140] == LABELS.index("rest")).all()


def test_an_outline_alone_is_the_rest():
    assert (labels(None, None) == LABELS.index("rest")).all()
    assert not part_map(SIZE, []).any()
