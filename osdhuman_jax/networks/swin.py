"""Swin Transformer image encoder of RAM: image (B, S, S, 3) -> (B, 1 + N, D), pooled token first.

Attribute names are RAM's (`visual_encoder.*`, `image_proj`), that is the original Swin's.
"""

from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float

from osdhuman_jax.networks.attention import attend, join_heads
from osdhuman_jax.networks.layers import Feature, LayerNorm, Resized, Sequence
from osdhuman_jax.networks.types import Image


@lru_cache
def relative_position_index(window: int) -> np.ndarray:
    """(W*W, W*W) rows of the bias table: query minus key, shifted to start at zero."""
    coords = np.stack(np.meshgrid(*[np.arange(window)] * 2, indexing="ij")).reshape(2, -1)
    delta = coords[:, :, None] - coords[:, None, :] + window - 1
    return delta[0] * (2 * window - 1) + delta[1]


@lru_cache
def shift_mask(resolution: int, window: int, shift: int) -> np.ndarray:
    """(windows, W*W, W*W): -100 between pixels that only the cyclic shift made neighbours."""
    bounds = (slice(0, -window), slice(-window, -shift), slice(-shift, None))
    region = np.zeros((1, resolution, resolution, 1), np.float32)
    for i, rows in enumerate(bounds):
        for j, columns in enumerate(bounds):
            region[:, rows, columns] = 3 * i + j
    flat = np.asarray(_windows(region, window)).reshape(-1, window * window)
    return np.where(flat[:, None, :] != flat[:, :, None], -100.0, 0.0).astype(np.float32)


