"""3x3 convolution of stride 1, padded by one: XLA's own, or what is faster on a CPU.

`Conv3x3` is the layer that every network here uses; it maps (B, H, W, C) to (B, H, W, O). XLA's CPU
backend computes large maps of many channels directly, where Winograd's F(2x2, 3x3) (Lavin & Gray
2016) needs 16 multiplications in the place of 36. With AVX-512 it is slow on the smallest maps of
the U-Net, where one product of gathered pixels takes half as long. Elsewhere all is left to XLA.
"""

from collections.abc import Sequence
from typing import Literal, Unpack

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float

from osdhuman_jax.networks.target import platform, vectors
from osdhuman_jax.networks.types import ConvolutionOptions

Feature = Float[Array, "b h w c"]
Kernel = Float[Array, "3 3 c o"]
Convolved = Float[Array, "b h w o"]
Way = Literal["xla", "gathered", "winograd"]

# Bounds beyond which a way of our own is faster than XLA's on a CPU.
FEW = 1024  # pixels of a batch, up to which one product is best; with AVX2 at no size
MANY = 4096  # pixels of a map, from which Winograd's transforms pay
WIDE = 256  # channels, from which either of the two pays
ROWS = 8  # of 2x2 tiles at a time, so that what is computed of them stays in the cache


def way(platform: str, dtype: DTypeLike | None, shape: tuple[int, ...], out: int) -> Way:
    """How to convolve a map of `shape` (B, H, W, C) to `out` channels."""
    # Both ways are ours and in float32; accelerators have better ones of their own.
    batch, height, width, channels = shape
    if platform != "cpu" or jnp.dtype(dtype) != jnp.float32 or min(channels, out) < WIDE:
        return "xla"
    if batch * height * width <= FEW and vectors() != "AVX2":
        return "gathered"
    return "winograd" if height * width >= MANY else "xla"


class Conv3x3(nnx.Conv):
    """`nnx.Conv` of 3x3 taps, computed in the way that is fastest where it runs."""

    def __init__(self, in_channels: int, out_channels: int, **kw: Unpack[ConvolutionOptions]):
        super().__init__(in_channels, out_channels, (3, 3), (1, 1), padding=((1, 1), (1, 1)), **kw)

    def __call__(self, x: Feature) -> Convolved:
        # Shapes, dtype and platform are known while a program is traced, and decide.
        chosen = way(platform(), self.dtype, x.shape, self.out_features)
        if chosen == "xla":
            return super().__call__(x)
        function = gathered if chosen == "gathered" else winograd
        y = function(x.astype(jnp.float32), self.kernel[...].astype(jnp.float32))
        return y if self.bias is None else y + self.bias[...].astype(jnp.float32)[None, None, None]


def gathered(x: Feature, kernel: Kernel) -> Convolved:
    """A convolution as one product: the nine pixels under the kernel side by side in a row."""
    b, h, w, c = x.shape
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))  # [B, H + 2, W + 2, C]
    # Rows of the kernel outside, columns inside: the order of the kernel's own axes.
    taps = [padded[:, i : i + h, j : j + w] for i in range(3) for j in range(3)]
    rows = jnp.concatenate(taps, axis=-1).reshape(-1, 9 * c)  # [B H W, 9 C]
    y = rows @ kernel.reshape(9 * c, -1)  # [B H W, O]
    return y.reshape(b, h, w, -1)  # [B, H, W, O]


def moved(x: Feature, kernel: Kernel) -> Convolved:
    """A convolution to few channels: each pixel times all nine taps, moved to where they belong.

    Products are few numbers a pixel, so that they, and not x, are what is moved: LoRA's first
    factor on a CPU, whose gradients are two products as well.
    """
    b, h, w, c = x.shape
    columns = kernel.transpose(2, 0, 1, 3).reshape(c, -1)  # [C, 9 O]
    products = (x.reshape(-1, c) @ columns).reshape(b, h, w, -1)  # [B, H, W, 9 O]
    out = jnp.zeros((), x.dtype)
    # A pad of -1 cuts off what falls over the edge.
    for tap, part in enumerate(jnp.split(products, 9, axis=-1)):
        down, right = 1 - tap // 3, 1 - tap % 3
        places = ((0, 0, 0), (down, -down, 0), (right, -right, 0), (0, 0, 0))
        out = out + jax.lax.pad(part, jnp.zeros((), x.dtype), places)  # [B, H, W, O]
    return out


