"""SwinIR: a picture in, the picture restored and, by most of its weights, enlarged.

It is a network of its own, without a prompt and without a diffusion model (Liu et al. 2021, SwinIR,
section 3). DiffBody cleans the degraded picture by it before anything else looks at it (its Eq. 2),
with the layout of DiffBIR's first stage (Lin et al. 2024): squares of 8 x 8 pixels enter as
channels, and the output is as large as the input. Attributes have the names of the released
weights. Images are (B, H, W, 3) in [-1, 1] outside; inside the network computes with RGB in [0, 1],
from which DIV2K's mean is taken, times `img_range`.
"""

from typing import Unpack

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from osdhuman_jax.networks.configs import SwinIRConfig
from osdhuman_jax.networks.convolution import Conv3x3
from osdhuman_jax.networks.layers import Feature, Identity, LayerNorm, Resized
from osdhuman_jax.networks.rrdbnet import Larger, unshuffled
from osdhuman_jax.networks.swinir import (
    FIRST_SLOPE,
    RSTB,
    SLOPE,
    mean_rgb,
    residual_conv,
    swin_group,
)
from osdhuman_jax.networks.types import Image, LayerOptions
from osdhuman_jax.networks.upsampling import upsampled

# What stands behind the body, by the released code's names; "" adds the body's output to the input.
UPSAMPLERS = ("nearest+conv", "pixelshuffle", "pixelshuffledirect", "")
CLOSINGS = ("1conv", "3conv")


class PatchNorm(nnx.Module):
    """The norm before the body; it has a module of its own in the released weights."""

    def __init__(self, dim: int, **kw: Unpack[LayerOptions]):
        self.norm = LayerNorm(dim, **kw)

    def __call__(self, x: Feature) -> Feature:
        return self.norm(x)


