"""The one-step restorer against its parts, composed by hand."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from convert import call, count, filled, normal
from flax import nnx

from osdhuman_jax.methods import lora
from osdhuman_jax.methods.build import build_restorer
from osdhuman_jax.methods.osdhuman import OneStepRestorer
from osdhuman_jax.methods.prompts import FixedPrompter

# The one step of Stable Diffusion: nearly no signal is left, and the latent is scaled.
MODEL = replace(tiny.DEEP, timestep=999, vae=replace(tiny.DEEP.vae, scaling_factor=0.18215))


def build(rngs, **kw) -> OneStepRestorer:
    return build_restorer(MODEL, rngs=rngs, **kw)


@pytest.fixture(scope="module")
def restorer() -> OneStepRestorer:
    return filled(build)


@pytest.fixture(scope="module")
def lq() -> np.ndarray:
    return normal(2, 16, 24, 3).clip(-1, 1)


@pytest.fixture(scope="module")
def restored(restorer, lq) -> np.ndarray:
    """Result on which several tests look."""
    return np.asarray(call(restorer, lq))


def test_result_is_an_image_of_the_same_size(restored, lq):
    assert restored.shape == lq.shape and restored.dtype == np.float32
    assert restored.min() == -1.0 and restored.max() == 1.0  # random weights reach both clamps
    assert (np.abs(restored) < 1).mean() > 0.05


def test_equals_the_composition_by_hand(restorer, restored, lq):
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    alpha_bar = np.prod(1 - betas)
    mean, _ = call(restorer.vae, lq, method="encode")
    z = 0.18215 * np.asarray(mean)
    eps = call(restorer.unet, z, np.full(2, 999, np.int32), call(restorer.prompter, lq))
    x0 = (z - (1 - alpha_bar) ** 0.5 * np.asarray(eps)) / alpha_bar**0.5
    image = call(restorer.vae, (x0 / 0.18215).astype(np.float32), method="decode")
    # rounding of eps grows by 14.65 / 0.18215 = 80 before the decoder sees it
    np.testing.assert_allclose(restored, np.clip(image, -1, 1), atol=1e-3)


def test_noise_samples_the_posterior(restorer, lq):
    mean, logvar = call(restorer.vae, lq, method="encode")
    noises = [normal(*mean.shape, seed=i) for i in range(2)]
    first, second = (call(restorer, lq, noise, method="encode") for noise in noises)
    want = 0.18215 * (mean + jnp.exp(logvar / 2) * noises[0])
    np.testing.assert_allclose(first, want, atol=1e-5)
    assert float(jnp.abs(first - second).max()) > 0.1
    np.testing.assert_array_equal(call(restorer, lq, noises[0], method="encode"), first)


def test_bfloat16_latent_is_near_the_float32_one(restorer):
    half = filled(lambda rngs: build(rngs, dtype=jnp.bfloat16))
    z, prompt = normal(2, 6, 5, 4), normal(2, 3, 8, seed=1)
    want, got = (call(model, z, prompt, method="denoise") for model in (restorer, half))
    assert got.dtype == jnp.float32
    assert float((got - want).std() / want.std()) < 0.03


class Echo(OneStepRestorer):
    """Paints every picture with the first number of its prompt."""

    def encode(self, image, noise=None):
        return image

    def denoise(self, latent, prompt):
        return jnp.broadcast_to(prompt[:, :1, :1, None], latent.shape)

    def decode(self, latent):
        return latent


def test_a_given_prompt_takes_the_place_of_the_prompters(restorer, lq):
    fixed = FixedPrompter(jnp.full((3, 8), 0.25))
    ours, bare = (Echo(restorer.vae, restorer.unet, p, 999) for p in (fixed, None))
    given = np.asarray([0.5, -0.5], np.float32)[:, None, None] * np.ones((2, 3, 8), np.float32)
    np.testing.assert_array_equal(call(ours, lq), np.full_like(lq, 0.25))
    for model in (ours, bare):
        got = call(model, lq, given)
        np.testing.assert_array_equal(got, np.sign(got) * 0.5)
        assert (got[0] > 0).all() and (got[1] < 0).all()
    with pytest.raises(ValueError, match="no prompter"):
        bare(jnp.asarray(lq))


def test_side_that_needs_no_resize(restorer, sd21):
    assert (restorer.multiple, sd21.multiple) == (4, 64)


def test_latent_channels_must_agree():
    config = replace(MODEL, unet=replace(MODEL.unet, in_channels=8))
    with pytest.raises(ValueError, match="4 and 8"):
        build_restorer(config, rngs=nnx.Rngs(0))


def test_defaults_are_stable_diffusion_and_ram(sd21):
    def own(module):
        return count(module) - count(module, lora.LoRAParam)

    assert own(sd21.unet) == 865_910_724
    assert own(sd21.vae) == 83_653_863
    assert own(sd21.vae.encoder) + own(sd21.vae.quant_conv) == 34_163_664
    assert own(sd21.prompter.image_encoder.visual_encoder) == 195_198_516
    assert own(sd21.prompter.image_encoder.image_proj) == 786_944
    assert own(sd21.prompter.hfie) == 3_228_672
    assert (sd21.timestep, sd21.vae.downscale, sd21.vae.scaling_factor) == (999, 8, 0.18215)
