"""NIQE (Mittal, Soundararajan, Bovik 2013): how far a picture's statistics are from clean ones'.

36 features of each 96 x 96 block of the luma (18 at full, 18 at half size) are compared, as one
Gaussian, with the Gaussian of the features of pristine pictures. Those parameters are the user's
file: LIVE's .mat, an .npz of the same numbers, or what `fit` makes of pictures that the user trusts
(`python -m curate.niqe`). Scores by fitted parameters are named `niqe-local`: they are not
comparable with published ones. All is float64 on the CPU, so that the numbers repeat.

The code is our own, though pyiqa has one: curation's default scores and `evaluate` need NIQE where
torch, on which pyiqa stands, is not installed. Its values are those of pyiqa (tests/evaluation).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Float64, UInt8
from scipy.io import loadmat
from scipy.special import gammaln

Pixels = UInt8[np.ndarray, "_ _ 3"]
Plane = Float64[np.ndarray, "h w"]
Half = Float64[np.ndarray, "_ _"]
Blocks = Float64[np.ndarray, "n _ _"]
Vector = Float64[np.ndarray, " n"]
Features = Float64[np.ndarray, "n 36"]

VERSION = 1  # raised when the numbers change
# Both are the paper's: a block's side in pixels, and how sharp, as a share of the sharpest block of
# its picture, a block must be to serve as an example.
BLOCK = 96
SHARP = 0.75
LEAST = 100  # blocks that a fit needs: 36 features have 666 covariances
# Neighbours to the right, below, and on both diagonals; the other four give the same products.
SHIFTS = ((0, 1), (1, 0), (1, 1), (1, -1))
# Names of mean and covariance in LIVE's file, in BasicSR's, and in what `fit` makes.
NAMES = (("mu_prisparam", "cov_prisparam"), ("mu_pris_param", "cov_pris_param"))
LOCAL = ("mu_local", "cov_local")
FILES = ("niqe_modelparameters.mat", "niqe_pris_params.npz")  # as pyiqa and BasicSR publish them

# The authors' table of shapes of a generalised Gaussian, and the ratio of moments of each.
_SHAPES = np.arange(0.2, 10.001, 0.001)
_RATIOS = np.exp(2 * gammaln(2 / _SHAPES) - gammaln(1 / _SHAPES) - gammaln(3 / _SHAPES))
_LINE = np.exp(-(np.arange(-3, 4) ** 2) / (2 * (7 / 6) ** 2))
# In pyiqa, the source of the paper's values, the window is float32: it does not quite sum to one,
# and the sign of that rest counts wherever a picture is flat.
WINDOW = (np.outer(_LINE, _LINE) / _LINE.sum() ** 2).astype(np.float32).astype(np.float64)
# Half of a bicubic filter (a = -0.5) that is stretched twofold against aliases.
_HALVING = np.array([-0.0234375, -0.0703125, 0.2265625, 0.8671875])


class NiqeError(ValueError):
    """A file that holds no parameters of NIQE, or pictures that yield none, in one line."""


@dataclass(frozen=True)
class Niqe:
    """Parameters of pristine pictures; calling it scores a picture, lower is better."""

    mean: Vector
    covariance: Float64[np.ndarray, "n n"]
    local: bool = False

    @property
    def name(self) -> str:
        """The name of its scores; those by fitted parameters are told from published ones."""
        return "niqe-local" if self.local else "niqe"

    def __call__(self, rgb: Pixels) -> float:
        """The score of a picture; NaN where fewer than two of its blocks have any texture."""
        values = features(yiq_luma(rgb))
        whole = values[np.isfinite(values).all(axis=1)]
        if len(whole) < 2:
            return float("nan")
        # The distance of two Gaussians: by the mean of their covariances.
        spread = (self.covariance + np.cov(whole, rowvar=False)) / 2
        away = self.mean - np.nanmean(values, axis=0)
        inverse = np.linalg.pinv(spread, rcond=36 * np.finfo(float).eps)
        return float(np.sqrt(away @ inverse @ away))


def find_parameters(folder: Path) -> Path | None:
    """The authors' file anywhere below a folder."""
    found = (path for name in FILES for path in sorted(folder.rglob(name)) if path.is_file())
    return next(found, None)


def read_parameters(path: Path) -> Niqe:
    """Parameters from a .mat or .npz file. Raises NiqeError."""
    # scipy and zipfile have classes of their own for damaged files, so that any error counts.
    try:
        table = dict(np.load(path)) if path.suffix == ".npz" else loadmat(path)
    except Exception as error:
        line = " ".join(str(error).split())
        raise NiqeError(f"{path}: not a .mat or .npz file of NIQE's parameters: {line}") from None
    # Which names a file has tells whose it is.
    for mean, covariance in (*NAMES, LOCAL):
        if mean in table and covariance in table:
            found = np.ravel(table[mean]), np.asarray(table[covariance])
            shapes = [array.shape for array in found]
            if shapes == [(36,), (36, 36)] and all(map(_are_numbers, found)):
                centre, spread = (array.astype(np.float64) for array in found)
                return Niqe(centre, spread, local=mean == LOCAL[0])
    names = f"{NAMES[0][0]} (36 finite numbers) and {NAMES[0][1]} (36 x 36)"
    raise NiqeError(f"{path}: not a file of NIQE's parameters: it needs {names}")


def _are_numbers(array: np.ndarray) -> bool:
    """Whether all of an array is finite numbers, of whatever kind."""
    return array.dtype.kind in "fiu" and bool(np.isfinite(array).all())