def winograd(x: Feature, kernel: Kernel) -> Convolved:
    """A convolution by F(2x2, 3x3), whose products are of transformed tiles (Lavin & Gray 2016).

    y = A^T [(G g G^T) * (B^T d B)] A (their Eq. 8), where d are tiles of 4x4 pixels, two pixels
    apart, g is the kernel, and y are the 2x2 pixels in the middle of each tile.
    """
    # Tiles of two by two pixels; a stripe is `rows` of them over the whole width of a map.
    b, h, w, c = x.shape
    across, rows = -(-w // 2), min(ROWS, -(-h // 2))
    stripes = -(-h // (2 * rows))
    below, right = 2 * stripes * rows + 1 - h, 2 * across + 1 - w
    padded = jnp.pad(x, ((0, 0), (1, below), (1, right), (0, 0)))
    taps = _taps(_taps(kernel, 0), 1)  # [4, 4, C, O]

    def stripe(index: Array) -> Float[Array, "r w o"]:
        """2 * `rows` lines of one map."""
        # Tiles overlap by two pixels, so that a stripe reads two lines more than it writes.
        corner = (index // stripes, index % stripes * 2 * rows, 0, 0)
        size = (1, 2 * rows + 2, 2 * across + 2, c)
        d = jax.lax.dynamic_slice(padded, corner, size)[0]  # [2 rows + 2, 2 across + 2, C]
        # Sixteen products of matrices in the place of 36 multiplications a tile and channel.
        tiles = [_inputs(_every_other(line, 1)) for line in _inputs(_every_other(d, 0))]
        products = [[tiles[i][j] @ taps[i, j] for j in range(4)] for i in range(4)]
        # Back from the transformed tiles to pixels, along one axis and then the other.
        columns = [_outputs(row) for row in products]  # [tap along rows][pixel across]
        pixels = [_outputs([line[j] for line in columns]) for j in range(2)]  # [across][down]
        down = [jnp.stack([pixels[j][i] for j in range(2)], axis=2) for i in range(2)]
        return jnp.stack(down, axis=1).reshape(2 * rows, 2 * across, -1)  # [2 rows, 2 across, O]

    def write(index: Array, lines: Array) -> Array:
        return jax.lax.dynamic_update_index_in_dim(lines, stripe(index), index, 0)

    # The loop fills all of this, so that it may begin with any value, here one of x. Zeros are
    # constants, which the compiler makes for all layers at the program's beginning, and holds.
    shape = (b * stripes, 2 * rows, 2 * across, kernel.shape[-1])
    lines = jax.lax.fori_loop(0, b * stripes, write, jnp.broadcast_to(x[0, 0, 0, 0], shape))
    return lines.reshape(b, 2 * stripes * rows, 2 * across, -1)[:, :h, :w]  # [B, H, W, O]


def _taps(kernel: Array, axis: int) -> Array:
    """G g of F(2, 3) along an axis: three taps become four."""
    a, b, c = jnp.split(kernel, 3, axis)
    return jnp.concatenate([a, (a + b + c) / 2, (a - b + c) / 2, c], axis)


def _every_other(x: Array, axis: int) -> list[Array]:
    """The four lines of each tile: every second line of x, from its lines 0, 1, 2 and 3 on."""
    last = x.shape[axis] - 3
    return [jax.lax.slice_in_dim(x, i, last + i, 2, axis) for i in range(4)]


def _inputs(d: Sequence[Array]) -> tuple[Array, ...]:
    """B^T d of F(2, 3): the four lines of tiles, transformed."""
    return d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]


def _outputs(m: Sequence[Array]) -> tuple[Array, Array]:
    """A^T m of F(2, 3): four products become two lines of pixels."""
    return m[0] + m[1] + m[2], m[1] - m[2] - m[3]
