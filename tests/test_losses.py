"""Closed forms, PyTorch's distributions, and float32 whatever comes in."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import skimage.data
import torch
from convert import normal
from torch.distributions import Normal, kl_divergence

from osdhuman_jax import losses
from osdhuman_jax.metrics import ssim_y

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


def test_structure_is_one_minus_the_metric():
    a = skimage.data.astronaut()[:96, 160:256]
    b = np.clip(a + 20 * normal(*a.shape), 0, 255).astype(np.uint8)
    pair = [jnp.asarray(picture[None], jnp.float32) / 127.5 - 1 for picture in (a, b)]
    # the metric rounds luma to whole grey levels and clips negative structure
    np.testing.assert_allclose(losses.structure(*pair), 1 - ssim_y(a, b), atol=2e-3)
    assert float(losses.structure(pair[0], pair[0])) == pytest.approx(0.0, abs=1e-5)


def test_structure_sees_grain_in_flat_regions():
    flat = jnp.zeros((1, 16, 16, 3), jnp.float32)
    grain = 0.05 * jnp.asarray(normal(1, 16, 16, 1))
    assert float(losses.structure(flat + grain, flat)) > 0.3
    assert float(losses.mse(flat + grain, flat)) < 0.01


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
