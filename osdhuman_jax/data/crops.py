"""Random windows of pictures of any size, and the same windows of what belongs to them.

Training learns from such crops. A window is drawn by itself, so that a picture's part map or
attention map can be cut by the window that the picture was cut by. Pixels are uint8 (h, w, 3) RGB
in [0, 255], sizes are (height, width) in pixels.
"""

import cv2
import numpy as np
from jaxtyping import Float32, UInt8

from osdhuman_jax.data.sources import Pixels
from osdhuman_jax.degrade.motion import PartMap

Crop = UInt8[np.ndarray, "height width 3"]
Labels = UInt8[np.ndarray, "height width"]
Weights = Float32[np.ndarray, "h w"]
CutWeights = Float32[np.ndarray, "height width"]
Window = tuple[slice, slice]  # rows, columns
Size = tuple[int, int]  # height, width


def random_crop(image: Pixels, rng: np.random.Generator, size: Size, resize_short: int) -> Crop:
    """A random crop of `size` of a picture of any size.

    The picture's shorter side is scaled to `resize_short` pixels (0 = left as it is), and more
    where the crop would not fit. The window is cut first and then scaled (area filter down, cubic
    up): the same, to the rounding of its sides, at a cost that does not grow with the photograph.
    """
    return cut(image, draw_window(image.shape[:2], rng, size, resize_short), size)


def draw_window(
    picture: tuple[int, ...], rng: np.random.Generator, size: Size, resize_short: int
) -> Window:
    """Rows and columns of a picture, of the size `picture`, that `random_crop` takes."""
    # How much larger the picture is to be, as a fraction: what is asked for, or what a side needs.
    short = min(picture)
    asked = [(resize_short or short, short), *zip(size, picture, strict=True)]
    large, small = max(asked, key=lambda pair: pair[0] / pair[1])
    # The window's sides in pixels of the picture as it is.
    height, width = (max(1, round(side * small / large)) for side in size)
    top = int(rng.integers(picture[0] - height + 1))
    left = int(rng.integers(picture[1] - width + 1))
    return slice(top, top + height), slice(left, left + width)


def cut(image: Pixels, window: Window, size: Size) -> Crop:
    """A window of a picture, scaled to `size`."""
    found = image[window]
    if found.shape[:2] == size:
        return found
    filter_ = cv2.INTER_AREA if len(found) > size[0] else cv2.INTER_CUBIC
    return cv2.resize(found, size[::-1], interpolation=filter_)


def cut_labels(parts: PartMap, window: Window, size: Size) -> Labels:
    """The same window of a part map: each pixel takes the label at its centre, none is mixed."""
    # Unlike INTER_NEAREST, which looks at corners and is half a pixel away from the picture.
    return cv2.resize(parts[window], size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)


def cut_weights(weights: Weights, window: Window, size: Size) -> CutWeights:
    """The same window of a map of numbers, which stay in their range."""
    found = weights[window]
    filter_ = cv2.INTER_AREA if len(found) > size[0] else cv2.INTER_LINEAR
    return cv2.resize(found, size[::-1], interpolation=filter_)
