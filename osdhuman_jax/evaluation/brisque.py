"""BRISQUE (Mittal, Moorthy, Bovik 2012): distortion of a picture as people judged it, lower better.

18 features of the whole luma at full and at half size, those of NIQE's blocks in another form, go
into a support vector machine that the authors trained on their LIVE database. Its numbers are the
user's file: `allmodel` of LIVE's release, or pyiqa's copy of it. Other machines, as OpenCV's
(brisque_model_live.yml), were trained on features of their own and give other scores: they are
refused. All is float64 on the CPU. Scores are those of pyiqa in float64, to 0.003 on six pictures;
its own float32 is up to 0.1 away from them on seven of eight, and 3 on one that is flat in large
parts, where the sign of what rounding leaves counts.

Goes in: RGB pictures (height, width, 3) uint8 and the file. Comes out: a score for each picture.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float64, UInt8
from scipy import ndimage
from scipy.special import gammaln

from osdhuman_jax.evaluation import niqe
from osdhuman_jax.weights.torch_files import Tensor, WeightsError, load

Pixels = UInt8[np.ndarray, "_ _ 3"]
Plane = Float64[np.ndarray, "_ _"]
Features = Float64[np.ndarray, " 36"]

VERSION = 1  # raised when the numbers change
FILES = ("allmodel", "brisque_svm_weights.pth")  # as LIVE and pyiqa publish it
# Of LIVE's machine, which tells it from others: width of its kernel, offset, support vectors.
GAMMA, RHO, COUNT = 0.05, -153.591, 774
# Lowest and highest value of each feature in LIVE's training (`allrange` of the same release).
_RANGES = np.array(
    [
        *((0.338, 10), (0.017204, 0.806612), (0.236, 1.642), (-0.123884, 0.20293)),
        *((0.000155, 0.712298), (0.001122, 0.470257), (0.244, 1.641), (-0.123586, 0.179083)),
        *((0.000152, 0.710456), (0.000975, 0.470984), (0.249, 1.555), (-0.135687, 0.100858)),
        *((0.000174, 0.684173), (0.000913, 0.534174), (0.258, 1.561), (-0.143408, 0.100486)),
        *((0.000179, 0.685696), (0.000888, 0.536508), (0.471, 3.264), (0.012809, 0.703171)),
        *((0.218, 1.046), (-0.094876, 0.187459), (1.5e-5, 0.442057), (0.001272, 0.40803)),
        *((0.222, 1.042), (-0.115772, 0.162604), (1.6e-5, 0.444362), (0.001374, 0.40243)),
        *((0.227, 0.996), (-0.117188, 0.098323), (3e-5, 0.531903), (0.001122, 0.369589)),
        *((0.228, 0.99), (-0.12243, 0.098658), (2.8e-5, 0.530092), (0.001118, 0.370399)),
    ]
)
# Shapes of a generalised Gaussian, and the ratio of moments by which the authors find one.
_SHAPES = np.arange(0.2, 10.001, 0.001)
_RATIOS = np.exp(gammaln(1 / _SHAPES) + gammaln(3 / _SHAPES) - 2 * gammaln(2 / _SHAPES))


class BrisqueError(ValueError):
    """A file that is not LIVE's machine, or a picture that has no score, in one line."""


@dataclass(frozen=True)
class Brisque:
    """LIVE's support vectors and their weights; calling it scores a picture, lower is better."""

    vectors: Float64[np.ndarray, "n 36"]
    weights: Float64[np.ndarray, " n"]

    def __call__(self, rgb: Pixels) -> float:
        """The score of a picture. Raises BrisqueError on a flat one."""
        low, high = _RANGES.T
        scaled = 2 * (features(niqe.yiq_luma(rgb)) - low) / (high - low) - 1
        if not np.isfinite(scaled).all():
            raise BrisqueError("BRISQUE needs a picture that is not flat")
        distances = ((self.vectors - scaled) ** 2).sum(axis=1)
        return float(self.weights @ np.exp(-GAMMA * distances) - RHO)