class SwinIR(nnx.Module):
    """Restores, and enlarges `scale` times.

    Any size is taken: it is padded by reflection to whole windows, and the output is cropped.
    Raises ValueError on sizes that make no network.
    """

    # A pipeline asks every network for these; this one has no prompts.
    prompter = guidance = None

    def __init__(
        self,
        config: SwinIRConfig,
        *,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check(config)
        kw: LayerOptions = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        dim, self.config, self.dtype = config.embed_dim, config, dtype

        # Shallow features; unshuffling has a place of its own in the released weights.
        first = Conv3x3(3 * config.unshuffle**2, dim, **kw)
        self.conv_first = first if config.unshuffle == 1 else nnx.List([Identity(), first])
        # The body, at one resolution.
        self.patch_embed = PatchNorm(dim, **kw)
        groups = range(len(config.depths))
        closing = config.resi_connection
        # The map is never known here. It only has to be larger than a window: then windows are of
        # the given size and every other block is shifted, as in all released weights.
        side = 2 * config.window_size
        self.layers = nnx.List(RSTB(swin_group(config, i, side), closing, **kw) for i in groups)
        self.norm = LayerNorm(dim, **kw)
        self.conv_after_body = residual_conv(dim, closing, **kw)
        self._add_upsampler(config, **kw)

    def _add_upsampler(self, config: SwinIRConfig, **kw: Unpack[LayerOptions]) -> None:
        """Make the layers behind the body."""
        dim, width, name = config.embed_dim, config.num_feat, config.upsampler
        if name == "":
            self.conv_last = Conv3x3(dim, 3, **kw)
            return
        if name == "pixelshuffledirect":
            self.upsample = nnx.List([Conv3x3(dim, 3 * config.upscale**2, **kw)])
            return
        self.conv_before_upsample = nnx.List([Conv3x3(dim, width, **kw)])
        if name == "pixelshuffle":
            # Each convolution is followed by a shuffle, which has a place and no weights.
            layers: list[nnx.Module] = []
            for factor in factors(config.upscale):
                layers += [Conv3x3(width, width * factor**2, **kw), Identity()]
            self.upsample = nnx.List(layers)
        else:
            for k in range(len(factors(config.upscale))):
                setattr(self, f"conv_up{k + 1}", Conv3x3(width, width, **kw))
            self.conv_hr = Conv3x3(width, width, **kw)
        self.conv_last = Conv3x3(width, 3, **kw)

    @property
    def scale(self) -> int:
        """Side of the output / side of the input."""
        return self.config.scale

    @property
    def multiple(self) -> int:
        """Sides of whole windows are multiples of this, in pixels of the input.

        Tiles that begin at such places have the windows of the whole picture.
        """
        return self.config.window_size * self.config.unshuffle

    @property
    def reach(self) -> int:
        """How far into a tile, in pixels of the input, the output may show that it was cut out."""
        # Each block looks one window far, each convolution one feature. That is further than any
        # tile is large, so that tiles overlap by half; far pixels have little weight.
        blocks = sum(self.config.depths) * (self.config.window_size - 1)
        convolutions = 2 * (len(self.config.depths) + 4)
        return (blocks + convolutions) * self.config.unshuffle

    def __call__(self, lq: Image) -> Larger:
        """Restored images (B, scale H, scale W, 3), clamped to [-1, 1] as files would clamp."""
        return jnp.clip(self.unclamped(lq), -1.0, 1.0)

    def unclamped(self, lq: Image) -> Larger:
        """The same as the network makes them, for training."""
        _, height, width, _ = lq.shape
        config, own = self.config, self.multiple
        # Whole windows, by what lies at the right and bottom edges.
        edges = ((0, 0), (0, -height % own), (0, -width % own), (0, 0))
        rgb = (jnp.pad(lq.astype(jnp.float32), edges, mode="reflect") + 1.0) / 2.0
        x = (rgb - mean_rgb()) * config.img_range  # [B, H', W', 3]

        # Shallow features, deep ones on top of them, then the picture.
        features = self._shallow(x.astype(self.dtype))  # [B, H'/unshuffle, W'/unshuffle, D]
        deep = self.patch_embed(features)
        for layer in self.layers:
            deep = layer(deep)
        features = features + self.conv_after_body(self.norm(deep))
        made = self._picture(features).astype(jnp.float32)  # [B, scale H', scale W', 3]
        made = x + made if config.upsampler == "" else made

        rgb = made / config.img_range + mean_rgb()
        return 2.0 * rgb[:, : height * self.scale, : width * self.scale] - 1.0

    def _shallow(self, x: Image) -> Resized:
        if isinstance(self.conv_first, nnx.List):
            return self.conv_first[1](unshuffled(x, self.config.unshuffle))
        return self.conv_first(x)

    def _picture(self, x: Feature) -> Resized:
        """Features -> RGB at the size of the output."""
        config = self.config
        if config.upsampler == "":
            return self.conv_last(x)
        if config.upsampler == "pixelshuffledirect":
            return shuffled(self.upsample[0](x), config.upscale)
        x = jax.nn.leaky_relu(self.conv_before_upsample[0](x), FIRST_SLOPE)
        steps = factors(config.upscale)
        if config.upsampler == "pixelshuffle":
            for k, factor in enumerate(steps):
                x = shuffled(self.upsample[2 * k](x), factor)
            return self.conv_last(x)
        # Nearest x2 and a convolution, several times, and two convolutions more.
        for k in range(len(steps)):
            x = jax.nn.leaky_relu(upsampled(getattr(self, f"conv_up{k + 1}"), x), SLOPE)
        return self.conv_last(jax.nn.leaky_relu(self.conv_hr(x), SLOPE))


def check(config: SwinIRConfig) -> None:
    """Raise ValueError where sizes make no network, which the layers would not notice."""
    if config.upsampler not in UPSAMPLERS or config.resi_connection not in CLOSINGS:
        raise ValueError(f"no such layers: {config.upsampler!r}, {config.resi_connection!r}")
    if len(config.depths) != len(config.num_heads) or not config.depths:
        raise ValueError("depths and num_heads: of as many groups, at least one")
    if any(not heads or config.embed_dim % heads for heads in config.num_heads):
        raise ValueError(
            f"{config.embed_dim} channels do not divide among {config.num_heads} heads"
        )
    if min(config.unshuffle, config.scale) < 1 or config.upscale % config.unshuffle:
        raise ValueError(f"upscale {config.upscale} is no multiple of {config.unshuffle} pixels")
    steps = factors(config.upscale)
    if (config.upsampler == "nearest+conv" and set(steps) - {2}) or (
        config.upsampler == "" and config.upscale != 1
    ):
        raise ValueError(f"upscale {config.upscale} of upsampler {config.upsampler!r}")


def factors(upscale: int) -> tuple[int, ...]:
    """The steps in which features grow: twos, or a single three. Raises ValueError on others."""
    if upscale == 3:
        return (3,)
    if upscale < 1 or upscale & (upscale - 1):
        raise ValueError(f"upscale {upscale} is neither 3 nor a power of 2")
    return (2,) * (upscale.bit_length() - 1)


def shuffled(x: Feature, factor: int) -> Resized:
    """Channels onto squares of `factor` pixels, in PyTorch's order: it undoes `unshuffled`."""
    b, h, w, c = x.shape
    x = x.reshape(b, h, w, c // factor**2, factor, factor)  # [B, H, W, C/f^2, f, f]
    x = x.transpose(0, 1, 4, 2, 5, 3)  # [B, H, f, W, f, C/f^2]
    return x.reshape(b, h * factor, w * factor, c // factor**2)
