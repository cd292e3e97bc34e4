"""What a network that enlarges is given of a picture."""

import numpy as np
import pytest

from osdhuman_jax.images.sizes import covering, scaled_size, seen


def noise(height: int, width: int, dtype: type = np.uint8) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.integers(0, np.iinfo(dtype).max, (height, width, 3), dtype, endpoint=True)


@pytest.mark.parametrize("scale", [2, 4])
def test_at_the_networks_own_factor_it_is_the_picture(scale):
    pixels = noise(13, 7)
    assert seen(pixels, (13 * scale, 7 * scale), scale) is pixels


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_without_enlarging_it_is_the_mean_of_squares(dtype):
    pixels = noise(9, 14, dtype)
    grown = np.pad(pixels, ((0, 3), (0, 2), (0, 0)), mode="reflect")
    want = grown.reshape(3, 4, 4, 4, 3).mean((1, 3))
    found = seen(pixels, (9, 14), 4)
    assert found.dtype == dtype and found.shape == (3, 4, 3)
    assert np.abs(found - want).max() <= (1 if dtype == np.uint8 else 0.51)  # rounded twice


@pytest.mark.parametrize("factor", [1.0, 1.3, 2.0, 3.5, 4.0, 6.0])
def test_content_stays_in_its_place(factor):
    """A ramp: each pixel seen has the value at its own middle."""
    pixels = np.broadcast_to(np.arange(60, dtype=np.uint8)[:, None, None] * 4, (60, 5, 3))
    size = scaled_size((60, 5), factor)
    found = seen(np.ascontiguousarray(pixels), size, 4)
    assert found.shape[:2] == covering(size, 4)
    assert all(
        have * 4 >= want > have * 4 - 4 for have, want in zip(found.shape, size, strict=False)
    )
    middles = (np.arange(len(found)) + 0.5) * 4 * 60 / size[0] - 0.5
    inside = (middles > 8) & (middles < 51)
    assert inside.sum() > 5
    assert np.abs(found[inside, 0, 0] - 4 * middles[inside]).max() < 1.5


def test_one_pixel():
    assert (seen(np.full((1, 1, 3), 7, np.uint8), (1, 1), 4) == 7).all()
