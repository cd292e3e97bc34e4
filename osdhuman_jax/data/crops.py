"""Random square windows of pictures of any size, and the same windows of what belongs to them.

Training learns from such crops. A window is drawn by itself, so that a picture's part map can be
cut by the window that the picture was cut by. Pixels are uint8 (h, w, 3) RGB in [0, 255].
"""

import cv2
import numpy as np
from jaxtyping import UInt8

from osdhuman_jax.data.sources import Pixels
from osdhuman_jax.degrade.motion import PartMap

Square = UInt8[np.ndarray, "crop crop 3"]
Labels = UInt8[np.ndarray, "crop crop"]
Window = tuple[slice, slice]  # rows, columns


def random_crop(image: Pixels, rng: np.random.Generator, crop: int, resize_short: int) -> Square:
    """A random (crop, crop, 3) square of a picture of any size.

    The picture's shorter side is scaled to `resize_short` pixels (0 = left as it is) and to `crop`
    at least. The window is cut first and then scaled (area filter down, cubic up): the same, to
    the rounding of the window's side, at a cost that does not grow with the photograph.
    """
    return cut(image, draw_window(image.shape[:2], rng, crop, resize_short), crop)


def draw_window(
    size: tuple[int, ...], rng: np.random.Generator, crop: int, resize_short: int
) -> Window:
    """Rows and columns of a picture of `size` that `random_crop` takes."""
    # The window's side in pixels of the picture as it is.
    height, width = size
    short = min(height, width)
    target = max(resize_short or short, crop)
    side = max(1, round(crop * short / target))
    top = int(rng.integers(height - side + 1))
    left = int(rng.integers(width - side + 1))
    return slice(top, top + side), slice(left, left + side)


def cut(image: Pixels, window: Window, crop: int) -> Square:
    """A window of a picture, scaled to `crop` pixels a side."""
    found = image[window]
    side = len(found)
    if side == crop:
        return found
    filter_ = cv2.INTER_AREA if side > crop else cv2.INTER_CUBIC
    return cv2.resize(found, (crop, crop), interpolation=filter_)


def cut_labels(parts: PartMap, window: Window, crop: int) -> Labels:
    """The same window of a part map: each pixel takes the label at its centre, none is mixed."""
    # Unlike INTER_NEAREST, which looks at corners and is half a pixel away from the picture.
    return cv2.resize(parts[window], (crop, crop), interpolation=cv2.INTER_NEAREST_EXACT)
