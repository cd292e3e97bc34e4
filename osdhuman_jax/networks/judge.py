"""A critic of latents that is a diffusion model's U-Net, down to its middle, with a small head.

DMD2 (Yin et al. 2024, section 4.3) lets the features of a diffusion model tell real latents from
generated ones: it knows how pictures look at every amount of noise. HAODiff trains its generator
against one (stage 2). Latents are (B, H, W, C), noised to timestep t; the prompt describes them.
"""

from typing import Unpack

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from osdhuman_jax.networks.configs import UNetConfig
from osdhuman_jax.networks.layers import Feature, GroupNorm, conv1x1
from osdhuman_jax.networks.types import Latent, LayerOptions, Timestep, Tokens
from osdhuman_jax.networks.unet import EPSILON, UNet2DConditionModel


class JudgeHead(nnx.Module):
    """The middle block's features -> one logit: two strided convolutions with norms, and a last."""

    def __init__(self, width: int, groups: int, **kw: Unpack[LayerOptions]):
        # An eighth of the side in all; from SD's middle block of 512 pixels a single place is left.
        self.conv1 = nnx.Conv(width, width, (4, 4), (2, 2), padding=((1, 1), (1, 1)), **kw)
        self.norm1 = GroupNorm(width, groups, EPSILON, **kw)
        self.conv2 = nnx.Conv(width, width, (4, 4), (4, 4), padding="VALID", **kw)
        self.norm2 = GroupNorm(width, groups, EPSILON, **kw)
        self.conv_out = conv1x1(width, 1, **kw)

    def __call__(self, x: Feature) -> Float[Array, " b"]:
        x = jax.nn.silu(self.norm1(self.conv1(x)))  # [B, h/2, w/2, C]
        x = jax.nn.silu(self.norm2(self.conv2(x)))  # [B, h/8, w/8, C]
        return self.conv_out(x).astype(jnp.float32).mean((1, 2, 3))


class Judge(nnx.Module):
    """U-Net and head: noised latents, timesteps, prompt -> logits (B,), higher for real ones."""

    def __init__(self, config: UNetConfig, **kw: Unpack[LayerOptions]):
        self.unet = UNet2DConditionModel(config, **kw)
        # The head is trained, and so in float32.
        width, groups = config.block_out_channels[-1], config.norm_num_groups
        self.head = JudgeHead(width, groups, rngs=kw["rngs"])

    def __call__(self, z: Latent, t: Timestep, context: Tokens) -> Float[Array, " b"]:
        return self.head(self.unet.features(z, t, context).astype(jnp.float32))
