"""Scaled dot-product attention: the one entry point for every network."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

FLASH_WIDTH = 128  # of a head, the most that cuDNN takes on every GPU that it serves


def kernel(cuda: bool, dtype: Any, width: int, biased: bool) -> Literal["cudnn", "xla"]:
    """cuDNN's fused attention where it applies, else XLA's, which stores every weight.

    A head's width must be a multiple of 8 and at most 128: the U-Net's 64 is, the VAE's 512 not.
    Windows with a bias (Swin) are small: they stay with XLA.
    """
    half = dtype in (jnp.bfloat16, jnp.float16)
    fits = width % 8 == 0 and width <= FLASH_WIDTH
    return "cudnn" if cuda and half and fits and not biased else "xla"


def on_cuda() -> bool:
    """Whether programs run on NVIDIA's GPUs; JAX calls AMD's "gpu" too."""
    on_gpu = jax.default_backend() == "gpu"
    return on_gpu and "cuda" in jax.devices()[0].client.platform_version


def attend(
    q: Float[Array, "b t h d"],
    k: Float[Array, "b s h d"],
    v: Float[Array, "b s h d"],
    bias: Float[Array, "... h t s"] | None = None,
) -> Float[Array, "b t h d"]:
    """softmax(q k^T / sqrt(d) + bias) v, with logits and softmax in float32."""
    if q.dtype == jnp.bfloat16 and jax.default_backend() == "cpu":
        # XLA's CPU backend refuses the bfloat16 product that JAX asks for, at some shapes
        q, k, v = (x.astype(jnp.float32) for x in (q, k, v))
        return attend(q, k, v, bias).astype(jnp.bfloat16)
    chosen = kernel(on_cuda(), q.dtype, q.shape[-1], bias is not None)
    with jax.numpy_dtype_promotion("standard"):  # JAX's own function needs it for bfloat16
        return jax.nn.dot_product_attention(q, k, v, bias=bias, implementation=chosen)


def split_heads(x: Float[Array, "b t c"], heads: int) -> Float[Array, "b t h d"]:
    """Cut the channels into heads."""
    return x.reshape(*x.shape[:2], heads, -1)


def join_heads(x: Float[Array, "b t h d"]) -> Float[Array, "b t c"]:
    """Inverse of `split_heads`."""
    return x.reshape(*x.shape[:2], -1)
