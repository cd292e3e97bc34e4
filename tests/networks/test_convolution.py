"""Every way to convolve against XLA's own, in float64 where it is told apart by rounding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from convert import filled, normal
from flax import nnx

from osdhuman_jax.networks import convolution
from osdhuman_jax.networks.convolution import (
    ROWS,
    WIDE,
    Conv3x3,
    gathered,
    moved,
    way,
    winograd,
)
from osdhuman_jax.networks.target import traced_for

SIZES = [(1, 1), (2, 2), (5, 7), (2 * ROWS, 4), (2 * ROWS + 1, 6), (4 * ROWS - 1, 3)]


def xla(x, kernel):
    layout = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=layout)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("function", [gathered, moved, winograd])
def test_values_and_gradients_are_xlas(function, size):
    x, kernel = normal(2, *size, 5), normal(3, 3, 5, 4, seed=1)
    weights = normal(2, *size, 4, seed=2)

    def values_and_gradients(convolve):
        def run(x, kernel):
            out, back = jax.vjp(convolve, x, kernel)
            return out, *back(weights)

        return jax.jit(run)(x, kernel)

    (ours, *slopes), (theirs, *others) = map(values_and_gradients, (function, xla))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-6 * np.abs(theirs).max())
    for a, b in zip(slopes, others, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=5e-6 * np.abs(b).max())


@pytest.mark.parametrize(
    ("platform", "dtype", "shape", "out", "expected"),
    [
        ("cpu", jnp.float32, (1, 8, 8, 1280), 1280, "gathered"),
        ("cpu", jnp.float32, (8, 16, 16, 1280), 1280, "xla"),
        ("cpu", jnp.float32, (1, 64, 64, 512), 512, "winograd"),
        ("cpu", jnp.float32, (1, 512, 512, 128), 128, "xla"),
        ("cpu", jnp.float32, (1, 64, 64, 4), 512, "xla"),
        ("cpu", jnp.bfloat16, (1, 64, 64, 512), 512, "xla"),
        ("cuda", jnp.float32, (1, 64, 64, 512), 512, "xla"),
    ],
)
def test_way_is_the_fastest_there(monkeypatch, platform, dtype, shape, out, expected):
    monkeypatch.setattr(convolution, "vectors", lambda: "AVX-512")
    assert way(platform, dtype, shape, out) == expected
    monkeypatch.setattr(convolution, "vectors", lambda: "AVX2")
    assert way(platform, dtype, shape, out) == expected.replace("gathered", "xla")


@pytest.mark.parametrize(("few", "many"), [(0, 0), (10**6, 10**6)])
@pytest.mark.parametrize("bias", [True, False])
def test_layer_is_nnx_conv(monkeypatch, few, many, bias):
    """By either way: kernel, bias, and the result's dtype."""
    monkeypatch.setattr(convolution, "FEW", few)
    monkeypatch.setattr(convolution, "MANY", many)
    monkeypatch.setattr(convolution, "vectors", lambda: "AVX-512")
    ours = filled(lambda rngs: Conv3x3(WIDE, WIDE, use_bias=bias, dtype=jnp.float32, rngs=rngs))
    x = jnp.asarray(normal(1, 6, 5, WIDE))
    with traced_for("cpu"):
        got = ours(x)
    want = nnx.Conv.__call__(ours, x)
    assert got.dtype == want.dtype
    assert not np.array_equal(got, want)  # so it was not XLA's
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-6 * np.abs(want).max())
