"""What transparency hides does not reach what is seen."""

import numpy as np
import pytest

from osdhuman_jax.images.alpha import filled
from osdhuman_jax.images.codec import Picture
from osdhuman_jax.images.sizes import enlarge

KINDS = [np.uint8, np.uint16]


def disk(kind: type, hidden: tuple[int, int, int], size: int = 64) -> Picture:
    """A red disk whose edge is soft, upon a hidden colour."""
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    alpha = np.clip(size * 0.4 - np.hypot(x, y) + 0.5, 0, 1)
    rgb = np.where(alpha[..., None] > 0, (0.9, 0.15, 0.15), np.array(hidden) / 255)
    largest = np.iinfo(kind).max
    return Picture(np.rint(rgb * largest).astype(kind), np.rint(alpha * largest).astype(kind))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("hidden", [(0, 0, 0), (255, 255, 255), (0, 255, 0)])
@pytest.mark.parametrize("factor", [1.0, 1.5, 2.0, 4.0])
def test_no_fringe(kind, hidden, factor):
    picture = disk(kind, hidden)
    large = enlarge(picture, factor)
    assert large.alpha is not None and large.rgb.dtype == large.alpha.dtype == kind
    largest = np.iinfo(kind).max
    seen = large.rgb[large.alpha > 0] / largest
    assert np.abs(seen - (0.9, 0.15, 0.15)).max() < 0.01


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_seen_stays_and_so_does_alpha(kind):
    rng = np.random.default_rng(0)
    rgb = rng.integers(0, np.iinfo(kind).max, (23, 37, 3), dtype=kind)
    alpha = rng.integers(0, 4, (23, 37)).astype(kind)
    before = rgb.copy(), alpha.copy()
    result = filled(rgb, alpha)
    np.testing.assert_array_equal(rgb, before[0])
    np.testing.assert_array_equal(alpha, before[1])
    np.testing.assert_array_equal(result[alpha > 0], rgb[alpha > 0])
    assert result.dtype == kind and not np.array_equal(result, rgb)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (2, 3), (33, 65), (100, 7)])
def test_one_visible_pixel_colours_all(size):
    rgb = np.zeros((*size, 3), np.uint8)
    alpha = np.zeros(size, np.uint8)
    rgb[-1, -1], alpha[-1, -1] = (250, 128, 3), 1
    result = filled(rgb, alpha)
    assert np.abs(result.astype(int) - (250, 128, 3)).max() <= 1


def test_each_side_takes_the_colour_beside_it():
    rgb = np.zeros((40, 80, 3), np.uint8)
    rgb[:, :10], rgb[:, -10:] = (255, 0, 0), (0, 0, 255)
    alpha = np.zeros((40, 80), np.uint8)
    alpha[:, :10] = alpha[:, -10:] = 255
    result = filled(rgb, alpha).astype(int)
    assert (result[:, 10, 0] > 235).all() and (result[:, -11, 2] > 235).all()
    assert result[..., 1].max() == 0


def test_nothing_visible_or_nothing_hidden_stays_as_it_is():
    rgb = np.full((4, 5, 3), 7, np.uint8)
    for alpha in (None, np.zeros((4, 5), np.uint8), np.full((4, 5), 1, np.uint8)):
        assert filled(rgb, alpha) is rgb
    clear = enlarge(Picture(rgb, np.zeros((4, 5), np.uint8)), 2.0)
    assert clear.alpha is not None and clear.alpha.max() == 0
