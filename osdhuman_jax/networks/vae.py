"""AutoencoderKL of Stable Diffusion: image (B, H, W, 3) in [-1, 1] <-> latent (B, H/f, W/f, C).

Attribute names are diffusers'. Latents are the raw posterior; the caller applies the scale.

With a `stem` above 1 it is a small residual autoencoder instead (as in Chen et al. 2024, DC-AE):
squares of stem x stem pixels enter and leave as channels, and latent and image are these channels
plus what the networks add. It loses nothing from the first step on, at the cost of a wide latent.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from osdhuman_jax.networks.convolution import Conv3x3
from osdhuman_jax.networks.layers import (
    EXACT,
    Downsample2D,
    Feature,
    GroupNorm,
    Resized,
    ResnetBlock2D,
    SpatialAttention,
    Upsample2D,
    conv1x1,
    depth_to_space,
    space_to_depth,
)
from osdhuman_jax.networks.types import Image, Latent

EPSILON = 1e-6


class DownEncoderBlock2D(nnx.Module):
    """Resnets, then (but for the last block) a halving of the size."""

    def __init__(self, cin: int, cout: int, layers: int, groups: int, down: bool, **kw: Any):
        self.resnets = nnx.List(
            ResnetBlock2D(cout if i else cin, cout, groups=groups, epsilon=EPSILON, **kw)
            for i in range(layers)
        )
        self.downsamplers = nnx.List([Downsample2D(cout, asymmetric=True, **kw)] if down else [])

    def __call__(self, x: Feature) -> Resized:
        for layer in (*self.resnets, *self.downsamplers):
            x = layer(x)
        return x


class UpDecoderBlock2D(nnx.Module):
    """Resnets, then (but for the last block) a doubling of the size."""

    def __init__(self, cin: int, cout: int, layers: int, groups: int, up: bool, **kw: Any):
        self.resnets = nnx.List(
            ResnetBlock2D(cout if i else cin, cout, groups=groups, epsilon=EPSILON, **kw)
            for i in range(layers)
        )
        self.upsamplers = nnx.List([Upsample2D(cout, **kw)] if up else [])

    def __call__(self, x: Feature) -> Resized:
        for layer in (*self.resnets, *self.upsamplers):
            x = layer(x)
        return x


class UNetMidBlock2D(nnx.Module):
    """Resnet, attention, resnet; the attention can be left out."""

    def __init__(self, channels: int, groups: int, add_attention: bool, **kw: Any):
        norm = {"groups": groups, "epsilon": EPSILON}
        self.resnets = nnx.List(ResnetBlock2D(channels, channels, **norm, **kw) for _ in range(2))
        self.attentions = nnx.List(
            [SpatialAttention(channels, **norm, **kw)] if add_attention else []
        )

    def __call__(self, x: Feature) -> Feature:
        for layer in (self.resnets[0], *self.attentions, self.resnets[1]):
            x = layer(x)
        return x


class Encoder(nnx.Module):
    """Image -> moments (mean and log-variance on the channel axis), float32.

    The last norm and convolution compute in float32 whatever `dtype` is: Eq. 2 divides the latent
    by sqrt(alpha_bar), which multiplies its rounding error by 14.6 at t = 999.
    """

    def __init__(
        self,
        latent_channels: int,
        channels: tuple[int, ...],
        layers: int,
        groups: int,
        add_attention: bool,
        stem: int,
        **kw: Any,
    ):
        self.stem = stem
        self.conv_in = Conv3x3(3 * stem**2, channels[0], **kw)
        pairs = zip((channels[0], *channels), channels, strict=False)
        last = len(channels) - 1
        self.down_blocks = nnx.List(
            DownEncoderBlock2D(cin, cout, layers, groups, i < last, **kw)
            for i, (cin, cout) in enumerate(pairs)
        )
        self.mid_block = UNetMidBlock2D(channels[-1], groups, add_attention, **kw)
        exact: dict[str, Any] = {**kw, "dtype": jnp.float32}
        self.conv_norm_out = GroupNorm(channels[-1], groups, EPSILON, **exact)
        self.conv_out = Conv3x3(channels[-1], 2 * latent_channels, **{**kw, **EXACT})

    def __call__(self, x: Image) -> Resized:
        x = space_to_depth(x, self.stem)
        for layer in (self.conv_in, *self.down_blocks, self.mid_block, self.conv_norm_out):
            x = layer(x)
        return self.conv_out(jax.nn.silu(x))


class Decoder(nnx.Module):
    """Latent -> image; no output activation."""

    def __init__(
        self,
        latent_channels: int,
        channels: tuple[int, ...],
        layers: int,
        groups: int,
        add_attention: bool,
        stem: int,
        **kw: Any,
    ):
        self.stem = stem
        down = channels[::-1]
        self.conv_in = Conv3x3(latent_channels, down[0], **kw)
        self.mid_block = UNetMidBlock2D(down[0], groups, add_attention, **kw)
        pairs = zip((down[0], *down), down, strict=False)
        self.up_blocks = nnx.List(
            UpDecoderBlock2D(cin, cout, layers + 1, groups, i < len(down) - 1, **kw)
            for i, (cin, cout) in enumerate(pairs)
        )
        self.conv_norm_out = GroupNorm(down[-1], groups, EPSILON, **kw)
        self.conv_out = Conv3x3(down[-1], 3 * stem**2, **kw)

    def __call__(self, z: Latent) -> Image:
        x = z
        for layer in (self.conv_in, self.mid_block, *self.up_blocks, self.conv_norm_out):
            x = layer(x)
        return depth_to_space(self.conv_out(jax.nn.silu(x)), self.stem)


class AutoencoderKL(nnx.Module):
    """Encoder, decoder and the two pointwise convolutions beside the latent.

    Raises ValueError where a residual one's latent has not as many channels as a square has values.
    """

    def __init__(
        self,
        *,
        latent_channels: int,
        block_out_channels: tuple[int, ...],
        layers_per_block: int,
        norm_num_groups: int,
        scaling_factor: float,
        mid_block_add_attention: bool,
        stem: int = 1,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        kw: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        sizes = (
            latent_channels,
            tuple(block_out_channels),
            layers_per_block,
            norm_num_groups,
            mid_block_add_attention,
            stem,
        )
        self.scaling_factor = scaling_factor
        self.downscale = stem * 2 ** (len(block_out_channels) - 1)
        self.residual = stem > 1
        if self.residual and latent_channels != 3 * self.downscale**2:
            text = f"{self.downscale} x {self.downscale} pixels"
            raise ValueError(f"latent_channels: {latent_channels} are not the values of {text}")
        self.encoder = Encoder(*sizes, **kw)
        # In float32 as the encoder's last layers, and for the same reason.
        self.quant_conv = conv1x1(2 * latent_channels, 2 * latent_channels, **{**kw, **EXACT})
        self.post_quant_conv = conv1x1(latent_channels, latent_channels, **kw)
        self.decoder = Decoder(*sizes, **kw)

    def encode(self, x: Image) -> tuple[Latent, Latent]:
        """Mean and log-variance (clamped to [-30, 20]) of the posterior, float32."""
        moments = self.quant_conv(self.encoder(x))
        mean, logvar = jnp.split(moments, 2, axis=-1)
        if self.residual:
            mean = mean + space_to_depth(x, self.downscale).astype(jnp.float32)
        return mean, jnp.clip(logvar, -30.0, 20.0)

    def decode(self, z: Latent) -> Image:
        """Image of an unscaled latent, float32, not clamped."""
        image = self.decoder(self.post_quant_conv(z)).astype(jnp.float32)
        return image + depth_to_space(z, self.downscale) if self.residual else image
