"""Nearest resize and a 3x3 convolution as one: the upsampling of VAE, U-Net, RRDBNet and SwinIR.

Of the nine pixels of an enlarged picture under the kernel only four differ, so that taps on equal
ones are added first: 4/9 of the multiplications. By which program is the platform's:

    woven    a convolution of 2x2 taps for each of the four places that a pixel has in its square
    dilated  on a TPU: one convolution of 4x4 taps over pixels with zeros between them
    neither  small maps of GPUs and TPUs: they are enlarged, and then convolved
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Float

from osdhuman_jax.networks.convolution import Feature, Kernel
from osdhuman_jax.networks.target import platform

Enlarged = Float[Array, "b _ _ _"]  # of as many channels as the kernel has

# As `platform` calls them: those whose library, cuDNN, pads opposite sides alike.
GPUS = ("cuda", "gpu")
# Pixels of a map up to which it is enlarged before it is convolved: its products do not fill the
# chip. Of a TPU by its compiler, of GPUs by `python -m benchmarks.group_norm` on an H200.
SMALL = {"tpu": 32 * 32, "cuda": 16 * 16}
# The places in a square in their order: rows outside, columns inside.
PLACES = ((0, 0), (0, 1), (1, 0), (1, 1))


def nearest(x: Feature, size: tuple[int, int]) -> Float[Array, "b _ _ c"]:
    """Resize by PyTorch's `nearest` rule: source index = floor(i * in / out)."""
    _, h, w, _ = x.shape
    if size == (h, w):
        return x
    # The usual case needs no gather, which is slow on every accelerator.
    if size == (2 * h, 2 * w):
        return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)  # [B, 2H, 2W, C]
    # In integers, where the quotient of floats may fall below a whole number.
    rows = jnp.arange(size[0]) * h // size[0]
    columns = jnp.arange(size[1]) * w // size[1]
    return x[:, rows][:, :, columns]  # [B, *size, C]


def upsampled(conv: nnx.Conv, x: Feature) -> Enlarged:
    """`conv(nearest(x, twice its size))` of a 3x3 convolution.

    Rows (and columns) 2 i see x's rows i - 1, i, i; rows 2 i + 1 see i, i, i + 1.
    """
    if x.shape[1] * x.shape[2] <= SMALL.get(platform(), 0):
        return conv(nearest(x, (2 * x.shape[1], 2 * x.shape[2])))
    # The taps are added in float32, and rounded once.
    x = x.astype(conv.dtype)
    kernel = conv.kernel[...].astype(jnp.float32)
    out = dilated(conv, x, kernel) if platform() == "tpu" else woven(conv, x, kernel)
    return out if conv.bias is None else out + conv.bias[...].astype(out.dtype)[None, None, None]


def woven(conv: nnx.Conv, x: Feature, kernel: Kernel) -> Enlarged:
    """`upsampled` without its bias: 2x2 taps for each place in a square, woven together."""
    rows = [_added(kernel, parity, axis=0) for parity in range(2)]
    taps = [_added(row, parity, axis=1).astype(conv.dtype) for row in rows for parity in range(2)]
    quarters = (at_once if platform() in GPUS else one_by_one)(conv, x, taps)
    # Each is a fourth of the result.
    b, h, w, c = quarters[0].shape
    out = jnp.concatenate(quarters, axis=-1).reshape(b, h, w, 2, 2, c)  # [B, H, W, row, column, C]
    return out.transpose(0, 1, 3, 2, 4, 5).reshape(b, 2 * h, 2 * w, c)  # [B, 2H, 2W, C]


def one_by_one(conv: nnx.Conv, x: Feature, taps: list[Array]) -> list[Enlarged]:
    """Four convolutions by 2x2 taps, each padded on the two sides that it needs."""
    return [
        _convolved(conv, x, tap, ((1 - i, i), (1 - j, j)))
        for tap, (i, j) in zip(taps, PLACES, strict=True)
    ]


def at_once(conv: nnx.Conv, x: Feature, taps: list[Array]) -> list[Enlarged]:
    """`one_by_one` as one convolution to four times the channels, of which each takes its part.

    cuDNN pads opposite sides alike. Four convolutions would get a padded copy of the map each.
    """
    joined = jnp.concatenate(taps, axis=-1)  # [2, 2, C, 4 O]
    wide = _convolved(conv, x, joined, ((1, 1), (1, 1)))
    # Padded on all sides there is a row too many and a column.
    (h, w), parts = x.shape[1:3], jnp.split(wide, 4, axis=-1)  # [B, H + 1, W + 1, O] each
    return [y[:, i : i + h, j : j + w] for y, (i, j) in zip(parts, PLACES, strict=True)]


def dilated(conv: nnx.Conv, x: Feature, kernel: Kernel) -> Enlarged:
    """`upsampled` without its bias: one convolution over x's pixels with zeros between them.

    A TPU has pixels of a line side by side with their channels in one tile, where weaving costs
    more than the products; by its compiler this takes less than half as long.
    """
    # A tap of the enlarged picture is of two taps' pixels: a, b, c become a, a + b, b + c, c.
    for axis in range(2):
        a, b, c = jnp.split(kernel, 3, axis)
        kernel = jnp.concatenate([a, a + b, b + c, c], axis)
    return _convolved(conv, x, kernel.astype(conv.dtype), ((2, 2), (2, 2)), dilation=2)


def _convolved(
    conv: nnx.Conv,
    x: Feature,
    taps: Array,
    padding: tuple[tuple[int, int], ...],
    dilation: int = 1,
) -> Enlarged:
    """A convolution by other taps than the layer's, over `dilation` - 1 zeros between pixels."""
    return jax.lax.conv_general_dilated(
        x,
        taps,
        (1, 1),
        padding,
        lhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=conv.precision,
    )


def _added(kernel: Array, parity: int, axis: int) -> Array:
    """Three taps on a line of an enlarged picture as two on the lines that it came from.

    `parity` says whether that line is an even one (0) or an odd one (1).
    """
    a, b, c = jnp.split(kernel, 3, axis)
    return jnp.concatenate([a, b + c] if parity == 0 else [a + b, c], axis)
