"""Noise schedule and Eq. 2 against diffusers, the published values and their own inverse."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from convert import close, nchw, normal
from diffusers import DDPMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from osdhuman_jax.methods.schedule import Schedule


def ddpm() -> DDPMScheduler:
    """As OSEDiff builds it from Stable Diffusion 2.1-base's scheduler_config.json."""
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    return DDPMScheduler(**betas, steps_offset=1, clip_sample=False, timestep_spacing="leading")


def test_alphas_match_diffusers():
    want = ddpm().alphas_cumprod.numpy()
    # diffusers multiplies a thousand factors in float32, we in float64: 1e-5 is its error
    np.testing.assert_allclose(Schedule().alphas_bar, want, rtol=1e-5, atol=0)
    assert Schedule().alphas_bar.dtype == jnp.float32


def test_coefficients_of_the_one_step():
    signal, sigma = Schedule().coefficients(jnp.asarray([999, 999]))
    assert signal.shape == sigma.shape == (2, 1, 1, 1)
    np.testing.assert_allclose(signal.ravel(), [0.0682649] * 2, atol=1e-7)
    np.testing.assert_allclose(sigma.ravel(), [0.9976672] * 2, atol=1e-7)
    np.testing.assert_allclose(1 / signal.ravel(), [14.6488] * 2, atol=1e-4)


def test_add_noise_matches_diffusers():
    z, noise, t = normal(4, 3, 5, 4), normal(4, 3, 5, 4, seed=1), np.asarray([0, 20, 500, 999])
    want = ddpm().add_noise(nchw(z), nchw(noise), torch.from_numpy(t))
    got = Schedule().add_noise(*map(jnp.asarray, (z, noise, t.astype(np.int32))))
    close(got, want, 1e-6)


def test_eq2_matches_diffusers_at_999():
    z, eps = normal(2, 4, 6, 4), normal(2, 4, 6, 4, seed=1)
    scheduler = ddpm()
    want = scheduler.step(nchw(eps), 999, nchw(z)).pred_original_sample
    got = Schedule().eps_to_x0(jnp.asarray(z), jnp.asarray(eps), jnp.asarray([999, 999]))
    assert want.std() > 14
    close(got, want, 3e-4)  # values near 50, diffusers' alpha being off by 1e-6 relative

    # One inference step at 999: OSEDiff takes its prev_sample, that estimate plus 1e-10 of noise.
    scheduler.set_timesteps(timesteps=[999])
    step = scheduler.step(nchw(eps), 999, nchw(z), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(step.prev_sample, want, rtol=1e-5, atol=1e-5)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 999), st.integers(0, 2**32 - 1), st.floats(0.01, 20.0))
def test_eps_to_x0_inverts_add_noise(t, seed, spread):
    z = jnp.asarray(spread * normal(2, 3, 3, 4, seed=seed))
    noise, steps = jnp.asarray(normal(2, 3, 3, 4, seed=seed + 1)), jnp.asarray([t, 999 - t])
    schedule = Schedule()
    back = schedule.eps_to_x0(schedule.add_noise(z, noise, steps), noise, steps)
    # rounding of z_t, about max|z_t| 2^-23, grows by at most 14.65
    np.testing.assert_allclose(back, z, rtol=0, atol=2e-6 * (5 + 5 * spread))


@pytest.mark.parametrize("name", ["add_noise", "eps_to_x0"])
def test_bfloat16_inputs_are_computed_in_float32(name):
    function = getattr(Schedule(), name)
    a, b = (jnp.asarray(normal(2, 3, 3, 4, seed=i), jnp.bfloat16) for i in range(2))
    t = jnp.asarray([999, 3])
    got = function(a, b, t)
    assert got.dtype == jnp.float32
    want = function(a.astype(jnp.float32), b.astype(jnp.float32), t)
    np.testing.assert_array_equal(got, want)
