"""Metrics of a crop that need no weights: how sharp, clean and uncompressed it is.

They see neither content nor beauty, so they rank photographs by technique only, and a report on
them says so.
"""

import math

import cv2
import numpy as np
from jaxtyping import UInt8

Gray = UInt8[np.ndarray, "h w"]
Pixels = UInt8[np.ndarray, "h w 3"]

_NOISE = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float64)
_DARK, _LIGHT = 2, 253  # luma from which on details are lost


def sharpness(gray: Gray) -> float:
    """Logarithm of the Laplacian's variance."""
    return math.log1p(cv2.Laplacian(gray, cv2.CV_64F).var())


def noise(gray: Gray) -> float:
    """Standard deviation of the noise in levels (Immerkaer 1996)."""
    response = cv2.filter2D(gray.astype(np.float64), -1, _NOISE)[1:-1, 1:-1]
    return float(np.abs(response).mean() * math.sqrt(math.pi / 2) / 6)


def blockiness(gray: Gray) -> float:
    """Mean step across the edges of JPEG's 8 x 8 blocks over the mean step elsewhere."""
    values = gray.astype(np.float64)
    ratios = []
    for steps in (np.abs(np.diff(values, axis=0)), np.abs(np.diff(values, axis=1)).T):
        edge = np.arange(len(steps)) % 8 == 7
        ratios.append((steps[edge].mean() + 1) / (steps[~edge].mean() + 1))  # + 1: flat pictures
    return float(np.mean(ratios))


def clipped(gray: Gray) -> float:
    """Share of pixels that are black or white."""
    return float(np.mean((gray <= _DARK) | (gray >= _LIGHT)))


def entropy(gray: Gray) -> float:
    """Of the histogram, in bits."""
    counts = np.bincount(gray.ravel(), minlength=256)
    shares = counts[counts > 0] / gray.size
    return float(-(shares * np.log2(shares)).sum())


METRICS = {
    "sharpness": (sharpness, 1),
    "noise": (noise, -1),
    "blockiness": (blockiness, -1),
    "clipped": (clipped, -1),
    "entropy": (entropy, 1),
}  # name: function of the luma, direction


def score(rgb: Pixels) -> dict[str, float]:
    """All of them for one crop."""
    gray = cv2.cvtColor(np.ascontiguousarray(rgb), cv2.COLOR_RGB2GRAY)
    return {name: function(gray) for name, (function, _) in METRICS.items()}
