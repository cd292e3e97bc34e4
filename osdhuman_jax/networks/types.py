"""Types that stand in many signatures: arrays by their axes, and what layers are built with.

Images and latents are (batch, height, width, channels); images are in [-1, 1]. A letter in
the shapes of a signature means the same number wherever it stands there.
"""

from typing import NotRequired, TypedDict

import jax
from flax import nnx
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float, Int, UInt8

# A latent's axes have letters of their own, since it often stands beside an image.
Image = Float[Array, "b h w 3"]
Image8 = UInt8[Array, "b h w 3"]
Latent = Float[Array, "b zh zw zc"]
Tokens = Float[Array, "b n d"]
Timestep = Int[Array, " b"]
Scalar = Float[Array, ""]


class LayerOptions(TypedDict):
    """What every layer takes by keyword, and every block hands on to its layers."""

    rngs: nnx.Rngs
    dtype: NotRequired[DTypeLike]  # it computes in it
    param_dtype: NotRequired[DTypeLike]  # its parameters are kept in it


class ConvolutionOptions(LayerOptions):
    """What convolutions take beside what every layer takes."""

    precision: NotRequired[jax.lax.Precision]  # of the products, where an accelerator would round
    use_bias: NotRequired[bool]
    kernel_init: NotRequired[nnx.Initializer]  # of the kernel; by default random


class Exact(TypedDict):
    """The part of `ConvolutionOptions` by which a layer is exact."""

    dtype: DTypeLike
    precision: jax.lax.Precision


# For the few layers whose error reaches Eq. 2 undamped: they are thin, so exactness costs nothing.
# Accelerators would otherwise round a float32 convolution's inputs (TF32 on GPUs, bf16 on TPUs).
EXACT: Exact = {"dtype": jax.numpy.float32, "precision": jax.lax.Precision.HIGHEST}
