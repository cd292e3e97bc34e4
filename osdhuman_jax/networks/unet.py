"""Stable Diffusion's U-Net: latent (B, H, W, C), timestep and prompt tokens -> noise, float32.

It is the denoiser U of OSDHuman's section 3.2, which adds LoRA to it (Rombach et al. 2022, section
3.3). Attribute names are those of diffusers' UNet2DConditionModel. H and W may be whatever they
are: where a level's side is odd, the way up resizes to it.
"""

from typing import Unpack

import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float

from osdhuman_jax.networks.configs import UNetConfig
from osdhuman_jax.networks.convolution import Conv3x3
from osdhuman_jax.networks.layers import (
    Downsample2D,
    Feature,
    GroupNorm,
    Resized,
    ResnetBlock2D,
    TimestepEmbedding,
    Transformer2DModel,
    Upsample2D,
    sinusoidal_embedding,
)
from osdhuman_jax.networks.types import (
    EXACT,
    ConvolutionOptions,
    Latent,
    LayerOptions,
    Timestep,
    Tokens,
)

# `norm_eps` of Stable Diffusion's unet/config.json.
EPSILON = 1e-5
Embedding = Float[Array, "b e"]
# What ControlNet adds: an array for each skip, in their order, and one for the middle block.
Control = tuple[Resized, ...]


def _resnet(config: UNetConfig, cin: int, cout: int, **kw: Unpack[LayerOptions]) -> ResnetBlock2D:
    return ResnetBlock2D(
        cin,
        cout,
        groups=config.norm_num_groups,
        epsilon=EPSILON,
        temb_channels=_embedding_width(config),
        **kw,
    )


def _transformers(
    config: UNetConfig, level: int, count: int, **kw: Unpack[LayerOptions]
) -> nnx.List[Transformer2DModel]:
    """The `count` transformers of a block at a level; each follows one of its resnets."""
    return nnx.List(
        Transformer2DModel(
            config.block_out_channels[level],
            heads=config.num_attention_heads[level],
            context_dim=config.cross_attention_dim,
            groups=config.norm_num_groups,
            **kw,
        )
        for _ in range(count)
    )


def _embedding_width(config: UNetConfig) -> int:
    """Channels of the timestep's embedding: diffusers has four times the first level's."""
    return 4 * config.block_out_channels[0]


class DownBlock2D(nnx.Module):
    """Resnets with (CrossAttnDownBlock2D) or without attention; returns every skip it makes."""

    def __init__(self, config: UNetConfig, level: int, **kw: Unpack[LayerOptions]):
        channels, layers = config.block_out_channels, config.layers_per_block
        cin, cout = channels[max(level - 1, 0)], channels[level]
        self.resnets = nnx.List(
            _resnet(config, cout if i else cin, cout, **kw) for i in range(layers)
        )
        self.attentions = _transformers(config, level, layers * config.attends(level), **kw)
        # The last level keeps its size: Stable Diffusion's middle block is at an eighth of it.
        halves = level < len(channels) - 1
        self.downsamplers = nnx.List([Downsample2D(cout, **kw)] if halves else [])

    def __call__(
        self, x: Feature, temb: Embedding, context: Tokens
    ) -> tuple[Resized, list[Resized]]:
        # Each resnet's result, after its attention, is one of the skips.
        skips = []
        for i, resnet in enumerate(self.resnets):
            x = resnet(x, temb)
            x = self.attentions[i](x, context) if len(self.attentions) else x
            skips.append(x)
        for downsample in self.downsamplers:
            x = downsample(x)
            skips.append(x)
        return x, skips


class UNetMidBlock2DCrossAttn(nnx.Module):
    """The middle block, at the smallest size: resnet, attention, resnet."""

    def __init__(self, config: UNetConfig, **kw: Unpack[LayerOptions]):
        width = config.block_out_channels[-1]
        self.resnets = nnx.List(_resnet(config, width, width, **kw) for _ in range(2))
        self.attentions = _transformers(config, -1, 1, **kw)

    def __call__(self, x: Feature, temb: Embedding, context: Tokens) -> Feature:
        x = self.attentions[0](self.resnets[0](x, temb), context)
        return self.resnets[1](x, temb)


