"""Colour correction after restoration: give the result (content) the colours of the input (source).

A one-step model may shift colours of a whole picture. Both remedies are those of StableSR, as in
OSEDiff: AdaIN matches each channel's mean and deviation, wavelet takes over the lowest frequencies.
Images are float32 (height, width, 3) in [0, 1], content and source of one size. Pictures of any
size are corrected in bands of rows, so that memory beyond theirs is that of a band.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Float64, UInt8, UInt16

from osdhuman_jax.images.codec import to_float

Unit = Float32[np.ndarray, "h w 3"]
Floats = Float32[np.ndarray, "_ _ 3"]
Pixels = UInt8[np.ndarray, "_ _ 3"] | UInt16[np.ndarray, "_ _ 3"]

BAND = 2**21  # pixels that are corrected at a time; wavelet takes 120 bytes for each
_EPS = 1e-5  # under the square root, so that a flat picture is not divided by zero
_LEVELS = 5
REACH = 2**_LEVELS - 1  # rows to either side that a pixel's low frequencies are made of


class Moments(NamedTuple):
    """Mean and standard deviation of each channel."""

    mean: Float64[np.ndarray, "3"]
    deviation: Float64[np.ndarray, "3"]


def bands(size: tuple[int, ...]) -> Iterator[slice]:
    """Rows of a picture (height, width, ..), about BAND pixels at a time."""
    height, width = size[:2]
    step = max(BAND // width, 1)
    for start in range(0, height, step):
        yield slice(start, min(start + step, height))


def corrected(method: str, output: Floats, rgb: Pixels) -> Callable[[slice], Floats]:
    """Rows of a model's output in [-1, 1] with the colours of its input, when they are asked for.

    `method` is none, adain or wavelet.
    """

    def content(rows: slice) -> Unit:
        return np.clip(output[rows] / 2 + np.float32(0.5), 0, 1)

    def source(rows: slice) -> Unit:
        return to_float(rgb[rows]) / 2 + np.float32(0.5)

    def smoothed(rows: slice) -> Unit:
        # A band with as many rows to either side as its low frequencies are made of.
        around = slice(max(rows.start - REACH, 0), rows.stop + REACH)
        band = wavelet(content(around), source(around))
        return band[rows.start - around.start :][: rows.stop - rows.start]

    # AdaIN needs the whole picture's moments first; the others go band by band.
    if method == "none":
        return lambda rows: output[rows]
    if method == "wavelet":
        return lambda rows: smoothed(rows) * 2 - 1
    have, want = (moments(map(part, bands(rgb.shape))) for part in (content, source))
    return lambda rows: adain(content(rows), have, want) * 2 - 1


def is_gray(rgb: Pixels) -> bool:
    """Whether the three channels are one, as of a gray picture in a file of colour."""
    return all(
        np.array_equal(rgb[rows, :, 0], rgb[rows, :, channel])
        for rows in bands(rgb.shape)
        for channel in (1, 2)
    )


def luma(values: Floats) -> Floats:
    """Each pixel's brightness, by the weights of ITU-R BT.601, in all three channels."""
    # Section 2.5.1 of the recommendation.
    weights = np.array([0.299, 0.587, 0.114], np.float32)
    return np.repeat((values @ weights)[..., None], 3, axis=-1)


def moments(parts: Iterable[Unit]) -> Moments:
    """Moments of a picture in parts; the deviation is unbiased, and 0 of a single pixel."""
    # In float64: a difference of large sums.
    count, total, squares = 0, np.zeros(3), np.zeros(3)
    for part in parts:
        values = part.reshape(-1, 3).astype(np.float64)
        count, total = count + len(values), total + values.sum(0)
        squares += np.square(values).sum(0)
    mean = total / count
    # Unbiased, as PyTorch's `std`, which StableSR and OSEDiff use; rounding may go below nought.
    variance = np.maximum(squares - count * mean**2, 0) / max(count - 1, 1)
    return Moments(mean, np.sqrt(variance + _EPS))


def adain(content: Unit, have: Moments, want: Moments) -> Unit:
    """Content whose channels' moments were `have`, brought to `want`."""
    matched = (content - have.mean) / have.deviation * want.deviation + want.mean
    return np.clip(matched, 0, 1).astype(np.float32)


def wavelet(content: Unit, source: Unit) -> Unit:
    """The content's details upon the source's low frequencies (five levels, about 60 pixels)."""
    details = content - _low_band(content)
    return np.clip(details + _low_band(source), 0, 1)


def _low_band(image: Unit) -> Unit:
    """What a-trous smoothing leaves after the last level; the details' sum is image minus this."""
    for level in range(_LEVELS):
        image = _smooth(_smooth(image, 2**level, axis=0), 2**level, axis=1)
    return image


def _smooth(image: Unit, step: int, axis: int) -> Unit:
    """Binomial filter [1, 2, 1] / 4 with holes of `step` along one axis, edges repeated."""
    # By slices, not by a convolution: three additions a pixel, whatever the step.
    margin = [(step, step) if i == axis else (0, 0) for i in range(3)]
    padded = np.moveaxis(np.pad(image, margin, mode="edge"), axis, 0)
    before, after = padded[: -2 * step], padded[2 * step :]
    smooth = (before + after) * np.float32(0.25) + padded[step:-step] * np.float32(0.5)
    return np.moveaxis(smooth, 0, axis)
