"""Where tiles lie, how they blend, and group norms that share statistics."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

from osdhuman_jax.inference import tiling
from osdhuman_jax.networks.layers import GroupNorm


@given(st.integers(1, 90), st.integers(2, 12), st.sampled_from([1, 8, 64]))
def test_tiles_cover_an_axis_and_overlap(more, tile, multiple):
    side, length = tile * multiple, (tile + more) * multiple
    found = tiling.starts(length, side, multiple)
    assert found[0] == 0 and found[-1] == length - side
    assert all(begin % multiple == 0 for begin in found)
    gaps = np.diff(found)
    assert (gaps > 0).all() and (gaps <= max(side * (1 - tiling.OVERLAP), multiple)).all()


def test_a_picture_of_one_tile_has_one():
    assert tiling.corners((64, 64), (64, 64), 8) == [(0, 0)]
    assert tiling.corners((64, 96), (64, 64), 32) == [(0, 0), (0, 32)]


def test_samples_lie_inside_and_apart():
    found = tiling.spread((2048, 1024), (256, 256), 64, 4)
    assert len({row for row, _ in found}) == len({column for _, column in found}) == 4
    assert all(0 <= r <= 1792 and 0 <= c <= 768 and r % 64 == c % 64 == 0 for r, c in found)
    turned = tiling.spread((1024, 2048), (256, 256), 64, 4)
    assert turned == [(column, row) for row, column in found]


def test_window_is_the_gaussian_and_has_no_zero():
    weights = tiling.window((64, 96))
    assert weights.shape == (64, 96) and weights.min() > 0
    np.testing.assert_allclose(weights, weights[::-1, ::-1], rtol=1e-5)
    offset = 0.5 / 64  # of the middle rows, in sides
    expected = np.exp(-((0.5 - offset) ** 2 - offset**2) / 0.02)
    np.testing.assert_allclose(weights[0, 47] / weights[31, 47], expected, rtol=1e-4)


def test_equal_tiles_blend_into_the_picture_and_others_without_a_step():
    picture = np.random.default_rng(0).normal(size=(40, 56, 3)).astype(np.float32)
    canvas, step = tiling.Canvas((40, 56), (16, 16)), tiling.Canvas((8, 448), (8, 256))
    for row, column in tiling.corners((40, 56), (16, 16), 4):
        canvas.add((row, column), picture[row : row + 16, column : column + 16])
    np.testing.assert_allclose(canvas.picture(), picture, atol=1e-6)
    for value, corner in enumerate(tiling.corners((8, 448), (8, 256), 8)):
        step.add(corner, np.full((8, 256, 3), value, np.float32))
    line = step.picture()[4, :, 0]
    assert line[0] == 0 and (np.diff(line) >= -1e-6).all()
    assert np.diff(line).max() < 0.15 and line[-1] == pytest.approx(1, abs=1e-3)


class Net(nnx.Module):
    """A norm in a list and one beside it."""

    def __init__(self):
        kw = {"dtype": jnp.float32, "rngs": nnx.Rngs(0)}
        self.first = GroupNorm(4, 2, 1e-5, **kw)
        self.inner = nnx.List([Holder(GroupNorm(4, 4, 1e-5, **kw))])

    def __call__(self, x):
        return self.inner[0].norm(self.first(x) ** 2)


class Holder(nnx.Module):
    """Holds a norm."""

    def __init__(self, norm):
        self.norm = norm


def features(*shape: int) -> jnp.ndarray:
    return jnp.asarray(np.random.default_rng(0).normal(2, 3, shape).astype(np.float32))


def test_measured_norms_are_group_norms_of_the_batch_seen_as_one_picture():
    """Rolled pictures, so that the unmeasured edge has the statistics of the rest."""
    part = features(1, 4, 4, 4)
    tiles = jnp.tile(part, (3, 4, 4, 1))  # 16 x 16: edges of 2
    plain, shared = Net(), Net()
    tiling.share_norms(shared, measure=True)
    assert isinstance(shared.first, tiling.SharedNorm)
    assert isinstance(shared.inner[0].norm, tiling.SharedNorm)
    np.testing.assert_allclose(shared(tiles), plain(tiles), atol=1e-4)

    known = Net()
    tiling.share_norms(known, measure=False)
    nnx.update(known, nnx.state(shared, tiling.Statistics))
    np.testing.assert_allclose(known(tiles[:1]), plain(tiles)[:1], atol=1e-4)
    np.testing.assert_allclose(known(part), plain(tiles)[:1, :4, :4], atol=1e-4)
