"""Scaled dot-product attention (Vaswani et al. 2017, section 3.2.1) for every network here.

`attend` takes queries, keys and values as (B, T, heads, D) and gives (B, T, heads, D); which
program computes it, `kernel` decides by shapes, dtype and platform. `split_heads` and `join_heads`
go to these shapes and back from (B, T, C).
"""

import math
from typing import Literal

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float

from osdhuman_jax.networks.target import platform

Tokens = Float[Array, "_ d"]

# The widest head that cuDNN takes on every GPU that it serves.
FLASH_WIDTH = 128
# On a CPU, by measurement: weights of one head from which blocks pay, and queries of a block.
LARGE = 2**16
BLOCK = 512
# On a TPU, by its compiler's account for a v5e: weights of one head from which strips pay, and
# rows of weights, of all heads together, in a strip of at least `ROWS` queries.
LONG = 2**22
STRIP = 1024
ROWS = 256

Kernel = Literal["cudnn", "blocks", "strips", "xla"]


def kernel(
    platform: str, dtype: DTypeLike, width: int, lengths: tuple[int, int], biased: bool
) -> Kernel:
    """Which program computes an attention whose heads have `width` channels.

    They are cuDNN's fused one, ours by blocks on a CPU, ours by strips on a TPU, and XLA's, which
    stores every weight.
    `lengths` are the numbers of queries and of keys; `biased` says whether logits get a bias.
    """
    # cuDNN takes the U-Net's heads of 64 channels, not the VAE's one of 512. JAX's gradient of it
    # refuses odd lengths, such as 77 tokens of a prompt: these are small, and stay with XLA.
    half = dtype in (jnp.bfloat16, jnp.float16)
    fits = width % 8 == 0 and width <= FLASH_WIDTH
    even = all(length % 2 == 0 for length in lengths)
    if platform == "cuda" and half and fits and even and not biased:
        return "cudnn"
    # A bias, as Swin's windows have it, is not cut into blocks: windows are small.
    own: dict[str, tuple[Kernel, int]] = {"cpu": ("blocks", LARGE), "tpu": ("strips", LONG)}
    name, least = own.get(platform, ("xla", 0))
    return name if math.prod(lengths) >= least and not biased else "xla"


def attend(
    q: Float[Array, "b t h d"],
    k: Float[Array, "b s h d"],
    v: Float[Array, "b s h d"],
    bias: Float[Array, "... h t s"] | None = None,
) -> Float[Array, "b t h d"]:
    """softmax(q k^T / sqrt(d) + bias) v, with logits and softmax in float32."""
    if q.dtype == jnp.bfloat16 and platform() == "cpu":
        # XLA's CPU backend refuses the bfloat16 product that JAX asks for, at some shapes
        q, k, v = (x.astype(jnp.float32) for x in (q, k, v))
        return attend(q, k, v, bias).astype(jnp.bfloat16)
    lengths = (q.shape[1], k.shape[1])
    # The choice depends on shapes and dtype alone, so it is made while the program is traced.
    chosen = kernel(platform(), q.dtype, q.shape[-1], lengths, bias is not None)
    if chosen == "blocks":
        return by_blocks(q, k, v)
    if chosen == "strips":
        return by_strips(q, k, v)
    # JAX's own function mixes float32 and bfloat16, which strict promotion would refuse.
    with jax.numpy_dtype_promotion("standard"):
        return jax.nn.dot_product_attention(q, k, v, bias=bias, implementation=chosen)


def by_blocks(
    q: Float[Array, "b t h d"], k: Float[Array, "b s h d"], v: Float[Array, "b s h d"]
) -> Float[Array, "b t h d"]:
    """`attend` head by head and BLOCK queries at a time, so that the weights stay in the cache.

    Plain products of matrices are also what XLA's CPU backend does best. The backward pass
    computes a block's weights again.
    """
    # Blocks of equal length, so that one loop serves all of them; the last rows are padding.
    batch, length, heads, width = q.shape
    count = -(-length // BLOCK)
    size = -(-length // count)

    @jax.checkpoint
    def block(q: Tokens, k: Tokens, v: Tokens) -> Tokens:
        logits = q @ k.T  # [size, S]
        # The largest logit is taken out before the exponential, which would overflow otherwise.
        # The result does not depend on it, so that its gradient, which is zero, is not computed.
        weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(-1, keepdims=True)))
        return (weights @ v) / weights.sum(-1, keepdims=True)

    def head(x: tuple[Array, Array, Array]) -> Array:
        return jax.lax.map(lambda q: block(q, x[1], x[2]), x[0])

    def split(x: Array) -> Array:
        return x.transpose(0, 2, 1, 3).reshape(batch * heads, -1, width)  # [B heads, T, D]

    # Queries are scaled, not logits: there are fewer of them.
    rows = jnp.pad(split(q * width**-0.5), ((0, 0), (0, count * size - length), (0, 0)))
    out = jax.lax.map(head, (rows.reshape(-1, count, size, width), split(k), split(v)))
    out = out.reshape(batch, heads, -1, width)[:, :, :length]  # [B, heads, T, D]
    return out.transpose(0, 2, 1, 3)  # [B, T, heads, D]


def by_strips(
    q: Float[Array, "b t h d"], k: Float[Array, "b s h d"], v: Float[Array, "b s h d"]
) -> Float[Array, "b t h d"]:
    """`attend` some queries of every picture at a time, so that the weights stay on a TPU's chip.

    Written to its memory and read again, float32 logits of a large map take longer than the
    products. Pictures stay side by side: they lie on different devices. The backward pass computes
    a strip's weights again.
    """
    batch, length, heads, width = q.shape
    rows = max(STRIP // heads, ROWS)
    count = -(-length // rows)

    @jax.checkpoint
    def strip(q: Array) -> Array:
        with jax.numpy_dtype_promotion("standard"):
            return jax.nn.dot_product_attention(q, k, v, implementation="xla")

    # The last strip is filled up with zeros, whose results are cut off.
    padded = jnp.pad(q, ((0, 0), (0, count * rows - length), (0, 0), (0, 0)))
    strips = padded.reshape(batch, count, rows, heads, width).swapaxes(0, 1)
    out = jax.lax.map(strip, strips).swapaxes(0, 1)  # [B, strips, rows, heads, D]
    return out.reshape(batch, -1, heads, width)[:, :length]  # [B, T, heads, D]


def split_heads(x: Float[Array, "b t c"], heads: int) -> Float[Array, "b t h d"]:
    """Cut the channels into `heads` heads."""
    return x.reshape(*x.shape[:2], heads, -1)  # [B, T, heads, C / heads]


def join_heads(x: Float[Array, "b t h d"]) -> Float[Array, "b t c"]:
    """Put the heads' channels side by side again, which undoes `split_heads`."""
    return x.reshape(*x.shape[:2], -1)  # [B, T, C]
