"""Performer: a transformer whose attention costs as much as the tokens are many, and no more.

FAVOR+ (Choromanski et al. 2021, Rethinking Attention with Performers, section 2) writes softmax
attention as a product of positive random features,

    exp(q k^T)  ~  phi(q) phi(k)^T,     phi(x) = M^(-1/2) exp(x W^T - |x|^2 / 2),

so that phi(k)^T v is computed once for all queries. W holds M orthogonal rows as long as Gaussian
ones. It is drawn once, before training, and is a part of the weights: what was learnt with one W
means nothing with another. HAODiff's embedders use it for the 16,384 places of a feature map.
Formulas and constants are those of performer-pytorch, by which the released weights were learnt.
"""

from typing import Unpack

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Float32

from osdhuman_jax.networks.attention import join_heads, split_heads
from osdhuman_jax.networks.layers import LayerNorm, Sequence
from osdhuman_jax.networks.remat import rematerialised
from osdhuman_jax.networks.types import LayerOptions

EPSILON = 1e-4  # added to every feature, so that no query is left without weights
EXACT = jax.lax.Precision.HIGHEST

Head = Float32[Array, "b t d"]
Projection = Float32[Array, "m d"]


class FixedParam(nnx.Param):
    """A part of the weights that no training changes."""


def orthogonal_features(count: int, dim: int, rng: np.random.Generator) -> np.ndarray:
    """W (count, dim), float32: blocks of orthogonal rows, each as long as a Gaussian row."""
    # Orthogonal rows estimate with less variance than independent ones (section 2.4).
    blocks = [np.linalg.qr(rng.standard_normal((dim, dim)))[0].T for _ in range(-(-count // dim))]
    lengths = np.linalg.norm(rng.standard_normal((count, dim)), axis=1, keepdims=True)
    return (lengths * np.concatenate(blocks)[:count]).astype(np.float32)


def favor(
    q: Float32[Array, "b t h d"],
    k: Float32[Array, "b s h d"],
    v: Float32[Array, "b s h d"],
    projection: Projection,
) -> Float32[Array, "b t h d"]:
    """softmax(q k^T / sqrt(d)) v by random features, head by head.

    One head at a time, since all of them would hold tokens x M features each.
    """

    @jax.checkpoint
    def head(x: tuple[Head, Head, Head]) -> Head:
        q, k, v = x
        # What is subtracted before the exponential, so that none overflows, cancels in the
        # quotient: of a query by its own features, of keys by all features of all tokens.
        queries = _features(q, projection, (-1,))  # [B, T, M]
        keys = _features(k, projection, (-2, -1))  # [B, S, M]
        context = jnp.einsum("bsm,bsd->bmd", keys, v, precision=EXACT)  # [B, M, D]
        weights = jnp.einsum("btm,bm->bt", queries, keys.sum(1), precision=EXACT)  # [B, T]
        out = jnp.einsum("btm,bmd->btd", queries, context, precision=EXACT)
        return out / weights[..., None]

    by_heads = tuple(jnp.moveaxis(x, 2, 0) for x in (q, k, v))  # [heads, B, T, D]
    return jnp.moveaxis(jax.lax.map(head, by_heads), 0, 2)  # [B, T, heads, D]


def _features(x: Head, projection: Projection, axes: tuple[int, ...]) -> Float32[Array, "b t m"]:
    """phi of one head; the largest exponent over `axes` is subtracted from each."""
    x = x * x.shape[-1] ** -0.25  # half of the softmax's scale, from each side
    exponents = jnp.einsum("btd,md->btm", x, projection, precision=EXACT)
    largest = jax.lax.stop_gradient(exponents.max(axes, keepdims=True))
    length = 0.5 * jnp.sum(jnp.square(x), -1, keepdims=True)
    return (jnp.exp(exponents - length - largest) + EPSILON) * len(projection) ** -0.5


class FastAttention(nnx.Module):
    """Self-attention by FAVOR+, always in float32: in bfloat16 its quotient is two percent off."""

    def __init__(
        self, dim: int, *, heads: int, dim_head: int, features: int, **kw: Unpack[LayerOptions]
    ):
        inner = heads * dim_head
        self.heads = heads
        self.to_q = nnx.Linear(dim, inner, **kw)
        self.to_k = nnx.Linear(dim, inner, **kw)
        self.to_v = nnx.Linear(dim, inner, **kw)
        self.to_out = nnx.Linear(inner, dim, **kw)
        # Values are filled in: a file brings them, or `orthogonal_features` makes them.
        self.projection_matrix = FixedParam(
            jax.random.normal(kw["rngs"].params(), (features, dim_head), jnp.float32)
        )

    def __call__(self, x: Sequence) -> Sequence:
        q, k, v = (
            split_heads(project(x).astype(jnp.float32), self.heads)
            for project in (self.to_q, self.to_k, self.to_v)
        )  # [B, T, heads, D] each
        y = favor(q, k, v, self.projection_matrix[...].astype(jnp.float32))
        return self.to_out(join_heads(y).astype(x.dtype))


class PerformerLayer(nnx.Module):
    """Attention and a feed-forward of four times the width, pre-norm, each with residual."""

    def __init__(
        self, dim: int, *, heads: int, dim_head: int, features: int, **kw: Unpack[LayerOptions]
    ):
        self.norm1 = LayerNorm(dim, **kw)
        self.attn = FastAttention(dim, heads=heads, dim_head=dim_head, features=features, **kw)
        self.norm2 = LayerNorm(dim, **kw)
        self.w1 = nnx.Linear(dim, 4 * dim, **kw)
        self.w2 = nnx.Linear(4 * dim, dim, **kw)

    @rematerialised
    def __call__(self, x: Sequence) -> Sequence:
        x = x + self.attn(self.norm1(x))
        return x + self.w2(jax.nn.gelu(self.w1(self.norm2(x)), approximate=False))
