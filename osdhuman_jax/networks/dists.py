"""DISTS (Ding et al. 2020): how far apart two pictures look, in structure and in texture.

It compares means (texture) and covariances (structure) of VGG16's feature maps, with weights that
were learnt. HAODiff trains by it, on pictures and on their edges (losses.py). Two batches of images
(B, H, W, 3) go in, B distances come out.

Its VGG16 is LPIPS' own, with other poolings: the root of weighted squares where LPIPS takes the
largest. So the network is asked for LPIPS', and holds its two vectors of weights alone.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float

from osdhuman_jax.networks.configs import DISTSConfig
from osdhuman_jax.networks.layers import Feature, Resized
from osdhuman_jax.networks.lpips import LPIPS
from osdhuman_jax.networks.types import Image

# All of these are DISTS-pytorch's.
C1 = C2 = 1e-6  # beside means and variances
ROOT = 1e-12  # under the pooling's root
HANNING = np.array([0.5, 1.0, 0.5], np.float32)  # the inner taps of a window of five


class DISTS(nnx.Module):
    """Distances (B,) of images in [-1, 1], float32; sides of 16 pixels or more.

    `alpha` weighs the texture and `beta` the structure of every channel: those of the picture
    itself, then those of LPIPS' taps.
    """

    def __init__(
        self, config: DISTSConfig, *, param_dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs
    ):
        self.channels = config.channels
        total = sum(config.channels)
        self.alpha = nnx.Param(jax.random.uniform(rngs.params(), (total,), param_dtype))
        self.beta = nnx.Param(jax.random.uniform(rngs.params(), (total,), param_dtype))

    def __call__(self, vgg: LPIPS, image: Image, target: Image) -> Float[Array, " b"]:
        """1 - the sum over channels of alpha S1 + beta S2, the weights' own sum being one."""
        alpha, beta = (p[...].astype(jnp.float32) for p in (self.alpha, self.beta))
        total = alpha.sum() + beta.sum()
        similarity = jnp.zeros(image.shape[0])
        start = 0
        pairs = zip(maps(vgg, image), maps(vgg, target), strict=True)
        for width, (x, y) in zip(self.channels, pairs, strict=True):
            texture, structure = compared(x, y)  # [B, C] each
            stage = slice(start, start + width)
            similarity += (texture * alpha[None, stage] + structure * beta[None, stage]).sum(-1)
            start += width
        return 1.0 - similarity / total


def compared(x: Feature, y: Feature) -> tuple[Float[Array, "b c"], Float[Array, "b c"]]:
    """S1 of the means and S2 of the covariance, as SSIM has them, for each channel."""
    mean_x, mean_y = x.mean((1, 2)), y.mean((1, 2))  # [B, C]
    variance_x, variance_y = x.var((1, 2)), y.var((1, 2))
    # From centred maps: a difference of large means would lose what is small.
    centred = (x - mean_x[:, None, None]) * (y - mean_y[:, None, None])
    covariance = centred.mean((1, 2))
    texture = (2 * mean_x * mean_y + C1) / (mean_x**2 + mean_y**2 + C1)
    structure = (2 * covariance + C2) / (variance_x + variance_y + C2)
    return texture, structure


def maps(vgg: LPIPS, image: Image) -> list[Array]:
    """The picture in [0, 1], then VGG's features at LPIPS' taps, float32."""
    features = [x.astype(jnp.float32) for x in vgg.activations(image, l2_pool)]
    return [(image.astype(jnp.float32) + 1.0) / 2.0, *features]


def l2_pool(x: Feature) -> Resized:
    """Root of the weighted mean of squares of 3x3 pixels, at every other pixel."""
    taps = np.outer(HANNING, HANNING) / HANNING.sum() ** 2
    channels = x.shape[-1]
    kernel = jnp.asarray(np.tile(taps[:, :, None, None], (1, 1, 1, channels)), jnp.float32)
    squares = jax.lax.conv_general_dilated(
        jnp.square(x.astype(jnp.float32)),
        kernel,
        (2, 2),
        ((1, 1), (1, 1)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=channels,
    )
    return jnp.sqrt(squares + ROOT).astype(x.dtype)
