"""RAM's image encoder, a Swin Transformer: image (B, H, W, 3) -> embeddings (B, 1 + N, D).

Its embeddings are what HFIE turns into a prompt (OSDHuman's section 3.3, Eq. 5), and what RAM's
tagging head reads. The pooled one comes first, then one for each of the N places of the last map.
The network is Liu et al. 2021 (section 3), its weights are RAM's (Zhang et al. 2023); attribute
names are RAM's, `visual_encoder.*` and `image_proj`, and below these the original Swin's.
"""

from functools import lru_cache
from typing import Unpack

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float

from osdhuman_jax.networks.attention import attend, join_heads
from osdhuman_jax.networks.configs import SwinConfig
from osdhuman_jax.networks.layers import Feature, LayerNorm, Mlp, Resized, Sequence
from osdhuman_jax.networks.types import Image, LayerOptions


@lru_cache
def relative_position_index(window: int) -> np.ndarray:
    """(W*W, W*W): the row of the bias table for each pair of a query and a key of a window."""
    # The offset of a query from a key, shifted so that the smallest one is 0.
    coords = np.stack(np.meshgrid(*[np.arange(window)] * 2, indexing="ij")).reshape(2, -1)
    delta = coords[:, :, None] - coords[:, None, :] + window - 1  # [2, W W, W W]
    return delta[0] * (2 * window - 1) + delta[1]


def shift_mask(height: int, width: int, window: int, shift: int) -> Float[Array, "n t t"]:
    """(windows, W*W, W*W): -100 between pixels that only the cyclic shift made neighbours.

    This is a bias of logits, after which such a pair has no weight (Liu et al. 2021, Figure 4).
    """

    # Along an axis a shifted map has up to three parts that were not neighbours before.
    def part(side: int) -> Array:
        index, ends = jnp.arange(side), jnp.asarray([side - window, side - shift])
        return jnp.sum(index[:, None] >= ends[None], axis=1)  # [side]

    # Computed where it is used, from two lines: of a large map it is no constant to be stored.
    region = 3 * part(height)[:, None] + part(width)[None]  # [H, W]
    flat = _windows(region[None, :, :, None], window)[..., 0]  # [windows, W W]
    return jnp.where(flat[:, None, :] != flat[:, :, None], -100.0, 0.0)


