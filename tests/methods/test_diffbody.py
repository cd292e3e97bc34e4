"""DiffBody's conditions, noise, loss and guided sampling, on the tiny networks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from convert import call, close, filled, normal
from flax import nnx

from osdhuman_jax.methods import body_parts, losses, sampler
from osdhuman_jax.methods.diffbody import DiffBody, Given, reduced
from osdhuman_jax.methods.sampler import Guidance, make_steps
from osdhuman_jax.networks.configs import ControlNetConfig, PartParserConfig, RRDBNetConfig
from osdhuman_jax.networks.controlnet import ControlNet
from osdhuman_jax.networks.part_parser import PartParser
from osdhuman_jax.networks.rrdbnet import RRDBNet
from osdhuman_jax.networks.unet import UNet2DConditionModel
from osdhuman_jax.networks.vae import AutoencoderKL

SIZES = tiny.DEEP
SHAPE = (2, 8, 12, 4)  # of the latents of pictures of 16 x 24


def make(rngs: nnx.Rngs) -> DiffBody:
    unet = SIZES.unet
    return DiffBody(
        AutoencoderKL(SIZES.vae, rngs=rngs),
        UNet2DConditionModel(unet, rngs=rngs),
        ControlNet(ControlNetConfig(unet, pose=True, attention=True), rngs=rngs),
        RRDBNet(RRDBNetConfig(4, 4, 1, 4), rngs=rngs),
    )


@pytest.fixture(scope="module")
def model():
    return filled(make)


def picture(seed: int) -> jax.Array:
    return jnp.asarray(np.tanh(0.5 * normal(2, 16, 24, 3, seed=seed)))


@pytest.fixture(scope="module")
def attention():
    return jnp.asarray(np.random.default_rng(3).uniform(size=(2, 16, 24, 1)).astype(np.float32))


@pytest.fixture(scope="module")
def given(model, attention):
    hint = call(model, picture(0), picture(1), attention, method="conditions")
    prompt, negative = (jnp.asarray(normal(2, 3, 8, seed=i)) for i in (4, 5))
    return Given(hint, prompt, negative[:1], 2.5)


def test_a_cleaner_that_enlarges_sees_a_quarter_of_the_picture(model):
    lq = picture(0)
    quarter = np.asarray(lq).reshape(2, 4, 4, 6, 4, 3).mean((2, 4))
    assert (got := call(model, lq, method="clean")).shape == lq.shape
    close(got, np.asarray(call(model.cleaner, jnp.asarray(quarter))), 1e-5)


def test_conditions_stand_side_by_side(model, given, attention):
    """Modes of the posterior, scaled, in the order of Figure 2."""
    for start, image in ((0, picture(0)), (4, picture(1))):
        mean, _ = call(model.vae, image, method="encode")
        close(given.hint[..., start : start + 4], model.vae.scaling_factor * np.asarray(mean), 1e-5)
    means = np.asarray(attention).reshape(2, 8, 2, 12, 2, 1).mean((2, 4))
    np.testing.assert_allclose(given.hint[..., 8:], means, rtol=1e-6)
    alone = call(model, picture(0), method="conditions")
    np.testing.assert_allclose(alone, given.hint[..., :4], atol=1e-6)
    assert reduced(attention, 1) is not None and reduced(attention, 1).shape == attention.shape


def test_two_prompts_are_guided_in_one_batch_under_the_same_hint(model, given):
    z, t = jnp.asarray(normal(*SHAPE)), jnp.asarray([700, 20])

    def plain(prompt: jax.Array) -> np.ndarray:
        prompt = jnp.broadcast_to(prompt, given.prompt.shape)
        control = call(model.control, z, t, prompt, given.hint)
        return np.asarray(call(model.unet, z, t, prompt, control))

    base, prompted = plain(given.negative), plain(given.prompt)
    assert abs(base - prompted).max() > 0.01
    want = base + 2.5 * (prompted - base)
    close(call(model, z, t, given, method="noise"), want, 1e-4)
    for one in (given._replace(negative=None), given._replace(cfg=1.0)):
        got = jax.jit(lambda z, one=one: model.noise(z, t, one))(z)
        close(got, prompted, 1e-4)
    without = given._replace(negative=None, control_scale=0.0)
    close(
        call(model, z, t, without, method="noise"),
        np.asarray(call(model.unet, z, t, given.prompt)),
        1e-5,
    )


def test_eq4_by_hand():
    error = jnp.asarray([[1.0, 2.0], [3.0, 4.0]])[None, ..., None]
    a = jnp.asarray([[0.0, 1.0], [0.5, 0.0]])[None, ..., None]
    # (1 + 16 + 20.25 + 16) / 4
    assert losses.weighted_mse(error, jnp.zeros_like(error), a) == 13.3125
    x, y = jnp.asarray(normal(*SHAPE)), jnp.asarray(normal(*SHAPE, seed=1))
    zeros = jnp.zeros((*SHAPE[:3], 1))
    plain = losses.mse(x, y)
    assert losses.weighted_mse(x, y, zeros) == plain
    np.testing.assert_allclose(losses.weighted_mse(x, y, zeros + 1), 4 * plain, rtol=1e-6)


def test_the_loss_is_eq4_of_the_noise_that_is_seen(model, given, attention):
    z0, noise = jnp.asarray(normal(*SHAPE)), jnp.asarray(normal(*SHAPE, seed=1))
    t, one = jnp.asarray([500, 100]), given._replace(negative=None)
    signal, sigma = (np.asarray(c) for c in sampler.Schedule().coefficients(t))
    eps = np.asarray(call(model, signal * z0 + sigma * noise, t, one, method="noise"))
    weights = 1 + np.asarray(given.hint[..., 8:])
    want = np.mean((weights * (eps - np.asarray(noise))) ** 2)
    np.testing.assert_allclose(
        call(model, z0, t, noise, one, attention, method="loss"), want, rtol=1e-4
    )
    np.testing.assert_allclose(
        call(model, z0, t, noise, one, method="loss"), np.mean((eps - noise) ** 2), rtol=1e-4
    )


@pytest.fixture(scope="module")
def part_loss():
    parser = filled(lambda rngs: PartParser(PartParserConfig.five(), rngs=rngs), 7)
    return body_parts.parser_loss(jax.jit(lambda image: parser(image)), picture(0))


STEPS = make_steps(6)
KEYS = jax.random.split(jax.random.key(2), 2)


@pytest.mark.parametrize("through", ["decoder", "unet"])
def test_the_gradient_is_a_difference(model, given, part_loss, through):
    """Through VAE and parser and, by choice, U-Net and ControlNet; eps is held for the first."""
    guidance, one = Guidance(model.latent_loss(part_loss), 1.0), given._replace(negative=None)
    z, number, predict = jnp.asarray(normal(*SHAPE)), 3, model.predict(one)

    def clean(z: jax.Array) -> jax.Array:
        return sampler.clean(STEPS, number, z, sampler.predicted(STEPS, number, z, predict))

    if through == "decoder":
        at, loss = jax.jit(clean)(z), jax.jit(guidance.loss)
        gradient = jax.jit(lambda z0: sampler.by_clean(z0, guidance))(at)
    else:
        at, loss = z, jax.jit(lambda z: guidance.loss(clean(z)))
        gradient = jax.jit(lambda z: sampler.by_noisy(STEPS, number, z, predict, guidance)[0])(at)
    length = jnp.sqrt(jnp.sum(jnp.square(gradient)))
    h = 0.03
    step = h * gradient / length
    slope = jnp.sum(loss(at + step) - loss(at - step)) / (2 * h)
    np.testing.assert_allclose(slope, length, rtol=1e-2)


def test_sampling_with_and_without_guidance(model, given, part_loss):
    one = given._replace(negative=None)
    loss = jax.jit(model.latent_loss(part_loss))

    def run(scale: float | None, given: Given = one, keys=KEYS, begin="noise") -> np.ndarray:
        guidance = scale is not None and Guidance(model.latent_loss(part_loss), scale)
        program = jax.jit(
            lambda given, keys: model.sample(given, STEPS, keys, begin, guidance or None)
        )
        return np.asarray(program(given, keys))

    plain = run(None)
    np.testing.assert_array_equal(plain, run(0.0))
    assert loss(run(0.3)).mean() < loss(plain).mean()
    # A picture alone is what it is beside another, but for rounding.
    second = one._replace(hint=one.hint[1:], prompt=one.prompt[1:])
    alone = run(None, second, KEYS[1:])
    np.testing.assert_allclose(alone[0], plain[1], rtol=1e-3, atol=1e-3 * abs(plain[1]).max())
    assert abs(plain[0] - plain[1]).max() > 0.1
    assert abs(run(None, begin="cond") - plain).max() > 1e-3
    assert abs(call(model, jnp.asarray(plain), method="decode")).max() <= 1
