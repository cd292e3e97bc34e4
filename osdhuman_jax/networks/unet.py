"""UNet2DConditionModel of Stable Diffusion: latent (B, H, W, C), timestep, tokens -> eps, float32.

Attribute names are diffusers'. Any H, W: where a level's side is odd, the way up resizes to it.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float

from osdhuman_jax.networks.convolution import Conv3x3
from osdhuman_jax.networks.layers import (
    EXACT,
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
from osdhuman_jax.networks.types import Latent, Timestep, Tokens

EPSILON = 1e-5
Embedding = Float[Array, "b e"]


class DownBlock2D(nnx.Module):
    """Resnets with (CrossAttnDownBlock2D) or without attention; returns every skip it makes."""

    def __init__(self, cin: int, cout: int, layers: int, attention: Any, down: bool, **kw: Any):
        resnet, plain = kw.pop("resnet"), kw
        self.resnets = nnx.List(
            ResnetBlock2D(cout if i else cin, cout, **resnet, **plain) for i in range(layers)
        )
        self.attentions = nnx.List(
            Transformer2DModel(cout, **attention, **plain)
            for _ in range(layers if attention else 0)
        )
        self.downsamplers = nnx.List([Downsample2D(cout, **plain)] if down else [])

    def __call__(
        self, x: Feature, temb: Embedding, context: Tokens
    ) -> tuple[Resized, list[Resized]]:
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
    """Resnet, attention, resnet."""

    def __init__(self, channels: int, attention: dict[str, Any], **kw: Any):
        resnet, plain = kw.pop("resnet"), kw
        self.resnets = nnx.List(
            ResnetBlock2D(channels, channels, **resnet, **plain) for _ in range(2)
        )
        self.attentions = nnx.List([Transformer2DModel(channels, **attention, **plain)])

    def __call__(self, x: Feature, temb: Embedding, context: Tokens) -> Feature:
        x = self.attentions[0](self.resnets[0](x, temb), context)
        return self.resnets[1](x, temb)


class UpBlock2D(nnx.Module):
    """Resnets on [hidden, skip], maybe attention, then a resize to the next skip's size."""

    def __init__(self, cins: list[int], cout: int, attention: Any, up: bool, **kw: Any):
        resnet, plain = kw.pop("resnet"), kw
        self.resnets = nnx.List(ResnetBlock2D(cin, cout, **resnet, **plain) for cin in cins)
        self.attentions = nnx.List(
            Transformer2DModel(cout, **attention, **plain) for _ in (cins if attention else [])
        )
        self.upsamplers = nnx.List([Upsample2D(cout, **plain)] if up else [])

    def __call__(
        self, x: Feature, skips: list[Resized], temb: Embedding, context: Tokens
    ) -> Resized:
        for i, resnet in enumerate(self.resnets):
            x = resnet(jnp.concatenate([x, skips.pop()], axis=-1), temb)
            x = self.attentions[i](x, context) if len(self.attentions) else x
        for upsample in self.upsamplers:
            x = upsample(x, (skips[-1].shape[1], skips[-1].shape[2]))
        return x


class UNet2DConditionModel(nnx.Module):
    """The denoiser. `num_attention_heads` is per level (attention_head_dim in diffusers files)."""

    def __init__(
        self,
        *,
        in_channels: int,
        block_out_channels: tuple[int, ...],
        down_block_types: tuple[str, ...],
        layers_per_block: int,
        num_attention_heads: tuple[int, ...],
        cross_attention_dim: int,
        norm_num_groups: int,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        channels = tuple(block_out_channels)
        plain: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        temb = 4 * channels[0]
        kw: dict[str, Any] = {
            "resnet": {"groups": norm_num_groups, "epsilon": EPSILON, "temb_channels": temb},
            **plain,
        }

        def attention(level: int) -> dict[str, Any]:
            heads = num_attention_heads[level]
            return {"heads": heads, "context_dim": cross_attention_dim, "groups": norm_num_groups}

        attends = [kind == "CrossAttnDownBlock2D" for kind in down_block_types]
        last = len(channels) - 1
        self.time_proj_dim = channels[0]
        # Both ends compute in float32 whatever `dtype` is: the latent is not rounded on its way in,
        # and Eq. 2 multiplies the error of eps by 14.6 at t = 999.
        exact: dict[str, Any] = {**plain, **EXACT}
        self.dtype = dtype
        self.conv_in = Conv3x3(in_channels, channels[0], **exact)
        self.time_embedding = TimestepEmbedding(channels[0], temb, **plain)
        self.down_blocks = nnx.List(
            DownBlock2D(
                channels[max(i - 1, 0)],
                cout,
                layers_per_block,
                attention(i) if attends[i] else None,
                i < last,
                **kw,
            )
            for i, cout in enumerate(channels)
        )
        self.mid_block = UNetMidBlock2DCrossAttn(channels[-1], attention(last), **kw)
        self.up_blocks = nnx.List(
            UpBlock2D(
                up_resnet_inputs(channels, i, layers_per_block),
                channels[i],
                attention(i) if attends[i] else None,
                i > 0,
                **kw,
            )
            for i in range(last, -1, -1)
        )
        norm: dict[str, Any] = {**plain, "dtype": jnp.float32}
        self.conv_norm_out = GroupNorm(channels[0], norm_num_groups, EPSILON, **norm)
        self.conv_out = Conv3x3(channels[0], in_channels, **exact)

    def __call__(self, z: Latent, t: Timestep, context: Tokens) -> Latent:
        temb = self.time_embedding(sinusoidal_embedding(t, self.time_proj_dim))
        x = self.conv_in(z).astype(self.dtype)
        skips = [x]
        for block in self.down_blocks:
            x, made = block(x, temb, context)
            skips += made
        x = self.mid_block(x, temb, context)
        for block in self.up_blocks:
            x = block(x, skips, temb, context)
        return self.conv_out(jax.nn.silu(self.conv_norm_out(x)))


def up_resnet_inputs(channels: tuple[int, ...], level: int, layers: int) -> list[int]:
    """Input channels of the resnets of one up block: hidden + skip, deepest skip first."""
    below = channels[min(level + 1, len(channels) - 1)]
    skips = [channels[level]] * layers + [channels[max(level - 1, 0)]]
    hidden = [below] + [channels[level]] * layers
    return [h + s for h, s in zip(hidden, skips, strict=True)]
