"""Sizes: pictures enlarged, padded to few sizes, squashed to a square, cut into tiles.

Arrays are uint8 or uint16 (height, width, 3) unless they are said to be floats in [-1, 1].
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import cv2
import numpy as np
from jaxtyping import Float32, UInt8, UInt16
from PIL import Image

from osdhuman_jax.images.alpha import filled
from osdhuman_jax.images.codec import Picture, to_float

Pixels = UInt8[np.ndarray, "_ _ 3"] | UInt16[np.ndarray, "_ _ 3"]
Floats = Float32[np.ndarray, "_ _ 3"]
Size = tuple[int, int]  # height, width


def step(side: int, unit: int) -> int:
    """The side rounded up to 1, 2, 3, 4, 6, 8, 12, 16, .. units."""
    # Two steps an octave: a program serves all sides up to half as long again.
    units = -(-side // unit)
    coarse = 2 ** max((units - 1).bit_length() - 2, 0)
    return -(-units // coarse) * coarse * unit


def scaled_size(size: Size, factor: float) -> Size:
    """Sides times `factor`, to the nearest pixel."""
    return round(size[0] * factor), round(size[1] * factor)


def enlarge(picture: Picture, factor: float) -> Picture:
    """The picture scaled by `factor` >= 1, bicubic; a print of it stays as large.

    What transparency hides takes the colours around it first, which are mixed into the seen here
    and in the network. Raises ValueError on any other factor.
    """
    if not 1 <= factor < math.inf:
        raise ValueError(f"upscale must be at least 1, got {factor}")
    # Before any mixing of neighbours, that of the resize here included.
    picture = replace(picture, rgb=filled(picture.rgb, picture.alpha))
    size = scaled_size(picture.size, factor)
    if size == picture.size:
        return picture
    alpha = None if picture.alpha is None else resized(picture.alpha, size)
    # More pixels in the same inches.
    dense = picture.density and (picture.density[0] * factor, picture.density[1] * factor)
    return replace(picture, rgb=resized(picture.rgb, size), alpha=alpha, density=dense)


def covering(size: Size, scale: int) -> Size:
    """Sides that, `scale` times as long, are at least `size`."""
    return -(-size[0] // scale), -(-size[1] // scale)


def seen(pixels: Pixels, size: Size, scale: int) -> Pixels:
    """What a network that enlarges `scale` times is given, whose output begins with `size` pixels.

    Enlarged by `scale` the picture is seen as it is, by more enlarged, by less reduced without
    aliasing: `scale` times by the mean of squares where it is not to be enlarged. The output need
    only be cropped, for the picture goes on mirrored beyond its edge where sides do not divide.
    """
    wanted = covering(size, scale)
    have = pixels.shape[:2]
    # What the output covers, in pixels of the picture.
    extent = [h * w * scale / s for h, w, s in zip(have, wanted, size, strict=True)]
    ratios = {side / w for side, w in zip(extent, wanted, strict=True)}
    # Nothing to resize: the pixels are given as they are, to the bit.
    if ratios == {1.0}:
        return pixels
    # Where sides divide, the mean of squares reduces without aliasing and without a shift.
    whole = all(ratio > 1 and ratio.is_integer() for ratio in ratios)
    kind = Image.Resampling.BOX if whole else Image.Resampling.BICUBIC
    grown = pad_reflect(pixels, (math.ceil(extent[0]), math.ceil(extent[1])))
    return resized(grown, wanted, kind, (0.0, 0.0, extent[1], extent[0]))


def resized(
    plane: np.ndarray,
    size: Size,
    kind: Image.Resampling = Image.Resampling.BICUBIC,
    box: tuple[float, float, float, float] | None = None,
) -> np.ndarray:
    """A plane or picture scaled to `size`: all of it, or a `box` (left, top, right, bottom).

    Colour of 16 bits, which Pillow lacks, is scaled plane by plane.
    """
    shape = (size[1], size[0])
    # Pillow resizes bytes of any number of channels, and floats of one.
    if plane.dtype == np.uint8:
        return np.asarray(Image.fromarray(plane).resize(shape, kind, box))
    if plane.ndim == 3:
        return np.stack([resized(plane[..., i], size, kind, box) for i in range(3)], axis=-1)
    # A cubic overshoots at edges: beyond the range it would wrap around.
    values = np.asarray(Image.fromarray(plane.astype(np.float32)).resize(shape, kind, box))
    return np.round(values.clip(0, 65_535)).astype(np.uint16)


def squash(pixels: Pixels, side: int, antialias: bool = True) -> Float32[np.ndarray, "s s 3"]:
    """Square of `side` pixels, linear: antialiased as RAM's encoder makes its own, or not."""
    if not antialias:
        # OpenCV's linear filter is two taps an axis, whatever the factor.
        planes = (cv2.resize(to_float(pixels[..., i]), (side, side)) for i in range(3))
        return np.stack([*planes], axis=-1)
    kind = Image.Resampling.BILINEAR
    # A plane at a time: a large picture is not held as floats.
    planes = (Image.fromarray(to_float(pixels[..., i])) for i in range(3))
    return np.stack([np.asarray(plane.resize((side, side), kind)) for plane in planes], axis=-1)


def cut(pixels: Pixels, places: Sequence[Size], tile: Size) -> Float32[np.ndarray, "b _ _ 3"]:
    """Tiles of a picture, in [-1, 1]."""
    height, width = tile
    parts = [pixels[row : row + height, column : column + width] for row, column in places]
    return to_float(np.stack(parts))


def pad_reflect(pixels: Pixels, size: Size) -> Pixels:
    """Grown to `size` at the bottom and right by mirroring without repeating the edge.

    Mirrors to and fro where the margin exceeds the picture; a side of one pixel is repeated.
    """
    rows, columns = (_mirror(have, want) for have, want in zip(pixels.shape[:2], size, strict=True))
    return pixels[rows][:, columns]


def _mirror(have: int, want: int) -> np.ndarray:
    """Indices 0, 1, .., have-1, have-2, .., 1, 0, 1, .. of length `want`."""
    # To the far edge and back, neither edge twice.
    period = max(2 * (have - 1), 1)
    steps = np.arange(want) % period
    return np.minimum(steps, period - steps) if have > 1 else steps
