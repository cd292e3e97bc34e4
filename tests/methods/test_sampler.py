"""Steps against diffusers' schedulers and closed forms, and guidance against differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from convert import close, nchw, normal
from diffusers import DDIMScheduler, DDPMScheduler
from jax import Array

from osdhuman_jax.methods import sampler
from osdhuman_jax.methods.sampler import Guidance, make_steps
from osdhuman_jax.methods.schedule import Schedule

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SHAPE = (2, 4, 6, 4)
KEYS = jax.random.split(jax.random.key(1), 2)


def scheduler(kind: type, spacing: str):
    made = kind(**BETAS, clip_sample=False, timestep_spacing=spacing, steps_offset=1)
    # Theirs are products in float32; what is compared is the step.
    made.alphas_cumprod = torch.from_numpy(np.array(Schedule().alphas_bar))
    return made


def predict(z: Array, t: Array) -> Array:
    """Stands for the networks: depends on latent and timestep, on each picture alone."""
    return jnp.tanh(z) * (0.5 + t.astype(jnp.float32)[:, None, None, None] / 1000)


@pytest.mark.parametrize("spacing", ["linspace", "leading"])
@pytest.mark.parametrize("count", [2, 3, 19, 20, 50, 1000])
def test_timesteps_are_those_of_diffusers(count, spacing):
    if spacing == "leading" and count == 1000:
        pytest.skip("theirs asks for a timestep that is not there")
    theirs = scheduler(DDPMScheduler, spacing)
    theirs.set_timesteps(count)
    np.testing.assert_array_equal(sampler.timesteps(count, spacing), theirs.timesteps)


def test_counts_that_are_none_are_refused():
    assert sampler.timesteps(1).tolist() == [999]
    for count in (0, 1001):
        with pytest.raises(ValueError, match="steps must be"):
            sampler.timesteps(count)


def test_ddpm_is_that_of_diffusers(monkeypatch):
    """Over all steps, with the same noise; the last one gives z_0."""
    steps, theirs = make_steps(20), scheduler(DDPMScheduler, "linspace")
    theirs.set_timesteps(20)
    z = sampler.start_latent(steps, KEYS, SHAPE)
    want = nchw(np.asarray(z))
    for i, t in enumerate(theirs.timesteps):
        noise = nchw(np.asarray(sampler.noise(KEYS, i, SHAPE)))
        monkeypatch.setattr(
            "diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *_, n=noise, **__: n
        )
        # Each step begins with the same latent, so that no error of one grows in the next.
        eps = np.asarray(predict(z, jnp.full((2,), int(t))))
        want = theirs.step(nchw(eps), t, nchw(np.asarray(z))).prev_sample
        z = sampler.step(steps, i, z, jnp.asarray(eps), KEYS)
        close(z, want, 2e-6 * max(1.0, float(abs(want).max())))
    got = sampler.sample(steps, sampler.start_latent(steps, KEYS, SHAPE), KEYS, predict)
    close(got, np.asarray(z), 1e-5)


def test_ddim_is_that_of_diffusers():
    # Their "linspace" takes a step's end from another list than its beginning, so "leading" alone.
    steps, theirs = make_steps(20, "ddim", "leading"), scheduler(DDIMScheduler, "leading")
    theirs.set_timesteps(20)
    z = sampler.start_latent(steps, KEYS, SHAPE)
    want, first = nchw(np.asarray(z)), z
    for i, t in enumerate(theirs.timesteps):
        eps = predict(jnp.asarray(want.numpy().transpose(0, 2, 3, 1)), jnp.full((2,), int(t)))
        want = theirs.step(nchw(np.asarray(eps)), t, want).prev_sample
        z = sampler.step(steps, i, z, predict(z, jnp.full((2,), int(t))), KEYS)
        close(z, want, 1e-5)
    close(sampler.sample(steps, first, KEYS, predict), want, 1e-5)


@pytest.mark.parametrize("kind", ["ddpm", "ddim"])
def test_gaussian_pictures_are_sampled_with_their_mean_and_variance(kind):
    """Of z_0 ~ N(m, v) the noise is known in closed form."""
    m, v, shape = 0.7, 0.3, (2, 32, 32, 4)

    def perfect(z: Array, t: Array) -> Array:
        signal, sigma = Schedule().coefficients(t)
        return sigma * (z - signal * m) / (signal**2 * v + sigma**2)

    steps = make_steps(1000, kind)
    z0 = jnp.asarray(m + np.sqrt(v) * normal(*shape))
    z = sampler.start_latent(steps, KEYS, shape, z0)
    got = sampler.sample(steps, z, KEYS, perfect)
    if kind == "ddim":
        # The probability flow keeps every value's place in its distribution.
        spread = jnp.sqrt(steps.signal[0] ** 2 * v + steps.sigma[0] ** 2)
        np.testing.assert_allclose(
            got, m + np.sqrt(v) * (z - steps.signal[0] * m) / spread, atol=0.01
        )
    assert abs(float(got.mean()) - m) < 4 * np.sqrt(v / got.size)
    assert abs(float(got.var()) / v - 1) < 0.06
    # The mean is exact with few steps too: one that starts in the middle of its distribution.
    few = make_steps(5, kind)._replace(of_noise=jnp.zeros(5))
    middle = jnp.full((2, 1, 1, 1), m) * few.signal[0]
    np.testing.assert_allclose(sampler.sample(few, middle, KEYS, perfect), m, atol=1e-5)


def test_a_picture_does_not_depend_on_its_batch():
    steps = make_steps(4)
    run = jax.jit(lambda z, keys: sampler.sample(steps, z, keys, predict))
    both = run(sampler.start_latent(steps, KEYS, SHAPE), KEYS)
    for i in range(2):
        alone = run(sampler.start_latent(steps, KEYS[i : i + 1], (1, *SHAPE[1:])), KEYS[i : i + 1])
        np.testing.assert_array_equal(both[i], alone[0])
    assert not np.array_equal(both[0], both[1])


def loss(z0: Array) -> Array:
    return jnp.mean(jnp.square(jnp.sin(3 * z0) - 0.4), axis=(1, 2, 3))


@pytest.mark.parametrize("number", [5, 12, 18])
def test_gradients_are_differences(number):
    steps, z = make_steps(20), jnp.asarray(normal(*SHAPE))
    z0 = sampler.clean(steps, number, z, sampler.predicted(steps, number, z, predict))

    def of_noisy(z: Array) -> Array:
        eps = sampler.predicted(steps, number, z, predict)
        return loss(sampler.clean(steps, number, z, eps))

    by_noisy, eps = sampler.by_noisy(steps, number, z, predict, Guidance(loss, 1.0))
    np.testing.assert_array_equal(eps, sampler.predicted(steps, number, z, predict))
    pairs = [(loss, z0, sampler.by_clean(z0, Guidance(loss, 1.0))), (of_noisy, z, by_noisy)]
    for function, at, gradient in pairs:
        length = jnp.sqrt(jnp.sum(jnp.square(gradient)))
        h = 0.003 * gradient / length
        slope = jnp.sum(function(at + h) - function(at - h)) / 0.006
        np.testing.assert_allclose(slope, length, rtol=1e-2)


@pytest.mark.parametrize("through", ["decoder", "unet"])
def test_guidance_lowers_the_loss_and_at_scale_0_is_none(through):
    steps, keys = make_steps(10), jax.random.split(jax.random.key(3), 8)
    z = sampler.start_latent(steps, keys, (8, *SHAPE[1:]))
    plain = sampler.sample(steps, z, keys, predict)
    off = sampler.sample(steps, z, keys, predict, Guidance(loss, 0.0, through))
    np.testing.assert_array_equal(plain, off)
    got = sampler.sample(steps, z, keys, predict, Guidance(loss, 0.2, through))
    assert float(loss(got).mean()) < float(loss(plain).mean())
    never = Guidance(loss, 0.2, through, t_start=0)
    np.testing.assert_allclose(sampler.sample(steps, z, keys, predict, never), plain, rtol=1e-4)


@pytest.mark.parametrize("through", ["decoder", "unet"])
def test_a_step_that_is_led_is_a_guided_one_in_the_window(through):
    steps, z = make_steps(20), jnp.asarray(normal(*SHAPE))
    guidance = Guidance(loss, 0.2, through)
    for number, inside in ((0, False), (5, False), (6, True), (18, True), (19, False)):
        assert bool(sampler.in_window(steps.t[number])) is inside
        eps, shift = sampler.guided(steps, number, z, predict, guidance)
        same, led = sampler.led(steps, number, z, predict, guidance)
        np.testing.assert_allclose(eps, same, rtol=1e-5)
        np.testing.assert_allclose(shift, led if inside else 0 * led, rtol=1e-4, atol=1e-7)
        assert led.any() or number == 19
    assert [sampler.in_window(t) for t in (701, 700, 1, 0)] == [False, True, True, False]


def test_shifts_have_their_size():
    steps, gradient = make_steps(10), jnp.asarray(normal(*SHAPE))
    by_sigma = Guidance(loss, 0.2).shift(gradient, steps.spread[4])
    rms = jnp.sqrt(jnp.mean(jnp.square(by_sigma), axis=(1, 2, 3)))
    np.testing.assert_allclose(rms, 0.2 * steps.spread[4], rtol=1e-5)
    np.testing.assert_allclose(
        Guidance(loss, 0.2, normalize="none").shift(gradient, steps.spread[4]), 0.2 * gradient
    )
    assert not Guidance(loss, 0.2).shift(0 * gradient, steps.spread[4]).any()
