"""Metrics of a crop that need no weights: how sharp, clean and uncompressed it is.

They are used where the user has no weights of learned metrics. They see neither content nor beauty,
so they rank photographs by technique only, and a report on them says so. A crop of uint8 RGB goes
in, a number for each metric comes out.

`osdhuman_jax.inference.condition` measures noise and blocks too, to tell whether one photograph
needs restoring. It looks at other places on purpose: its picture has a known grid of blocks and any
content, while a crop begins anywhere in its grid and is compared with crops of people only. What
both have in common is Immerkaer's mask and its factor.
"""

import math

import cv2
import numpy as np
from jaxtyping import Float64, UInt8

from curate.schema import Pixels

Gray = UInt8[np.ndarray, "h w"]

# Raised when the numbers change, so that crops are scored anew.
CLASSIC_VERSION = 1
# Percentile of the blocks' responses that is taken for noise; louder blocks have texture too.
CALM = 10
# Immerkaer's mask, which a plane and a straight edge leave at zero.
_NOISE = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float64)
# Pixels of a block's side in which noise is measured.
_BLOCK = 16
# Luma from which on, downwards and upwards, a camera has lost details.
_DARK, _LIGHT = 2, 253


def log_sharpness(gray: Gray) -> float:
    """Logarithm of the variance of the Laplacian.

    The variance itself spans decades, and Eq. 1 would be ruled by its few highest values.
    """
    return math.log1p(cv2.Laplacian(gray, cv2.CV_64F).var())


def noise_level(gray: Gray) -> float:
    """Standard deviation of the noise in the calmest blocks, in levels of 255 (Immerkaer 1996)."""
    response = np.abs(cv2.filter2D(gray.astype(np.float64), -1, _NOISE))
    height, width = (n - n % _BLOCK for n in gray.shape)
    blocks = response[:height, :width].reshape(height // _BLOCK, _BLOCK, width // _BLOCK, _BLOCK)
    # The mean of |x| of Gaussian noise is sqrt(2 / pi) of its deviation, and the mask multiplies
    # the deviation by 6, the root of the sum of its squares.
    calm = np.percentile(blocks.mean(axis=(1, 3)), CALM)
    return float(calm * math.sqrt(math.pi / 2) / 6)


def blockiness(gray: Gray) -> float:
    """Mean step across JPEG's block edges over the mean step elsewhere; 1 = no blocks.

    A crop starts anywhere in its picture's grid of 8 x 8 blocks, so all eight phases are tried.
    Where the crop was resized the grid is no longer of 8 and hardly seen.
    """
    values = gray.astype(np.float64)
    across, down = np.abs(np.diff(values, axis=1)).T, np.abs(np.diff(values, axis=0))
    return (_strongest_phase(across) + _strongest_phase(down)) / 2


def _strongest_phase(steps: Float64[np.ndarray, "lines k"]) -> float:
    """The mean step of the strongest of eight phases over that of a usual one."""
    # Adding 1 keeps flat pictures from dividing zero by zero.
    means = np.array([steps[phase::8].mean() for phase in range(8)]) + 1
    return float(means.max() / np.median(means))


def clipped(gray: Gray) -> float:
    """Share of pixels that are black or white."""
    return float(np.mean((gray <= _DARK) | (gray >= _LIGHT)))


def entropy(gray: Gray) -> float:
    """The entropy of the histogram, in bits."""
    counts = np.bincount(gray.ravel(), minlength=256)
    shares = counts[counts > 0] / gray.size
    return float(-(shares * np.log2(shares)).sum())


# Of each metric the function of the luma, and 1 where higher values are better or -1.
CLASSIC_METRICS = {
    "sharpness": (log_sharpness, 1),
    "noise": (noise_level, -1),
    "blockiness": (blockiness, -1),
    "clipped": (clipped, -1),
    "entropy": (entropy, 1),
}


def score(rgb: Pixels) -> dict[str, float]:
    """All metrics of one crop, by name."""
    gray = cv2.cvtColor(np.ascontiguousarray(rgb), cv2.COLOR_RGB2GRAY)
    return {name: function(gray) for name, (function, _) in CLASSIC_METRICS.items()}
