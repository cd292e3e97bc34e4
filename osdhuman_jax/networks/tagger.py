"""RAM's tagging head: image embeddings (B, N, D) -> logits (B, n_tags) -> names of tags.

It is needed for prompts made of tags, a row of OSDHuman's Table 4; RAM is Zhang et al. 2023. Each
tag's embedding is a query that two BERT layers, without self-attention, answer from the
image's tokens. Attribute names are RAM's (`label_embed`, `wordvec_proj`, `tagging_head`, `fc`).
"""

from collections.abc import Sequence as Seq
from typing import Unpack

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float

from osdhuman_jax.networks.attention import attend, join_heads, split_heads
from osdhuman_jax.networks.configs import TaggerConfig
from osdhuman_jax.networks.layers import LayerNorm, Sequence
from osdhuman_jax.networks.types import LayerOptions

Context = Float[Array, "b s d"]
# Of BERT's norms: `layer_norm_eps` of its config.
EPSILON = 1e-12


class BertCrossAttention(nnx.Module):
    """Queries from the tags, keys and values from the image."""

    def __init__(self, dim: int, context_dim: int, heads: int, **kw: Unpack[LayerOptions]):
        self.heads = heads
        self.query = nnx.Linear(dim, dim, **kw)
        self.key = nnx.Linear(context_dim, dim, **kw)
        self.value = nnx.Linear(context_dim, dim, **kw)

    def __call__(self, x: Sequence, context: Context) -> Sequence:
        q, k, v = (
            split_heads(layer(y), self.heads)
            for layer, y in ((self.query, x), (self.key, context), (self.value, context))
        )
        return join_heads(attend(q, k, v))


class BertOutput(nnx.Module):
    """A linear layer whose result is added to the residual; the sum is normed."""

    def __init__(self, width: int, dim: int, **kw: Unpack[LayerOptions]):
        self.dense = nnx.Linear(width, dim, **kw)
        self.LayerNorm = LayerNorm(dim, EPSILON, **kw)

    def __call__(self, x: Float[Array, "b t w"], residual: Sequence) -> Sequence:
        # BERT is post-norm: the sum is normed, not the branch.
        return self.LayerNorm(self.dense(x) + residual)


class BertAttention(nnx.Module):
    """Cross-attention and its output layer."""

    def __init__(self, dim: int, context_dim: int, heads: int, **kw: Unpack[LayerOptions]):
        self.self = BertCrossAttention(dim, context_dim, heads, **kw)
        self.output = BertOutput(dim, dim, **kw)

    def __call__(self, x: Sequence, context: Context) -> Sequence:
        return self.output(self.self(x, context), x)


class BertIntermediate(nnx.Module):
    """Linear layer and exact GELU."""

    def __init__(self, dim: int, hidden: int, **kw: Unpack[LayerOptions]):
        self.dense = nnx.Linear(dim, hidden, **kw)

    def __call__(self, x: Sequence) -> Float[Array, "b t h"]:
        return jax.nn.gelu(self.dense(x), approximate=False)


class BertLayer(nnx.Module):
    """A BERT layer in RAM's "tagging" mode: cross-attention and MLP."""

    def __init__(self, config: TaggerConfig, context_dim: int, **kw: Unpack[LayerOptions]):
        dim, hidden = config.hidden_size, config.intermediate_size
        self.crossattention = BertAttention(dim, context_dim, config.num_attention_heads, **kw)
        self.intermediate = BertIntermediate(dim, hidden, **kw)
        self.output = BertOutput(hidden, dim, **kw)

    def __call__(self, x: Sequence, context: Context) -> Sequence:
        # BERT's self-attention comes first; RAM deletes it from these layers.
        x = self.crossattention(x, context)
        return self.output(self.intermediate(x), x)


class BertEncoder(nnx.Module):
    """All layers, one after the other."""

    def __init__(self, config: TaggerConfig, context_dim: int, **kw: Unpack[LayerOptions]):
        self.layer = nnx.List(
            BertLayer(config, context_dim, **kw) for _ in range(config.num_hidden_layers)
        )

    def __call__(self, x: Sequence, context: Context) -> Sequence:
        for layer in self.layer:
            x = layer(x, context)
        return x


class TaggingHead(nnx.Module):
    """Holds `encoder`, as RAM's BertModel does."""

    def __init__(self, config: TaggerConfig, context_dim: int, **kw: Unpack[LayerOptions]):
        self.encoder = BertEncoder(config, context_dim, **kw)

    def __call__(self, x: Sequence, context: Context) -> Sequence:
        return self.encoder(x, context)


class Tagger(nnx.Module):
    """Logits of tags from RAM's image embeddings, the pooled one included.

    `context_dim` is the embeddings' width.
    """

    def __init__(
        self,
        config: TaggerConfig,
        context_dim: int,
        *,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        kw: LayerOptions = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        shape = (config.num_tags, config.label_dim)
        labels = jax.random.normal(rngs.params(), shape, param_dtype)
        # BERT's standard deviation at the start.
        self.label_embed = nnx.Param(0.02 * labels)
        self.wordvec_proj = nnx.Linear(config.label_dim, config.hidden_size, **kw)
        self.tagging_head = TaggingHead(config, context_dim, **kw)
        self.fc = nnx.Linear(config.hidden_size, 1, **kw)

    def __call__(self, embeddings: Context) -> Float[Array, "b n"]:
        """Logits of all tags, float32."""
        # The tags' embeddings are the same for every picture.
        queries = jax.nn.relu(self.wordvec_proj(self.label_embed[...]))  # [n_tags, hidden]
        queries = jnp.broadcast_to(queries, (embeddings.shape[0], *queries.shape))  # [B, n, h]
        # One logit for each query: the same layer for all tags.
        return self.fc(self.tagging_head(queries, embeddings))[..., 0].astype(jnp.float32)


def select_tags(
    logits: Float[np.ndarray, "b n"], thresholds: Float[np.ndarray, " m"], names: Seq[str]
) -> list[list[str]]:
    """For each image, the names whose probability exceeds their threshold, in the list's order.

    Raises ValueError where there are not as many names and thresholds as logits.
    """
    if not len(names) == len(thresholds) == logits.shape[1]:
        counts = f"{len(names)} names, {len(thresholds)} thresholds, {logits.shape[1]} logits"
        raise ValueError(f"one of each is needed for a tag: {counts}")
    # Tags do not compete: each has its own probability and its own threshold.
    probabilities = np.asarray(jax.nn.sigmoid(logits))
    return [
        [name for name, p, limit in zip(names, row, thresholds, strict=True) if p > limit]
        for row in probabilities
    ]
