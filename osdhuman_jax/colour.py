"""Colour correction after restoration: give the result (content) the colours of the input (source).

A one-step model may shift colours of a whole picture. Both remedies are those of StableSR, as in
OSEDiff: AdaIN matches each channel's mean and deviation, wavelet takes over the lowest frequencies.
Images are float32 (height, width, 3) in [0, 1], content and source of one size.
"""

import numpy as np
from jaxtyping import Float32

Unit = Float32[np.ndarray, "h w 3"]

_EPS = 1e-5  # under the square root, so that a flat picture is not divided by zero
_LEVELS = 5


def adain(content: Unit, source: Unit) -> Unit:
    """Content with each channel's mean and standard deviation replaced by the source's."""
    content_mean, content_std = _statistics(content)
    source_mean, source_std = _statistics(source)
    matched = (content - content_mean) / content_std * source_std + source_mean
    return np.clip(matched, 0, 1).astype(np.float32)


def wavelet(content: Unit, source: Unit) -> Unit:
    """The content's details upon the source's low frequencies (five levels, about 60 pixels)."""
    details = content - _low_band(content)
    return np.clip(details + _low_band(source), 0, 1)


def _statistics(image: Unit) -> tuple[np.ndarray, np.ndarray]:
    """Mean and unbiased deviation of each channel; a single pixel has variance 0."""
    values = image.reshape(-1, 3).astype(np.float64)
    variance = values.var(axis=0, ddof=min(1, len(values) - 1))
    return values.mean(axis=0), np.sqrt(variance + _EPS)


def _low_band(image: Unit) -> Unit:
    """What a-trous smoothing leaves after the last level; the details' sum is image minus this."""
    for level in range(_LEVELS):
        image = _smooth(_smooth(image, 2**level, axis=0), 2**level, axis=1)
    return image


def _smooth(image: Unit, step: int, axis: int) -> Unit:
    """Binomial filter [1, 2, 1] / 4 with holes of `step` along one axis, edges repeated."""
    margin = [(step, step) if i == axis else (0, 0) for i in range(3)]
    padded = np.moveaxis(np.pad(image, margin, mode="edge"), axis, 0)
    before, after = padded[: -2 * step], padded[2 * step :]
    smooth = (before + after) * np.float32(0.25) + padded[step:-step] * np.float32(0.5)
    return np.moveaxis(smooth, 0, axis)
