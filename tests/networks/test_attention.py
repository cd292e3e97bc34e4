"""Attention against its formula in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from convert import normal

from osdhuman_jax.networks.attention import BLOCK, LARGE, ROWS, by_blocks, by_strips, kernel
from osdhuman_jax.networks.attention import attend as plain_attend
from osdhuman_jax.networks.target import platform, traced_for

attend = jax.jit(plain_attend)


def formula(q, k, v, bias=0.0):
    q, k, v = (x.astype(np.float64) for x in (q, k, v))
    logits = np.einsum("bthd,bshd->bhts", q, k) / np.sqrt(q.shape[-1]) + bias
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return np.einsum("bhts,bshd->bthd", weights / weights.sum(-1, keepdims=True), v)


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(("t", "s"), [(5, 5), (7, 3), (1, 11)])
def test_attend_is_the_formula(t, s, biased):
    q, k, v = 3 * normal(2, t, 4, 8), normal(2, s, 4, 8, seed=1), normal(2, s, 4, 8, seed=2)
    bias = normal(2, 4, t, s, seed=3) if biased else None
    got = attend(q, k, v, bias)
    np.testing.assert_allclose(got, formula(q, k, v, 0.0 if bias is None else bias), atol=1e-5)


def test_bfloat16_logits_are_float32():
    """Logits near 1000 that differ by 1: bfloat16 steps of 4 would call them equal."""
    q = jnp.full((1, 1, 1, 1), 16.0, jnp.bfloat16)
    k = jnp.asarray([62.5, 62.75], jnp.bfloat16).reshape(1, 2, 1, 1)
    v = jnp.asarray([0.0, 1.0], jnp.bfloat16).reshape(1, 2, 1, 1)
    got = attend(q, k, v)
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(got.astype(jnp.float32), jax.nn.sigmoid(4.0), atol=4e-3)


def test_bias_stays_float32_beside_bfloat16():
    q = jnp.zeros((1, 1, 1, 4), jnp.bfloat16)
    v = jnp.asarray([0.0, 1.0], jnp.bfloat16)[None, :, None, None] * jnp.ones_like(q)
    bias = jnp.asarray([1000.0, 1001.0]).reshape(1, 1, 1, 2)
    got = attend(q, jnp.zeros_like(v), v, bias).astype(jnp.float32)
    np.testing.assert_allclose(got, jnp.full(got.shape, jax.nn.sigmoid(1.0)), atol=4e-3)


@pytest.mark.parametrize(
    ("platform", "dtype", "width", "lengths", "biased", "expected"),
    [
        ("cuda", jnp.bfloat16, 64, (4096, 4096), False, "cudnn"),  # the U-Net's heads
        ("cuda", jnp.bfloat16, 512, (4096, 4096), False, "xla"),  # the VAE's one head
        ("cuda", jnp.bfloat16, 60, (4096, 4096), False, "xla"),
        ("cuda", jnp.bfloat16, 32, (144, 144), True, "xla"),  # Swin
        ("cuda", jnp.float32, 64, (4096, 4096), False, "xla"),
        ("cuda", jnp.bfloat16, 64, (4096, 77), False, "xla"),  # a prompt's tokens
        ("cpu", jnp.float32, 64, (4096, 4096), False, "blocks"),
        ("cpu", jnp.float32, 32, (4096, 4096), True, "xla"),
        ("tpu", jnp.bfloat16, 64, (4096, 4096), False, "strips"),
        ("tpu", jnp.bfloat16, 64, (1024, 1024), False, "xla"),  # fits the chip as it is
        ("gpu", jnp.bfloat16, 64, (4096, 4096), False, "xla"),
    ],
)
def test_kernel_is_the_best_that_applies(platform, dtype, width, lengths, biased, expected):
    assert kernel(platform, jnp.dtype(dtype), width, lengths, biased) == expected


def test_a_target_is_for_what_is_traced_inside():
    q = jax.ShapeDtypeStruct((1, BLOCK, 1, 8), jnp.float32)
    for name, expected in (("cpu", True), ("gpu", False), ("cpu", True)):
        with traced_for(name):
            jaxpr = jax.make_jaxpr(lambda x: plain_attend(x, x, x))(q)
        assert ("scan" in str(jaxpr)) is expected
    assert platform() == jax.default_backend()


@pytest.mark.parametrize("t", [BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 3])
def test_blocks_are_the_formula(t):
    q, k, v = 3 * normal(2, t, 2, 4), normal(2, 130, 2, 4, seed=1), normal(2, 130, 2, 4, seed=2)
    assert t * 130 >= LARGE
    np.testing.assert_allclose(attend(q, k, v), formula(q, k, v), atol=1e-5)


@pytest.mark.parametrize("function", [by_blocks, by_strips])
def test_parts_have_the_gradients_of_the_formula(function):
    length = {by_blocks: BLOCK, by_strips: ROWS}[function] + 1
    arrays = [normal(1, length, 8, 4, seed=i) for i in range(3)]
    np.testing.assert_allclose(jax.jit(function)(*arrays), formula(*arrays), atol=1e-5)
    ours = jax.grad(lambda *x: jnp.sum(jnp.sin(function(*x))), (0, 1, 2))(*arrays)
    xla = jax.nn.dot_product_attention
    theirs = jax.grad(lambda *x: jnp.sum(jnp.sin(xla(*x))), (0, 1, 2))(*arrays)
    for got, expected in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-5)


def test_blocks_take_little_memory():
    q = jax.ShapeDtypeStruct((1, 4096, 4, 8), jnp.float32)
    blocks, xla = (
        jax.jit(function).lower(q, q, q).compile().memory_analysis().temp_size_in_bytes
        for function in (by_blocks, jax.nn.dot_product_attention)
    )
    assert blocks < 2**25 < 2**28 <= xla
