"""Closed forms, PyTorch's distributions, and float32 whatever comes in."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from convert import normal
from torch.distributions import Normal, kl_divergence

from osdhuman_jax import losses

SHAPE = (2, 3, 5, 4)


def image(value: float) -> jax.Array:
    return jnp.full((2, 3, 5, 3), value, jnp.float32)


def test_mse_of_constants():
    assert float(losses.mse(image(-1.0), image(1.0))) == 4.0
    assert float(losses.mse(image(0.25), image(0.25))) == 0.0


def test_mse_is_the_mean_over_every_element():
    a, b = normal(*SHAPE), normal(*SHAPE, seed=1)
    expected = ((a.astype(np.float64) - b) ** 2).mean()
    np.testing.assert_allclose(losses.mse(jnp.asarray(a), jnp.asarray(b)), expected, rtol=1e-6)


def test_mse_gradient():
    a, b = jnp.asarray(normal(*SHAPE)), jnp.asarray(normal(*SHAPE, seed=1))
    np.testing.assert_allclose(jax.grad(losses.mse)(a, b), 2 * (a - b) / a.size, rtol=1e-6)


def test_chroma_sees_colour_alone():
    gray = image(0.5) + jnp.asarray(normal(2, 3, 5, 1))
    np.testing.assert_allclose(losses.chroma(gray, image(-0.25)), 0.0, atol=1e-12)
    red = image(0.0).at[..., 0].set(0.5)  # R - G errs by 0.5, B - G by 0
    np.testing.assert_allclose(losses.chroma(red, image(0.0)), 0.5**2 / 2, rtol=1e-6)
    green = image(0.0).at[..., 1].set(0.5)  # both err by 0.5
    np.testing.assert_allclose(losses.chroma(green, image(0.0)), 0.5**2, rtol=1e-6)


def test_kl_of_the_prior_is_zero():
    assert float(losses.kl(jnp.zeros(SHAPE), jnp.zeros(SHAPE))) == 0.0


def test_kl_of_constants():
    mean, logvar = jnp.full(SHAPE, 3.0), jnp.full(SHAPE, np.log(4.0))
    np.testing.assert_allclose(losses.kl(mean, logvar), (9 + 4 - 1 - np.log(4)) / 2, rtol=1e-6)


def test_kl_equals_torch():
    mean, logvar = normal(*SHAPE), 2 * normal(*SHAPE, seed=1)
    posterior = Normal(
        torch.from_numpy(mean).double(), torch.from_numpy(logvar).double().mul(0.5).exp()
    )
    expected = kl_divergence(posterior, Normal(0.0, 1.0)).mean()
    assert expected > 1
    np.testing.assert_allclose(
        losses.kl(jnp.asarray(mean), jnp.asarray(logvar)), expected, rtol=1e-5
    )


@pytest.mark.parametrize("loss", [losses.mse, losses.kl])
def test_half_precision_inputs_are_summed_in_float32(loss):
    half = [jnp.asarray(normal(8, 32, 32, 4, seed=s), jnp.bfloat16) for s in range(2)]
    found = loss(*half)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, loss(*(x.astype(jnp.float32) for x in half)), rtol=1e-6)
