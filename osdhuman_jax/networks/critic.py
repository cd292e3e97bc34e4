"""A critic of restored pictures: patch by patch, how real one looks beside the picture it is of.

It teaches small models what no distance from a target does: that a blurred edge, the mean of all
sharp ones, is not real (pix2pix, Isola et al. 2017). Image and degraded image enter together, in
squares of `STEM` x `STEM` pixels, since small models too do nearly all their work at that size.
"""

from typing import Unpack

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Float

from osdhuman_jax.networks.convolution import Conv3x3
from osdhuman_jax.networks.layers import Downsample2D, Resized, ResnetBlock2D, space_to_depth
from osdhuman_jax.networks.types import Image, LayerOptions

STEM = 4  # pixels
GROUPS = 8  # of every group norm
EPSILON = 1e-6  # likewise, as in the VAE
Logits = Float[Array, "b ph pw"]  # one of each patch; higher is more real


class Critic(nnx.Module):
    """Residual blocks at a quarter and an eighth of the side, and one logit for each place there.

    A logit sees about 90 pixels a side.
    """

    def __init__(self, width: int, **kw: Unpack[LayerOptions]):
        # Two pictures of three channels, in squares.
        self.conv_in = Conv3x3(2 * 3 * STEM**2, width, **kw)
        self.blocks = nnx.List(
            [
                ResnetBlock2D(width, width, groups=GROUPS, epsilon=EPSILON, **kw),
                Downsample2D(width, **kw),
                ResnetBlock2D(width, 2 * width, groups=GROUPS, epsilon=EPSILON, **kw),
            ]
        )
        self.conv_out = Conv3x3(2 * width, 1, **kw)

    def __call__(self, image: Image, source: Image) -> tuple[Logits, list[Resized]]:
        """Logits of `image` as what `source` was made of, and the features that led to them."""
        squares = jnp.concatenate([image, source], axis=-1)  # [B, H, W, 6]
        features = [self.conv_in(space_to_depth(squares, STEM))]  # [B, H/4, W/4, width]
        # Each block's output is kept: the generator is compared with HQ by all of them.
        for block in self.blocks:
            features.append(block(features[-1]))
        return self.conv_out(jax.nn.silu(features[-1]))[..., 0], features
