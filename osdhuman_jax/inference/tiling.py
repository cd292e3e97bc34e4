"""Pictures too large for one program: overlapping tiles that agree, blended into one picture.

Tiles differ from the whole picture in two ways. Convolutions near a tile's edge lack what lies
beyond it: tiles overlap, and a Gaussian window (StableSR's, variance 0.01 of the side) leaves next
to nothing of the edges. And each group norm would see its own tile's mean and variance, so that a
tile of sky and a tile of leaves would be restored with different contrast: here every norm takes
statistics that were measured once, over tiles spread across the picture.
"""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float32

from osdhuman_jax.networks.layers import Feature, GroupNorm, Resized

OVERLAP = 0.25  # of a tile's side
VARIANCE = 0.01  # of the window, in units of the side squared
Corner = tuple[int, int]  # row, column
Size = tuple[int, int]  # height, width


class Statistics(nnx.Variable):
    """Mean and variance of each group of a norm, for each prompt: (2, prompts, groups), float32."""


class SharedNorm(nnx.Module):
    """A group norm whose statistics are of a whole batch of tiles, or known from one.

    A batch that holds all tiles for one prompt and then for another has statistics of each.
    """

    def __init__(self, norm: GroupNorm, measure: bool, prompts: int):
        self.norm, self.measure, self.prompts = norm, measure, prompts
        self.statistics = Statistics(jnp.zeros((2, prompts, norm.num_groups), jnp.float32))

    def __call__(self, x: Feature, *, silu: bool = False) -> Feature:
        # As the norm itself: statistics in float32 and in two passes.
        norm, wide = self.norm, x.astype(jnp.float32)
        if self.measure:
            # Over all tiles at once, without their edges.
            grouped = inside(wide).reshape(self.prompts, -1, norm.num_groups, norm.group_size)
            mean = grouped.mean((1, 3), keepdims=True)  # [P, 1, groups, 1]
            variance = jnp.square(grouped - mean).mean((1, 3))  # [P, groups]
            self.statistics[...] = jnp.stack([mean[:, 0, :, 0], variance])
        # From groups to their channels, and from prompts to their tiles.
        known = jnp.repeat(self.statistics[...], norm.group_size, axis=2)  # [2, P, C]
        known = jnp.repeat(known, x.shape[0] // self.prompts, axis=1)  # [2, B, C]
        mean, variance = known[:, :, None, None]  # [B, 1, 1, C] each
        y = norm.scaled(wide - mean, variance)
        return jax.nn.silu(y) if silu else y


def inside(x: Feature) -> Resized:
    """The map without an eighth at each edge, where a tile differs from the picture."""
    # Half of the least overlap: what lies further inside is some tile's middle.
    rows, columns = x.shape[1] // 8, x.shape[2] // 8
    return x[:, rows : x.shape[1] - rows, columns : x.shape[2] - columns]


def share_norms(model: nnx.Module, measure: bool) -> None:
    """Put a SharedNorm in the place of every group norm, in place."""
    # A guided U-Net sees every tile twice, for the negative prompts first.
    guided = getattr(model, "guidance", None) is not None
    for path, module in list(nnx.iter_modules(model)):
        prompts = 2 if guided and path[:1] == ("unet",) else 1
        # Lists, for what is walked over is changed on the way.
        for name, child in list(vars(module).items()):
            if isinstance(child, GroupNorm):
                setattr(module, name, SharedNorm(child, measure, prompts))


def starts(length: int, tile: int, multiple: int, reach: int = 0) -> list[int]:
    """Where tiles of one axis begin: at multiples of `multiple`, which divides both lengths.

    They overlap by at least OVERLAP of their side, and by twice `reach` unless that is more than
    half of it; the first and last touch the picture's edges.
    """
    # Where the reach is known, nothing of a pixel's surroundings is missing in the tile's middle.
    overlap = max(OVERLAP * tile, min(2 * reach, tile // 2))
    stride = max(int(tile - overlap) // multiple * multiple, multiple)
    return [*range(0, length - tile, stride), length - tile]


def corners(size: Size, tile: Size, multiple: int, reach: int = 0) -> list[Corner]:
    """Top left corners of the tiles that cover a picture."""
    rows, columns = (starts(n, t, multiple, reach) for n, t in zip(size, tile, strict=True))
    return [(row, column) for row in rows for column in columns]


def spread(size: Size, tile: Size, multiple: int, count: int) -> list[Corner]:
    """Corners of `count` tiles that sample a picture evenly, each in another row and column."""
    # Multiples of the golden ratio, modulo 1, lie evenly whatever their count is.
    golden = (np.sqrt(5) - 1) / 2
    free = [(n - t) // multiple for n, t in zip(size, tile, strict=True)]
    along, across = free if free[0] >= free[1] else free[::-1]
    picked = []
    for i in range(count):
        # The longer way is divided evenly, the shorter one by the golden ratio.
        far = round((i + 0.5) / count * along) * multiple
        near = round((i + 0.5) * golden % 1 * across) * multiple
        picked.append((far, near) if free[0] >= free[1] else (near, far))
    return picked


def bell(side: int) -> Float32[np.ndarray, " s"]:
    """A Gaussian around the middle of a tile's side, positive everywhere."""
    offsets = (np.arange(side) - (side - 1) / 2) / side
    return np.exp(-np.square(offsets) / (2 * VARIANCE)).astype(np.float32)


def window(tile: Size) -> Float32[np.ndarray, "h w"]:
    """Weights of a tile's pixels."""
    return np.outer(bell(tile[0]), bell(tile[1]))


class Canvas:
    """A picture or latent that grows from the weighted tiles of a whole grid (`corners`).

    The grid's weights are a product of its rows' and its columns', so they need no plane of theirs.
    """

    def __init__(self, size: Size, tile: Size, channels: int = 3) -> None:
        self._window = window(tile)[..., None]
        self._sum = np.zeros((*size, channels), np.float32)
        self._tile, self._corners = tile, set[Corner]()

    def add(self, corner: Corner, values: Float32[np.ndarray, "h w c"]) -> None:
        """Lay a tile down with its top left corner at `corner`."""
        height, width = values.shape[:2]
        here = np.s_[corner[0] : corner[0] + height, corner[1] : corner[1] + width]
        self._sum[here] += values * self._window
        self._corners.add(corner)

    def picture(self) -> Float32[np.ndarray, "_ _ _"]:
        """The blended picture; every pixel must have been covered."""
        # The window is a product, and so is the sum of all windows of a grid.
        rows, columns = (self._weights(axis) for axis in (0, 1))
        self._sum /= rows[:, None, None]
        self._sum /= columns[:, None]
        return self._sum

    def _weights(self, axis: int) -> Float32[np.ndarray, " n"]:
        """Sum of the bells along an axis."""
        weights, side = np.zeros(self._sum.shape[axis], np.float32), self._tile[axis]
        # Each row of tiles once, however many tiles lie in it.
        for start in {corner[axis] for corner in self._corners}:
            weights[start : start + side] += bell(side)
        return weights


def groups_of(items: list[Corner], count: int) -> Iterator[list[Corner]]:
    """`count` items at a time; the last group is as long as the rest."""
    for start in range(0, len(items), count):
        yield items[start : start + count]
