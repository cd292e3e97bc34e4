"""Transparent pixels: their hidden colour, which programs leave black, must not reach the seen.

Resizing and networks mix neighbours. So hidden pixels first take the colours of the visible ones
around them: averages weighted by alpha, from coarse to fine (Gortler et al., 1996).
"""

import cv2
import numpy as np
from jaxtyping import Float32

Planes = np.ndarray  # uint8 or uint16, (h, w, 3)
Colours = Float32[np.ndarray, "_ _ 3"]
Weights = Float32[np.ndarray, "_ _"]

# Alpha below which a pixel takes its colour rather from around it: so little is seen of it that its
# own, divided by its weight, would be mostly rounding.
_SOFT = 8 / 255


def filled(rgb: Planes, alpha: np.ndarray | None) -> Planes:
    """The picture with other colours where nothing of it is seen; all hidden, it stays as it is."""
    if alpha is None:
        return rgb
    hidden = alpha == 0
    # Without a hidden pixel there is nothing to do, without a seen one no colour to take.
    if not hidden.any() or hidden.all():
        return rgb
    weights = alpha.astype(np.float32) / np.float32(np.iinfo(alpha.dtype).max)
    # Colours count by how much of them is seen, so that black behind glass darkens nothing.
    half = _half(weights)
    # At half the size already, a plane at a time: a large picture is not held as floats.
    mixed = np.dstack([_half(rgb[..., i] * weights) for i in range(3)])
    around, result = _spread(mixed, half), rgb.copy()
    for i in range(3):
        plane = _fit(np.ascontiguousarray(around[..., i]), alpha.shape)
        # Seen pixels stay as they are, to the bit: only what nobody saw is invented.
        result[..., i][hidden] = np.rint(plane[hidden])
    return result


def _spread(mixed: Colours, weights: Weights) -> Colours:
    """Colours everywhere, of colours times weights."""
    soft = np.float32(_SOFT)
    if max(weights.shape) == 1:
        return mixed / weights[..., None]
    # From coarse to fine: what a level does not know, the next coarser one does.
    coarse = _spread(np.dstack([_half(mixed[..., i]) for i in range(3)]), _half(weights))
    colours = np.empty_like(mixed)
    for i in range(3):
        around = _fit(np.ascontiguousarray(coarse[..., i]), weights.shape)
        colours[..., i] = (mixed[..., i] + soft * around) / (weights + soft)
    return colours


def _half(plane: Weights) -> Weights:
    """Means of squares of two pixels."""
    height, width = plane.shape
    size = (max(-(-width // 2), 1), max(-(-height // 2), 1))
    return cv2.resize(plane, size, interpolation=cv2.INTER_AREA)


def _fit(plane: Weights, shape: tuple[int, ...]) -> Weights:
    return cv2.resize(plane, (shape[1], shape[0]), interpolation=cv2.INTER_LINEAR)
