"""Building blocks against diffusers' on random weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from convert import call, close, filled, from_torch, nchw, normal, params, randomise
from diffusers.models import attention as reference_attention
from diffusers.models import embeddings, resnet
from diffusers.models.attention_processor import Attention as ReferenceAttention
from flax import nnx

from osdhuman_jax.networks import layers, upsampling
from osdhuman_jax.networks.target import traced_for

ATOL = 1e-5


def fp32(rngs: nnx.Rngs) -> dict:
    return {"dtype": jnp.float32, "param_dtype": jnp.float32, "rngs": rngs}


def bf16(rngs: nnx.Rngs) -> dict:
    return {"dtype": jnp.bfloat16, "param_dtype": jnp.float32, "rngs": rngs}


@pytest.mark.parametrize("asymmetric", [False, True])
@pytest.mark.parametrize("size", [(8, 6), (7, 9)])
def test_downsample(size, asymmetric):
    padding = 0 if asymmetric else 1
    theirs = randomise(resnet.Downsample2D(16, use_conv=True, padding=padding, name="op"))
    ours = from_torch(
        lambda rngs: layers.Downsample2D(16, asymmetric=asymmetric, **fp32(rngs)), theirs
    )
    x = normal(2, *size, 16)
    close(call(ours, x), theirs(nchw(x)), ATOL)


@pytest.mark.parametrize(("name", "small"), [("cpu", 0), ("cuda", 0), ("tpu", 0), ("tpu", 64)])
@pytest.mark.parametrize("size", [None, (10, 14), (9, 13), (9, 14), (5, 7)])
def test_upsample(size, name, small, monkeypatch):
    """As each platform enlarges a large map, and as some do a small one."""
    monkeypatch.setattr(upsampling, "SMALL", {name: small})
    theirs = randomise(resnet.Upsample2D(16, use_conv=True))
    ours = from_torch(lambda rngs: layers.Upsample2D(16, **fp32(rngs)), theirs)
    x = normal(2, 5, 7, 16)
    with traced_for(name):
        got = nnx.jit(lambda m, x: m(x, size))(ours, x)
    close(got, theirs(nchw(x), output_size=size), ATOL)


@pytest.mark.parametrize("side", [1, 2, 3, 7, 12])
def test_nearest_to_every_skip_size(side):
    """A halved side of n came from 2 n - 1 or 2 n."""
    x = normal(1, side, side, 1)
    for size in ((2 * side, 2 * side), (2 * side - 1, 2 * side), (2 * side, 2 * side - 1)):
        want = torch.nn.functional.interpolate(nchw(x), size=size, mode="nearest")
        got = jax.jit(upsampling.nearest, static_argnums=1)(x, size)
        np.testing.assert_array_equal(got, want.numpy().transpose(0, 2, 3, 1))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("context", [None, 40])
def test_attention(context, bias):
    theirs = randomise(
        ReferenceAttention(
            query_dim=32, cross_attention_dim=context, heads=4, dim_head=8, bias=bias
        )
    )
    kw = {"heads": 4, "context_dim": context, "bias": bias}
    ours = from_torch(lambda rngs: layers.Attention(32, **kw, **fp32(rngs)), theirs)
    assert (("to_q", "bias") in params(ours)) == bias
    x, source = normal(2, 6, 32), normal(2, 11, context, seed=1) if context else None
    want = theirs(torch.from_numpy(x), None if source is None else torch.from_numpy(source))
    close(call(ours, x, None if source is None else jnp.asarray(source)), want, ATOL)


def test_feed_forward():
    theirs = randomise(reference_attention.FeedForward(24, activation_fn="geglu"))
    ours = from_torch(lambda rngs: layers.FeedForward(24, **fp32(rngs)), theirs)
    x = 2 * normal(2, 6, 24)  # the tanh approximation of GELU is 5e-4 off near 2
    close(call(ours, x), theirs(torch.from_numpy(x)), ATOL)


@pytest.mark.parametrize("dim", [32, 320])
def test_sinusoidal_embedding(dim):
    t = np.asarray([0, 1, 20, 500, 999], np.int32)
    want = embeddings.get_timestep_embedding(
        torch.from_numpy(t), dim, flip_sin_to_cos=True, downscale_freq_shift=0
    )
    got = layers.sinusoidal_embedding(jnp.asarray(t), dim)
    assert got.dtype == jnp.float32
    # the angle reaches 999, where float32 steps are 6e-5
    np.testing.assert_allclose(got, want, atol=1e-4)
    np.testing.assert_allclose(got[:3], want[:3], atol=5e-6)
    exact = 500.0 * 10_000.0 ** (-np.arange(dim // 2) / (dim // 2))
    np.testing.assert_allclose(got[3], np.r_[np.cos(exact), np.sin(exact)], atol=1e-4)


@pytest.mark.parametrize("epsilon", [1e-5, 1e-6])
def test_norms_apply_their_epsilon(epsilon):
    x = 1e-3 * normal(2, 3, 4, 16)  # variance 1e-6: epsilon decides
    theirs = randomise(torch.nn.GroupNorm(4, 16, eps=epsilon))
    ours = from_torch(lambda rngs: layers.GroupNorm(16, 4, epsilon, **fp32(rngs)), theirs)
    close(call(ours, x), theirs(nchw(x)), ATOL)
    theirs = randomise(torch.nn.LayerNorm(16, eps=epsilon))
    ours = from_torch(lambda rngs: layers.LayerNorm(16, epsilon, **fp32(rngs)), theirs)
    y = x[:, 0]
    close(call(ours, y), theirs(torch.from_numpy(y)), ATOL)


@pytest.mark.parametrize("kind", [layers.GroupNorm, layers.LayerNorm])
@pytest.mark.parametrize(("dtype", "mean"), [(jnp.bfloat16, 128.0), (jnp.float32, 8192.0)])
def test_norm_statistics_are_two_pass_and_float32(kind, dtype, mean):
    """A mean that drowns the deviation of 1, were it squared first or summed in bfloat16."""
    sizes = (16, 1, 1e-5) if kind is layers.GroupNorm else (16, 1e-5)
    norm = filled(lambda rngs: kind(*sizes, **{**fp32(rngs), "dtype": dtype}))
    norm.scale[...], norm.bias[...] = jnp.ones(16), jnp.zeros(16)
    signs = np.tile([-1.0, 1.0], 8).reshape(1, 1, 1, 16)
    got = call(norm, jnp.asarray(mean + signs, dtype))
    assert got.dtype == dtype
    np.testing.assert_allclose(got.astype(jnp.float32), signs, atol=4e-3)


def test_blocks_in_bfloat16_return_bfloat16():
    x, context = jnp.ones((1, 4, 4, 32), jnp.bfloat16), jnp.ones((1, 3, 8))
    block = filled(
        lambda rngs: layers.Transformer2DModel(32, heads=2, context_dim=8, groups=8, **bf16(rngs))
    )
    assert jax.eval_shape(lambda: block(x, context)).dtype == jnp.bfloat16
    block = filled(
        lambda rngs: layers.ResnetBlock2D(
            32, 16, groups=8, epsilon=1e-5, temb_channels=8, **bf16(rngs)
        )
    )
    assert jax.eval_shape(lambda: block(x, jnp.ones((1, 8)))).dtype == jnp.bfloat16
