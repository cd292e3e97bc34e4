"""FAVOR+ against float64 in NumPy."""

import haodiff_torch
import jax.numpy as jnp
import numpy as np
import pytest

from osdhuman_jax.networks import performer
from osdhuman_jax.networks.performer import orthogonal_features

BATCH, TOKENS, HEADS, WIDTH, FEATURES = 2, 50, 3, 8, 21


@pytest.fixture
def projection():
    return orthogonal_features(FEATURES, WIDTH, np.random.default_rng(0))


@pytest.fixture
def qkv():
    rng = np.random.default_rng(1)
    return tuple(
        rng.standard_normal((BATCH, TOKENS, HEADS, WIDTH)).astype(np.float32) for _ in "qkv"
    )


def favor(*arrays):
    return np.asarray(performer.favor(*map(jnp.asarray, arrays)))


def expected(q, k, v, projection):
    made = np.zeros(v.shape)
    for b, h in np.ndindex(BATCH, HEADS):
        head = (x[b, :, h].astype(float) for x in (q, k, v))
        made[b, :, h] = haodiff_torch.favor_of_numpy(*head, projection.astype(float))
    return made


def test_favor(qkv, projection):
    np.testing.assert_allclose(favor(*qkv, projection), expected(*qkv, projection), atol=1e-5)


def test_one_key_far_out_silences_the_others_of_its_own_head_alone(qkv, projection):
    # Only what is added to every feature is left of the others where one key is much larger.
    q, k, v = qkv
    k = k.copy()
    k[0, 7, 1] = 6 * projection[3] / np.linalg.norm(projection[3]) * WIDTH**0.5
    found, before = favor(q, k, v, projection), favor(*qkv, projection)
    np.testing.assert_allclose(found, expected(q, k, v, projection), atol=1e-4)
    assert np.abs(found[0, :, 1] - before[0, :, 1]).max() > 0.1
    np.testing.assert_array_equal(found[1], before[1])
    np.testing.assert_array_equal(found[0][:, [0, 2]], before[0][:, [0, 2]])


def test_rows_are_orthogonal_and_as_long_as_gaussian_ones():
    rows = orthogonal_features(4096 + 3, 16, np.random.default_rng(3)).astype(float)
    block = rows[:16] / np.linalg.norm(rows[:16], axis=1, keepdims=True)
    np.testing.assert_allclose(block @ block.T, np.eye(16), atol=1e-6)
    assert np.mean(np.sum(rows**2, axis=1)) == pytest.approx(16, rel=0.05)
    assert np.std(np.linalg.norm(rows, axis=1)) == pytest.approx(0.7, rel=0.1)  # of chi(16)
