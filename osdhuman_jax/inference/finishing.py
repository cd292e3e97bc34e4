"""A model's output made a picture like its source, the last step of every restoration.

Goes in: float32 in [-1, 1] at the size at which it was computed, and the picture that it was made
of. Comes out: a picture of the size asked for, with the source's depth, transparency, profile and
EXIF, its colours if that is wanted, and no colour where the source has none.
"""

from dataclasses import replace

import cv2
import numpy as np

from osdhuman_jax.config import COLOR_FIXES
from osdhuman_jax.images.codec import Picture, to_float, to_uint8, to_uint16
from osdhuman_jax.images.sizes import Floats, Size
from osdhuman_jax.inference import colour


class RestoreError(RuntimeError):
    """The model gave no usable picture, or there is not memory enough."""


def fitted(output: Floats, working: Size, size: Size) -> Floats:
    """The output of a picture that was computed at a `working` size, at the size asked for.

    What it has more at the bottom and right, where sides were padded, is left out; from a larger
    working size it is reduced by the area filter.
    """
    output = output[: working[0], : working[1]]
    # The area filter is the one that leaves no aliasing when many pixels become one.
    if working == size:
        return output
    return cv2.resize(np.ascontiguousarray(output), size[::-1], interpolation=cv2.INTER_AREA)


def check_options(color_fix: str, blend: float) -> None:
    """Raise ValueError on an unknown colour fix or a blend outside [0, 1]."""
    if color_fix not in COLOR_FIXES:
        raise ValueError(f"color_fix must be one of {', '.join(COLOR_FIXES)}, got {color_fix!r}")
    if not 0 <= blend <= 1:
        raise ValueError(f"blend must be between 0 and 1, got {blend}")


def finish(output: Floats, source: Picture, color_fix: str, blend: float) -> Picture:
    """Model output in [-1, 1] as a picture like its source: depth, alpha, what the file says.

    A source without colour stays without. `color_fix` takes the source's colours (adain, wavelet)
    or not (none); `blend` is the part of the restored picture in the result, the rest being the
    source. Raises RestoreError where the output is not finite.
    """
    if not np.isfinite(output).all():
        raise RestoreError("the model's output is not finite")
    # In bands of rows, so that a large picture is not held a second time as floats.
    pixels = np.empty(source.rgb.shape, source.rgb.dtype)
    quantized = to_uint16 if pixels.dtype == np.uint16 else to_uint8
    corrected = colour.corrected(color_fix, output, source.rgb)
    # A gray picture in a file of colour is gray too; a network may tint it.
    gray = source.gray or colour.is_gray(source.rgb)
    for rows in colour.bands(source.size):
        values = corrected(rows)
        if blend < 1:
            # Clipped before it is mixed: what is brighter than white would lighten the mixture.
            values = np.float32(blend) * np.clip(values, -1, 1)
            values = values + np.float32(1 - blend) * to_float(source.rgb[rows])
        pixels[rows] = quantized(colour.luma(values) if gray else values)
    return replace(source, rgb=pixels)
