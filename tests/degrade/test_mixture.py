"""Degradations of every strength: shares, sizes, and that the lighter ones are light."""

import numpy as np
import pytest
import skimage.data

from osdhuman_jax.config import DegradationConfig
from osdhuman_jax.degrade.mixture import KINDS, LIGHTER, grayed, mixed
from osdhuman_jax.degrade.second_order import degrade, sample_rng
from osdhuman_jax.evaluation.metrics import psnr_y

HEAVY = DegradationConfig()
PICTURE = np.ascontiguousarray(skimage.data.astronaut()[:96, 180:300])


def shares(kind: str) -> list[float]:
    return [float(k == kind) for k in KINDS]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_keeps_the_size_and_follows_its_generator(kind):
    made = [mixed(PICTURE, sample_rng(1, 0, 2), shares(kind), HEAVY)[0] for _ in range(2)]
    assert made[0].shape == PICTURE.shape and made[0].dtype == np.uint8
    np.testing.assert_array_equal(*made)


def test_heavy_is_the_papers():
    rng = sample_rng(1, 0, 2)
    rng.random()  # which kind
    want, _, _ = degrade(PICTURE, rng, HEAVY)
    np.testing.assert_array_equal(
        mixed(PICTURE, sample_rng(1, 0, 2), shares("heavy"), HEAVY)[0], want
    )


def test_clean_is_untouched():
    np.testing.assert_array_equal(
        mixed(PICTURE, sample_rng(1, 0, 2), shares("clean"), HEAVY)[0], PICTURE
    )


def test_kinds_come_by_their_shares(monkeypatch):
    for number, kind in enumerate(LIGHTER):
        monkeypatch.setitem(LIGHTER, kind, lambda hq, rng, n=number: np.full_like(hq, n))
    rng, drawn = np.random.default_rng(0), np.zeros(4)
    for _ in range(2000):
        drawn[mixed(PICTURE[:32, :32], rng, (0.0, 0.4, 0.1, 0.2, 0.3), HEAVY)[0][0, 0, 0]] += 1
    np.testing.assert_allclose(drawn / 2000, (0.4, 0.1, 0.2, 0.3), atol=0.04)


def test_lighter_kinds_leave_more_than_the_heavy_one():
    def mean(kind: str) -> float:
        made = [mixed(PICTURE, sample_rng(0, 0, i), shares(kind), HEAVY)[0] for i in range(12)]
        return float(np.mean([psnr_y(x, PICTURE) for x in made]))

    heavy = mean("heavy")
    assert mean("mild") > heavy + 4
    assert mean("jpeg") > heavy + 4
    assert mean("small") > heavy


def test_grayed_is_the_luma_three_times():
    gray = grayed(PICTURE)
    assert np.ptp(gray, axis=-1).max() == 0
    want = PICTURE @ np.array([0.2989, 0.587, 0.114])
    assert np.abs(gray[..., 0] - want).max() <= 0.51
