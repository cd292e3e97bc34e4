"""Closed forms, PyTorch's distributions, and float32 whatever comes in."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import skimage.data
import torch
from convert import normal
from torch.distributions import Normal, kl_divergence

from osdhuman_jax.evaluation.metrics import ssim_y
from osdhuman_jax.methods import losses
from osdhuman_jax.methods.schedule import Schedule

SHAPE = (2, 3, 5, 4)


def image(value: float) -> jax.Array:
    return jnp.full((2, 3, 5, 3), value, jnp.float32)


def test_mse_and_l1_are_means_over_every_element():
    a, b = normal(2, 3, 5, 3), normal(2, 3, 5, 3, seed=1)
    gap = a.astype(np.float64) - b
    for loss, expected in ((losses.mse, (gap**2).mean()), (losses.l1, np.abs(gap).mean())):
        np.testing.assert_allclose(loss(jnp.asarray(a), jnp.asarray(b)), expected, rtol=1e-6)


def test_gradient_sees_steps_and_no_level():
    assert float(losses.gradient(image(-1.0), image(1.0))) == 0.0
    step = jnp.zeros((1, 4, 4, 3)).at[:, 2:].set(0.5)  # one of three differences down, none across
    assert float(losses.gradient(step, jnp.zeros_like(step))) == pytest.approx(0.5 / 3)


def test_colour_sees_means_of_squares_alone():
    flat = jnp.zeros((1, 40, 36, 3))
    signs = (-1.0) ** np.add.outer(np.arange(40), np.arange(36))
    chequered = flat + np.broadcast_to(signs[None, ..., None], flat.shape).astype(np.float32)
    assert float(losses.colour(chequered, flat)) == 0.0
    tinted = flat.at[..., 0].set(0.3)
    assert float(losses.colour(tinted, flat)) == pytest.approx(0.03)
    margin = flat.at[:, 32:].set(1.0).at[:, :, 32:].set(1.0)  # beyond the last whole square
    assert float(losses.colour(margin, flat)) == 0.0


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
    np.testing.assert_allclose(losses.ssim_loss(*pair), 1 - ssim_y(a, b), atol=2e-3)
    assert float(losses.ssim_loss(pair[0], pair[0])) == pytest.approx(0.0, abs=1e-5)


def test_kl_equals_torch():
    assert float(losses.kl(jnp.zeros(SHAPE), jnp.zeros(SHAPE))) == 0.0
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


def eps_and_noise() -> tuple[jax.Array, ...]:
    """Latent, noise, and two predictions of the noise."""
    return tuple(jnp.asarray(normal(2, 4, 4, 3, seed=seed)) for seed in range(4))


@pytest.mark.parametrize("t", [20, 500, 979])
def test_vsd_gradient_is_eq_6_in_x0_space(t):
    """x0 estimates in float64, the way OSEDiff writes it, in PyTorch."""
    latent, noise, frozen, finetuned = (torch.from_numpy(np.array(x)) for x in eps_and_noise())
    alpha_bar = float(Schedule().alphas_bar[t])
    signal, sigma = alpha_bar**0.5, (1 - alpha_bar) ** 0.5
    latent = latent.double()
    noisy = signal * latent + sigma * noise
    x0_frozen, x0_finetuned = ((noisy - sigma * eps) / signal for eps in (frozen, finetuned))
    weight = (latent - x0_frozen).abs().mean(dim=(1, 2, 3), keepdim=True)
    expected = (x0_finetuned - x0_frozen) / weight
    found = losses.vsd_gradient(*eps_and_noise()[1:])
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_vsd_equals_torch():
    """Value and derivative of mse(z, (z - g).detach())."""
    latent, gradient = eps_and_noise()[:2]
    theirs = torch.tensor(np.asarray(latent), requires_grad=True)
    target = (theirs - torch.tensor(np.asarray(gradient))).detach()
    reference = torch.nn.functional.mse_loss(theirs, target)
    reference.backward()
    value, slope = jax.value_and_grad(losses.vsd)(latent, gradient)
    np.testing.assert_allclose(value, reference.item(), rtol=1e-5)
    np.testing.assert_allclose(slope, theirs.grad, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(slope, 2 * gradient / latent.size, rtol=1e-4, atol=1e-7)


def test_guidance():
    eps, base = eps_and_noise()[:2]
    np.testing.assert_array_equal(losses.guide(eps), eps)
    np.testing.assert_allclose(losses.guide(eps, base, 1.0), eps, atol=1e-6)
    np.testing.assert_allclose(losses.guide(eps, base, 7.5), 7.5 * eps - 6.5 * base, rtol=1e-4)
