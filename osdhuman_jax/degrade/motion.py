"""Human motion blur: one part of a person moves while the shutter is open, the rest stands still.

    I_HMB = I_H (1 - W_S) + (PSF * I_H) W_S

(HAODiff, Fig. 2.) PSF is the trace of a random trajectory, W_S a soft mask of the part that moves,
which comes from a map of the person's parts. What is drawn is plain numbers ready for JSON; what is
computed from them takes arrays and draws nothing more. HAODiff's authors published no numbers for
W_S; those here are ours, for a picture of 512 pixels, and grow with its shorter side.

The trajectory is DeblurGAN's (Kupyn et al. 2018, `motion_blur/generate_trajectory.py`), a particle
of constant speed that shakes, is pulled to where it began and now and then turns back.
"""

import cmath
import math
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import scipy.fft
from jaxtyping import Bool, Complex128, Float32, UInt8

Rng = np.random.Generator
Params = dict[str, Any]  # what a `draw_*` function drew
UnitImage = Float32[np.ndarray, "h w 3"]
Inner = Float32[np.ndarray, "h2 w2 3"]
Weights = Float32[np.ndarray, "h w"]  # W_S, in [0, 1]
Mask = Bool[np.ndarray, "h w"]
PartMap = UInt8[np.ndarray, "h w"]  # a label for each pixel
Psf = Float32[np.ndarray, "k k"]

# What the first order of the degradation may be, in the order of `DegradationConfig.first_order`.
STATES = ("nothing", "motion", "generic")
# Labels of a part map. Left and right are the person's own.
LABELS = ("background", "head", "left_arm", "right_arm", "left_leg", "right_leg", "rest")
# What may move, as labels: a part, or the whole body.
MOVING: dict[str, tuple[int, ...]] = {name: (LABELS.index(name),) for name in LABELS[1:6]}
MOVING["body"] = (1, 2, 3, 4, 5, 6)
LEAST_SHARE = 0.002  # of the picture that a moving part takes up
LEAST_PIXELS = 64  # of one of its connected pieces
SMALLER = 4  # times fewer pixels than the largest piece has: slivers beside it do not move alone

SIDE = 512  # pixels; lengths below are for a picture of this shorter side
ERODE = 3  # pixels; takes off what a mask has of the background
DILATE = (7, 21)  # pixels, odd; what moves blurs beyond its own outline
SIGMA = (2.0, 8.0)  # pixels; of the mask's soft edge
LENGTH = (20.0, 80.0)  # pixels of a whole trajectory; DeblurGAN has 60
FRACTION = (0.3, 1.0)  # of the trajectory that the shutter sees; DeblurGAN has up to 1, in steps

# DeblurGAN's.
POSITIONS = 2000  # of a trajectory
CENTRIPETAL, TURN, SHAKE = 0.7, 0.2, 10.0  # largest values; each is drawn evenly from 0 up
EXPANSIONS = (0.01, 0.009, 0.008, 0.007, 0.005, 0.003, 0.002, 0.001)


# Draws -------------------------------------------------------------------------------------------


def draw_first_order(rng: Rng, probs: Sequence[float], parts: PartMap | None) -> Params:
    """The "state" of `STATES` by its probability, and of "motion" its "part" and "trajectory".

    Where there is no part map, or no part of it is large enough to move, the state is "generic".
    """
    bounds = np.cumsum(probs)
    state = STATES[int(np.searchsorted(bounds, rng.random() * bounds[-1], side="right"))]
    motion = draw_motion(rng, parts) if state == "motion" and parts is not None else None
    if state == "motion" and motion is None:
        state = "generic"
    return {"state": state, **(motion or {})}


