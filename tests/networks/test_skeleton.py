"""Skeletons: colours of joints and bones, nothing where they are hidden, sizes, mirrors."""

import numpy as np
import pytest

from osdhuman_jax.data.structures import MIRROR
from osdhuman_jax.networks.skeleton import COLOURS, JOINTS, LIMBS, draw_skeleton, radius

SIZE = (256, 192)


def person(seed: int = 0) -> np.ndarray:
    """Joints of a person who stands, all seen: (18, 3)."""
    x = (96, 96, 70, 60, 50, 122, 132, 142, 80, 78, 76, 112, 114, 116, 90, 102, 84, 108)
    y = (30, 60, 60, 95, 130, 60, 95, 130, 140, 190, 240, 140, 190, 240, 24, 24, 27, 27)
    points = np.stack([x, y, np.ones(18)], axis=-1).astype(np.float32)
    points[:, :2] += np.random.default_rng(seed).integers(-2, 3, (18, 2))
    return points


def drawn(people: np.ndarray, size: tuple[int, int] = SIZE) -> np.ndarray:
    """As uint8 (h, w, 3)."""
    return np.rint((np.asarray(draw_skeleton(people[None], size)[0]) + 1) * 127.5).astype(np.uint8)


def test_joints_are_bright_and_bones_are_faint():
    points = person()
    found = drawn(points[None])
    for (x, y, _), colour in zip(points.astype(int), COLOURS, strict=True):
        assert tuple(found[y, x]) == colour
    for number in (2, 3, 7, 8, 10):  # those that no other bone crosses in the middle
        x, y = points[list(LIMBS[number]), :2].mean(axis=0).astype(int)
        assert tuple(found[y, x]) == tuple(int(0.6 * c) for c in COLOURS[number])
    assert not found[:10].any() and not found[:, :20].any()


def test_what_is_hidden_is_not_drawn():
    points = person()
    hidden = JOINTS.index("left_knee")
    points[hidden, 2] = 0.3
    points[JOINTS.index("nose"), :2] = np.nan, 1e9
    found = drawn(points[None])
    x, y = points[hidden, :2].astype(int)
    assert not found[y - 8 : y + 9, x - 8 : x + 9].any()
    assert not drawn(np.zeros((4, 18, 3), np.float32)).any()


def test_all_people_are_drawn_and_batches_are_apart():
    near, far = person(), person() + np.array([60, 0, 0], np.float32)
    both, *each = (drawn(p).any(axis=-1) for p in (np.stack([near, far]), near[None], far[None]))
    assert (both == each[0] | each[1]).all() and each[1].any()
    batch = np.asarray(draw_skeleton(np.stack([near[None], far[None]]), SIZE))
    np.testing.assert_array_equal(batch[1], draw_skeleton(far[None, None], SIZE)[0])


@pytest.mark.parametrize(
    ("size", "pixels"), [((1024, 512), 4), ((512, 512), 2), ((96, 64), 1), ((64, 2048), 8)]
)
def test_sizes_follow_the_longer_side(size, pixels):
    assert radius(size) == pixels
    points = np.zeros((1, 18, 3), np.float32)
    points[0, 3] = 30, 30, 1
    row = drawn(points, size)[30, :, 0] > 0
    assert row.sum() == 2 * pixels + 1 and row[30]


def test_a_mirrored_person_is_the_mirrored_picture_with_sides_exchanged():
    points = person(1)
    other = points[list(MIRROR)] * [-1, 1, 1] + [SIZE[1] - 1, 0, 0]
    there, here = drawn(other.astype(np.float32)[None]), drawn(points[None])[:, ::-1]
    np.testing.assert_array_equal(there.any(axis=-1), here.any(axis=-1))
    left, right = JOINTS.index("left_wrist"), JOINTS.index("right_wrist")
    x, y = other[left, :2].astype(int)
    assert tuple(there[y, x]) == COLOURS[left] and tuple(here[y, x]) == COLOURS[right]
