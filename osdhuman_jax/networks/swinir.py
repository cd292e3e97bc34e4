"""SwinIR with branches: picture -> one map of features for each of its three targets.

SwinIR (Liang et al. 2021, section 3) restores by residual Swin Transformer blocks (RSTB) at one
resolution. HAODiff's has a trunk and behind it a branch for each of three targets: the restored
picture, the residual of the degraded one, and the mask of what moved (Gong et al. 2025, Figure 3).
Trained for these (`reconstruct`), it is frozen, and its branches' features are what both prompts
are made of (`__call__`). Attributes have the names of the released weights.

Pictures are (B, S, S, 3) in [-1, 1]; features are (B, S/4, S/4, D).
"""

from typing import NamedTuple, Unpack

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from osdhuman_jax.networks.configs import DualPromptConfig, SwinConfig, SwinIRConfig
from osdhuman_jax.networks.convolution import Conv3x3
from osdhuman_jax.networks.layers import (
    Feature,
    Identity,
    LayerNorm,
    Resized,
    conv1x1,
)
from osdhuman_jax.networks.remat import rematerialised
from osdhuman_jax.networks.swin import BasicLayer
from osdhuman_jax.networks.types import Image, LayerOptions
from osdhuman_jax.networks.upsampling import upsampled

# DIV2K's mean of RGB in [0, 1]. HAODiff takes it from pictures in [-1, 1] all the same, and the
# weights know it so. It is in the code of SwinIR, and no part of the weights' files.
MEAN = (0.4488, 0.4371, 0.4040)
FIRST_SLOPE = 0.01  # LeakyReLU's own default, next to the features
SLOPE = 0.2  # of every other LeakyReLU

RESTORED, RESIDUAL, MOTION = range(3)  # the branches, in the order of the weights


class Reconstruction(NamedTuple):
    """What the branches are trained to give."""

    restored: Image  # in [-1, 1], not clamped
    residual: Image  # degraded picture - original, in [-2, 2]
    motion: Float[Array, "b h w 1"]  # logits: where motion blurred a person


def halving(dim: int, **kw: Unpack[LayerOptions]) -> nnx.Conv:
    """3x3 convolution of stride 2, padded by one on every side."""
    # XLA's own SAME would pad unevenly.
    return nnx.Conv(dim, dim, (3, 3), (2, 2), padding=((1, 1), (1, 1)), **kw)


class ConvDownsampler(nnx.Module):
    """Picture -> features at a half or a quarter of its side."""

    def __init__(self, dim: int, upscale: int, **kw: Unpack[LayerOptions]):
        self.conv_before_downsample = nnx.List([Conv3x3(3, dim, **kw)])
        self.conv_down1 = halving(dim, **kw)
        self.conv_down2 = halving(dim, **kw) if upscale == 4 else None
        self.conv_last = Conv3x3(dim, dim, **kw)

    @rematerialised
    def __call__(self, x: Image) -> Resized:
        x = jax.nn.leaky_relu(self.conv_before_downsample[0](x), FIRST_SLOPE)
        # No activation stands between these, in the released code either.
        x = self.conv_down1(x)  # [B, S/2, S/2, D]
        x = x if self.conv_down2 is None else self.conv_down2(x)  # [B, S/4, S/4, D]
        return self.conv_last(x)


class ThreeConvolutions(nnx.List):
    """3x3, 1x1 and 3x3 convolutions, the middle one a quarter as wide: SwinIR's "3conv"."""

    def __init__(self, dim: int, **kw: Unpack[LayerOptions]):
        # Activations have a place in the list, as in the released weights, and no weights.
        few = dim // 4
        ends = Conv3x3(dim, few, **kw), Conv3x3(few, dim, **kw)
        super().__init__([ends[0], Identity(), conv1x1(few, few, **kw), Identity(), ends[1]])

    def __call__(self, x: Feature) -> Feature:
        x = jax.nn.leaky_relu(self[0](x), SLOPE)
        return self[4](jax.nn.leaky_relu(self[2](x), SLOPE))


def residual_conv(dim: int, kind: str, **kw: Unpack[LayerOptions]) -> "Conv3x3 | ThreeConvolutions":
    """What closes a residual: "1conv" or "3conv"."""
    return ThreeConvolutions(dim, **kw) if kind == "3conv" else Conv3x3(dim, dim, **kw)


class RSTB(nnx.Module):
    """Residual Swin Transformer block: Swin blocks, a convolution, and the input added."""

    def __init__(self, config: SwinConfig, closing: str = "1conv", **kw: Unpack[LayerOptions]):
        self.residual_group = BasicLayer(config, 0, **kw)
        self.conv = residual_conv(config.embed_dim, closing, **kw)

    @rematerialised
    def __call__(self, x: Feature) -> Feature:
        return x + self.conv(self.residual_group(x))