class UpBlock2D(nnx.Module):
    """Resnets on [hidden, skip], maybe attention, then a resize to the next skip's size."""

    def __init__(self, config: UNetConfig, level: int, **kw: Unpack[LayerOptions]):
        cout, layers = config.block_out_channels[level], config.layers_per_block
        cins = up_resnet_inputs(config.block_out_channels, level, layers)
        self.resnets = nnx.List(_resnet(config, cin, cout, **kw) for cin in cins)
        self.attentions = _transformers(config, level, len(cins) * config.attends(level), **kw)
        self.upsamplers = nnx.List([Upsample2D(cout, **kw)] if level else [])

    def __call__(
        self, x: Feature, skips: list[Resized], temb: Embedding, context: Tokens
    ) -> Resized:
        # Skips are taken from the end: the last that was made is the first that is joined.
        for i, resnet in enumerate(self.resnets):
            x = resnet(jnp.concatenate([x, skips.pop()], axis=-1), temb)  # [B, H, W, C_out]
            x = self.attentions[i](x, context) if len(self.attentions) else x
        # To the next skip's own size, since a halved odd side does not double to what it was.
        for upsample in self.upsamplers:
            x = upsample(x, (skips[-1].shape[1], skips[-1].shape[2]))
        return x


class UNetEncoder(nnx.Module):
    """The half of the U-Net down to its middle block, which ControlNet has a copy of."""

    def __init__(self, config: UNetConfig, in_channels: int, **kw: Unpack[LayerOptions]):
        levels, width = range(len(config.block_out_channels)), config.block_out_channels[0]
        self.time_proj_dim = width
        # Both ends of a U-Net compute in float32 whatever `dtype` is: the latent is not rounded on
        # its way in, and Eq. 2 multiplies the error of eps by 14.6 at t = 999.
        exact: ConvolutionOptions = {**kw, **EXACT}
        self.dtype = kw.get("dtype", jnp.float32)
        self.conv_in = Conv3x3(in_channels, width, **exact)
        self.time_embedding = TimestepEmbedding(width, _embedding_width(config), **kw)
        self.down_blocks = nnx.List(DownBlock2D(config, level, **kw) for level in levels)
        self.mid_block = UNetMidBlock2DCrossAttn(config, **kw)

    def encode(
        self, z: Feature, t: Timestep, context: Tokens
    ) -> tuple[Embedding, Resized, list[Resized]]:
        """The timestep's embedding, the middle block's output, and the skips on the way to it."""
        temb = self.time_embedding(sinusoidal_embedding(t, self.time_proj_dim))  # [B, E]
        x = self.conv_in(z).astype(self.dtype)  # [B, H, W, C_0]
        # Every level halves the size but the last; what it makes is kept.
        skips = [x]
        for block in self.down_blocks:
            x, made = block(x, temb, context)
            skips += made
        return temb, self.mid_block(x, temb, context), skips


class UNet2DConditionModel(UNetEncoder):
    """The denoiser: it estimates the noise in a latent, given the timestep and the prompt."""

    def __init__(
        self,
        config: UNetConfig,
        *,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        kw: LayerOptions = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        super().__init__(config, config.in_channels, **kw)
        # The way up, and an end that is as exact as the beginning.
        levels, width = range(len(config.block_out_channels)), config.block_out_channels[0]
        exact: ConvolutionOptions = {**kw, **EXACT}
        norm: LayerOptions = {**kw, "dtype": jnp.float32}
        self.up_blocks = nnx.List(UpBlock2D(config, level, **kw) for level in reversed(levels))
        self.conv_norm_out = GroupNorm(width, config.norm_num_groups, EPSILON, **norm)
        self.conv_out = Conv3x3(width, config.in_channels, **exact)

    def __call__(
        self, z: Latent, t: Timestep, context: Tokens, control: Control | None = None
    ) -> Latent:
        """eps of a noised latent; `control` is what a ControlNet adds (see controlnet.py).

        Raises ValueError where `control` is not one array a skip and one for the middle block.
        """
        temb, x, skips = self.encode(z, t, context)
        # Added before the way up: to each skip its own, the last to the middle block's output.
        if control is not None:
            x = x + control[-1].astype(x.dtype)
            skips = [s + c.astype(s.dtype) for s, c in zip(skips, control[:-1], strict=True)]
        # Up: every level joins the skips of its own size, which leaves none in the end.
        for block in self.up_blocks:
            x = block(x, skips, temb, context)
        return self.conv_out(self.conv_norm_out(x, silu=True))  # [B, H, W, C]

    def features(self, z: Latent, t: Timestep, context: Tokens) -> Resized:
        """The middle block's output, of which a critic judges (judge.py)."""
        return self.encode(z, t, context)[1]


def up_resnet_inputs(channels: tuple[int, ...], level: int, layers: int) -> list[int]:
    """Input channels of the resnets of one up block: those of the hidden map and of its skip.

    The deepest skip, which was made last on the way down, is joined first.
    """
    # Levels are counted from the top; what comes from below has the width of the level there.
    below = channels[min(level + 1, len(channels) - 1)]
    skips = [channels[level]] * layers + [channels[max(level - 1, 0)]]
    hidden = [below] + [channels[level]] * layers
    return [h + s for h, s in zip(hidden, skips, strict=True)]
