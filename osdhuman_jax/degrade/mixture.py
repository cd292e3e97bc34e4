"""Degradations from none to heavy in one mixture: a model then leaves good pictures alone.

A restorer that has only seen the paper's degradation takes every picture for a ruin. What people
bring is milder: a JPEG, a little noise, a small picture that was enlarged. A kind is drawn first
(`data.kinds` of a configuration are their shares), then its numbers. Pictures are (h, w, 3) uint8
RGB, in and out of one size.

The paper has no such mixture: the numbers below are ours, milder than Real-ESRGAN's.
"""

from collections.abc import Callable, Sequence
from typing import Literal, get_args

import cv2
import numpy as np

from osdhuman_jax.config import DegradationConfig
from osdhuman_jax.degrade.kernels import gaussian_kernel
from osdhuman_jax.degrade.motion import Mask, PartMap
from osdhuman_jax.degrade.operations import (
    LUMA,
    Image8,
    Rng,
    filter2d,
    from_unit,
    gaussian_noise,
    jpeg,
    resize,
    to_unit,
)
from osdhuman_jax.degrade.second_order import MODES, degrade

Kind = Literal["heavy", "mild", "jpeg", "small", "clean"]
KINDS: tuple[Kind, ...] = get_args(Kind)  # in the order of `DataConfig.kinds`


def mixed(
    hq: Image8,
    rng: Rng,
    shares: Sequence[float],
    heavy: DegradationConfig,
    parts: PartMap | None = None,
) -> tuple[Image8, Mask]:
    """LQ of `hq` by a kind that is drawn by its share, and what motion blurred of it.

    `shares` are those of `KINDS` in their order. "heavy" is the paper's degradation, which `heavy`
    is for, and the only one in which anything moves (see `degrade`).
    """
    # Shares need not sum to one, and rounding must not draw a kind beyond the last.
    bounds = np.cumsum(shares)
    at = int(np.searchsorted(bounds, rng.random() * bounds[-1], side="right"))
    kind = KINDS[min(at, len(KINDS) - 1)]
    if kind == "heavy":
        lq, _, mask = degrade(hq, rng, heavy, parts=parts)
        return lq, mask
    return LIGHTER[kind](hq, rng), np.zeros(hq.shape[:2], bool)


def mild(hq: Image8, rng: Rng) -> Image8:
    """A little blur, a smaller size and back, a little noise, a good JPEG: each at one in two."""
    # Each part is left out half of the time, so that most pictures have one or two of them.
    image, size = to_unit(hq), (hq.shape[0], hq.shape[1])
    if rng.random() < 0.5:
        sigma = rng.uniform(0.2, 1.2)
        image = filter2d(image, gaussian_kernel(7, sigma, sigma))
    if rng.random() < 0.5:
        # Shrunk as a camera or a messenger does it, and enlarged as a viewer does.
        less = rng.uniform(0.5, 1.0)
        small = (round(size[0] * less), round(size[1] * less))
        image = resize(resize(image, "area", small), "bicubic", size)
    if rng.random() < 0.5:
        image = gaussian_noise(image, rng, rng.uniform(1.0, 10.0), bool(rng.random() < 0.4))
    if rng.random() < 0.5:
        image = jpeg(image, int(rng.integers(60, 95, endpoint=True)))
    return from_unit(image)


def compressed(hq: Image8, rng: Rng) -> Image8:
    """JPEG alone, once."""
    return from_unit(jpeg(to_unit(hq), int(rng.integers(25, 95, endpoint=True))))


def small(hq: Image8, rng: Rng) -> Image8:
    """A picture of few pixels, most often a JPEG, enlarged to a size that one can work at."""
    # A thumbnail or a picture out of a messenger: a quarter to two thirds of the side.
    size = (hq.shape[0], hq.shape[1])
    less = rng.uniform(1.5, 4.0)
    image = resize(to_unit(hq), "area", (round(size[0] / less), round(size[1] / less)))
    if rng.random() < 0.7:
        image = jpeg(image, int(rng.integers(50, 98, endpoint=True)))
    # Enlarged by a viewer: bilinear or bicubic, never "area", which leaves blocks.
    return from_unit(resize(image, MODES[int(rng.integers(1, len(MODES)))], size))


LIGHTER: dict[Kind, Callable[[Image8, Rng], Image8]] = {
    "mild": mild,
    "jpeg": compressed,
    "small": small,
    "clean": lambda hq, rng: hq,
}


def grayed(picture: Image8) -> Image8:
    """The picture's luma in all three channels."""
    return np.repeat(cv2.transform(picture, LUMA)[..., None], 3, axis=-1)
