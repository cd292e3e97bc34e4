"""Which part of a body each place of a picture shows: (B, H, W, 3) in [-1, 1] -> logits at H/4.

DiffBody compares what it is about to make with the picture that it restores by the parts of the
body that a network finds in both (its Eq. 6). It has BPBreID's network for that; this one is much
smaller, and is trained on labels that are drawn around joints (methods/body_parts.py). It is a
U-Net (Ronneberger et al. 2015) of residual blocks that begins at a quarter of the side.
"""

from typing import Unpack

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from osdhuman_jax.networks.configs import PartParserConfig
from osdhuman_jax.networks.convolution import Conv3x3
from osdhuman_jax.networks.layers import (
    Downsample2D,
    GroupNorm,
    ResnetBlock2D,
    Upsample2D,
    space_to_depth,
)
from osdhuman_jax.networks.types import Image, LayerOptions

STRIDE = 4  # pixels of the picture to one place of the logits
EPSILON = 1e-6  # of every group norm, as in the VAE
PartLogits = Float[Array, "b ph pw k"]


class PartParser(nnx.Module):
    """Logits of the background (0) and of each part, float32; H and W are multiples of 4."""

    def __init__(self, config: PartParserConfig, **kw: Unpack[LayerOptions]):
        widths, groups = config.block_out_channels, config.norm_num_groups
        pairs = list(zip(widths[:-1], widths[1:], strict=True))

        def block(before: int, after: int) -> ResnetBlock2D:
            return ResnetBlock2D(before, after, groups=groups, epsilon=EPSILON, **kw)

        self.conv_in = Conv3x3(3 * STRIDE**2, widths[0], **kw)
        self.first = block(widths[0], widths[0])
        # Down, each level at half the side of that before it, and up again beside its features.
        self.downsamplers = nnx.List(Downsample2D(above, **kw) for above, _ in pairs)
        self.down_blocks = nnx.List(block(above, below) for above, below in pairs)
        self.upsamplers = nnx.List(Upsample2D(below, **kw) for _, below in pairs)
        self.up_blocks = nnx.List(block(above + below, above) for above, below in pairs)
        self.conv_norm_out = GroupNorm(widths[0], groups, EPSILON, **kw)
        self.conv_out = Conv3x3(widths[0], config.num_parts + 1, **kw)

    def __call__(self, image: Image) -> PartLogits:
        x = self.first(self.conv_in(space_to_depth(image, STRIDE)))  # [B, H/4, W/4, C_0]
        features = []
        for downsample, block in zip(self.downsamplers, self.down_blocks, strict=True):
            features.append(x)
            x = block(downsample(x))
        for upsample, block in reversed(list(zip(self.upsamplers, self.up_blocks, strict=True))):
            # To the size of the level above, which may have been odd.
            skip = features.pop()
            larger = upsample(x, (skip.shape[1], skip.shape[2]))
            x = block(jnp.concatenate([larger, skip], axis=-1))
        return self.conv_out(jax.nn.silu(self.conv_norm_out(x))).astype(jnp.float32)
