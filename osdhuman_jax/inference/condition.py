"""Is a photograph one that a restorer is good for: of its size, and not clean already.

Restoring a clean picture can only cost it. Three measures of its luma tell one, and all must be
good: the steepest edges lose much to a faint blur, flat regions are quiet, and lines eight pixels
apart are as smooth as the others. The bounds were set on 26 photographs at 512 pixels: of the clean
ones nine in ten pass, of those with mild damage three in ten, of JPEGs two in ten, of those that
were enlarged one in a hundred, of those degraded as in the paper none. It is a remark, which
changes nothing of what is done.
"""

import cv2
import numpy as np
from jaxtyping import Float

from osdhuman_jax.config import UseConfig
from osdhuman_jax.images.sizes import Pixels

Luma = Float[np.ndarray, "h w"]  # [0, 255]

# Bounds by the 26 photographs: to be clean a picture must pass all three.
SHARP = 1.2  # gradient of the steepest 5 %, over that after a blur of one pixel
QUIET = 2.0  # deviation of the noise in flat regions, of 255
SMOOTH = 1.2  # step at every eighth line, over that at the others
BLOCK = 8  # pixels, JPEG's
FEW, MANY = 64, 1024  # pixels a side: with fewer nothing is measured, of more the middle


def remark(picture: Pixels, use: UseConfig, enlarged: bool = False) -> str:
    """What a person should know before trusting the restored one, in one line; "" for nothing.

    `enlarged` says that it shall come out larger: then a clean one has something to gain.
    """
    # Size first: of a picture that the model is not made for the rest says little.
    short, (least, most) = min(picture.shape[:2]), use.sides
    if short < least:
        return f"its shorter side has {short} pixels, the model is made for {least} and more"
    if most and short > most:
        text = f"its shorter side has {short} pixels, the model is made for {most} at most"
        return f"{text}: damage that is wider than its own pixels stays"
    if not enlarged and is_clean(picture):
        return "it looks clean already, there is little to restore"
    return ""


def is_clean(picture: Pixels) -> bool:
    """Whether (h, w, 3) RGB, of 8 or 16 bits, shows neither blur, nor noise, nor JPEG's blocks."""
    if min(picture.shape[:2]) < FEW:
        return False
    # From a multiple of eight, so that JPEG's blocks begin where they are looked for.
    top, left = (max(0, n - MANY) // 2 // BLOCK * BLOCK for n in picture.shape[:2])
    middle = picture[top : top + MANY, left : left + MANY].astype(np.float32)
    white = np.float32(np.iinfo(picture.dtype).max)
    luma = cv2.cvtColor(middle * (255 / white), cv2.COLOR_RGB2GRAY)
    # Where it is steep and where flat is judged by the blurred picture: noise has slopes too.
    blurred = blurred_slope(luma)
    sharp, quiet = sharpness(luma, blurred) >= SHARP, noise(luma, blurred) <= QUIET
    return sharp and quiet and blocking(luma) <= SMOOTH


def blurred_slope(luma: Luma) -> Luma:
    """The slope at each pixel after a Gaussian blur of one pixel."""
    return _slope(cv2.GaussianBlur(luma, (0, 0), 1.0))


def sharpness(luma: Luma, blurred: Luma) -> float:
    """How much steeper the steepest edges are than in the `blurred_slope`; 1 is no steeper."""
    steep = blurred >= np.quantile(blurred, 0.95)
    # A picture of one colour has no slope at all: its quotient is small, not infinite.
    return float(_slope(luma)[steep].mean() / max(float(blurred[steep].mean()), 1e-3))


def noise(luma: Luma, blurred: Luma) -> float:
    """Standard deviation of the noise, of 255, where the `blurred_slope` is in its lowest third.

    By the method of Immerkaer (1996).
    """
    # Immerkaer's mask, which a plane and a straight edge leave at zero.
    kernel = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float32)
    flat = np.abs(cv2.filter2D(luma, -1, kernel))[blurred <= np.quantile(blurred, 1 / 3)]
    # The mean of a normal deviate's size is sqrt(2 / pi) of its deviation, and the mask's norm 6.
    return float(flat.mean() * np.sqrt(np.pi / 2) / 6)


def blocking(luma: Luma) -> float:
    """Mean step across JPEG's block edges over that across other lines, both ways; 1: none."""
    # JPEG's blocks of eight begin at the corner, so the step before every eighth line is theirs.
    ratios = []
    for axis in (0, 1):
        steps = np.abs(np.diff(luma, axis=axis)).mean(1 - axis)
        # Medians: one edge of the picture along a line would outweigh all blocks.
        means = [float(np.median(steps[i::BLOCK])) for i in range(BLOCK)]
        ratios.append(means[-1] / max(float(np.median(means[:-1])), 0.1))
    return float(np.mean(ratios))


def _slope(luma: Luma) -> Luma:
    return np.hypot(cv2.Sobel(luma, -1, 1, 0), cv2.Sobel(luma, -1, 0, 1)) / 8
