"""Settings -> a one-step restorer with random weights: OSDHuman's, or HAODiff's by two prompts.

DiffBody's VAE and U-Net are a restorer's, too, which has no prompter where it is given texts.
"""

from functools import partial

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from osdhuman_jax.config import ModelConfig
from osdhuman_jax.methods.dual_prompts import DualPrompter
from osdhuman_jax.methods.haodiff import DualPromptRestorer
from osdhuman_jax.methods.osdhuman import OneStepRestorer
from osdhuman_jax.methods.prompts import HFIE, HFIEPrompter
from osdhuman_jax.networks.swin import RAMEncoder
from osdhuman_jax.networks.types import LayerOptions
from osdhuman_jax.networks.unet import UNet2DConditionModel
from osdhuman_jax.networks.vae import AutoencoderKL


def build_restorer(
    config: ModelConfig,
    *,
    dtype: DTypeLike = jnp.float32,
    param_dtype: DTypeLike = jnp.float32,
    rngs: nnx.Rngs,
) -> OneStepRestorer:
    """A restorer with random weights, prompted by HFIE or, with `config.dual`, by two prompts.

    With `config.text` it has no prompter.

    HFIE and embedders are trained, so their parameters are float32 whatever `param_dtype` is.
    Raises ValueError where VAE and U-Net disagree on the latent's channels.
    """
    # The U-Net's input is the latent itself, so that a mismatch could only fail later.
    latent, denoised = config.vae.latent_channels, config.unet.in_channels
    if latent != denoised:
        pair = f"{latent} and {denoised}"
        raise ValueError(f"vae.latent_channels and unet.in_channels differ: {pair}")
    kw: LayerOptions = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
    width = config.unet.cross_attention_dim

    # The prompter first: its tokens are as wide as the U-Net attends to.
    make, prompter = OneStepRestorer, None
    if config.dual:
        make = partial(DualPromptRestorer, guidance=config.dual.guidance)
        prompter = DualPrompter(config.dual, width=width, **kw)
    elif not config.text:
        # Keys and values from RAM's embeddings.
        embeddings = config.swin.image_proj_dim
        encoder = RAMEncoder(config.swin, **kw)
        hfie = HFIE(config.hfie, dim=width, kv_dim=embeddings, dtype=dtype, rngs=rngs)
        prompter = HFIEPrompter(encoder, hfie)
    vae, unet = AutoencoderKL(config.vae, **kw), UNet2DConditionModel(config.unet, **kw)
    return make(vae, unet, prompter, config.timestep)
