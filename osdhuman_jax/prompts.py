"""HFIE, the high-fidelity image embedder (section 3.3, Eqs. 4-5): image -> cross-attention tokens.

p = MHA(Q, E(I), E(I)) with learnable queries Q and the frozen embeddings E of RAM's image encoder.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float

from osdhuman_jax.attention import attend, join_heads, split_heads
from osdhuman_jax.swin import RAMEncoder
from osdhuman_jax.types import Image, Tokens


class HFIE(nnx.Module):
    """Multi-head attention of learnable queries to image embeddings (B, N, kv_dim)."""

    def __init__(
        self,
        *,
        num_queries: int,
        dim: int,
        kv_dim: int,
        num_heads: int,
        query_init_std: float,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        kw: dict[str, Any] = {
            "kernel_init": jax.nn.initializers.xavier_uniform(),
            "dtype": dtype,
            "rngs": rngs,
        }
        query = jax.random.normal(rngs.params(), (num_queries, dim), jnp.float32)
        self.num_heads = num_heads
        self.query = nnx.Param(query_init_std * query)
        self.q_proj = nnx.Linear(dim, dim, **kw)
        self.k_proj = nnx.Linear(kv_dim, dim, **kw)
        self.v_proj = nnx.Linear(kv_dim, dim, **kw)
        self.out_proj = nnx.Linear(dim, dim, **kw)

    def __call__(self, embeddings: Float[Array, "b m e"]) -> Tokens:
        """Tokens (B, num_queries, dim), Eq. 5."""
        query = jnp.broadcast_to(self.query[...], (embeddings.shape[0], *self.query.shape))
        q, k, v = (
            split_heads(y, self.num_heads)
            for y in (self.q_proj(query), self.k_proj(embeddings), self.v_proj(embeddings))
        )
        return self.out_proj(join_heads(attend(q, k, v)))


class HFIEPrompter(nnx.Module):
    """RAM's image encoder and HFIE: picture in [-1, 1] -> tokens."""

    def __init__(self, image_encoder: RAMEncoder, hfie: HFIE):
        self.image_encoder = image_encoder
        self.hfie = hfie

    def __call__(self, image: Image) -> Tokens:
        return self.hfie(self.image_encoder(image))
