"""The autoencoder against diffusers' on random weights, block by block and whole."""

from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from convert import abstract, call, close, filled, from_torch, nchw, normal, randomise
from dtypes import convolutions
from flax import nnx

from benchmarks import references
from osdhuman_jax.config import ModelConfig
from osdhuman_jax.methods import lora
from osdhuman_jax.networks.configs import HFIEConfig, SwinConfig, UNetConfig, VAEConfig
from osdhuman_jax.networks.layers import depth_to_space, space_to_depth
from osdhuman_jax.networks.vae import AutoencoderKL
from osdhuman_jax.weights import random_restorer

PLANS = {
    "sd": {"block_out_channels": (32, 48, 64, 64), "layers_per_block": 2, "latent_channels": 4},
    "no_attention": {"block_out_channels": (16, 32), "layers_per_block": 1, "latent_channels": 8},
}
for name, plan in PLANS.items():
    plan |= {"norm_num_groups": 8, "scaling_factor": 0.18215}
    plan["mid_block_add_attention"] = name != "no_attention"


def ours(name: str, rngs, **kw) -> AutoencoderKL:
    return AutoencoderKL(VAEConfig(**PLANS[name]), rngs=rngs, **kw)


@lru_cache
def make_pair(name: str):
    theirs = randomise(references.vae(PLANS[name]))
    return PLANS[name], theirs, from_torch(lambda rngs: ours(name, rngs), theirs)


@pytest.fixture(params=list(PLANS))
def pair(request):
    """(plan, diffusers' network, ours with its weights)."""
    return make_pair(request.param)


@pytest.mark.parametrize(
    ("pair", "size"), [("sd", (27, 21)), ("no_attention", (16, 24))], indirect=["pair"]
)
def test_encode(pair, size):
    _, theirs, mine = pair
    x = normal(2, *size, 3).clip(-1, 1)
    want = theirs.encode(nchw(x)).latent_dist
    mean, logvar = call(mine, x, method="encode")
    close(mean, want.mean, 1e-4)
    close(logvar, want.logvar, 1e-4)


@pytest.mark.parametrize(
    ("pair", "size"), [("sd", (3, 5)), ("no_attention", (4, 6))], indirect=["pair"]
)
def test_decode(pair, size):
    plan, theirs, mine = pair
    z = normal(2, *size, plan["latent_channels"])
    got = call(mine, z, method="decode")
    assert got.shape == (2, size[0] * mine.downscale, size[1] * mine.downscale, 3)
    close(got, theirs.decode(nchw(z)).sample, 1e-4)


@pytest.mark.parametrize("part", ["encoder", "decoder"])
@pytest.mark.parametrize("pair", ["sd"], indirect=True)
def test_blocks(pair, part):
    plan, theirs, mine = pair
    theirs, mine = getattr(theirs, part), getattr(mine, part)
    deep = plan["block_out_channels"][-1]
    x = normal(2, 5, 4, deep)
    close(call(mine.mid_block, x), theirs.mid_block(nchw(x)), 1e-5)
    if part == "encoder":
        x = normal(2, 7, 6, plan["block_out_channels"][0])
        close(call(mine.down_blocks[0], x), theirs.down_blocks[0](nchw(x)), 1e-5)
    else:
        close(call(mine.up_blocks[0], x), theirs.up_blocks[0](nchw(x)), 1e-5)


def test_log_variance_is_clamped():
    vae = filled(lambda rngs: ours("no_attention", rngs))
    vae.quant_conv.bias[...] = jnp.asarray([0.0] * 8 + [-1e3] * 4 + [1e3] * 4)
    _, logvar = call(vae, normal(1, 4, 4, 3), method="encode")
    np.testing.assert_array_equal(logvar[..., :4], jnp.full((1, 2, 2, 4), -30.0))
    np.testing.assert_array_equal(logvar[..., 4:], jnp.full((1, 2, 2, 4), 20.0))