def draw_motion(rng: Rng, parts: PartMap) -> Params | None:
    """Which part moves, how its mask is softened and how it moves; None where no part is large."""
    # A part is drawn first, then one of its pieces: of several people one alone moves.
    counts = np.bincount(parts.ravel(), minlength=len(LABELS))
    least = LEAST_SHARE * parts.size
    large = [name for name, labels in MOVING.items() if counts[list(labels)].sum() >= least]
    if not large:
        return None
    name = large[int(rng.integers(len(large)))]
    _, sizes = pieces(parts, name)
    least = max(LEAST_PIXELS, sizes[1:].max() / SMALLER)
    kept = [piece for piece in range(1, len(sizes)) if sizes[piece] >= least]
    if not kept:
        return None
    scale = min(parts.shape) / SIDE
    part = {"name": name, "piece": kept[int(rng.integers(len(kept)))]}
    return {"part": part | _draw_edge(rng, scale), "trajectory": _draw_trajectory(rng, scale)}


def _draw_edge(rng: Rng, scale: float) -> Params:
    """How a mask is softened: widths of squares and a deviation, in pixels of this picture."""
    dilate = 2 * int(rng.integers(DILATE[0] // 2, DILATE[1] // 2, endpoint=True)) + 1
    sigma = rng.uniform(*SIGMA)
    return {"erode": _odd(ERODE * scale), "dilate": _odd(dilate * scale), "sigma": sigma * scale}


def _draw_trajectory(rng: Rng, scale: float) -> Params:
    """A trajectory's numbers and the seed of its steps, so that a record stays short."""
    return {
        "length": rng.uniform(*LENGTH),
        "scale": scale,
        "fraction": rng.uniform(*FRACTION),
        "centripetal": CENTRIPETAL * rng.random(),
        "turn": TURN * rng.random(),
        "shake": SHAKE * rng.random(),
        "expansion": EXPANSIONS[int(rng.integers(len(EXPANSIONS)))],
        "seed": int(rng.integers(2**32)),
    }


def _odd(width: float) -> int:
    """The nearest odd number of pixels, at least one."""
    return 2 * max(0, round((width - 1) / 2)) + 1


# The blur ----------------------------------------------------------------------------------------


def trajectory(params: Params) -> Complex128[np.ndarray, " n"]:
    """Positions x + iy of the moving point at equal times, in pixels of this picture, from 0."""
    rng = np.random.default_rng(params["seed"])
    step = params["length"] / (POSITIONS - 1)
    shake, pull = params["expansion"] * params["shake"], params["expansion"] * params["centripetal"]
    # All that is random is drawn at once: a call for each step would take most of the time.
    noise = rng.standard_normal((POSITIONS, 2)) @ np.array([1, 1j])
    turns = rng.random(POSITIONS) < params["turn"] * params["expansion"]
    angles = rng.uniform(-0.5, 0.5, POSITIONS) + math.pi
    speed = cmath.rect(step * params["expansion"], rng.uniform(0, 2 * math.pi))
    at, found = 0j, [0j]
    for jolt, turned, angle in zip(noise[1:].tolist(), turns[1:], angles[1:], strict=True):
        change = step * (shake * jolt - pull * at)
        if turned:
            change += 2 * speed * cmath.exp(1j * angle)
        speed += change
        speed *= step / abs(speed)
        at += speed
        found.append(at)
    # Pull and shake are in pixels of a picture of 512: the shape is the same at every size.
    return np.array(found) * params["scale"]


def motion_psf(params: Params) -> Psf:
    """The trace of a trajectory's first part: odd side, sum 1, the mean of the trace central.

    Every position is shared by the four pixels around it, as their distances have it (bilinear).
    """
    seen = trajectory(params)[: max(1, round(params["fraction"] * POSITIONS))]
    seen = seen - seen.mean()  # so that the part stays where it is
    radius = math.ceil(max(np.abs(seen.real).max(), np.abs(seen.imag).max()))
    side = 2 * radius + 1
    x, y = seen.real + radius, seen.imag + radius
    left, top = np.minimum(x.astype(int), side - 2), np.minimum(y.astype(int), side - 2)
    right, below = x - left, y - top
    flat = np.zeros(side * side)
    for dy, dx, share in (
        (0, 0, (1 - below) * (1 - right)),
        (0, 1, (1 - below) * right),
        (1, 0, below * (1 - right)),
        (1, 1, below * right),
    ):
        flat += np.bincount((top + dy) * side + left + dx, share, side * side)
    return (flat / flat.sum()).reshape(side, side).astype(np.float32)


def pieces(parts: PartMap, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Connected pieces of a part of `MOVING`: (h, w) of their numbers from 1, and their pixels."""
    lookup = np.zeros(256, np.uint8)
    lookup[list(MOVING[name])] = 1
    _, numbers, stats, _ = cv2.connectedComponentsWithStats(lookup[parts], connectivity=8)
    return numbers, stats[:, cv2.CC_STAT_AREA]


def soft_mask(parts: PartMap, params: Params) -> Weights:
    """W_S of what `draw_motion` drew as "part": eroded, dilated, blurred, its largest value 1."""
    numbers, _ = pieces(parts, params["name"])
    piece = (numbers == params["piece"]).astype(np.uint8)
    # All happens near the piece: four deviations are where OpenCV's Gaussian ends.
    margin = params["dilate"] + math.ceil(4 * params["sigma"]) + 1
    window = _window(cv2.boundingRect(piece), margin, piece.shape)
    near = piece[window]
    # A piece that is thinner than what is eroded would vanish: it stays as it is.
    eroded = cv2.erode(near, _disc(params["erode"]))
    hard = cv2.dilate(eroded if eroded.any() else near, _disc(params["dilate"]))
    soft = cv2.GaussianBlur(hard.astype(np.float32), (0, 0), params["sigma"])
    weights = np.zeros(parts.shape, np.float32)
    weights[window] = np.minimum(soft / soft.max(), 1)
    return weights


def moved(weights: Weights) -> Mask:
    """M: where a picture is blurred by motion, W_S > 1/2."""
    return weights > 0.5


def motion_blur(image: UnitImage, weights: Weights, psf: Psf) -> UnitImage:
    """I_HMB of a picture in [0, 1]; where W_S is 0 it is the picture bit for bit."""
    # Only what is seen through W_S is blurred, with as much around it as the blur reaches.
    box, radius = cv2.boundingRect((weights > 0).astype(np.uint8)), len(psf) // 2
    inner, outer = (_window(box, margin, weights.shape) for margin in (0, radius))
    # At the picture's own edges it mirrors (101).
    before = [radius - i.start + o.start for i, o in zip(inner, outer, strict=True)]
    after = [radius - o.stop + i.stop for i, o in zip(inner, outer, strict=True)]
    edges = before[0], after[0], before[1], after[1]
    around = cv2.copyMakeBorder(image[outer], *edges, cv2.BORDER_REFLECT_101)
    sharp, share = image[inner], weights[inner][..., None]
    result = image.copy()
    result[inner] = sharp * (1 - share) + _convolved(around, psf) * share
    return result


def _convolved(image: UnitImage, psf: Psf) -> Inner:
    """Where the whole kernel lies on the picture. By FFT: OpenCV takes ten times as long."""
    (height, width), reach = image.shape[:2], len(psf) - 1
    size = [scipy.fft.next_fast_len(side, real=True) for side in (height, width)]
    kernel = np.asarray(scipy.fft.rfft2(psf, size))[..., None]
    spectrum = np.asarray(scipy.fft.rfft2(image, size, axes=(0, 1))) * kernel
    return np.asarray(scipy.fft.irfft2(spectrum, size, axes=(0, 1)))[reach:height, reach:width]


def _window(
    box: tuple[int, int, int, int] | Any, margin: int, shape: tuple[int, ...]
) -> tuple[slice, slice]:
    """Rows and columns of a box (x, y, width, height) with a margin, within the picture."""
    x, y, width, height = box
    rows = slice(max(0, y - margin), min(shape[0], y + height + margin))
    return rows, slice(max(0, x - margin), min(shape[1], x + width + margin))


def _disc(width: int) -> np.ndarray:
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (width, width))
