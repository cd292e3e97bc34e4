"""RRDBNet, the network of ESRGAN and Real-ESRGAN: a picture in, the picture restored and enlarged.

It is a generator of its own, without a prompt and without a diffusion model (Wang et al. 2018,
ESRGAN, section 3.1; Wang et al. 2021, Real-ESRGAN, section 4.1). It is needed to use such weights
as they are, to clean a picture before a diffusion model sees it, and as a teacher. Attributes have
the names of the released weights. Images are (B, H, W, 3) in [-1, 1] outside; inside the network
computes with RGB in [0, 1].
"""

from collections.abc import Sequence
from typing import Unpack

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from osdhuman_jax.networks.configs import RRDBNetConfig
from osdhuman_jax.networks.convolution import Conv3x3, Feature
from osdhuman_jax.networks.types import Image, LayerOptions
from osdhuman_jax.networks.upsampling import upsampled

# Both are BasicSR's, and are no part of the weights' files.
SLOPE = 0.2  # of every LeakyReLU
SHARE = 0.2  # of each residual that is added to its input
# In features, by measurement: this far from a cut the released weights of 23 blocks give what they
# give of the whole picture, but for a level or two.
REACH = 48
ENLARGED = 4  # times that the features grow on their way to the picture

Larger = Float[Array, "b _ _ 3"]


def leaky(x: Array) -> Array:
    """LeakyReLU with the released slope."""
    return jax.nn.leaky_relu(x, SLOPE)


class ResidualDenseBlock(nnx.Module):
    """Four convolutions that each add channels, and a fifth that goes back to the block's width."""

    def __init__(self, config: RRDBNetConfig, **kw: Unpack[LayerOptions]):
        width, more = config.num_feat, config.num_grow_ch
        self.conv1 = Conv3x3(width, more, **kw)
        self.conv2 = Conv3x3(width + more, more, **kw)
        self.conv3 = Conv3x3(width + 2 * more, more, **kw)
        self.conv4 = Conv3x3(width + 3 * more, more, **kw)
        self.conv5 = Conv3x3(width + 4 * more, width, **kw)

    def __call__(self, x: Feature) -> Feature:
        # Every convolution but the last sees all features made so far; nothing is overwritten.
        features = [x]
        for conv in (self.conv1, self.conv2, self.conv3, self.conv4):
            features.append(leaky(conv(_joined(features))))
        return x + SHARE * self.conv5(_joined(features))


def _joined(features: Sequence[Array]) -> Array:
    return jnp.concatenate(features, axis=-1)  # [B, H, W, sum of C]


class RRDB(nnx.Module):
    """Residual in residual dense block: three dense blocks and a residual around them."""

    def __init__(self, config: RRDBNetConfig, **kw: Unpack[LayerOptions]):
        self.rdb1 = ResidualDenseBlock(config, **kw)
        self.rdb2 = ResidualDenseBlock(config, **kw)
        self.rdb3 = ResidualDenseBlock(config, **kw)

    def __call__(self, x: Feature) -> Feature:
        return x + SHARE * self.rdb3(self.rdb2(self.rdb1(x)))


class RRDBNet(nnx.Module):
    """Restores and enlarges `scale` (4, 2 or 1) times.

    Features always grow four times: at scales 2 and 1 the input's pixels go onto the channels
    first, so that its sides must be multiples of 2 or 4 (`multiple`). Raises ValueError on another
    scale.
    """

    # A pipeline asks every network for these; this one has no prompts.
    prompter = guidance = None

    def __init__(
        self,
        config: RRDBNetConfig,
        *,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if config.scale not in (1, 2, ENLARGED):
            raise ValueError(f"scale must be 1, 2 or {ENLARGED}, got {config.scale}")
        kw: LayerOptions = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        num_feat = config.num_feat
        self.scale, self.dtype = config.scale, dtype
        self.conv_first = Conv3x3(3 * self.multiple**2, num_feat, **kw)
        self.body = nnx.List(RRDB(config, **kw) for _ in range(config.num_block))
        self.conv_body = Conv3x3(num_feat, num_feat, **kw)
        self.conv_up1 = Conv3x3(num_feat, num_feat, **kw)
        self.conv_up2 = Conv3x3(num_feat, num_feat, **kw)
        self.conv_hr = Conv3x3(num_feat, num_feat, **kw)
        self.conv_last = Conv3x3(num_feat, 3, **kw)

    @property
    def multiple(self) -> int:
        """The sides of the input must be multiples of this, in pixels."""
        return ENLARGED // self.scale

    @property
    def reach(self) -> int:
        """How far into a tile, in pixels of the input, the output shows that it was cut out."""
        return REACH * self.multiple

    def __call__(self, lq: Image) -> Larger:
        """Restored images (B, scale H, scale W, 3), clamped to [-1, 1] as files would clamp."""
        return jnp.clip(self.unclamped(lq), -1.0, 1.0)

    def unclamped(self, lq: Image) -> Larger:
        """The same as the network makes them, for training."""
        # Features at the input's size or, at scales 2 and 1, at a half or a quarter of it.
        x = ((lq + 1.0) / 2.0).astype(self.dtype)
        first = self.conv_first(unshuffled(x, self.multiple))  # [B, h, w, C]
        features = first
        for block in self.body:
            features = block(features)
        features = first + self.conv_body(features)

        # Nearest x2 and a convolution, twice.
        features = leaky(upsampled(self.conv_up1, features))  # [B, 2h, 2w, C]
        features = leaky(upsampled(self.conv_up2, features))  # [B, 4h, 4w, C]

        # Two more convolutions make the picture.
        return 2.0 * self.conv_last(leaky(self.conv_hr(features))).astype(jnp.float32) - 1.0


def unshuffled(x: Feature, factor: int) -> Float[Array, "b _ _ _"]:
    """Squares of `factor` pixels onto the channels, in PyTorch's order: colour, row, column."""
    if factor == 1:
        return x
    b, h, w, c = x.shape
    # Released weights expect this order, which is not that of `space_to_depth`.
    x = x.reshape(b, h // factor, factor, w // factor, factor, c)  # [B, H/f, f, W/f, f, C]
    x = x.transpose(0, 1, 3, 5, 2, 4)  # [B, H/f, W/f, C, f, f]
    return x.reshape(b, h // factor, w // factor, c * factor**2)  # [B, H/f, W/f, C f^2]