def _windows(x: Array, window: int) -> Array:
    """A map (B, H, W, C) cut into windows: (B * windows, W * W, C), picture by picture."""
    b, h, w, c = x.shape
    x = x.reshape(b, h // window, window, w // window, window, c)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(-1, window * window, c)  # [B windows, W W, C]


def _unwindows(x: Float[Array, "n t c"], window: int, size: tuple[int, int]) -> Feature:
    """Windows (B * windows, W * W, C) put together to a map (B, *size, C)."""
    h, w = size
    x = x.reshape(-1, h // window, w // window, window, window, x.shape[-1])
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(-1, h, w, x.shape[-1])  # [B, H, W, C]


class WindowAttention(nnx.Module):
    """Self-attention inside windows, with relative position bias."""

    def __init__(self, dim: int, heads: int, window: int, **kw: Unpack[LayerOptions]):
        # One learnt number for each head and each offset between two places of a window.
        rows = (2 * window - 1) ** 2
        dtype = kw.get("param_dtype", jnp.float32)
        table = jax.random.normal(kw["rngs"].params(), (rows, heads), dtype)
        self.heads, self.window = heads, window
        # Swin's standard deviation at the start.
        self.relative_position_bias_table = nnx.Param(0.02 * table)
        self.qkv = nnx.Linear(dim, 3 * dim, **kw)
        self.proj = nnx.Linear(dim, dim, **kw)

    def __call__(self, x: Sequence, mask: Array | None) -> Sequence:
        b, t, c = x.shape
        qkv = self.qkv(x).reshape(b, t, 3, self.heads, c // self.heads)  # [B, T, 3, heads, D]
        # The bias of a logit depends on the head and on how query and key lie to each other.
        table = self.relative_position_bias_table[...].astype(jnp.float32)
        bias = table[relative_position_index(self.window)].transpose(2, 0, 1)  # [heads, T, T]
        bias = bias[None]
        if mask is not None:
            # Windows of one picture follow one another, so the mask repeats once a picture.
            tiled = jnp.tile(mask, (b // mask.shape[0], 1, 1))  # [B windows, T, T]
            bias = bias + tiled[:, None]
        bias = jnp.broadcast_to(bias, (b, self.heads, t, t))
        q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]  # [B, T, heads, D] each
        return self.proj(join_heads(attend(q, k, v, bias)))


class SwinTransformerBlock(nnx.Module):
    """(Shifted) window attention and MLP on a (B, H, W, C) map of whole windows."""

    def __init__(
        self, config: SwinConfig, level: int, *, shifted: bool, **kw: Unpack[LayerOptions]
    ):
        dim, window = config.embed_dim * 2**level, config.window_size
        resolution = config.image_size // config.patch_size // 2**level
        # A map that is not larger than a window is one window, and is never shifted.
        self.window = min(window, resolution)
        self.shift = window // 2 if shifted and resolution > window else 0
        self.norm1 = LayerNorm(dim, **kw)
        self.attn = WindowAttention(dim, config.num_heads[level], self.window, **kw)
        self.norm2 = LayerNorm(dim, **kw)
        self.mlp = Mlp(dim, int(config.mlp_ratio * dim), **kw)

    def __call__(self, x: Feature) -> Feature:
        x = x + self._attend(self.norm1(x))
        return x + self.mlp(self.norm2(x))

    def _attend(self, x: Feature) -> Feature:
        window, size = self.window, (x.shape[1], x.shape[2])
        if not self.shift:
            return _unwindows(self.attn(_windows(x, window), None), window, size)
        # Shifted by half a window, borders of the windows before lie inside the windows now.
        x = jnp.roll(x, (-self.shift, -self.shift), axis=(1, 2))
        mask = shift_mask(*size, window, self.shift)
        x = _unwindows(self.attn(_windows(x, window), mask), window, size)
        return jnp.roll(x, (self.shift, self.shift), axis=(1, 2))


class PatchMerging(nnx.Module):
    """Halves the sides: 2x2 neighbours go onto the channels, and their 4C are mapped to 2C."""

    def __init__(self, dim: int, **kw: Unpack[LayerOptions]):
        self.norm = LayerNorm(4 * dim, **kw)
        self.reduction = nnx.Linear(4 * dim, 2 * dim, use_bias=False, **kw)

    def __call__(self, x: Feature) -> Resized:
        # The columns' parity changes slowest: the order in which the weights were learnt.
        corners = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return self.reduction(self.norm(jnp.concatenate(corners, axis=-1)))  # [B, S/2, S/2, 2C]


class BasicLayer(nnx.Module):
    """One stage: blocks, every other one shifted, then (but for the last stage) a merging."""

    def __init__(self, config: SwinConfig, level: int, **kw: Unpack[LayerOptions]):
        dim = config.embed_dim * 2**level
        last = level == len(config.depths) - 1
        self.blocks = nnx.List(
            SwinTransformerBlock(config, level, shifted=i % 2 == 1, **kw)
            for i in range(config.depths[level])
        )
        self.downsample = None if last else PatchMerging(dim, **kw)

    def __call__(self, x: Feature) -> Resized:
        for block in self.blocks:
            x = block(x)
        return x if self.downsample is None else self.downsample(x)


class PatchEmbed(nnx.Module):
    """Patches of p x p pixels that do not overlap, each mapped to C channels and normed."""

    def __init__(self, config: SwinConfig, **kw: Unpack[LayerOptions]):
        patch, dim = config.patch_size, config.embed_dim
        self.proj = nnx.Conv(3, dim, (patch, patch), (patch, patch), padding="VALID", **kw)
        self.norm = LayerNorm(dim, **kw)

    def __call__(self, x: Image) -> Resized:
        return self.norm(self.proj(x))  # [B, S/p, S/p, C]


class SwinTransformer(nnx.Module):
    """Final features (B, N, C) of a square picture that is already normalised."""

    def __init__(
        self,
        config: SwinConfig,
        *,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        kw: LayerOptions = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.image_size = config.image_size
        self.patch_embed = PatchEmbed(config, **kw)
        self.layers = nnx.List(BasicLayer(config, i, **kw) for i in range(len(config.depths)))
        self.norm = LayerNorm(config.width, **kw)

    def __call__(self, x: Image) -> Sequence:
        x = self.patch_embed(x)  # [B, S/p, S/p, C]
        for layer in self.layers:
            x = layer(x)
        return self.norm(x.reshape(x.shape[0], -1, x.shape[-1]))  # [B, N, width]


class RAMEncoder(nnx.Module):
    """RAM's image embeddings: the Swin's tokens, their mean before them, and a projection."""

    # ImageNet's mean and deviation of RGB in [0, 1].
    MEAN = (0.485, 0.456, 0.406)
    STD = (0.229, 0.224, 0.225)

    def __init__(
        self,
        config: SwinConfig,
        *,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        kw: LayerOptions = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.visual_encoder = SwinTransformer(config, **kw)
        self.image_proj = nnx.Linear(config.width, config.image_proj_dim, **kw)

    @property
    def input_size(self) -> int:
        """Side of the square that the Swin sees, in pixels."""
        return self.visual_encoder.image_size

    def __call__(self, image: Image) -> Float[Array, "b n d"]:
        """Tokens of pictures in [-1, 1] of any size, squashed to a square as RAM does."""
        # torchvision's Resize to a square: bilinear, antialiased, whatever the picture's shape.
        side = self.input_size
        x = jax.image.resize(
            (image.astype(jnp.float32) + 1.0) / 2.0,
            (image.shape[0], side, side, 3),
            "linear",
            antialias=True,
        )
        mean, std = (jnp.asarray(v, jnp.float32)[None, None, None] for v in (self.MEAN, self.STD))
        tokens = self.visual_encoder((x - mean) / std)
        # RAM's code has the mean at index 0, where its tagging head was taught to look for it.
        pooled = jnp.mean(tokens, axis=1, keepdims=True)  # [B, 1, width]
        return self.image_proj(jnp.concatenate([pooled, tokens], axis=1))  # [B, 1 + N, D]
