"""Building blocks of VAE and U-Net: norms, residual blocks, resizes, attention, time embedding.

They are those of latent diffusion (Rombach et al. 2022); attribute names are diffusers', so that
its weights fit by name. Feature maps are (B, H, W, C), sequences (B, T, C). Convolutions
pad explicitly, since XLA's SAME differs from PyTorch at stride 2. Every block takes `dtype`, in
which it computes, and `param_dtype`, in which its parameters are kept.
"""

from typing import Unpack

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float

from osdhuman_jax.networks.attention import attend, join_heads, split_heads
from osdhuman_jax.networks.convolution import Conv3x3, Feature
from osdhuman_jax.networks.group_norm import Norm, way
from osdhuman_jax.networks.remat import rematerialised
from osdhuman_jax.networks.target import platform
from osdhuman_jax.networks.types import ConvolutionOptions, LayerOptions, Timestep
from osdhuman_jax.networks.upsampling import nearest, upsampled

Resized = Float[Array, "b _ _ _"]  # a feature map of another size or width
Sequence = Float[Array, "b t c"]


def conv1x1(in_channels: int, out_channels: int, **kw: Unpack[ConvolutionOptions]) -> nnx.Conv:
    """Pointwise convolution."""
    return nnx.Conv(in_channels, out_channels, (1, 1), (1, 1), padding="VALID", **kw)


class Projection(nnx.Linear):
    """A linear layer that is trained: its bias is added, and its gradient summed, in float32.

    Summed in bfloat16 over the tokens of a batch, a gradient would have two digits at most.
    """

    def __call__(self, x: Array) -> Array:
        dtype = self.dtype or x.dtype
        y = jnp.matmul(x.astype(dtype), self.kernel[...].astype(dtype), precision=self.precision)
        if self.bias is None:
            return y
        bias = self.bias[...].astype(jnp.float32).reshape(*[1] * (y.ndim - 1), -1)
        return (y.astype(jnp.float32) + bias).astype(dtype)


