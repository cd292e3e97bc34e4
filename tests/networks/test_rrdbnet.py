"""RRDBNet against PyTorch on random weights, and the published sizes."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from convert import abstract, call, count, from_torch, nchw, normal, params, randomise
from make_cleaners import SIZES, Block, network

from osdhuman_jax.networks.configs import RRDBNetConfig
from osdhuman_jax.networks.rrdbnet import RRDB, RRDBNet


def test_a_block():
    theirs = Block()
    randomise(theirs)
    x = normal(2, 9, 12, 8)
    mine = from_torch(lambda rngs: RRDB(RRDBNetConfig(8, 4, 1, 4), rngs=rngs), theirs)
    want = theirs(nchw(x)).detach().permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(call(mine, x), want, rtol=0, atol=1e-5)


@pytest.mark.parametrize("scale", [4, 2, 1])
def test_the_network(scale):
    theirs = network(scale)
    x = np.random.default_rng(0).uniform(0, 1, (2, 12, 20, 3)).astype(np.float32)
    mine = from_torch(lambda rngs: RRDBNet(RRDBNetConfig(**SIZES, scale=scale), rngs=rngs), theirs)
    with torch.no_grad():
        want = theirs(nchw(x)).permute(0, 2, 3, 1).numpy()
    assert ((want > 0) & (want < 1)).mean() > 0.95 and want.std() > 0.05
    got = call(mine, 2 * x - 1)
    assert got.shape == (2, 12 * scale, 20 * scale, 3) and got.dtype == jnp.float32
    np.testing.assert_allclose((got + 1) / 2, want.clip(0, 1), rtol=0, atol=1e-4)


def test_bf16_is_near_and_gives_float32():
    theirs = network()
    x = normal(1, 12, 12, 3).clip(-1, 1)
    config = RRDBNetConfig(**SIZES, scale=4)
    full, half = (
        call(from_torch(lambda r, d=d: RRDBNet(config, dtype=d, rngs=r), theirs), x)
        for d in (jnp.float32, jnp.bfloat16)
    )
    assert half.dtype == jnp.float32
    assert 0 < np.abs(half - full).max() < 0.1


@pytest.mark.parametrize(
    ("config", "parameters", "tensors"),
    [
        (RRDBNetConfig.x4plus(), 16_697_987, 702),
        (RRDBNetConfig.x2plus(), 16_703_171, 702),
        (RRDBNetConfig.x4plus_anime(), 4_467_779, 192),
    ],
)
def test_published_sizes(config, parameters, tensors):
    made = abstract(lambda rngs: RRDBNet(config, rngs=rngs))
    assert (count(made), len(params(made))) == (parameters, tensors)
    assert made.scale * made.multiple == 4
