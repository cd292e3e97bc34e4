"""BlazePose's two networks (Bazarevsky et al. 2020), computed as the graphs that their files hold.

A detector finds people in a small square, a landmarker finds the joints and the outline of one of
them in a square that was cut around the person. They are published as .tflite files alone, with a
graph of a few kinds of layers: those are computed here, in the order of the file, so that no layer
is written twice and no weight needs another name. weights/tflite.py reads the files, and
inference/poses.py puts the networks to use.

    outputs = jax.jit(partial(run, graph))(weights, picture)
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float

Weights = Mapping[int, Array]  # a graph's constants in float32, by tensor
Picture = Float[Array, "1 h w c"]
Options = Mapping[str, int]


@dataclass(frozen=True)
class Operation:
    """One layer: its kind is a name of `KINDS`, inputs and outputs are tensors' numbers."""

    kind: str
    inputs: tuple[int, ...]  # -1 = left out
    outputs: tuple[int, ...]
    options: Options = field(default_factory=dict)


@dataclass(frozen=True)
class Graph:
    """A network without its weights."""

    operations: tuple[Operation, ...]  # each after those that it needs
    shapes: tuple[tuple[int, ...], ...]  # of every tensor; the batch is one
    integers: Mapping[int, tuple[int, ...]]  # flat constants that say how much is padded
    input: int
    outputs: tuple[int, ...]


def run(graph: Graph, weights: Weights, picture: Picture) -> tuple[Array, ...]:
    """The graph's outputs, in its order; jit it with the graph bound. Images as its file says."""
    # Tensors by number; unrolled while it is traced, so that XLA sees one flat program.
    values: dict[int, Array] = {**weights, graph.input: picture}
    for operation in graph.operations:
        (output,) = operation.outputs
        known = [values.get(number) for number in operation.inputs]
        tensors = [value for value in known if value is not None]
        values[output] = KINDS[operation.kind](
            tensors,
            dict(operation.options),
            graph.shapes[output],
            graph.integers.get(operation.inputs[-1], ()),
        )
    return tuple(values[number] for number in graph.outputs)


# What a kind computes of: tensors, options, the output's shape, integer constants.
Tensors = Sequence[Array]
Shape = tuple[int, ...]


def _activated(x: Array, options: Options) -> Array:
    """0 is none, 1 ReLU, 3 ReLU6; the reader lets no other through."""
    if options["activation"] == 0:
        return x
    return jnp.clip(x, 0.0, 6.0 if options["activation"] == 3 else None)


def _strides(options: Options) -> tuple[int, int]:
    return options["stride_h"], options["stride_w"]


def _padding(options: Options) -> str:
    return ("SAME", "VALID")[options["padding"]]


def _convolution(tensors: Tensors, options: Options, _shape: Shape, _: Shape) -> Array:
    x, kernel, *bias = tensors
    y = lax.conv_general_dilated(
        x,
        kernel,
        _strides(options),
        _padding(options),
        dimension_numbers=("NHWC", "OHWI", "NHWC"),
        precision=lax.Precision.HIGHEST,
    )
    return _activated(y + bias[0].reshape(1, 1, 1, -1) if bias else y, options)


def _depthwise(tensors: Tensors, options: Options, shape: Shape, _: Shape) -> Array:
    """A kernel (1, h, w, C) has one filter for each channel.

    Summed over the kernel's taps: XLA's own grouped convolution takes ten times as long on a CPU.
    """
    x, kernel, *bias = tensors
    strides, window = _strides(options), kernel.shape[1:3]
    # Each tap is the padded picture, shifted and strided, times one number for each channel.
    pads = lax.padtype_to_pads(x.shape[1:3], window, strides, _padding(options))
    x = jnp.pad(x, [(0, 0), *pads, (0, 0)])
    y = jnp.zeros(shape, x.dtype)
    for dy in range(window[0]):
        for dx in range(window[1]):
            ends = dy + strides[0] * (shape[1] - 1) + 1, dx + strides[1] * (shape[2] - 1) + 1
            tap = lax.slice(x, (0, dy, dx, 0), (1, *ends, shape[3]), (1, *strides, 1))
            y += tap * kernel[:, dy : dy + 1, dx : dx + 1]  # [1, H, W, C] by [1, 1, 1, C]
    return _activated(y + bias[0].reshape(1, 1, 1, -1) if bias else y, options)


def _max_pool(tensors: Tensors, options: Options, _shape: Shape, _: Shape) -> Array:
    window = (1, options["filter_h"], options["filter_w"], 1)
    strides = (1, *_strides(options), 1)
    return lax.reduce_window(tensors[0], -jnp.inf, lax.max, window, strides, _padding(options))


def _add(tensors: Tensors, options: Options, _shape: Shape, _: Shape) -> Array:
    return _activated(tensors[0] + tensors[1], options)


def _concatenation(tensors: Tensors, options: Options, _shape: Shape, _: Shape) -> Array:
    return jnp.concatenate(tensors, axis=options["axis"])


def _pad(tensors: Tensors, _: Options, _shape: Shape, amounts: Shape) -> Array:
    return jnp.pad(tensors[0], list(zip(amounts[::2], amounts[1::2], strict=True)))


def _reshape(tensors: Tensors, _: Options, shape: Shape, _amounts: Shape) -> Array:
    return tensors[0].reshape(shape)


def _resize(tensors: Tensors, _: Options, shape: Shape, _amounts: Shape) -> Array:
    """Bilinear, by the centres of pixels: the reader lets no other through."""
    return jax.image.resize(tensors[0], shape, "linear", antialias=False)


def _depth_to_space(tensors: Tensors, options: Options, shape: Shape, _: Shape) -> Array:
    b, h, w, _channels = tensors[0].shape
    block = options["block"]
    x = tensors[0].reshape(b, h, w, block, block, -1)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(shape)


def _logistic(tensors: Tensors, _: Options, _shape: Shape, _amounts: Shape) -> Array:
    return jax.nn.sigmoid(tensors[0])


KINDS: dict[str, Callable[[Tensors, Options, Shape, Shape], Array]] = {
    "ADD": _add,
    "CONCATENATION": _concatenation,
    "CONV_2D": _convolution,
    "DEPTHWISE_CONV_2D": _depthwise,
    "DEPTH_TO_SPACE": _depth_to_space,
    "LOGISTIC": _logistic,
    "MAX_POOL_2D": _max_pool,
    "PAD": _pad,
    "RESHAPE": _reshape,
    "RESIZE_BILINEAR": _resize,
}
