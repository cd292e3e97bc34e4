"""HAODiff's prompts: picture -> a negative and a positive prompt (Gong et al. 2025, Figure 3).

A frozen SwinIR with three branches looks at the degraded picture: the first sees what it should be,
the other two what is wrong with it, residual and motion blur (networks/swinir.py). Two trained
embedders turn these features into tokens,

    p_pos = embed(F_restored),    p_neg = embed([F_residual, F_motion]),

and guidance leads from the one to the other (haodiff.py). Their tokens travel as one array, the
negative ones first.
"""

from typing import Unpack

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from osdhuman_jax.methods.prompts import HFIE, Images
from osdhuman_jax.networks.configs import DualPromptConfig, HFIEConfig
from osdhuman_jax.networks.layers import Feature, LayerNorm, Projection
from osdhuman_jax.networks.performer import PerformerLayer
from osdhuman_jax.networks.rrdbnet import unshuffled
from osdhuman_jax.networks.swinir import RESTORED, BranchedSwinIR
from osdhuman_jax.networks.types import LayerOptions, Tokens


class PromptEmbedder(nnx.Module):
    """Features (B, S, S, in) -> tokens (B, out_tokens, width).

    A Performer over all places, then patches of them, pooled by learnt queries as HFIE pools RAM's
    embeddings, and a norm. Raises ValueError where patches do not tile the map.
    """

    def __init__(
        self, config: DualPromptConfig, *, width: int, inputs: int, **kw: Unpack[LayerOptions]
    ):
        dim, patch = config.embed_dim, config.patch_size
        if config.side % patch:
            raise ValueError(f"patches of {patch} do not tile a map of {config.side}")
        self.patch = patch
        self.proj1 = Projection(inputs, dim, **kw)
        param_dtype = kw.get("param_dtype", jnp.float32)
        places = jax.random.normal(kw["rngs"].params(), (1, config.side**2, dim), param_dtype)
        self.pos_embed = nnx.Param(0.02 * places)
        self.layers = nnx.List(
            PerformerLayer(
                dim,
                heads=config.num_heads_performer,
                dim_head=config.dim_head,
                features=config.num_features,
                **kw,
            )
            for _ in range(config.num_layers)
        )
        self.linear_embed = Projection(dim * patch**2, width, **kw)
        pool = HFIEConfig(num_queries=config.out_tokens, num_heads=config.num_heads_pool)
        self.attn_pool = HFIE(
            pool, dim=width, kv_dim=width, dtype=kw.get("dtype", jnp.float32), rngs=kw["rngs"]
        )
        self.norm = LayerNorm(width, **kw)

    def __call__(self, features: Feature) -> Tokens:
        b, height, width, _ = features.shape
        x = self.proj1(features.reshape(b, height * width, -1))  # [B, S S, D]
        x = x + self.pos_embed[...].astype(x.dtype)
        for layer in self.layers:
            x = layer(x)
        # Channels change slowest in a patch, as PyTorch's Unfold has it.
        x = unshuffled(x.reshape(b, height, width, -1), self.patch)  # [B, S/p, S/p, D p p]
        x = self.linear_embed(x.reshape(b, -1, x.shape[-1]))  # [B, (S/p)^2, width]
        return self.norm(self.attn_pool(x))


class DualPrompter(nnx.Module):
    """Picture -> tokens (B, 2 N, width): N negative ones, then N positive ones."""

    antialias = False  # pictures are squashed by plain bilinear interpolation, as in its training

    def __init__(
        self,
        config: DualPromptConfig,
        *,
        width: int,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        kw: LayerOptions = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.negative = config.negative_branches
        self.input_size = config.image_size
        self.feature_extractor = BranchedSwinIR(config, **kw)
        # Trained, so their parameters are float32 whatever `param_dtype` is.
        own: LayerOptions = {"dtype": dtype, "rngs": rngs}
        dim = config.embed_dim
        self.main_performer = PromptEmbedder(config, width=width, inputs=dim, **own)
        self.aux_performer = PromptEmbedder(
            config, width=width, inputs=dim * len(self.negative), **own
        )

    def __call__(self, images: Images) -> Tokens:
        side = self.input_size
        x = jnp.asarray(images, jnp.float32)
        x = jax.image.resize(x, (x.shape[0], side, side, 3), "linear", antialias=self.antialias)
        features = self.feature_extractor(x)
        wrong = jnp.concatenate([features[b] for b in self.negative], axis=-1)  # [B, S, S, 2 D]
        negative = self.aux_performer(wrong)  # [B, N, width]
        positive = self.main_performer(features[RESTORED])  # [B, N, width]
        return jnp.concatenate([negative, positive], axis=1)
