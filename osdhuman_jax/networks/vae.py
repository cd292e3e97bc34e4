"""Stable Diffusion's autoencoder: image (B, H, W, 3) in [-1, 1] <-> latent (B, H/f, W/f, C).

It is E and D of OSDHuman's section 3.2, and the first stage of latent diffusion (Rombach et al.
2022, section 3.1). Attribute names are those of diffusers' AutoencoderKL. Latents are the raw
posterior; the caller applies the scaling factor.

With a `stem` above 1 it is a small residual autoencoder instead (as in Chen et al. 2024, DC-AE):
squares of stem x stem pixels enter and leave as channels, and latent and image are these channels
plus what the networks add. It loses nothing from the first step on, at the cost of a wide latent.
"""

from typing import Unpack

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from osdhuman_jax.networks.configs import VAEConfig
from osdhuman_jax.networks.convolution import Conv3x3
from osdhuman_jax.networks.layers import (
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
from osdhuman_jax.networks.types import (
    EXACT,
    ConvolutionOptions,
    Image,
    Latent,
    LayerOptions,
)

# Of the group norms; it stands in the code of diffusers and latent diffusion, in no config.
EPSILON = 1e-6


def _resnet(config: VAEConfig, cin: int, cout: int, **kw: Unpack[LayerOptions]) -> ResnetBlock2D:
    return ResnetBlock2D(cin, cout, groups=config.norm_num_groups, epsilon=EPSILON, **kw)


class DownEncoderBlock2D(nnx.Module):
    """Resnets, then (but for the last block) a halving of the size."""

    def __init__(self, config: VAEConfig, level: int, **kw: Unpack[LayerOptions]):
        channels = config.block_out_channels
        cin, cout = channels[max(level - 1, 0)], channels[level]
        self.resnets = nnx.List(
            _resnet(config, cout if i else cin, cout, **kw) for i in range(config.layers_per_block)
        )
        # The deepest level keeps its size: three levels of four halve it, hence a factor of 8.
        halves = level < len(channels) - 1
        self.downsamplers = nnx.List([Downsample2D(cout, asymmetric=True, **kw)] if halves else [])

    def __call__(self, x: Feature) -> Resized:
        for layer in (*self.resnets, *self.downsamplers):
            x = layer(x)
        return x


class UpDecoderBlock2D(nnx.Module):
    """Resnets, then (but for the last block) a doubling of the size."""

    def __init__(self, config: VAEConfig, level: int, **kw: Unpack[LayerOptions]):
        channels = config.block_out_channels
        # The decoder goes through the levels from the deepest, whose input is the middle block's.
        cin, cout = channels[min(level + 1, len(channels) - 1)], channels[level]
        self.resnets = nnx.List(
            _resnet(config, cout if i else cin, cout, **kw)
            for i in range(config.layers_per_block + 1)
        )
        self.upsamplers = nnx.List([Upsample2D(cout, **kw)] if level else [])

    def __call__(self, x: Feature) -> Resized:
        for layer in (*self.resnets, *self.upsamplers):
            x = layer(x)
        return x


class UNetMidBlock2D(nnx.Module):
    """The middle block, at the smallest size: resnet, attention (if the config has it), resnet."""

    def __init__(self, config: VAEConfig, **kw: Unpack[LayerOptions]):
        width, groups = config.block_out_channels[-1], config.norm_num_groups
        self.resnets = nnx.List(_resnet(config, width, width, **kw) for _ in range(2))
        self.attentions = nnx.List(
            [SpatialAttention(width, groups=groups, epsilon=EPSILON, **kw)]
            if config.mid_block_add_attention
            else []
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

    def __init__(self, config: VAEConfig, **kw: Unpack[LayerOptions]):
        channels = config.block_out_channels
        self.stem = config.stem
        self.conv_in = Conv3x3(3 * config.stem**2, channels[0], **kw)
        self.down_blocks = nnx.List(
            DownEncoderBlock2D(config, level, **kw) for level in range(len(channels))
        )
        self.mid_block = UNetMidBlock2D(config, **kw)
        # Norm and convolution each in float32, the convolution's products exact besides.
        norm: LayerOptions = {**kw, "dtype": jnp.float32}
        self.conv_norm_out = GroupNorm(channels[-1], config.norm_num_groups, EPSILON, **norm)
        exact: ConvolutionOptions = {**kw, **EXACT}
        self.conv_out = Conv3x3(channels[-1], 2 * config.latent_channels, **exact)

    def __call__(self, x: Image) -> Resized:
        x = space_to_depth(x, self.stem)  # [B, H/stem, W/stem, 3 stem^2]
        for layer in (self.conv_in, *self.down_blocks, self.mid_block):
            x = layer(x)
        return self.conv_out(self.conv_norm_out(x, silu=True))  # [B, H/f, W/f, 2 C]


class Decoder(nnx.Module):
    """Unscaled latent -> image, which nothing keeps within [-1, 1]."""

    def __init__(self, config: VAEConfig, **kw: Unpack[LayerOptions]):
        channels = config.block_out_channels
        self.stem = config.stem
        self.conv_in = Conv3x3(config.latent_channels, channels[-1], **kw)
        self.mid_block = UNetMidBlock2D(config, **kw)
        self.up_blocks = nnx.List(
            UpDecoderBlock2D(config, level, **kw) for level in reversed(range(len(channels)))
        )
        self.conv_norm_out = GroupNorm(channels[0], config.norm_num_groups, EPSILON, **kw)
        self.conv_out = Conv3x3(channels[0], 3 * config.stem**2, **kw)

    def __call__(self, z: Latent) -> Image:
        # The encoder's order backwards: the attention of the middle block sees the latent first.
        x = z
        for layer in (self.conv_in, self.mid_block, *self.up_blocks):
            x = layer(x)
        x = self.conv_out(self.conv_norm_out(x, silu=True))
        return depth_to_space(x, self.stem)  # [B, H, W, 3]


def posterior_sample(mean: Latent, logvar: Latent, noise: Latent) -> Latent:
    """A sample of the posterior, made of `noise` from N(0, 1) (Kingma & Welling 2014, Eq. 10)."""
    return mean + jnp.exp(0.5 * logvar) * noise


class AutoencoderKL(nnx.Module):
    """Encoder, decoder and the two pointwise convolutions beside the latent.

    Raises ValueError where it is residual and its latent has not as many channels as a square of
    pixels has values.
    """

    def __init__(
        self,
        config: VAEConfig,
        *,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        kw: LayerOptions = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        channels = config.latent_channels
        self.scaling_factor = config.scaling_factor
        self.downscale = config.downscale
        # A residual one's latent holds the picture itself, so it needs a channel for each value.
        self.residual = config.stem > 1
        if self.residual and channels != 3 * self.downscale**2:
            text = f"{self.downscale} x {self.downscale} pixels"
            raise ValueError(f"latent_channels: {channels} are not the values of {text}")
        self.encoder = Encoder(config, **kw)
        # In float32 as the encoder's last layers, and for the same reason.
        exact: ConvolutionOptions = {**kw, **EXACT}
        self.quant_conv = conv1x1(2 * channels, 2 * channels, **exact)
        self.post_quant_conv = conv1x1(channels, channels, **kw)
        self.decoder = Decoder(config, **kw)

    def encode(self, x: Image) -> tuple[Latent, Latent]:
        """Mean and log-variance (clamped to [-30, 20]) of the posterior, float32."""
        moments = self.quant_conv(self.encoder(x))  # [B, H/f, W/f, 2 C]
        mean, logvar = jnp.split(moments, 2, axis=-1)
        # A residual one's latent is the picture itself, in squares, and what the encoder adds.
        if self.residual:
            mean = mean + space_to_depth(x, self.downscale).astype(jnp.float32)
        # diffusers' bounds, which keep the exponential finite.
        return mean, jnp.clip(logvar, -30.0, 20.0)

    def decode(self, z: Latent) -> Image:
        """Image of an unscaled latent, float32, not clamped."""
        image = self.decoder(self.post_quant_conv(z)).astype(jnp.float32)
        return image + depth_to_space(z, self.downscale) if self.residual else image
