"""Scaled dot-product attention: the one entry point for every network."""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float


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
    with jax.numpy_dtype_promotion("standard"):  # JAX's own function needs it for bfloat16
        return jax.nn.dot_product_attention(q, k, v, bias=bias)


def split_heads(x: Float[Array, "b t c"], heads: int) -> Float[Array, "b t h d"]:
    """Cut the channels into heads."""
    return x.reshape(*x.shape[:2], heads, -1)


def join_heads(x: Float[Array, "b t h d"]) -> Float[Array, "b t c"]:
    """Inverse of `split_heads`."""
    return x.reshape(*x.shape[:2], -1)
