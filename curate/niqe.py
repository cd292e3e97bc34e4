"""NIQE (Mittal, Soundararajan, Bovik 2013) on the CPU in float64, with parameters from a file.

36 features of each 96 x 96 block (18 at full and 18 at half size) of the luma's normalised
contrast; the score is the distance between their Gaussian and that of pristine pictures. The
original's parameters are for research and are not shipped here: name a file of them (`mu_prisparam`,
`cov_prisparam` in .mat or .npz), or fit your own with `python -m curate.niqe --input PHOTOS
--output PARAMS.npz`. Scores by parameters of one's own are not comparable with published ones.
"""

import argparse
import functools
import math
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Float64, UInt8
from scipy.io import loadmat
from scipy.special import gamma

from curate.config import ConfigError

Pixels = UInt8[np.ndarray, "h w 3"]
Plane = Float64[np.ndarray, "h w"]
Features = Float64[np.ndarray, "n 36"]
Parameters = tuple[Float64[np.ndarray, " 36"], Float64[np.ndarray, "36 36"]]

BLOCK = 96  # pixels
SHARP = 0.75  # share of the sharpest block's sharpness from which on a block is learned from
_SHAPES = np.arange(0.2, 10.001, 0.001)
_RATIOS = gamma(2 / _SHAPES) ** 2 / (gamma(1 / _SHAPES) * gamma(3 / _SHAPES))


def luma(rgb: Pixels) -> Plane:
    """Y of YIQ in whole levels."""
    return np.round(rgb.astype(np.float64) @ np.array([0.299, 0.587, 0.114]))


def normalise(plane: Plane) -> tuple[Plane, Plane]:
    """Contrast normalised by its 7 x 7 Gaussian neighbourhood (sigma 7/6); local deviation."""
    blur = functools.partial(
        cv2.GaussianBlur, ksize=(7, 7), sigmaX=7 / 6, borderType=cv2.BORDER_REPLICATE
    )
    mean = blur(plane)
    deviation = np.sqrt(np.abs(blur(plane * plane) - mean * mean))
    return (plane - mean) / (deviation + 1), deviation


def _fit(values: np.ndarray) -> tuple[float, float, float]:
    """Shape, left and right scale of an asymmetric generalised Gaussian, by moments."""
    left, right = values[values < 0], values[values > 0]
    with np.errstate(all="ignore"):
        sl, sr = np.sqrt(np.mean(left**2)), np.sqrt(np.mean(right**2))
        ratio = sl / sr
        r = np.mean(np.abs(values)) ** 2 / np.mean(values**2)
        r *= (ratio**3 + 1) * (ratio + 1) / (ratio**2 + 1) ** 2
    if not np.isfinite(r):
        return math.nan, math.nan, math.nan
    shape = float(_SHAPES[np.argmin((_RATIOS - r) ** 2)])
    scale = math.sqrt(gamma(1 / shape) / gamma(3 / shape))
    return shape, float(sl) * scale, float(sr) * scale


def _block_features(block: Plane) -> list[float]:
    shape, left, right = _fit(block.ravel())
    features = [shape, (left + right) / 2]
    for down, across in ((0, 1), (1, 0), (1, 1), (1, -1)):
        product = block * np.roll(block, (down, across), axis=(0, 1))
        shape, left, right = _fit(product.ravel())
        mean = (right - left) * gamma(2 / shape) / gamma(1 / shape)
        features += [shape, mean, left, right]
    return features


def features(rgb: Pixels) -> tuple[Features, Float64[np.ndarray, " n"]]:
    """Features and sharpness of each block; what does not fill a block is cut off."""
    rows, columns = rgb.shape[0] // BLOCK, rgb.shape[1] // BLOCK
    plane = luma(rgb)[: rows * BLOCK, : columns * BLOCK]
    parts, sharpness = [], np.zeros(0)
    for scale in (1, 2):
        contrast, deviation = normalise(plane)
        side = BLOCK // scale
        blocks = [
            (slice(r * side, (r + 1) * side), slice(c * side, (c + 1) * side))
            for c in range(columns)
            for r in range(rows)
        ]
        parts.append(np.array([_block_features(contrast[b]) for b in blocks]).reshape(-1, 18))
        if scale == 1:
            sharpness = np.array([deviation[b].mean() for b in blocks])
            plane = halve(plane)
    return np.concatenate(parts, axis=1), sharpness


def halve(plane: Plane) -> Plane:
    """Half the size by an antialiased bicubic, as Matlab's imresize: eight taps a side."""
    taps = (np.arange(8) - 3.5) / 2
    near = 1.5 * np.abs(taps) ** 3 - 2.5 * taps**2 + 1
    far = -0.5 * np.abs(taps) ** 3 + 2.5 * taps**2 - 4 * np.abs(taps) + 2
    kernel = np.where(np.abs(taps) <= 1, near, far) / 2
    kernel /= kernel.sum()
    padded = np.pad(plane, 3, mode="symmetric")
    rows = sum(k * padded[i : i + plane.shape[0] - 1 : 2] for i, k in enumerate(kernel))
    return sum(k * rows[:, i : i + plane.shape[1] - 1 : 2] for i, k in enumerate(kernel))


def score(rgb: Pixels, parameters: Parameters) -> float:
    """NIQE of a picture; NaN where it is too flat or small to tell."""
    mean, covariance = parameters
    found = features(rgb)[0]
    found = found[np.isfinite(found).all(axis=1)]
    if len(found) < 2:
        return math.nan
    difference = mean - found.mean(axis=0)
    inverse = np.linalg.pinv((covariance + np.cov(found, rowvar=False)) / 2)
    return float(np.sqrt(difference @ inverse @ difference))


def fit(pictures: Iterator[Pixels]) -> Parameters:
    """Parameters from pictures that one trusts. Raises ConfigError if they are too few."""
    parts = []
    for rgb in pictures:
        found, sharpness = features(rgb)
        if len(found):
            parts.append(found[sharpness > SHARP * sharpness.max()])
    found = np.concatenate([*parts, np.zeros((0, 36))])
    found = found[np.isfinite(found).all(axis=1)]
    if len(found) < 100:
        raise ConfigError(f"{len(found)} sharp blocks are too few to fit NIQE: 100 at least")
    return found.mean(axis=0), np.cov(found, rowvar=False)


def read_parameters(path: Path) -> Parameters:
    """From .mat or .npz. Raises ConfigError."""
    try:
        data = loadmat(path) if path.suffix == ".mat" else np.load(path)
        mean, covariance = data["mu_prisparam"].reshape(-1), data["cov_prisparam"]
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"--niqe_params {path}: {error}") from None
    if mean.shape != (36,) or covariance.shape != (36, 36):
        raise ConfigError(f"--niqe_params {path}: shapes {mean.shape}, {covariance.shape}")
    return mean.astype(np.float64), covariance.astype(np.float64)


def main() -> int:
    """Fit parameters to the photographs below a folder."""
    parser = argparse.ArgumentParser(description="Fit NIQE's parameters to good photographs.")
    parser.add_argument("--input", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True, help="an .npz file")
    flags = parser.parse_args()
    files = sorted(path for path in flags.input.rglob("*") if path.is_file())
    decoded = (cv2.imread(str(path), cv2.IMREAD_COLOR) for path in files)
    try:
        mean, covariance = fit(image[..., ::-1] for image in decoded if image is not None)
    except ConfigError as error:
        print(f"curate.niqe: {error}", file=sys.stderr)
        return 2
    np.savez(flags.output, mu_prisparam=mean, cov_prisparam=covariance)
    return 0


if __name__ == "__main__":
    sys.exit(main())
