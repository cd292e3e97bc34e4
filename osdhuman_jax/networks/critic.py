"""A critic of restored pictures: it says patch by patch how real a restored picture looks.

It teaches small models what no distance from a target does: that a blurred edge, the mean of all
sharp ones, is not real (PatchGAN of pix2pix, Isola et al. 2017, section 3.2.2). OSDHuman has VSD in
its place. Restored and degraded picture enter together, (B, H, W, 3) each, and a logit for each
place at an eighth of the side comes out.
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

# Pixels of a side that become channels at once: small models work at a quarter of the side too.
STEM = 4
GROUPS = 8  # of every group norm
EPSILON = 1e-6  # of every group norm too, as in the VAE
Logits = Float[Array, "b ph pw"]  # one of each patch; higher is more real


class Critic(nnx.Module):
    """Residual blocks at a quarter and an eighth of the side, and one logit for each place there.

    `width` is the number of channels at a quarter. A logit sees about 90 pixels a side.
    """

    def __init__(self, width: int, **kw: Unpack[LayerOptions]):
        # What enters are two pictures of three channels, in squares.
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
        """How real `image` looks, knowing that it was degraded to `source`.

        Returns the logits and the features that led to them, one of each layer but the last.
        """
        squares = jnp.concatenate([image, source], axis=-1)  # [B, H, W, 6]
        features = [self.conv_in(space_to_depth(squares, STEM))]  # [B, H/4, W/4, width]
        # Each block's output is kept: the generator is compared with HQ by all of them.
        for block in self.blocks:
            features.append(block(features[-1]))
        logits = self.conv_out(jax.nn.silu(features[-1]))[..., 0]  # [B, H/8, W/8]
        return logits, features
