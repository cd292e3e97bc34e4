"""LPIPS v0.1 on VGG16 (Zhang et al. 2018), the perceptual term of Eq. 4: two images -> distances.

`features` has torchvision's indices, so the names of its weights are torchvision's; `lin` are the
1x1 convolutions without bias, non-negative as learnt, that weigh the channels.
"""

from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float

from osdhuman_jax.networks.convolution import Conv3x3
from osdhuman_jax.networks.layers import Feature, Resized, conv1x1
from osdhuman_jax.networks.types import Image

VGG16 = tuple([64] * 2 + [0] + [128] * 2 + [0] + [256] * 3 + [0] + [512] * 3 + [0] + [512] * 3)
TAPS = (3, 8, 15, 22, 29)  # relu1_2, relu2_2, relu3_3, relu4_3, relu5_3 in torchvision's `features`
EPSILON = 1e-10


class ReLU(nnx.Module):
    """Holds its own place in `features`."""

    def __call__(self, x: Feature) -> Feature:
        return jax.nn.relu(x)


class MaxPool(nnx.Module):
    """2x2, stride 2; an odd row or column at the end is dropped."""

    def __call__(self, x: Feature) -> Resized:
        return nnx.max_pool(x, (2, 2), (2, 2))


def unit(x: Feature) -> Feature:
    """x / (||x|| + 1e-10) over channels, in float32.

    Where all channels are zero the root's derivative is infinite; ReLU's, a selection, drops it.
    """
    x = x.astype(jnp.float32)
    return x / (jnp.sqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True)) + EPSILON)


class LPIPS(nnx.Module):
    """Distances (B,) of images (B, H, W, 3) in [-1, 1], float32; sides of 16 pixels or more.

    `plan` gives the widths of 3x3 convolutions, each with its ReLU; 0 is a pooling. VGG16's last
    pooling is left out, as no tap comes after it.
    """

    SHIFT = (-0.030, -0.088, -0.188)
    SCALE = (0.458, 0.448, 0.450)

    def __init__(
        self,
        *,
        plan: tuple[int, ...] = VGG16,
        taps: tuple[int, ...] = TAPS,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        kw: dict[str, Any] = {"param_dtype": param_dtype, "rngs": rngs}
        layers, widths = [], [3]  # widths[i] goes into layer i
        for width in plan:
            new = [Conv3x3(widths[-1], width, dtype=dtype, **kw), ReLU()] if width else [MaxPool()]
            layers += new
            widths += [width or widths[-1]] * len(new)
        self.taps = taps
        self.features = nnx.List(layers)
        self.lin = nnx.List(
            conv1x1(widths[tap], 1, use_bias=False, dtype=jnp.float32, **kw) for tap in taps
        )

    def activations(self, image: Image) -> list[Array]:
        """Feature maps (B, h, w, C) after each of `taps`."""
        shift, scale = (jnp.asarray(v)[None, None, None] for v in (self.SHIFT, self.SCALE))
        x = (image.astype(jnp.float32) - shift) / scale
        found = []
        for start, stop in pairwise((-1, *self.taps)):
            for layer in self.features[start + 1 : stop + 1]:
                x = layer(x)
            found.append(x)
        return found

    def __call__(self, image: Image, target: Image) -> Float[Array, " b"]:
        """Sum over taps of the spatial mean of lin((unit(f) - unit(g))^2)."""
        pairs = zip(self.lin, self.activations(image), self.activations(target), strict=True)
        maps = [lin(jnp.square(unit(f) - unit(g))) for lin, f, g in pairs]
        return sum((jnp.mean(m, axis=(1, 2, 3)) for m in maps), jnp.zeros(image.shape[0]))