def _windows(x: Any, window: int) -> Any:
    """(B, H, W, C) -> (B * windows, W * W, C)."""
    b, h, w, c = x.shape
    x = x.reshape(b, h // window, window, w // window, window, c)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(-1, window * window, c)


def _unwindows(x: Any, window: int, side: int) -> Any:
    """Inverse of `_windows` for square maps."""
    n = side // window
    x = x.reshape(-1, n, n, window, window, x.shape[-1])
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(-1, side, side, x.shape[-1])


class WindowAttention(nnx.Module):
    """Self-attention inside windows, with relative position bias."""

    def __init__(self, dim: int, heads: int, window: int, **kw: Any):
        rows = (2 * window - 1) ** 2
        table = jax.random.normal(kw["rngs"].params(), (rows, heads), kw["param_dtype"])
        self.heads, self.window = heads, window
        self.relative_position_bias_table = nnx.Param(0.02 * table)
        self.qkv = nnx.Linear(dim, 3 * dim, **kw)
        self.proj = nnx.Linear(dim, dim, **kw)

    def __call__(self, x: Sequence, mask: np.ndarray | None) -> Sequence:
        b, t, c = x.shape
        qkv = self.qkv(x).reshape(b, t, 3, self.heads, c // self.heads)
        table = self.relative_position_bias_table[...].astype(jnp.float32)
        bias = table[relative_position_index(self.window)].transpose(2, 0, 1)[None]
        if mask is not None:
            tiled = jnp.tile(mask, (b // mask.shape[0], 1, 1))
            bias = bias + tiled[:, None]
        bias = jnp.broadcast_to(bias, (b, self.heads, t, t))
        return self.proj(join_heads(attend(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2], bias)))


class Mlp(nnx.Module):
    """Two linear layers around the exact GELU."""

    def __init__(self, dim: int, hidden: int, **kw: Any):
        self.fc1 = nnx.Linear(dim, hidden, **kw)
        self.fc2 = nnx.Linear(hidden, dim, **kw)

    def __call__(self, x: Array) -> Array:
        return self.fc2(jax.nn.gelu(self.fc1(x), approximate=False))


class SwinTransformerBlock(nnx.Module):
    """(Shifted) window attention and MLP on a (B, S, S, C) map."""

    def __init__(
        self,
        dim: int,
        resolution: int,
        heads: int,
        window: int,
        shift: int,
        mlp_ratio: float,
        **kw: Any,
    ):
        self.window = min(window, resolution)
        self.shift = shift if resolution > window else 0
        self.resolution = resolution
        self.norm1 = LayerNorm(dim, **kw)
        self.attn = WindowAttention(dim, heads, self.window, **kw)
        self.norm2 = LayerNorm(dim, **kw)
        self.mlp = Mlp(dim, int(mlp_ratio * dim), **kw)

    def __call__(self, x: Feature) -> Feature:
        x = x + self._attend(self.norm1(x))
        return x + self.mlp(self.norm2(x))

    def _attend(self, x: Feature) -> Feature:
        if not self.shift:
            return _unwindows(self.attn(_windows(x, self.window), None), self.window, x.shape[1])
        x = jnp.roll(x, (-self.shift, -self.shift), axis=(1, 2))
        mask = shift_mask(self.resolution, self.window, self.shift)
        x = _unwindows(self.attn(_windows(x, self.window), mask), self.window, x.shape[1])
        return jnp.roll(x, (self.shift, self.shift), axis=(1, 2))


class PatchMerging(nnx.Module):
    """2x2 neighbours onto the channels, norm, 4C -> 2C."""

    def __init__(self, dim: int, **kw: Any):
        self.norm = LayerNorm(4 * dim, **kw)
        self.reduction = nnx.Linear(4 * dim, 2 * dim, use_bias=False, **kw)

    def __call__(self, x: Feature) -> Resized:
        corners = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return self.reduction(self.norm(jnp.concatenate(corners, axis=-1)))


class BasicLayer(nnx.Module):
    """One stage: blocks, every other one shifted, then (but for the last stage) a merging."""

    def __init__(
        self,
        dim: int,
        resolution: int,
        depth: int,
        heads: int,
        window: int,
        mlp_ratio: float,
        merge: bool,
        **kw: Any,
    ):
        self.blocks = nnx.List(
            SwinTransformerBlock(
                dim, resolution, heads, window, window // 2 if i % 2 else 0, mlp_ratio, **kw
            )
            for i in range(depth)
        )
        self.downsample = PatchMerging(dim, **kw) if merge else None

    def __call__(self, x: Feature) -> Resized:
        for block in self.blocks:
            x = block(x)
        return x if self.downsample is None else self.downsample(x)


class PatchEmbed(nnx.Module):
    """Non-overlapping patches -> (B, S/p, S/p, C), normed."""

    def __init__(self, patch: int, dim: int, **kw: Any):
        self.proj = nnx.Conv(3, dim, (patch, patch), (patch, patch), padding="VALID", **kw)
        self.norm = LayerNorm(dim, **kw)

    def __call__(self, x: Image) -> Resized:
        return self.norm(self.proj(x))


class SwinTransformer(nnx.Module):
    """Final features (B, N, C) of a square picture that is already normalised."""

    def __init__(
        self,
        *,
        image_size: int,
        patch_size: int,
        embed_dim: int,
        depths: tuple[int, ...],
        num_heads: tuple[int, ...],
        window_size: int,
        mlp_ratio: float,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        kw: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        last = len(depths) - 1
        self.image_size = image_size
        self.patch_embed = PatchEmbed(patch_size, embed_dim, **kw)
        self.layers = nnx.List(
            BasicLayer(
                embed_dim * 2**i,
                image_size // patch_size // 2**i,
                depth,
                num_heads[i],
                window_size,
                mlp_ratio,
                i < last,
                **kw,
            )
            for i, depth in enumerate(depths)
        )
        self.norm = LayerNorm(embed_dim * 2**last, **kw)

    def __call__(self, x: Image) -> Sequence:
        x = self.patch_embed(x)
        for layer in self.layers:
            x = layer(x)
        return self.norm(x.reshape(x.shape[0], -1, x.shape[-1]))


class RAMEncoder(nnx.Module):
    """RAM's image embeddings: Swin, the mean token prepended (RAM's code: index 0), projection."""

    MEAN = (0.485, 0.456, 0.406)
    STD = (0.229, 0.224, 0.225)

    def __init__(self, *, image_proj_dim: int, rngs: nnx.Rngs, **swin: Any):
        self.visual_encoder = SwinTransformer(rngs=rngs, **swin)
        width = swin["embed_dim"] * 2 ** (len(swin["depths"]) - 1)
        kw = {k: swin[k] for k in ("dtype", "param_dtype") if k in swin}
        self.image_proj = nnx.Linear(width, image_proj_dim, rngs=rngs, **kw)

    @property
    def input_size(self) -> int:
        """Side of the square that the Swin sees, in pixels."""
        return self.visual_encoder.image_size

    def __call__(self, image: Image) -> Float[Array, "b n d"]:
        """Tokens of pictures in [-1, 1] of any size, squashed to a square as RAM does."""
        side = self.input_size
        x = jax.image.resize(
            (image.astype(jnp.float32) + 1.0) / 2.0,
            (image.shape[0], side, side, 3),
            "linear",
            antialias=True,
        )
        mean, std = (jnp.asarray(v, jnp.float32)[None, None, None] for v in (self.MEAN, self.STD))
        tokens = self.visual_encoder((x - mean) / std)
        pooled = jnp.mean(tokens, axis=1, keepdims=True)
        return self.image_proj(jnp.concatenate([pooled, tokens], axis=1))
