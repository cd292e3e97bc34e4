"""Metrics of a crop that need no weights: how sharp, clean and uncompressed its person is.

They are used where the user has no weights of learned metrics. They see neither content nor beauty,
so they rank photographs by technique only, and a report on them says so. A crop of uint8 RGB and
the region of its person go in, a number for each metric comes out. Sharpness is measured in that
region: a soft background is no fault of a portrait. How they follow blur, noise and JPEG
is measured by `python -m benchmarks.curate_scores` and stands in docs/curation.md.

`osdhuman_jax.inference.condition` measures noise and blocks too, to tell whether one photograph
needs restoring. It looks at other places on purpose: its picture has a known grid of blocks and any
content, while a crop begins anywhere in its grid and is compared with crops of people only. What
both have in common is Immerkaer's mask and its factor.
"""

import math

import cv2
import numpy as np
from jaxtyping import Float32, Float64, UInt8
from scipy.stats import trim_mean

from curate.cropping.stages import Region
from curate.schema import Pixels

Gray = UInt8[np.ndarray, "h w"]

# Raised when the numbers change, so that crops are scored anew.
CLASSIC_VERSION = 2
# Standard deviations in pixels of the two blurs whose gradients are compared at edges.
_FINE, _COARSE = 0.7, 1.4
# A step of one pixel has 1.53, and a little more where a camera sharpens. Fine stripes have up to
# 2.5 and are no sharper, so that all beyond a step comes out at most _BEYOND above it.
_SHARPEST, _BEYOND = 1.6, 0.05
# Percentile of the gradients above which a pixel may be on an edge: texture has weaker ones.
_EDGES = 90
# Percentile of the blocks' responses that is taken for noise: even the tenth follows texture, of
# asphalt, leaves and walls, where a crop has nothing calm.
CALM = 5
# Immerkaer's mask, which a plane and a straight edge leave at zero.
_NOISE = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float64)
# Blockiness that is hardly told from chance: pictures without any have up to 0.03, quality 95 has
# 0.02, and 90 has 0.05.
_UNSEEN = 0.02
# Pixels of a block's side in which noise is measured.
_BLOCK = 16
# Mean luma below which, and above 255 minus which, a block has no noise to be measured.
_SHADOW = 16
# Luma from which on, downwards and upwards, a camera has lost details.
_DARK, _LIGHT = 2, 253


def edge_sharpness(gray: Gray) -> float:
    """How steep the strong edges are: 1 where they are soft, 1.6 where they are sharp.

    It is the median, over the strong edges, of the gradient after a slight blur over that after a
    stronger one: a step of width w has sqrt((w^2 + 1.4^2) / (w^2 + 0.7^2)), whatever its height
    (Zhuo and Sim 2011 find defocus so). Contrast and exposure cancel out, noise is weak beside
    strong edges, and texture below them is not looked at. A flat picture has 1.
    """
    values = gray.astype(np.float32)
    fine, coarse = (_gradient(cv2.GaussianBlur(values, (0, 0), s)) for s in (_FINE, _COARSE))
    # The ridges of the gradient: beside an edge's middle the ratio says nothing about its width.
    ridge = coarse == cv2.dilate(coarse, np.ones((3, 3), np.uint8))
    strong = ridge & (coarse >= np.percentile(coarse, _EDGES)) & (coarse > 0)
    if not strong.any():
        return 1.0
    ratio = float(np.median(fine[strong] / coarse[strong]))
    # Beyond a step's ratio little is gained; but something, or a pool of stripes would be all ties.
    return min(ratio, _SHARPEST + _BEYOND * max(0.0, 1 - _SHARPEST / ratio))


def _gradient(values: Float32[np.ndarray, "h w"]) -> Float32[np.ndarray, "h w"]:
    """Length of the gradient at each pixel, by Sobel's mask."""
    across, down = (cv2.Sobel(values, cv2.CV_32F, *step) for step in ((1, 0), (0, 1)))
    return cv2.magnitude(across, down)