def test_images_and_latents_are_float32_in_bfloat16_networks():
    vae = abstract(lambda rngs: ours("sd", rngs, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16))
    mean, logvar = jax.eval_shape(lambda v: v.encode(jnp.zeros((1, 16, 16, 3))), vae)
    image = jax.eval_shape(lambda v: v.decode(jnp.zeros((1, 2, 2, 4))), vae)
    assert {x.dtype for x in (mean, logvar, image)} == {jnp.dtype(jnp.float32)}
    assert (mean.shape, logvar.shape, image.shape) == ((1, 2, 2, 4), (1, 2, 2, 4), (1, 16, 16, 3))


RESIDUAL = ModelConfig(
    vae=VAEConfig(48, (16,), 1, 4, 1.0, False, stem=4),
    unet=UNetConfig(48, (16,), ("CrossAttnDownBlock2D",), 1, (2,), 8, 4),
    swin=SwinConfig(16, 4, 4, (1,), (1,), 2, 4.0, image_proj_dim=8),
    hfie=HFIEConfig(num_queries=3, num_heads=2),
)


def test_squares_become_channels_and_pixels_again():
    x = jnp.asarray(normal(2, 8, 12, 3))
    squares = np.asarray(space_to_depth(x, 4))
    assert squares.shape == (2, 2, 3, 48)
    np.testing.assert_array_equal(squares[1, 1, 2].reshape(4, 4, 3), x[1, 4:8, 8:12])
    np.testing.assert_array_equal(depth_to_space(jnp.asarray(squares), 4), x)


def test_residual_autoencoder_begins_as_the_identity():
    model = random_restorer(RESIDUAL, 0)
    assert (model.vae.downscale, model.multiple) == (4, 4)
    x = jnp.asarray(normal(1, 16, 24, 3).clip(-1, 1))
    mean, logvar = model.vae.encode(x)
    np.testing.assert_array_equal(mean, space_to_depth(x, 4))
    np.testing.assert_allclose(logvar, -6.0)
    np.testing.assert_array_equal(model.vae.decode(mean), x)


def test_residual_autoencoder_adds_what_it_has_learnt():
    vae = random_restorer(RESIDUAL, 0).vae
    vae.encoder.conv_out.bias.set_value(vae.encoder.conv_out.bias[...] + 1.0)
    vae.decoder.conv_out.bias.set_value(vae.decoder.conv_out.bias[...] + 0.5)
    x = jnp.asarray(normal(1, 8, 8, 3))
    mean, _ = vae.encode(x)
    shift = (jnp.ones((1, 1, 1, 96)) @ vae.quant_conv.kernel[0, 0])[..., :48]
    np.testing.assert_allclose(
        mean - space_to_depth(x, 4), jnp.broadcast_to(shift, mean.shape), atol=1e-5
    )
    z = space_to_depth(x, 4)
    np.testing.assert_allclose(vae.decode(z) - x, 0.5, atol=1e-6)


def test_residual_latent_holds_every_pixel():
    with pytest.raises(ValueError, match="latent_channels: 16 are not the values of 4 x 4 pixels"):
        AutoencoderKL(VAEConfig(16, (16,), 1, 4, 1.0, False, stem=4), rngs=nnx.Rngs(0))


@pytest.mark.parametrize("rank", [0, 2])
def test_the_latent_is_not_rounded_in_bfloat16_networks(rank):
    """Eq. 2 multiplies what is lost here: the encoder's last two convolutions are float32."""

    def make(rngs):
        vae = ours("no_attention", rngs, dtype=jnp.bfloat16)
        if rank:
            targets = lora.vae_encoder_targets(vae)
            lora.inject(vae, targets, rank=rank, alpha=4.0, rng=np.random.default_rng(0))
        return vae

    vae = filled(make)
    image = normal(1, 16, 16, 3)
    found = convolutions(lambda x: vae.encode(x), image)
    tail = 4 if rank else 2  # an adapter brings a convolution of its own
    assert set(found[:-tail]) == {("bfloat16", False)}
    assert found[-tail:] == [("float32", True)] * tail
    mean, _ = call(vae, image, method="encode")
    assert (mean != mean.astype(jnp.bfloat16).astype(jnp.float32)).mean() > 0.9