class Upsampler(nnx.Module):
    """Features -> a picture of `out` channels: what SwinIR does behind its body."""

    def __init__(self, dim: int, upscale: int, out: int, **kw: Unpack[LayerOptions]):
        self.conv_after_body = Conv3x3(dim, dim, **kw)
        self.conv_before_upsample = nnx.List([Conv3x3(dim, dim, **kw)])
        self.conv_up1 = Conv3x3(dim, dim, **kw)
        self.conv_up2 = Conv3x3(dim, dim, **kw) if upscale == 4 else None
        self.conv_hr = Conv3x3(dim, dim, **kw)
        self.conv_last = Conv3x3(dim, out, **kw)

    @rematerialised
    def __call__(self, x: Feature) -> Resized:
        x = self.conv_before_upsample[0](self.conv_after_body(x))
        x = jax.nn.leaky_relu(x, FIRST_SLOPE)
        # Nearest x2 and a convolution, once or twice.
        for conv in (self.conv_up1, self.conv_up2):
            x = x if conv is None else jax.nn.leaky_relu(upsampled(conv, x), SLOPE)
        return self.conv_last(jax.nn.leaky_relu(self.conv_hr(x), SLOPE))


class BranchedSwinIR(nnx.Module):
    """Degraded picture -> features of each branch, and, with `reconstruct`, what they say.

    Upsamplers are there for training alone, and published weights have none. Raises
    ValueError where depths are not of a trunk and a branch of as many groups.
    """

    def __init__(
        self,
        config: DualPromptConfig,
        *,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        kw: LayerOptions = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        if len(config.depths) % 2 or len(config.depths) != len(config.num_heads):
            raise ValueError(
                "depths and num_heads: of the trunk, then of as many groups of a branch"
            )
        if config.upscale not in (2, 4) or config.side * config.upscale != config.image_size:
            raise ValueError(f"upscale {config.upscale} does not divide {config.image_size} pixels")
        half, dim = len(config.depths) // 2, config.embed_dim
        self.dtype, self.image_size = dtype, config.image_size

        # Shallow features, normed, with a place's own embedding.
        self.conv_first = ConvDownsampler(dim, config.upscale, **kw)
        self.patch_norm = LayerNorm(dim, **kw)
        places = jax.random.normal(rngs.params(), (1, config.side**2, dim), param_dtype)
        self.absolute_pos_embed = nnx.Param(0.02 * places) if config.ape else None

        # The trunk's groups, those of each branch, and the norm that the branches share.
        groups = [swin_group(config, i, config.side) for i in range(2 * half)]
        self.layers = nnx.List(RSTB(group, **kw) for group in groups[:half])
        self.branches = nnx.List(
            nnx.List(RSTB(group, **kw) for group in groups[half:])
            for _ in range(config.num_branches)
        )
        self.norm = LayerNorm(dim, **kw)

        outs = (3, 3, 1) if config.upsamplers else ()
        self.upsamplers = nnx.List(Upsampler(dim, config.upscale, out, **kw) for out in outs)

    def __call__(self, image: Image) -> list[Resized]:
        """Features of every branch, of square pictures of the config's size."""
        middle = self._trunk(image)
        return [self._branch(b, middle) for b in range(len(self.branches))]

    def reconstruct(self, image: Image) -> Reconstruction:
        """The three targets as the branches see them. Raises ValueError without upsamplers."""
        if not self.upsamplers:
            raise ValueError("this extractor is for prompts only: it has no upsamplers")
        middle, mean = self._trunk(image), mean_rgb()
        restored, residual, motion = (
            upsampler(self._branch(b, middle) + middle).astype(jnp.float32)
            for b, upsampler in enumerate(self.upsamplers)
        )
        # The residual, too, gets the mean: so were the weights learnt.
        return Reconstruction(restored + mean, residual + mean, motion)

    def _trunk(self, image: Image) -> Resized:
        x = self.conv_first((image.astype(jnp.float32) - mean_rgb()).astype(self.dtype))
        embedded = self.patch_norm(x)  # [B, S/4, S/4, D]
        z = embedded
        if self.absolute_pos_embed is not None:
            places = self.absolute_pos_embed[...].astype(z.dtype)
            z = z + places.reshape(1, *z.shape[1:])
        for layer in self.layers:
            z = layer(z)
        # What is added is without the places' embedding.
        return z + embedded

    def _branch(self, index: int, middle: Feature) -> Feature:
        y = middle
        for layer in self.branches[index]:
            y = layer(y)
        return self.norm(y)


def mean_rgb() -> Float[Array, "1 1 1 3"]:
    """The mean of RGB that SwinIR takes from pictures."""
    return jnp.asarray(MEAN, jnp.float32)[None, None, None]


def swin_group(config: DualPromptConfig | SwinIRConfig, index: int, side: int) -> SwinConfig:
    """The Swin blocks of one RSTB: a single level, each feature of `side` x `side` a patch."""
    return SwinConfig(
        image_size=side,
        patch_size=1,
        embed_dim=config.embed_dim,
        depths=(config.depths[index],),
        num_heads=(config.num_heads[index],),
        window_size=config.window_size,
        mlp_ratio=config.mlp_ratio,
        image_proj_dim=config.embed_dim,
    )
