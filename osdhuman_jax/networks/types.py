"""Array aliases that stand in signatures. Images and latents are NHWC; images are in [-1, 1]."""

from jax import Array
from jaxtyping import Float, Int, UInt8

Image = Float[Array, "b h w 3"]
Image8 = UInt8[Array, "b h w 3"]
Latent = Float[Array, "b zh zw zc"]
Tokens = Float[Array, "b n d"]
Timestep = Int[Array, " b"]
Scalar = Float[Array, ""]