def features(plane: Plane) -> Features:
    """18 features of the whole plane, and 18 of it at half size."""
    return np.concatenate([_describe(plane), _describe(niqe.halve(plane))])


def _describe(plane: Plane) -> Float64[np.ndarray, " 18"]:
    # Beyond the border is black, unlike NIQE's: so in the authors' release.
    def blur(values: Plane) -> Plane:
        return ndimage.correlate(values, niqe.WINDOW, mode="constant")

    mean = blur(plane)
    deviation = np.sqrt(np.abs(blur(plane**2) - mean**2) + np.finfo(float).eps)
    normal = (plane - mean) / (deviation + 1)
    # Of the coefficients two numbers are kept, of each product with a neighbour four.
    found = [*_symmetric(normal)]
    for shift in niqe.SHIFTS:
        products = normal * np.roll(normal, shift, axis=(0, 1))
        shape, left, right = (float(v[0]) for v in niqe.fit_deviations(products[None]))
        mean_scale = np.exp(gammaln(2 / shape) - (gammaln(1 / shape) + gammaln(3 / shape)) / 2)
        found += [shape, (right - left) * mean_scale, left**2, right**2]
    return np.array(found)


def _symmetric(values: Plane) -> tuple[float, float]:
    """Shape and variance of a generalised Gaussian, by moments; NaN where all values are zero."""
    variance, size = float(np.mean(values**2)), float(np.mean(np.abs(values)))
    if not size:
        return float("nan"), variance
    return float(_SHAPES[np.argmin(np.abs(variance / size**2 - _RATIOS))]), variance


def find_machine(folder: Path) -> Path | None:
    """The authors' file anywhere below a folder."""
    found = (path for name in FILES for path in sorted(folder.rglob(name)) if path.is_file())
    return next(found, None)


def read_machine(path: Path) -> Brisque:
    """LIVE's machine from its own file or from pyiqa's. Raises BrisqueError."""
    try:
        weights, vectors = _of_torch(path) if path.suffix == ".pth" else _of_libsvm(path)
    except (WeightsError, OSError, ValueError, TypeError, LookupError) as error:
        reason = " ".join(str(error).split())
        raise BrisqueError(f"{path}: not LIVE's support vectors: {reason:.160}") from error
    if vectors.shape != (COUNT, 36) or weights.shape != (COUNT,):
        raise BrisqueError(f"{path}: not LIVE's support vectors, which are {COUNT} of 36 numbers")
    if not (np.isfinite(vectors).all() and np.isfinite(weights).all()):
        raise BrisqueError(f"{path}: holds numbers that are not finite")
    return Brisque(vectors, weights)


def _of_torch(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """A pair of tensors: weights, and vectors in rows."""
    weights, vectors = load(path)
    if not isinstance(weights, Tensor) or not isinstance(vectors, Tensor):
        raise ValueError("no pair of tensors")
    return weights.read().astype(np.float64).ravel(), vectors.read().astype(np.float64)


def _of_libsvm(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """libsvm's text: a head of names and values, then "weight 1:x 2:x ..." in lines."""
    head, mark, body = path.read_text(encoding="ascii").partition("\nSV\n")
    said = dict(line.split(None, 1) for line in head.splitlines())
    # Others train machines of the same form, whose scores are not BRISQUE's.
    if not mark or (float(said.get("gamma", 0)), float(said.get("rho", 0))) != (GAMMA, RHO):
        raise ValueError(f"another machine than that of gamma {GAMMA} and rho {RHO}")
    rows = [line.split() for line in body.splitlines()]
    vectors = np.zeros((len(rows), 36))
    # Zeros are left out.
    for vector, row in zip(vectors, rows, strict=True):
        for cell in row[1:]:
            place, _, value = cell.partition(":")
            vector[int(place) - 1] = float(value)
    return np.array([float(row[0]) for row in rows]), vectors
