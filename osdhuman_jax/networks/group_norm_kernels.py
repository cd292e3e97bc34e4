"""Kernels of group norm with SiLU, forward and backward, for NVIDIA's GPUs (Pallas, by Triton).

Statistics in float32 need one reading of a map, where each place of a tile keeps its own running
mean and sum of squares around it (Welford 1962), and all are joined in the end (Chan et al. 1979):
nothing cancels, however large the mean is. The backward pass reads map and gradient once for all
its sums. Triton's tiles have powers of two for sides. Maps are (B, H W, C).

They are differentiated once and backward alone, and `jax.vmap` does not know them. JAX 0.11 calls
Pallas's way to Triton deprecated, which its later releases may lack. The file is long, since each
way has a forward and a backward kernel, which share their tiles and have to agree.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.custom_partitioning import custom_partitioning
from jax.experimental.pallas import triton
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float

from osdhuman_jax.networks.group_norm import Channels, Map, Norm, Way
from osdhuman_jax.networks.target import platform

OfGroups = Float[Array, "b g"]
OfChannels = Float[Array, "b c"]

PROGRAMS = 512  # of a large map, which keep all of a GPU busy
WIDEST = 128  # channels of a large map's block at the most


class Shape(NamedTuple):
    """How many values a program holds at a time, and how many warps of 32 threads share them."""

    values: int
    warps: int


# By kernel; gradients come with a second map, so that there is room for half as many values.
SHAPES = {
    "whole": Shape(8192, 16),
    "whole_backward": Shape(4096, 16),
    "statistics": Shape(8192, 8),
    "sums": Shape(4096, 8),
    "joined": Shape(4096, 8),
}


def group_norm(x: Map, scale: Channels, bias: Channels, norm: Norm, way: Way) -> Map:
    """Group norm and, where `norm` has it, SiLU: `way` is "whole" or "reduced"."""
    return _normalised(norm, way, x, scale.astype(jnp.float32), bias.astype(jnp.float32))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _normalised(norm: Norm, way: Way, x: Map, scale: Channels, bias: Channels) -> Map:
    return _forward(norm, way, x, scale, bias)[0]


def _forward(
    norm: Norm, way: Way, x: Map, scale: Channels, bias: Channels
) -> tuple[Map, tuple[Array, ...]]:
    """The result, and what the backward pass needs."""
    if way == "whole":
        y, mean, gain = _whole(norm, x, scale, bias)
    else:
        mean, gain = _statistics(norm, x)
        factor = _spread(gain, x) * scale[None, None]  # [B, 1, C]
        z = _centred(x, mean) * factor + bias[None, None]
        y = (z * jax.nn.sigmoid(z) if norm.silu else z).astype(norm.dtype)
    return y, (x, mean, gain, scale, bias)


def _backward(
    norm: Norm, way: Way, kept: tuple[Array, ...], dy: Map
) -> tuple[Map, Channels, Channels]:
    """Gradients of map, scale and bias."""
    x, mean, gain, scale, bias = kept
    if way == "whole":
        dx, dscale, dbias = _whole_backward(norm, x, dy, mean, gain, scale, bias)
        return dx, dscale.sum(0), dbias.sum(0)
    dscale, dbias, along, level = _sums(norm, x, dy, mean, gain, scale, bias)
    # With the normalised n: dx = gain (d - mean(d) - n mean(d n)), means of each group.
    n = _centred(x, mean) * _spread(gain, x)
    scale, bias = scale[None, None], bias[None, None]
    d = scale * _inner(norm, n * scale + bias, dy.astype(jnp.float32))
    dx = _spread(gain, x) * (d - _spread(level, x) - n * _spread(along, x))
    return dx.astype(x.dtype), dscale.sum(0), dbias.sum(0)


_normalised.defvjp(_forward, _backward)


def _spread(values: OfGroups, x: Map) -> Float[Array, "b 1 c"]:
    """Each group's value at each of its channels."""
    return jnp.repeat(values, x.shape[-1] // values.shape[-1], axis=1)[:, None]


def _centred(x: Map, mean: OfGroups) -> Map:
    return x.astype(jnp.float32) - _spread(mean, x)


def _reciprocal(count: Any) -> Array:
    return 1 / count.astype(jnp.float32)


def _inner(norm: Norm, z: Array, dy: Array) -> Array:
    """The gradient before SiLU, at z."""
    if not norm.silu:
        return dy
    s = jax.nn.sigmoid(z)
    return dy * (s * (1 + z * (1 - s)))


# ---- Kernels' places in a program


def _over_batch(rule: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator of a function (norm, *arrays) that devices compute each of its own pictures.

    XLA does not look into a kernel, and would gather the batch on every device. `rule` names the
    axes of arguments and results; b, the batch, is the first of each that has more than one.
    """

    def wrap(function: Callable[..., Any]) -> Callable[..., Any]:
        split = custom_partitioning(function, static_argnums=(0,))

        def partition(norm: Norm, mesh: Mesh, arguments: Any, results: Any) -> tuple[Any, ...]:
            axis = arguments[0].sharding.spec[0]

            def placed(x: Any) -> NamedSharding:
                batched = [axis, *[None] * (x.ndim - 1)] if x.ndim > 1 else [None]
                return NamedSharding(mesh, PartitionSpec(*batched))

            shardings = (jax.tree.map(placed, x) for x in (results, arguments))
            return mesh, functools.partial(function, norm), *shardings

        # In the order in which the rule has them, as Shardy wants.
        axes = dict.fromkeys(rule.replace("->", " ").replace(",", " ").split())
        whole = tuple(axis for axis in axes if axis != "b")
        split.def_partition(partition, sharding_rule=rule, need_replication_factors=whole)
        return functools.wraps(function)(split)

    return wrap


def _call(kernel: Callable[..., None], name: str, **kw: Any) -> Callable[..., Any]:
    """A kernel as a function of arrays; on a CPU its operations are done one by one."""
    parameters = triton.CompilerParams(num_warps=SHAPES[name].warps, num_stages=1)
    interpret = platform() == "cpu"
    return pl.pallas_call(kernel, name=name, compiler_params=parameters, interpret=interpret, **kw)


def _floats(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


# ---- A small map: one program for each group of each picture


class _Slab:
    """The pixels of one group of one picture, read and written by tiles of some rows."""

    def __init__(self, x: Map, norm: Norm, values: int):
        # Triton's tiles have powers of two for sides: what is beyond the group is masked.
        self.picture, group = pl.program_id(0), pl.program_id(1)
        self.pixels, self.size = x.shape[1], x.shape[2] // norm.groups
        width = pl.next_power_of_2(self.size)
        self.step = min(max(values // width, 1), pl.next_power_of_2(self.pixels))
        self.count = pl.cdiv(self.pixels, self.step)
        self.inside = jnp.arange(width) < self.size
        self.columns = group * self.size + jnp.arange(width)
        self.group = group

    def of_channels(self, ref: Any) -> Array:
        """Values of the group's channels, (1, width)."""
        return triton.load(ref.at[self.columns], mask=self.inside, other=0.0)[None]

    def write_channels(self, ref: Any, values: Array) -> None:
        """One value for each of the group's channels, of a picture."""
        triton.store(ref.at[self.picture, self.columns], values, mask=self.inside)

    def tile(self, index: Any) -> tuple[Any, Array]:
        """Where a tile is, and which of its places are the group's."""
        rows = index * self.step + jnp.arange(self.step)
        mask = (rows < self.pixels)[:, None] & self.inside[None]
        return (self.picture, rows[:, None], self.columns[None]), mask

    def read(self, ref: Any, index: Any) -> tuple[Array, Array]:
        where, mask = self.tile(index)
        return triton.load(ref.at[where], mask=mask, other=0.0).astype(jnp.float32), mask

    def write(self, ref: Any, index: Any, values: Array) -> None:
        where, mask = self.tile(index)
        triton.store(ref.at[where], values.astype(ref.dtype), mask=mask)


@_over_batch("b p c, c, c -> b p c, b g, b g")
def _whole(norm: Norm, x: Map, scale: Channels, bias: Channels) -> tuple[Map, OfGroups, OfGroups]:
    """The result, and mean and reciprocal deviation of each group."""
    values = SHAPES["whole"].values

    def kernel(x_ref, scale_ref, bias_ref, y_ref, mean_ref, gain_ref):
        slab = _Slab(x, norm, values)

        def add(index, sums):
            # Places beyond the last row are zero and counted by none.
            tile, mask = slab.read(x_ref, index)
            mean, square = sums
            delta = tile - mean
            new = mean + jnp.where(mask, delta * _reciprocal(index + 1), 0.0)
            return new, square + jnp.where(mask, delta * (tile - new), 0.0)

        # Each place of a tile has statistics of its own, which are joined at the end.
        tile, mask = slab.read(x_ref, 0)
        means, square = jax.lax.fori_loop(1, slab.count, add, (tile, jnp.zeros_like(tile)))
        rows = jnp.arange(slab.step)
        counts = ((slab.pixels - 1 - rows) // slab.step + 1).astype(jnp.float32)[:, None]
        counts = jnp.where(mask, counts, 0.0)
        total = slab.pixels * slab.size
        mean = jnp.sum(counts * means) / total
        mean += jnp.sum(counts * (means - mean)) / total  # what the first sum rounded
        square = jnp.sum(square) + jnp.sum(counts * jnp.square(means - mean))
        gain = jax.lax.rsqrt(square / total + norm.epsilon)
        mean_ref[slab.picture, slab.group] = mean
        gain_ref[slab.picture, slab.group] = gain
        factor, offset = gain * slab.of_channels(scale_ref), slab.of_channels(bias_ref)

        def write(index, _):
            tile, _ = slab.read(x_ref, index)
            z = (tile - mean) * factor + offset
            slab.write(y_ref, index, z * jax.nn.sigmoid(z) if norm.silu else z)

        jax.lax.fori_loop(0, slab.count, write, None)

    batch = x.shape[0]
    groups = _floats(batch, norm.groups)
    shapes = (jax.ShapeDtypeStruct(x.shape, norm.dtype), groups, groups)
    return _call(kernel, "whole", out_shape=shapes, grid=(batch, norm.groups))(x, scale, bias)


@_over_batch("b p c, b p c, b g, b g, c, c -> b p c, b c, b c")
def _whole_backward(
    norm: Norm, x: Map, dy: Map, mean: OfGroups, gain: OfGroups, scale: Channels, bias: Channels
) -> tuple[Map, OfChannels, OfChannels]:
    """Gradients of the map, and of scale and bias for each picture."""
    values = SHAPES["whole_backward"].values

    def kernel(
        x_ref, dy_ref, mean_ref, gain_ref, scale_ref, bias_ref, dx_ref, dscale_ref, dbias_ref
    ):
        slab = _Slab(x, norm, values)
        mean, gain = (ref[slab.picture, slab.group] for ref in (mean_ref, gain_ref))
        scale, bias = slab.of_channels(scale_ref), slab.of_channels(bias_ref)

        def inner(index):
            """A tile, normalised, and the gradient before SiLU."""
            tile, mask = slab.read(x_ref, index)
            n = (tile - mean) * gain
            return jnp.where(mask, n, 0.0), _inner(
                norm, n * scale + bias, slab.read(dy_ref, index)[0]
            )

        def add(index, sums):
            n, d = inner(index)
            return sums[0] + d * n, sums[1] + d

        zeros = jnp.zeros((slab.step, slab.columns.shape[0]), jnp.float32)
        sums = jax.lax.fori_loop(0, slab.count, add, (zeros, zeros))
        dscale, dbias = (jnp.sum(x, axis=0) for x in sums)
        slab.write_channels(dscale_ref, dscale)
        slab.write_channels(dbias_ref, dbias)
        total = slab.pixels * slab.size
        along, level = (jnp.sum(scale[0] * x) / total for x in (dscale, dbias))

        def write(index, _):
            n, d = inner(index)
            slab.write(dx_ref, index, gain * (scale * d - level - n * along))

        jax.lax.fori_loop(0, slab.count, write, None)

    batch, _, channels = x.shape
    sums = _floats(batch, channels)
    shapes = (jax.ShapeDtypeStruct(x.shape, x.dtype), sums, sums)
    call = _call(kernel, "whole_backward", out_shape=shapes, grid=(batch, norm.groups))
    return call(x, dy, mean, gain, scale, bias)


# ---- A large map: programs for blocks of rows and channels, whose sums are joined


class _Cut(NamedTuple):
    """A program's rows, those that it holds at a time, and its channels."""

    rows: int
    step: int
    width: int


def _cut(x: Map, values: int) -> _Cut:
    batch, pixels, channels = x.shape
    width = min(channels & -channels, WIDEST)
    step = min(pixels & -pixels, values // width)
    # As many steps a program as leave enough programs.
    steps, most = pixels // step, batch * pixels * channels // (step * width * PROGRAMS)
    most = max(i for i in range(1, max(most, 1) + 1) if steps % i == 0)
    return _Cut(most * step, step, width)


def _specs(cut: _Cut) -> tuple[pl.BlockSpec, pl.BlockSpec, pl.BlockSpec]:
    """Blocks of a map, of what is told of each block's channels, and of each picture's."""
    return (
        pl.BlockSpec((None, cut.rows, cut.width), lambda b, i, j: (b, i, j)),
        pl.BlockSpec((None, None, cut.width), lambda b, i, j: (b, i, j)),
        pl.BlockSpec((None, cut.width), lambda b, i, j: (b, j)),
    )


@_over_batch("b p c -> b g, b g")
def _statistics(norm: Norm, x: Map) -> tuple[OfGroups, OfGroups]:
    """Mean and reciprocal deviation of each group."""
    cut = _cut(x, SHAPES["statistics"].values)
    steps = cut.rows // cut.step

    def kernel(x_ref, mean_ref, square_ref):
        def tile(index):
            return x_ref[pl.ds(index * cut.step, cut.step), :].astype(jnp.float32)

        def add(index, sums):
            mean, square = sums
            new = tile(index)
            delta = new - mean
            mean += delta * _reciprocal(index + 1)
            return mean, square + delta * (new - mean)

        first = tile(0)
        means, square = jax.lax.fori_loop(1, steps, add, (first, jnp.zeros_like(first)))
        mean = jnp.sum(means, axis=0) / cut.step
        mean += jnp.sum(means - mean[None], axis=0) / cut.step  # what the first sum rounded
        apart = jnp.sum(jnp.square(means - mean[None]), axis=0)
        mean_ref[...] = mean
        square_ref[...] = jnp.sum(square, axis=0) + steps * apart

    batch, pixels, channels = x.shape
    map_spec, block_spec, _ = _specs(cut)
    blocks = pixels // cut.rows
    shape = _floats(batch, blocks, channels)
    means, squares = _call(
        kernel,
        "statistics",
        out_shape=(shape, shape),
        grid=(batch, blocks, channels // cut.width),
        in_specs=[map_spec],
        out_specs=[block_spec, block_spec],
    )(x)
    return _joined(norm, cut.rows, means, squares)


@_over_batch("b p c, b p c, b g, b g, c, c -> b c, b c, b g, b g")
def _sums(
    norm: Norm, x: Map, dy: Map, mean: OfGroups, gain: OfGroups, scale: Channels, bias: Channels
) -> tuple[OfChannels, OfChannels, OfGroups, OfGroups]:
    """Gradients of scale and bias for each picture, and what a group's pixels have to subtract.

    These are the means of the normalised map's gradient, times that map and by itself.
    """
    cut = _cut(x, SHAPES["sums"].values)

    def kernel(x_ref, dy_ref, mean_ref, gain_ref, scale_ref, bias_ref, dscale_ref, dbias_ref):
        mean, gain, scale, bias = (
            ref[...][None] for ref in (mean_ref, gain_ref, scale_ref, bias_ref)
        )

        def add(index, sums):
            rows = pl.ds(index * cut.step, cut.step)
            n = (x_ref[rows, :].astype(jnp.float32) - mean) * gain
            d = _inner(norm, n * scale + bias, dy_ref[rows, :].astype(jnp.float32))
            return sums[0] + d * n, sums[1] + d

        zeros = jnp.zeros((cut.step, cut.width), jnp.float32)
        sums = jax.lax.fori_loop(0, cut.rows // cut.step, add, (zeros, zeros))
        dscale_ref[...], dbias_ref[...] = (jnp.sum(x, axis=0) for x in sums)

    batch, pixels, channels = x.shape
    map_spec, block_spec, picture_spec = _specs(cut)
    channel_spec = pl.BlockSpec((cut.width,), lambda b, i, j: (j,))
    blocks = pixels // cut.rows
    shape = _floats(batch, blocks, channels)
    parts = _call(
        kernel,
        "sums",
        out_shape=(shape, shape),
        grid=(batch, blocks, channels // cut.width),
        in_specs=[*[map_spec] * 2, *[picture_spec] * 2, *[channel_spec] * 2],
        out_specs=[block_spec, block_spec],
    )(x, dy, *(_spread(v, x)[:, 0] for v in (mean, gain)), scale, bias)
    return _added(norm, pixels, scale, *parts)


def _joined(norm: Norm, rows: int, means: Map, squares: Map) -> tuple[OfGroups, OfGroups]:
    """`_statistics` from means, and sums of squares around them, of blocks of `rows` rows."""
    values = SHAPES["joined"].values

    def kernel(means_ref, squares_ref, mean_ref, gain_ref):
        slab = _Slab(means, norm, values)
        total = slab.pixels * slab.size

        def add(index, sums):
            return sums + slab.read(means_ref, index)[0]

        zeros = jnp.zeros((slab.step, slab.columns.shape[0]), jnp.float32)
        mean = jnp.sum(jax.lax.fori_loop(0, slab.count, add, zeros)) / total

        def rest(index, sums):
            tile, mask = slab.read(means_ref, index)
            apart = jnp.where(mask, tile - mean, 0.0)
            inside = slab.read(squares_ref, index)[0]
            return sums[0] + apart, sums[1] + inside + rows * jnp.square(apart)

        error, square = jax.lax.fori_loop(0, slab.count, rest, (zeros, zeros))
        mean_ref[slab.picture, slab.group] = mean + jnp.sum(error) / total
        variance = jnp.sum(square) / (rows * total)
        gain_ref[slab.picture, slab.group] = jax.lax.rsqrt(variance + norm.epsilon)

    batch = means.shape[0]
    groups = _floats(batch, norm.groups)
    call = _call(kernel, "joined", out_shape=(groups, groups), grid=(batch, norm.groups))
    return call(means, squares)


def _added(
    norm: Norm, pixels: int, scale: Channels, dscale: Map, dbias: Map
) -> tuple[OfChannels, OfChannels, OfGroups, OfGroups]:
    """`_sums` from those of blocks."""
    values = SHAPES["joined"].values

    def kernel(scale_ref, dscale_ref, dbias_ref, *refs):
        slab = _Slab(dscale, norm, values)
        total = pixels * slab.size
        scale = slab.of_channels(scale_ref)

        def add(index, sums):
            return tuple(
                s + slab.read(ref, index)[0]
                for s, ref in zip(sums, (dscale_ref, dbias_ref), strict=True)
            )

        zeros = jnp.zeros((slab.step, slab.columns.shape[0]), jnp.float32)
        sums = jax.lax.fori_loop(0, slab.count, add, (zeros, zeros))
        for of_channels, of_groups, tile in zip(refs[:2], refs[2:], sums, strict=True):
            slab.write_channels(of_channels, jnp.sum(tile, axis=0))
            of_groups[slab.picture, slab.group] = jnp.sum(scale * tile) / total

    batch, _, channels = dscale.shape
    shapes = (*[_floats(batch, channels)] * 2, *[_floats(batch, norm.groups)] * 2)
    call = _call(kernel, "joined", out_shape=shapes, grid=(batch, norm.groups))
    return call(scale, dscale, dbias)