class GroupNorm(nnx.GroupNorm):
    """PyTorch's numerics: statistics in two passes and in float32; the result is in `dtype`."""

    scale: nnx.Param
    bias: nnx.Param

    def __init__(
        self,
        channels: int,
        groups: int,
        epsilon: float,
        *,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        super().__init__(
            channels,
            groups,
            epsilon=epsilon,
            use_fast_variance=False,
            dtype=jnp.float32,
            param_dtype=param_dtype,
            rngs=rngs,
        )
        self.out_dtype = dtype

    def __call__(self, x: Feature, *, silu: bool = False) -> Feature:
        """The map, normalised; with `silu` its SiLU, which a kernel computes on the way."""
        chosen = way(platform(), x.shape, self.num_groups)
        if chosen == "plain":
            y = self._plain(x)
            return jax.nn.silu(y) if silu else y
        # Imported where it is needed: Pallas takes a sixth of a second, which a CPU need not wait.
        from osdhuman_jax.networks.group_norm_kernels import group_norm

        norm = Norm(self.num_groups, self.epsilon, silu, self.out_dtype)
        pixels = x.reshape(x.shape[0], -1, x.shape[-1])  # [B, H W, C]
        y = group_norm(pixels, self.scale[...], self.bias[...], norm, chosen)
        return y.reshape(x.shape)  # [B, H, W, C]

    def _plain(self, x: Feature) -> Feature:
        # Two passes: a variance from means of squares would lose what is small beside the mean.
        centred = x.astype(jnp.float32)
        centred = centred - self._means(centred)
        return self.scaled(centred, self._means(jnp.square(centred)))

    def scaled(self, centred: Feature, variance: Float[Array, "_ 1 1 c"]) -> Feature:
        """Divides what is centred already by its deviation, and applies the learnt parameters.

        `variance` may be of each picture or one for all of them, as where tiles share it.
        """
        # One product a pixel, not two: the deviation goes into the learnt scale.
        scale, bias = (
            p[...].astype(jnp.float32)[None, None, None] for p in (self.scale, self.bias)
        )  # [1, 1, 1, C] each
        gain = jax.lax.rsqrt(variance + self.epsilon)
        return (centred * (gain * scale) + bias).astype(self.out_dtype)

    def _means(self, x: Feature) -> Float[Array, "b 1 1 c"]:
        """Each group's mean, at each of its channels."""
        # Over the pixels first: CPUs add up many channels at once, and then few numbers are left.
        groups = x.mean((1, 2)).reshape(x.shape[0], self.num_groups, -1).mean(-1)  # [B, groups]
        return jnp.repeat(groups, self.group_size, axis=1)[:, None, None]  # [B, 1, 1, C]


class LayerNorm(nnx.LayerNorm):
    """PyTorch's numerics: statistics in two passes and in float32; the result is in `dtype`."""

    def __init__(
        self,
        channels: int,
        epsilon: float = 1e-5,
        *,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        super().__init__(
            channels,
            epsilon=epsilon,
            use_fast_variance=False,
            dtype=jnp.float32,
            param_dtype=param_dtype,
            rngs=rngs,
        )
        self.out_dtype = dtype

    def __call__(self, x: Array) -> Array:
        return super().__call__(x).astype(self.out_dtype)


class Mlp(nnx.Module):
    """Two linear layers around the exact GELU: of Swin, and of OpenCLIP (OpenAI has another)."""

    def __init__(self, dim: int, hidden: int, **kw: Unpack[LayerOptions]):
        self.fc1 = nnx.Linear(dim, hidden, **kw)
        self.fc2 = nnx.Linear(hidden, dim, **kw)

    def __call__(self, x: Array) -> Array:
        return self.fc2(jax.nn.gelu(self.fc1(x), approximate=False))


class Identity(nnx.Module):
    """Takes the place of a dropout, so that layers have the same indices as in diffusers."""

    def __call__(self, x: Array) -> Array:
        return x


class ResnetBlock2D(nnx.Module):
    """Twice norm, SiLU and 3x3 convolution, around which the input is added (He et al. 2016).

    With `temb_channels` the timestep's embedding is added in between; the VAE has none.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        groups: int,
        epsilon: float,
        temb_channels: int = 0,
        **kw: Unpack[LayerOptions],
    ):
        self.norm1 = GroupNorm(in_channels, groups, epsilon, **kw)
        self.conv1 = Conv3x3(in_channels, out_channels, **kw)
        self.time_emb_proj = (
            nnx.Linear(temb_channels, out_channels, **kw) if temb_channels else None
        )
        self.norm2 = GroupNorm(out_channels, groups, epsilon, **kw)
        self.conv2 = Conv3x3(out_channels, out_channels, **kw)
        same = in_channels == out_channels
        self.conv_shortcut = None if same else conv1x1(in_channels, out_channels, **kw)

    @rematerialised
    def __call__(
        self, x: Feature, temb: Float[Array, "b e"] | None = None
    ) -> Float[Array, "b h w o"]:
        h = self.conv1(self.norm1(x, silu=True))  # [B, H, W, O]
        # The timestep is one vector a picture, the same at every pixel.
        if self.time_emb_proj is not None and temb is not None:
            h = h + self.time_emb_proj(jax.nn.silu(temb))[:, None, None, :]  # [B, H, W, O]
        h = self.conv2(self.norm2(h, silu=True))
        # Where the width changes, a pointwise convolution brings the input to it.
        return h + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class Downsample2D(nnx.Module):
    """3x3 convolution of stride 2: padded by one all round, or (the VAE) right and bottom only."""

    def __init__(self, channels: int, *, asymmetric: bool = False, **kw: Unpack[LayerOptions]):
        # PyTorch's VAE pads by hand before it convolves, on two sides only.
        padding = ((0, 1), (0, 1)) if asymmetric else ((1, 1), (1, 1))
        self.conv = nnx.Conv(channels, channels, (3, 3), (2, 2), padding=padding, **kw)

    def __call__(self, x: Feature) -> Float[Array, "b _ _ c"]:
        return self.conv(x)


def space_to_depth(x: Feature, factor: int) -> Resized:
    """Pixels of `factor` x `factor` squares as channels: no value is lost, none is computed."""
    b, h, w, c = x.shape
    x = x.reshape(b, h // factor, factor, w // factor, factor, c)  # [B, H/f, f, W/f, f, C]
    x = x.transpose(0, 1, 3, 2, 4, 5)  # [B, H/f, W/f, f, f, C]
    return x.reshape(b, h // factor, w // factor, -1)  # [B, H/f, W/f, f^2 C]


def depth_to_space(x: Feature, factor: int) -> Resized:
    """Channels as pixels of `factor` x `factor` squares, which undoes `space_to_depth`."""
    b, h, w, _ = x.shape
    x = x.reshape(b, h, w, factor, factor, -1)  # [B, H, W, f, f, C/f^2]
    x = x.transpose(0, 1, 3, 2, 4, 5)  # [B, H, f, W, f, C/f^2]
    return x.reshape(b, h * factor, w * factor, -1)  # [B, f H, f W, C/f^2]


class Upsample2D(nnx.Module):
    """Nearest resize (x2, or to the size of the skip to be joined), then a 3x3 convolution."""

    def __init__(self, channels: int, **kw: Unpack[LayerOptions]):
        self.conv = Conv3x3(channels, channels, **kw)

    def __call__(self, x: Feature, size: tuple[int, int] | None = None) -> Float[Array, "b _ _ c"]:
        twice = (2 * x.shape[1], 2 * x.shape[2])
        # An adapter's own product is not folded, so LoRA around the convolution takes the long way.
        if size in (None, twice) and isinstance(self.conv, nnx.Conv):
            return upsampled(self.conv, x)
        return self.conv(nearest(x, size or twice))


class Attention(nnx.Module):
    """Multi-head attention over (B, T, C); keys and values from `context` where it is given."""

    def __init__(
        self,
        query_dim: int,
        *,
        heads: int,
        context_dim: int | None = None,
        bias: bool = False,
        **kw: Unpack[LayerOptions],
    ):
        # Of Stable Diffusion's attentions the VAE's alone has biases in these three layers.
        source = context_dim or query_dim
        self.heads = heads
        self.to_q = nnx.Linear(query_dim, query_dim, use_bias=bias, **kw)
        self.to_k = nnx.Linear(source, query_dim, use_bias=bias, **kw)
        self.to_v = nnx.Linear(source, query_dim, use_bias=bias, **kw)
        # A list, as in diffusers, whose second element is a dropout of nothing.
        self.to_out = nnx.List([nnx.Linear(query_dim, query_dim, **kw)])

    def __call__(self, x: Sequence, context: Float[Array, "b s d"] | None = None) -> Sequence:
        source = x if context is None else context
        q, k, v = (
            split_heads(project(y), self.heads)
            for project, y in ((self.to_q, x), (self.to_k, source), (self.to_v, source))
        )  # [B, T, heads, C / heads] and twice [B, S, heads, C / heads]
        return self.to_out[0](join_heads(attend(q, k, v)))


class SpatialAttention(Attention):
    """The VAE's middle attention: group norm, one head over all pixels, residual."""

    def __init__(self, channels: int, *, groups: int, epsilon: float, **kw: Unpack[LayerOptions]):
        super().__init__(channels, heads=1, bias=True, **kw)
        self.group_norm = GroupNorm(channels, groups, epsilon, **kw)

    @rematerialised
    def __call__(self, x: Feature) -> Feature:
        tokens = self.group_norm(x).reshape(x.shape[0], -1, x.shape[-1])  # [B, H W, C]
        return x + super().__call__(tokens).reshape(x.shape)  # [B, H, W, C]


class GEGLU(nnx.Module):
    """A gated linear layer: value * gelu(gate), with the exact GELU (Shazeer 2020)."""

    def __init__(self, dim: int, inner: int, **kw: Unpack[LayerOptions]):
        self.proj = nnx.Linear(dim, 2 * inner, **kw)

    def __call__(self, x: Sequence) -> Float[Array, "b t i"]:
        # One product for both halves, the value first, as the weights have it.
        value, gate = jnp.split(self.proj(x), 2, axis=-1)  # [B, T, I] each
        return value * jax.nn.gelu(gate, approximate=False)


class FeedForward(nnx.Module):
    """The two layers that each token passes alone: a GEGLU and a linear layer."""

    def __init__(self, dim: int, **kw: Unpack[LayerOptions]):
        # Four times the width in between: `mult` in diffusers.
        inner = 4 * dim
        self.net = nnx.List([GEGLU(dim, inner, **kw), Identity(), nnx.Linear(inner, dim, **kw)])

    def __call__(self, x: Sequence) -> Sequence:
        for layer in self.net:
            x = layer(x)
        return x


class BasicTransformerBlock(nnx.Module):
    """Self-attention, cross-attention, feed-forward; pre-norm, each with residual."""

    def __init__(self, dim: int, *, heads: int, context_dim: int, **kw: Unpack[LayerOptions]):
        self.norm1 = LayerNorm(dim, **kw)
        self.attn1 = Attention(dim, heads=heads, **kw)
        self.norm2 = LayerNorm(dim, **kw)
        self.attn2 = Attention(dim, heads=heads, context_dim=context_dim, **kw)
        self.norm3 = LayerNorm(dim, **kw)
        self.ff = FeedForward(dim, **kw)

    def __call__(self, x: Sequence, context: Float[Array, "b s d"]) -> Sequence:
        # Pixels look at each other, then at the prompt, then each at itself.
        x = x + self.attn1(self.norm1(x))
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class Transformer2DModel(nnx.Module):
    """One transformer block on a feature map, between linear projections."""

    def __init__(
        self,
        channels: int,
        *,
        heads: int,
        context_dim: int,
        groups: int,
        **kw: Unpack[LayerOptions],
    ):
        # diffusers gives this norm another epsilon than the resnets' beside it.
        self.norm = GroupNorm(channels, groups, 1e-6, **kw)
        self.proj_in = nnx.Linear(channels, channels, **kw)
        block = BasicTransformerBlock(channels, heads=heads, context_dim=context_dim, **kw)
        self.transformer_blocks = nnx.List([block])
        self.proj_out = nnx.Linear(channels, channels, **kw)

    @rematerialised
    def __call__(self, x: Feature, context: Float[Array, "b s d"]) -> Feature:
        tokens = self.norm(x).reshape(x.shape[0], -1, x.shape[-1])  # [B, H W, C]
        # A linear projection of tokens: `use_linear_projection`, as in Stable Diffusion 2.
        tokens = self.proj_in(tokens)
        for block in self.transformer_blocks:
            tokens = block(tokens, context)
        return x + self.proj_out(tokens).reshape(x.shape)  # [B, H, W, C]


def sinusoidal_embedding(t: Timestep, dim: int) -> Float[Array, "b d"]:
    """[cos(t f), sin(t f)], f_i = 10000^(-i / (dim / 2)), float32 (Vaswani et al. 2017)."""
    # Cosines come first: `flip_sin_to_cos` of Stable Diffusion's config.
    half = dim // 2
    frequencies = jnp.exp(-jnp.log(10_000.0) * jnp.arange(half, dtype=jnp.float32) / half)
    angles = t.astype(jnp.float32)[:, None] * frequencies[None, :]  # [B, dim / 2]
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)  # [B, dim]


class TimestepEmbedding(nnx.Module):
    """Two linear layers on the sinusoidal embedding: what every residual block is told of t."""

    def __init__(self, in_dim: int, dim: int, **kw: Unpack[LayerOptions]):
        self.linear_1 = nnx.Linear(in_dim, dim, **kw)
        self.linear_2 = nnx.Linear(dim, dim, **kw)

    def __call__(self, x: Float[Array, "b e"]) -> Float[Array, "b f"]:
        return self.linear_2(jax.nn.silu(self.linear_1(x)))
