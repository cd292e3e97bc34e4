"""Which program computes a group norm and the SiLU after it: XLA's, or kernels of our own.

XLA reads a map once for the mean, once for the variance and once to normalise it, and of small maps
it writes copies in float32 between. Kernels (group_norm_kernels.py) read it less often, forward and
backward. `way` decides by platform and shape:

    whole    one kernel does all: for small maps, whose cost is that of starting kernels
    reduced  kernels make the sums of a large map, XLA does what is left of it pixel by pixel
    plain    XLA's program: on CPUs and TPUs, in exports, and where blocks do not fit
"""

import math
from dataclasses import dataclass
from typing import Literal

from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float

Way = Literal["plain", "whole", "reduced"]
Map = Float[Array, "b p c"]  # a feature map whose pixels are one axis
Channels = Float[Array, " c"]

# Values of one group of one picture up to which one kernel is best, and up to which it is better
# than XLA's program where blocks do not fit; by `python -m benchmarks.group_norm` on an H200.
SMALL, MEDIUM = 2**15, 2**17
# A large map's pixels and channels are multiples of these, so that blocks divide it.
PIXELS, WIDTH = 512, 16


@dataclass(frozen=True)
class Norm:
    """What a group norm is besides its parameters."""

    groups: int
    epsilon: float
    silu: bool
    dtype: DTypeLike  # of the result


def way(platform: str, shape: tuple[int, ...], groups: int) -> Way:
    """How to normalise a map of `shape` (B, H, W, C)."""
    # Exports and AMD's GPUs, which are called "gpu", have XLA's program: kernels are NVIDIA's.
    if platform != "cuda":
        return "plain"
    pixels, channels = math.prod(shape[1:-1]), shape[-1]
    fits, values = not (pixels % PIXELS or channels % WIDTH), pixels * (channels // groups)
    if values <= (SMALL if fits else MEDIUM):
        return "whole"
    return "reduced" if fits else "plain"
