"""LPIPS against PyTorch on random weights, its gradient, and its properties."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from convert import abstract, call, count, filled, from_torch, nchw, normal, params, randomise
from flax import nnx
from torch import nn

from benchmarks.references import LPIPS as Reference
from osdhuman_jax.networks.configs import LPIPSConfig
from osdhuman_jax.networks.lpips import LPIPS, MaxPool, unit

SMALL = LPIPSConfig.vgg16(16)  # the depth of VGG16, a sixteenth as wide


@pytest.fixture(scope="module")
def pair():
    """(PyTorch's network, ours with its weights)."""
    theirs = Reference(16)
    randomise(theirs)
    for lin in theirs.lin.parameters():
        lin.data = lin.data.abs()
    return theirs, from_torch(lambda rngs: LPIPS(SMALL, rngs=rngs), theirs)


@pytest.fixture(scope="module")
def images():
    """Two batches of pictures in [-1, 1] whose sides are no multiples of 16."""
    return normal(2, 37, 50, 3).clip(-1, 1), normal(2, 37, 50, 3, seed=1).clip(-1, 1)


def test_distances(pair, images):
    theirs, mine = pair
    want = theirs(*map(nchw, images)).numpy()
    assert want.shape == (2,) and (want > 0.05).all() and abs(want[0] - want[1]) > 1e-4
    got = call(mine, *images)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)


def test_gradient(pair, images):
    theirs, mine = pair
    x = nchw(images[0]).requires_grad_()
    theirs(x, nchw(images[1])).sum().backward()
    got = jax.jit(jax.grad(lambda a: mine(a, jnp.asarray(images[1])).sum()))(images[0])
    want = x.grad.permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-3 * np.abs(want).max())


def test_gradient_is_finite_where_every_channel_is_dead():
    """The derivative of the norm's root is infinite there: ReLU must select, not multiply."""
    net = filled(lambda rngs: LPIPS(LPIPSConfig((8, 8, 0, 8)), rngs=rngs))
    assert net.taps == (3, 6)
    net.features[2].bias[...] = jnp.full(8, -1e3)
    a, b = normal(2, 1, 8, 8, 3)
    assert not call(net, a, method="activations")[0].any()
    gradient = jax.jit(jax.grad(lambda a: net(a, jnp.asarray(b)).sum()))(a)
    assert np.isfinite(gradient).all()


def test_unit_vectors():
    x = np.asarray([[3.0, 4.0], [0.0, 0.0], [3e-11, 4e-11]], np.float32)[None, None]
    want = [[0.6, 0.8], [0.0, 0.0], [0.2, 4 / 15]]  # ||x|| = 5e-11 is less than epsilon
    np.testing.assert_allclose(unit(jnp.asarray(x))[0, 0], want, rtol=1e-5)


def test_vgg16():
    """Names, widths and 14,714,688 parameters of torchvision's VGG16 `features`; 1,472 weights."""
    net = abstract(lambda rngs: LPIPS(LPIPSConfig.vgg16(), rngs=rngs))
    assert net.taps == (3, 8, 15, 22, 29)
    theirs = Reference()
    shapes = {p: v.shape for p, v in params(net).items()}
    convs = {name: m for name, m in theirs.features.named_modules() if isinstance(m, nn.Conv2d)}
    assert {p[1] for p in shapes if p[0] == "features"} == {int(name) for name in convs}
    assert count(net.features) == 14_714_688
    assert [shapes["lin", i, "kernel"][2] for i in range(5)] == [64, 128, 256, 512, 512]
    assert count(net.lin) == 1_472


def test_bfloat16_distance_is_near_the_float32_one(pair, images):
    theirs, mine = pair
    half = from_torch(lambda rngs: LPIPS(SMALL, dtype=jnp.bfloat16, rngs=rngs), theirs)
    want, got = call(mine, *images), call(half, *images)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, want, rtol=0.03)


def test_pooling_is_jaxs_with_its_gradient():
    """Among equal pixels too, of which the first has the gradient; odd sizes lose their ends."""
    x = jnp.asarray(normal(2, 7, 10, 3).round())
    weights = jnp.asarray(normal(2, 3, 5, 3, seed=1))
    (ours, mine), (theirs, other) = (
        jax.jit(lambda x, pool=pool: (pool(x), *jax.vjp(pool, x)[1](weights)))(x)
        for pool in (MaxPool(), lambda x: nnx.max_pool(x, (2, 2), (2, 2)))
    )
    np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(mine, other)
