"""Human motion blur: PSF, mask, where the picture stays as it is, states, old records."""

import hashlib
import json
import math
from collections import Counter
from dataclasses import replace

import cv2
import numpy as np
import pytest
from picture_files import photo

from osdhuman_jax.config import DegradationConfig
from osdhuman_jax.degrade import motion as m
from osdhuman_jax.degrade import second_order as d

CONFIG = DegradationConfig()
MOVING = replace(CONFIG, first_order=(0.0, 1.0, 0.0))


def person(side: int = 96) -> np.ndarray:
    """A head, a left arm and two legs around a trunk, in tenths of the side."""
    parts = np.zeros((side, side), np.uint8)
    boxes = {1: (1, 3, 4, 6), 2: (3, 6, 2, 3), 4: (6, 9, 4, 5), 5: (6, 9, 5, 6), 6: (3, 6, 3, 7)}
    for label, box in boxes.items():
        top, bottom, left, right = (tenths * side // 10 for tenths in box)
        parts[top:bottom, left:right] = label
    return parts


def drawn(count: int, side: int = 512) -> list[dict]:
    rng, parts = np.random.default_rng(3), person(side)
    return [m.draw_motion(rng, parts) for _ in range(count)]


# Trajectory and PSF.


def test_trajectory_has_its_length_and_constant_speed():
    for params in (motion["trajectory"] for motion in drawn(6)):
        path = m.trajectory(params)
        steps = np.abs(np.diff(path))
        assert path[0] == 0 and len(path) == m.POSITIONS
        np.testing.assert_allclose(steps, params["length"] / (m.POSITIONS - 1), rtol=1e-9)
        half = m.trajectory({**params, "scale": 0.5})
        np.testing.assert_allclose(half, path / 2)


def test_a_calm_trajectory_is_a_line():
    params = drawn(1)[0]["trajectory"] | {"shake": 0.0, "centripetal": 0.0, "turn": 0.0}
    path = m.trajectory(params)
    assert abs(path[-1]) == pytest.approx(params["length"])


def test_psf_is_odd_sums_to_one_and_keeps_the_part_in_place():
    for params in (motion["trajectory"] for motion in drawn(20)):
        psf = m.motion_psf(params)
        assert psf.dtype == np.float32 and len(psf) % 2 == 1 and psf.min() >= 0
        assert psf.sum() == pytest.approx(1, abs=1e-6)
        at = np.arange(len(psf)) - len(psf) // 2
        assert abs((psf * at).sum()) < 1e-3 and abs((psf.T * at).sum()) < 1e-3


def test_psf_is_the_trace_of_what_the_shutter_sees():
    params = drawn(1)[0]["trajectory"] | {"fraction": 0.5}
    seen = m.trajectory(params)[: m.POSITIONS // 2]
    seen = seen - seen.mean()
    psf = m.motion_psf(params)
    expected, radius = np.zeros(psf.shape), len(psf) // 2
    rows, columns = np.mgrid[: len(psf), : len(psf)] - radius
    for point in seen:  # bilinear shares are a product of two tents
        expected += np.clip(1 - abs(columns - point.real), 0, None) * np.clip(
            1 - abs(rows - point.imag), 0, None
        )
    np.testing.assert_allclose(psf, expected / len(seen), atol=1e-6)


# Mask and blur.


def test_soft_mask_is_of_one_piece_of_the_part():
    parts = np.zeros((512, 512), np.uint8)
    parts[100:200, 100:140] = parts[300:400, 300:340] = 2
    params = {"name": "left_arm", "piece": 2, "erode": 3, "dilate": 11, "sigma": 3.0}
    weights = m.soft_mask(parts, params)
    assert weights.max() == 1 and weights.min() == 0
    assert not weights[:280].any() and weights[350, 320] == 1
    # Eroded by 1 and dilated by 5 pixels a side: its half is 4 pixels beyond the part.
    inside = np.flatnonzero(m.moved(weights)[350])
    assert (inside.min(), inside.max()) == (296, 343)


def test_a_thin_piece_does_not_vanish():
    parts = np.zeros((64, 64), np.uint8)
    parts[10:60, 30] = 3
    params = {"name": "right_arm", "piece": 1, "erode": 3, "dilate": 3, "sigma": 1.0}
    assert m.moved(m.soft_mask(parts, params))[30, 30]


def test_the_picture_is_itself_where_nothing_moves_and_blurred_by_the_formula():
    image, parts = d.to_unit(photo(512)), person(512)
    for motion in drawn(6):
        weights, psf = m.soft_mask(parts, motion["part"]), m.motion_psf(motion["trajectory"])
        made = m.motion_blur(image, weights, psf)
        np.testing.assert_array_equal(made[weights == 0], image[weights == 0])
        # OpenCV correlates, so that its kernel is turned.
        turned = np.ascontiguousarray(psf[::-1, ::-1])
        whole = cv2.filter2D(image, -1, turned, borderType=cv2.BORDER_REFLECT_101)
        share = weights[..., None]
        np.testing.assert_allclose(made, image * (1 - share) + whole * share, atol=3e-6)


def test_what_moves_is_large_and_no_sliver():
    assert m.draw_motion(np.random.default_rng(0), np.zeros((64, 64), np.uint8)) is None
    speck = np.zeros((512, 512), np.uint8)
    speck[:22, :22] = 1  # 484 of the 525 pixels that are .2 %
    assert m.draw_motion(np.random.default_rng(0), speck) is None
    parts = person(512)
    parts[500:510, :20] = 6
    pieces = {(p["part"]["name"], p["part"]["piece"]) for p in drawn(200)}
    rng = np.random.default_rng(0)
    pieces |= {
        (p["part"]["name"], p["part"]["piece"])
        for p in (m.draw_motion(rng, parts) for _ in range(200))
    }
    names = {"head", "left_arm", "left_leg", "right_leg", "body"}
    assert pieces == {(name, 1) for name in names}


# States and records.


def test_states_come_by_their_probabilities():
    config, parts = replace(CONFIG, first_order=(0.1, 0.4, 0.5)), person(64)
    rng = np.random.default_rng(0)
    states = Counter(d.draw_record(rng, config, (64, 64), parts)["state"] for _ in range(2000))
    for state, p in zip(m.STATES, config.first_order, strict=True):
        assert abs(states[state] - 2000 * p) <= 4 * math.sqrt(2000 * p * (1 - p))


def test_records_are_json_and_tell_what_moved():
    record = d.draw_record(np.random.default_rng(1), MOVING, (96, 96), person())
    assert json.loads(json.dumps(record)) == record
    assert record["state"] == "motion"
    assert set(record["part"]) == {"name", "piece", "erode", "dilate", "sigma"}
    assert record["trajectory"]["scale"] == 96 / 512


@pytest.mark.parametrize("parts", [None, np.zeros((96, 96), np.uint8)])
def test_without_a_part_that_moves_the_state_is_generic(parts):
    lq, record, mask = d.degrade(photo(96), d.sample_rng(1, 0, 0), MOVING, parts=parts)
    assert record["state"] == "generic" and "part" not in record
    assert mask.shape == (96, 96) and not mask.any()
    plain, _, _ = d.degrade(photo(96), d.sample_rng(1, 0, 0), CONFIG)
    assert lq.shape == plain.shape


def test_the_mask_is_of_what_moved_and_the_second_order_follows():
    hq, parts = photo(96), person()
    lq, record, mask = d.degrade(hq, d.sample_rng(2, 0, 0), MOVING, parts=parts)
    weights = m.soft_mask(parts, record["part"])
    np.testing.assert_array_equal(mask, weights > 0.5)
    assert mask.any() and not mask.all()
    # The second order alone, of the blurred picture, by the same generator.
    rng = d.sample_rng(2, 0, 0)
    again = d.draw_record(rng, MOVING, (96, 96), parts)
    blurred = m.motion_blur(d.to_unit(hq), weights, m.motion_psf(again["trajectory"]))
    small = d.apply_record(blurred, {**again, "state": "nothing"}, rng)
    full = d.resize(small, again["resize_back"], (96, 96))
    np.testing.assert_array_equal(lq, d.from_unit(full))


def test_the_rest_of_a_record_does_not_depend_on_the_state():
    plain = d.draw_record(d.sample_rng(5, 0, 1), CONFIG, (96, 96))
    moving = d.draw_record(d.sample_rng(5, 0, 1), MOVING, (96, 96), person())
    assert {key: moving[key] for key in plain} == plain


def test_old_seeds_give_the_old_bytes():
    """Digests from before there was motion blur: of LQ pictures and of their records."""
    pictures, records = hashlib.sha256(), hashlib.sha256()
    hq = photo(96)
    for index in range(12):
        lq, record, _ = d.degrade(hq, d.sample_rng(4, 0, index), CONFIG, parts=person())
        pictures.update(lq.tobytes())
        records.update(json.dumps(record).encode())
    assert records.hexdigest().startswith("9cf9e4e084d82416")
    assert pictures.hexdigest().startswith("eaabf71d514c42de")


def test_parts_of_another_size_are_refused():
    with pytest.raises(ValueError, match=r"expected \(96, 96\) uint8 parts, got \(64, 64\)"):
        d.degrade(photo(96), d.sample_rng(0, 0, 0), MOVING, parts=person(64))
