"""CLIP's text encoder: token ids (B, T) -> hidden states (B, T, D) after the final norm.

It is needed where a prompt is text: for tags, for the null prompt and for a negative prompt (rows
of OSDHuman's Table 4; Radford et al. 2021). HFIE needs none. Attribute names are transformers'
below `text_model`. Stable Diffusion 2.1 uses 23 of OpenCLIP ViT-H's 24 layers, which gives the
penultimate hidden state, and does not mask the padding.
"""

from typing import Unpack

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Int

from osdhuman_jax.networks.attention import attend, join_heads, split_heads
from osdhuman_jax.networks.configs import CLIPConfig
from osdhuman_jax.networks.layers import LayerNorm, Mlp, Sequence
from osdhuman_jax.networks.types import LayerOptions, Tokens

Ids = Int[Array, "b t"]


def causal_mask(length: int) -> np.ndarray:
    """A bias (length, length) for logits: 0 up to the diagonal, the lowest float32 above it."""
    # Not minus infinity, whose difference with itself is no number.
    return np.triu(np.full((length, length), np.finfo(np.float32).min), k=1)


class CLIPAttention(nnx.Module):
    """Causal multi-head self-attention."""

    def __init__(self, dim: int, heads: int, **kw: Unpack[LayerOptions]):
        self.heads = heads
        self.q_proj = nnx.Linear(dim, dim, **kw)
        self.k_proj = nnx.Linear(dim, dim, **kw)
        self.v_proj = nnx.Linear(dim, dim, **kw)
        self.out_proj = nnx.Linear(dim, dim, **kw)

    def __call__(self, x: Sequence) -> Sequence:
        b, t, _ = x.shape
        # The mask of padding is left out, as in Stable Diffusion: only what follows is hidden.
        layers = (self.q_proj, self.k_proj, self.v_proj)
        q, k, v = (split_heads(layer(x), self.heads) for layer in layers)
        mask = jnp.broadcast_to(causal_mask(t), (b, self.heads, t, t))  # [B, heads, T, T]
        return self.out_proj(join_heads(attend(q, k, v, mask)))


class CLIPEncoderLayer(nnx.Module):
    """Self-attention and MLP, pre-norm, each with residual."""

    def __init__(self, config: CLIPConfig, **kw: Unpack[LayerOptions]):
        dim = config.hidden_size
        self.layer_norm1 = LayerNorm(dim, **kw)
        self.self_attn = CLIPAttention(dim, config.num_attention_heads, **kw)
        self.layer_norm2 = LayerNorm(dim, **kw)
        self.mlp = Mlp(dim, config.intermediate_size, **kw)

    def __call__(self, x: Sequence) -> Sequence:
        # Pre-norm: what runs through the residuals is normed once, after the last layer.
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class CLIPEncoder(nnx.Module):
    """All layers, one after the other."""

    def __init__(self, config: CLIPConfig, **kw: Unpack[LayerOptions]):
        self.layers = nnx.List(
            CLIPEncoderLayer(config, **kw) for _ in range(config.num_hidden_layers)
        )

    def __call__(self, x: Sequence) -> Sequence:
        for layer in self.layers:
            x = layer(x)
        return x


class CLIPTextEmbeddings(nnx.Module):
    """Token embedding plus learnt position embedding."""

    def __init__(self, config: CLIPConfig, **kw: Unpack[LayerOptions]):
        width = config.hidden_size
        self.token_embedding = nnx.Embed(config.vocab_size, width, **kw)
        self.position_embedding = nnx.Embed(config.max_position_embeddings, width, **kw)

    def __call__(self, ids: Ids) -> Tokens:
        # Positions are learnt vectors: a text can have no more tokens than there are of them.
        places = self.position_embedding(jnp.arange(ids.shape[1]))  # [T, D]
        return self.token_embedding(ids) + places[None]  # [B, T, D]


class CLIPTextModel(nnx.Module):
    """The whole encoder: padded token ids in, tokens for the U-Net's cross-attention out."""

    def __init__(
        self,
        config: CLIPConfig,
        *,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        kw: LayerOptions = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.embeddings = CLIPTextEmbeddings(config, **kw)
        self.encoder = CLIPEncoder(config, **kw)
        self.final_layer_norm = LayerNorm(config.hidden_size, **kw)

    def __call__(self, ids: Ids) -> Tokens:
        # Stable Diffusion takes all tokens, those of the padding too, and not CLIP's pooled one.
        return self.final_layer_norm(self.encoder(self.embeddings(ids)))
