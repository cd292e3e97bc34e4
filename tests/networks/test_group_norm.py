"""Kernels of group norm, run as a GPU would by an interpreter, against XLA's program."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from convert import filled, normal
from flax import nnx

from osdhuman_jax.networks import group_norm_kernels, layers
from osdhuman_jax.networks.group_norm import Norm, way
from osdhuman_jax.networks.group_norm_kernels import group_norm
from osdhuman_jax.networks.target import traced_for

# A map of odd sides whose groups have 6 channels, and the least that has blocks.
SMALL, LARGE = (2, 7, 9, 24), (2, 16, 32, 48)
MAPS = [("whole", SMALL, 4), ("reduced", LARGE, 3)]


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Several tiles a program, and several programs, of small maps too."""
    tiles = {name: group_norm_kernels.Shape(256, 4) for name in group_norm_kernels.SHAPES}
    monkeypatch.setattr(group_norm_kernels, "SHAPES", tiles)
    monkeypatch.setattr(group_norm_kernels, "PROGRAMS", 24)


@pytest.mark.parametrize(
    ("platform", "shape", "expected"),
    [
        ("cuda", (1, 32, 32, 640), "whole"),
        ("cuda", (1, 64, 64, 320), "reduced"),
        ("cuda", (1, 60, 60, 320), "whole"),  # no blocks divide it, but one kernel is enough
        ("cuda", (8, 8, 8, 1280), "whole"),
        ("cuda", (1, 7, 9, 320), "whole"),
        ("cuda", (1, 512, 512, 128), "reduced"),
        ("cuda", (1, 384, 640, 256), "reduced"),
        ("cuda", (1, 999, 999, 128), "plain"),  # no blocks divide it
        ("gpu", (1, 64, 64, 320), "plain"),
        ("tpu", (1, 64, 64, 320), "plain"),
        ("cpu", (1, 64, 64, 320), "plain"),
    ],
)
def test_way_follows_platform_and_size(platform, shape, expected):
    assert way(platform, shape, 32) == expected


@pytest.mark.parametrize(("mean", "atol"), [(0.0, 5e-6), (1000.0, 2e-4)])
@pytest.mark.parametrize(("chosen", "shape", "groups"), MAPS)
def test_kernels_are_the_formula(chosen, shape, groups, mean, atol):
    """A mean of 1000 deviations: the square of it leaves float32 nothing of the variance."""
    batch, channels = shape[0], shape[-1]
    x = normal(*shape) + np.float32(mean)
    scale, bias = normal(2, channels, seed=1)
    wide = x.reshape(batch, -1, groups, channels // groups).astype(np.float64)
    wide = wide - wide.mean((1, 3), keepdims=True)
    wide = wide / np.sqrt(np.square(wide).mean((1, 3), keepdims=True) + 1e-5)
    want = wide.reshape(batch, -1, channels) * scale + bias
    norm = Norm(groups, 1e-5, silu=True, dtype=jnp.float32)
    got = jax.jit(lambda *a: group_norm(*a, norm, chosen))(x.reshape(want.shape), scale, bias)
    np.testing.assert_allclose(got, want / (1 + np.exp(-want)), rtol=0, atol=atol)


@pytest.mark.parametrize(
    ("dtype", "silu", "rtol"), [(jnp.float32, True, 1e-5), (jnp.bfloat16, False, 1e-2)]
)
@pytest.mark.parametrize(("chosen", "shape", "groups"), MAPS)
def test_layer_and_its_gradients_are_the_plain_ones(
    monkeypatch, chosen, shape, groups, dtype, silu, rtol
):
    """Also where a block computes its norm again for the backward pass."""
    kw = {"dtype": dtype, "param_dtype": jnp.float32}
    norm = filled(lambda rngs: layers.GroupNorm(shape[-1], groups, 1e-5, rngs=rngs, **kw))
    graphdef, state = nnx.split(norm)
    x, dy = (jnp.asarray(normal(*shape, seed=s), dtype) for s in range(2))

    def results(name):
        monkeypatch.setattr(layers, "way", lambda *_: name)
        run = jax.checkpoint(lambda s, x: nnx.merge(graphdef, s)(x, silu=silu))

        @jax.jit
        def both(state, x):
            y, backward = jax.vjp(run, state, x)
            return y, backward(dy)

        return jax.tree.leaves(both(state, x))

    for got, want in zip(results(chosen), results("plain"), strict=True):
        assert got.dtype == want.dtype
        got, want = (v.astype(jnp.float32) for v in (got, want))
        np.testing.assert_allclose(got, want, rtol=0, atol=rtol * np.abs(want).max())


@pytest.mark.parametrize("chosen", ["whole", "reduced"])
def test_kernels_are_lowered_for_a_gpu_that_is_not_here(chosen):
    """By Triton's rules, which an interpreter does not know."""
    norm = Norm(4, 1e-5, silu=True, dtype=jnp.bfloat16)
    x = jax.ShapeDtypeStruct((1, 1024, 48), jnp.bfloat16)
    channels = jax.ShapeDtypeStruct((48,), jnp.float32)

    def gradients(*inputs):
        return jax.vjp(lambda *a: group_norm(*a, norm, chosen), *inputs)[1](inputs[0])

    with traced_for("cuda"):
        lowered = jax.jit(gradients).trace(x, channels, channels)
        text = lowered.lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("gpu.triton") == {"whole": 2, "reduced": 4}[chosen]