def yiq_luma(rgb: Pixels) -> Plane:
    """Y of YIQ in whole levels."""
    # Each step as pyiqa's float32 with fused sums does it, since that decides how halves round.
    unit = (rgb.astype(np.float32) * np.float32(1 / 255)).astype(np.float64)
    total = np.zeros(rgb.shape[:2], np.float32)
    weights = np.array([0.299, 0.587, 0.114], np.float32).astype(np.float64)
    for channel in range(3):
        total = (unit[..., channel] * weights[channel] + total).astype(np.float32)
    return np.round(total * np.float32(255)).astype(np.float64)


def features(plane: Plane) -> Features:
    """36 features of each whole block, row by row; what remains at the right and bottom is cut."""
    height, width = (n - n % BLOCK for n in plane.shape)
    plane = plane[:height, :width]
    if not plane.size:
        return np.empty((0, 36))
    # The same blocks of the scene at both sizes.
    full = _blocks(normalize(plane)[0], BLOCK)
    half = _blocks(normalize(halve(plane))[0], BLOCK // 2)
    return np.concatenate([_describe(full), _describe(half)], axis=1)


def normalize(plane: Plane) -> tuple[Plane, Plane]:
    """Contrast-normalised luma (the paper's Eq. 1), and the local standard deviation in it."""

    def blur(values: Plane) -> Plane:
        return cv2.filter2D(values, cv2.CV_64F, WINDOW, borderType=cv2.BORDER_REPLICATE)

    mean = blur(plane)
    deviation = np.sqrt(np.abs(blur(plane**2) - mean**2) + np.finfo(float).eps)
    return (plane - mean) / (deviation + 1), deviation


def halve(plane: Plane) -> Half:
    """Half the size, bicubic with antialiasing, as Matlab's imresize does it."""
    line = np.concatenate([_HALVING, _HALVING[::-1]]) / (2 * _HALVING.sum())
    # Rows first, then, with the plane turned over, columns, which turns it back. Half of an odd
    # side is rounded up.
    for _ in range(2):
        padded = np.pad(plane, ((3, 3 + len(plane) % 2), (0, 0)), "symmetric")
        count = -(-len(plane) // 2)
        rows = (weight * padded[k : k + 2 * count : 2] for k, weight in enumerate(line))
        plane = sum(rows, np.zeros((count, plane.shape[1]))).T
    return plane


def _blocks(plane: Plane, size: int) -> Blocks:
    """A plane as its square blocks, row by row."""
    height, width = plane.shape
    blocks = plane.reshape(height // size, size, width // size, size)  # [rows, k, columns, k]
    return blocks.swapaxes(1, 2).reshape(-1, size, size)  # [n, k, k]


def _describe(blocks: Blocks) -> Float64[np.ndarray, "n 18"]:
    """18 features: fits to the coefficients, and to their products with four neighbours."""
    # Of the coefficients two numbers are kept, of each of the four products four.
    shape, left, right = fit_gaussians(blocks)
    columns = [shape, (left + right) / 2]
    for shift in SHIFTS:
        shape, left, right = fit_gaussians(blocks * np.roll(blocks, shift, axis=(1, 2)))
        mean = (right - left) * np.exp(gammaln(2 / shape) - gammaln(1 / shape))
        columns += [shape, mean, left, right]
    return np.stack(columns, axis=1)


def fit_gaussians(blocks: Blocks) -> tuple[Vector, Vector, Vector]:
    """Asymmetric generalised Gaussian of each block, by moments: (shape, left and right scale).

    NaN for a block without negative or without positive values.
    """
    shape, left, right = fit_deviations(blocks)
    scale = np.sqrt(np.exp(gammaln(1 / shape) - gammaln(3 / shape)))
    return shape, left * scale, right * scale


def fit_deviations(blocks: Blocks) -> tuple[Vector, Vector, Vector]:
    """The same as (shape, left and right standard deviation)."""
    # Standard deviations of the values below and above zero.
    values = blocks.reshape(len(blocks), -1)
    squares = values**2
    with np.errstate(invalid="ignore", divide="ignore"):
        left = np.sqrt((squares * (values < 0)).sum(1) / (values < 0).sum(1))
        right = np.sqrt((squares * (values > 0)).sum(1) / (values > 0).sum(1))
        skew = left / right
        ratio = np.abs(values).mean(1) ** 2 / squares.mean(1)
        ratio *= (skew**3 + 1) * (skew + 1) / (skew**2 + 1) ** 2
    # The shape whose ratio of moments is nearest, in a table that rises.
    at = np.clip(np.searchsorted(_RATIOS, ratio), 1, len(_RATIOS) - 1)
    at -= ratio - _RATIOS[at - 1] <= _RATIOS[at] - ratio
    # A flat block has no ratio: the published code takes the table's first shape.
    shape = np.where(np.isnan(ratio), _SHAPES[0], _SHAPES[at])
    return shape, left, right


def fit(pictures: Iterable[Pixels]) -> Niqe:
    """Parameters from the sharp blocks of pristine pictures. Raises NiqeError if too few."""
    found = [np.empty((0, 36))]
    for rgb in pictures:
        values = features(yiq_luma(rgb))
        # Blurred backgrounds are no examples of what a sharp picture looks like.
        if len(values):
            sharpness = _sharpness(yiq_luma(rgb))
            found.append(values[sharpness > SHARP * sharpness.max()])
    values = np.concatenate(found)
    values = values[np.isfinite(values).all(axis=1)]
    if len(values) < LEAST:
        raise NiqeError(f"{len(values)} sharp blocks of {BLOCK} pixels: a fit needs {LEAST}")
    return Niqe(values.mean(axis=0), np.cov(values, rowvar=False), local=True)


def _sharpness(plane: Plane) -> Vector:
    """Mean local deviation of each block."""
    height, width = (n - n % BLOCK for n in plane.shape)
    return _blocks(normalize(plane[:height, :width])[1], BLOCK).mean(axis=(1, 2))
