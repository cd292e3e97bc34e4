"""LPIPS v0.1 on VGG16 (Zhang et al. 2018, section 3): how far apart two images look.

It is the perceptual term of OSDHuman's Eq. 4 and a metric of its Table 2. Two batches of images
(B, H, W, 3) go in, B distances come out. `features` has torchvision's indices, so that the names of
its weights are torchvision's; `lin` are the 1x1 convolutions without bias, non-negative as learnt,
that weigh the channels.
"""

from collections.abc import Callable
from itertools import pairwise

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float

from osdhuman_jax.networks.configs import LPIPSConfig
from osdhuman_jax.networks.convolution import Conv3x3
from osdhuman_jax.networks.layers import Feature, Resized, conv1x1
from osdhuman_jax.networks.types import Image, LayerOptions

EPSILON = 1e-10  # beside a feature's norm; lpips' `normalize_tensor`


class ReLU(nnx.Module):
    """ReLU as a layer, since it has an index of its own among torchvision's `features`."""

    def __call__(self, x: Feature) -> Feature:
        return jax.nn.relu(x)


class MaxPool(nnx.Module):
    """The largest of each 2x2 pixels; an odd row or column at the end is dropped.

    Of equal ones the first in reading order has the gradient, as in PyTorch and in JAX's own
    pooling, which on a CPU writes the index of every pixel to memory to find it again.
    """

    def __call__(self, x: Feature) -> Resized:
        b, h, w, c = x.shape
        squares = x[:, : h // 2 * 2, : w // 2 * 2].reshape(b, h // 2, 2, w // 2, 2, c)
        rows = _larger(squares[:, :, :, :, 0], squares[:, :, :, :, 1])  # [B, H/2, 2, W/2, C]
        return _larger(rows[:, :, 0], rows[:, :, 1])  # [B, H/2, W/2, C]


def _larger(first: Array, second: Array) -> Array:
    """The elementwise maximum, whose gradient goes to `first` where both are equal."""
    return jnp.where(second > first, second, first)


def unit(x: Feature) -> Feature:
    """x / (||x|| + 1e-10) over channels, in float32.

    Where all channels are zero the root's derivative is infinite; ReLU's, a selection, drops it.
    """
    # The constant is beside the root, not under it, as in the published code.
    x = x.astype(jnp.float32)
    return x / (jnp.sqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True)) + EPSILON)


class LPIPS(nnx.Module):
    """Distances (B,) of images (B, H, W, 3) in [-1, 1], float32; sides of 16 pixels or more.

    Each convolution has a ReLU after it. Tapped is the last ReLU before each pooling and at the
    end: in VGG16 relu1_2, relu2_2, relu3_3, relu4_3 and relu5_3.
    """

    SHIFT = (-0.030, -0.088, -0.188)  # lpips' ScalingLayer
    SCALE = (0.458, 0.448, 0.450)

    def __init__(
        self,
        config: LPIPSConfig,
        *,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        kw: LayerOptions = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        layers: list[Conv3x3 | ReLU | MaxPool] = []
        taps: list[int] = []  # indices of layers
        tapped: list[int] = []  # widths there
        # From RGB's three channels on; before each pooling is a tap.
        width = 3
        for wanted in config.plan:
            if wanted:
                layers += [Conv3x3(width, wanted, **kw), ReLU()]
                width = wanted
            else:
                taps, tapped = [*taps, len(layers) - 1], [*tapped, width]
                layers.append(MaxPool())
        # The convolutions after the last pooling end in a tap as well.
        self.taps = (*taps, len(layers) - 1)
        self.features = nnx.List(layers)
        # The distance itself is computed in float32, whatever the features are.
        exact: LayerOptions = {**kw, "dtype": jnp.float32}
        self.lin = nnx.List(conv1x1(n, 1, use_bias=False, **exact) for n in (*tapped, width))

    def activations(
        self, image: Image, pool: Callable[[Feature], Resized] | None = None
    ) -> list[Array]:
        """Feature maps (B, h, w, C) after each of `taps`; `pool` stands in for every pooling."""
        # Shift and scale are ImageNet's, brought from [0, 1] to [-1, 1] by the authors.
        shift, scale = (jnp.asarray(v)[None, None, None] for v in (self.SHIFT, self.SCALE))
        x = (image.astype(jnp.float32) - shift) / scale
        # From tap to tap, so that each layer runs once.
        found = []
        for start, stop in pairwise((-1, *self.taps)):
            for layer in self.features[start + 1 : stop + 1]:
                x = pool(x) if pool and isinstance(layer, MaxPool) else layer(x)
            found.append(x)
        return found

    def __call__(self, image: Image, target: Image) -> Float[Array, " b"]:
        """Sum over taps of the spatial mean of lin((unit(f) - unit(g))^2)."""
        # The squared differences of unit vectors, weighed by channel and averaged over the places.
        pairs = zip(self.lin, self.activations(image), self.activations(target), strict=True)
        maps = [lin(jnp.square(unit(f) - unit(g))) for lin, f, g in pairs]  # [B, h, w, 1] each
        return sum((jnp.mean(m, axis=(1, 2, 3)) for m in maps), jnp.zeros(image.shape[0]))