def noise_level(gray: Gray) -> float:
    """Standard deviation of the noise in the calmest blocks, in levels of 255 (Immerkaer 1996)."""
    response = np.abs(cv2.filter2D(gray.astype(np.float64), -1, _NOISE))
    blocks, luma = _block_means(response), _block_means(gray.astype(np.float64))
    # Where the camera has lost all details it has lost the noise too: a white sky is not clean.
    seen = (luma >= _SHADOW) & (luma <= 255 - _SHADOW)
    # The mean of |x| of Gaussian noise is sqrt(2 / pi) of its deviation, and the mask multiplies
    # the deviation by 6, the root of the sum of its squares.
    calm = np.percentile(blocks[seen] if seen.any() else blocks, CALM)
    return float(calm * math.sqrt(math.pi / 2) / 6)


def _block_means(values: Float64[np.ndarray, "h w"]) -> Float64[np.ndarray, "m n"]:
    """The mean of each whole block."""
    height, width = (n - n % _BLOCK for n in values.shape)
    blocks = values[:height, :width]
    return blocks.reshape(height // _BLOCK, _BLOCK, width // _BLOCK, _BLOCK).mean(axis=(1, 3))


def log_noise(gray: Gray) -> float:
    """Logarithm of `noise_level`, smoothly bounded below: nobody sees less than a level of 255.

    What is found there is texture more than noise, and Eq. 1 would make it as weighty as any.
    """
    return math.log(math.hypot(1, noise_level(gray)))


def log_blockiness(gray: Gray) -> float:
    """Logarithm of how much larger steps are across JPEG's block edges than beside them; 0 = none.

    A crop starts anywhere in its picture's grid of 8 x 8 blocks, so all eight phases are tried.
    Where the crop was resized the grid is no longer of 8 and hardly seen.
    """
    values = gray.astype(np.float64)
    across, down = np.abs(np.diff(values, axis=1)), np.abs(np.diff(values, axis=0))
    # JPEG's grid is seen both ways; a fence, bricks or a frame are seen one way.
    both = min(_strongest_phase(across.mean(axis=0)), _strongest_phase(down.mean(axis=1)))
    return math.hypot(both, _UNSEEN) - _UNSEEN


def _strongest_phase(steps: Float64[np.ndarray, " k"]) -> float:
    """How far the strongest of eight phases is above a usual one, by the logarithms of steps.

    Args:
        steps: the mean step between each two neighbouring lines of pixels.
    """
    # Adding 1 keeps flat pictures from dividing zero by zero. Each step is compared with those
    # around it, since some places have more texture than others.
    logs = np.log(steps + 1)
    near = np.lib.stride_tricks.sliding_window_view(np.pad(logs, 3, "reflect"), 7)  # [k, 7]
    excess = logs - np.median(near, axis=1)
    # The mean of a phase's middle half: one line of the scene may be as strong as it likes.
    phases = np.array([trim_mean(excess[phase::8], 0.25) for phase in range(8)])
    return float(phases.max() - np.median(phases))


def clipped(gray: Gray) -> float:
    """Share of pixels that are black or white."""
    return float(np.mean((gray <= _DARK) | (gray >= _LIGHT)))


def entropy(gray: Gray) -> float:
    """The entropy of the histogram, in bits."""
    counts = np.bincount(gray.ravel(), minlength=256)
    shares = counts[counts > 0] / gray.size
    return float(-(shares * np.log2(shares)).sum())


# Metrics that rank a crop: 1 where higher values are better, or -1.
DIRECTIONS = {"person_sharpness": 1, "calm_noise": -1, "jpeg_blocks": -1}
# Besides these there are two that are told and rank nothing, since they follow the exposure.
CLASSIC_METRICS = (*DIRECTIONS, "clipped", "entropy")


def score(rgb: Pixels, region: Region) -> dict[str, float]:
    """All metrics of one crop, by name, with the sharpness of its person's region."""
    gray = cv2.cvtColor(np.ascontiguousarray(rgb), cv2.COLOR_RGB2GRAY)
    x0, y0, x1, y1 = region
    return {
        "person_sharpness": edge_sharpness(np.ascontiguousarray(gray[y0:y1, x0:x1])),
        # Noise and blocks are the file's, and seen best where nothing else is.
        "calm_noise": log_noise(gray),
        "jpeg_blocks": log_blockiness(gray),
        "clipped": clipped(gray),
        "entropy": entropy(gray),
    }
