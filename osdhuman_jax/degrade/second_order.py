"""Real-ESRGAN's second-order degradation (Wang et al. 2021) as OSEDiff and OSDHuman use it.

    blur, resize, noise, JPEG, blur, resize, noise, then (resize and sinc) and JPEG in either order

makes an image of 1/scale the size. That is resized back, so that the LQ has the size of the HQ.
Training makes its LQ by it (section 4.1 of OSDHuman), the command `degrade` makes test pictures.
The probabilities and ranges are `config.DegradationConfig`: those of Real-ESRGAN's
options/train_realesrgan_x4plus.yml, which OSEDiff's params_realesrgan.yml repeats. A number in this
file is one that their code holds outside these files.

What comes before the second blur, the first order, may be left out or be the motion blur of one
part of a person instead, as HAODiff has it (see motion.py); by default it never is.

A `draw_*` function draws the parameters of one operation from `rng` and returns them as a dict
ready for JSON: all of them together are the record of a sample, by which it can be made again. The
operations are in `operations.py`, the kernels in `kernels.py`. Images are (h, w, 3) RGB, float32
in [0, 1] inside and uint8 at both ends.
"""

import math
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from jaxtyping import UInt8

from osdhuman_jax.config import DegradationConfig, Json
from osdhuman_jax.degrade.kernels import Kernel, gaussian_kernel, plateau_kernel, sinc_kernel
from osdhuman_jax.degrade.motion import (
    Mask,
    PartMap,
    Weights,
    draw_first_order,
    motion_blur,
    motion_psf,
    moved,
    soft_mask,
)
from osdhuman_jax.degrade.operations import (
    Resized,
    Rng,
    Size,
    UnitImage,
    filter2d,
    from_unit,
    gaussian_noise,
    jpeg,
    poisson_noise,
    resize,
    to_unit,
    usm_sharpen,
)

T = TypeVar("T")
LQ = UInt8[np.ndarray, "_ _ 3"]  # of the HQ's size, or of the smaller one that it is made at
Range = tuple[float, float]  # low, high
Params = Json  # what a `draw_*` function drew

# The order of `kernel_list` in the yml, to which `kernel_prob` refers.
KERNELS = ("iso", "aniso", "generalized_iso", "generalized_aniso", "plateau_iso", "plateau_aniso")
# realesrgan_model.py draws one of these for every resize.
MODES = ("area", "bilinear", "bicubic")
# realesrgan_model.py takes the first or the second, at one half each.
ORDERS = ("resize_sinc_jpeg", "jpeg_resize_sinc")
MIN_SIDE = 32  # pixels


# Draws -------------------------------------------------------------------------------------------


def sample_rng(seed: int, epoch: int, index: int) -> Rng:
    """The generator of one sample, whichever worker makes it and when."""
    return np.random.default_rng([seed, epoch, index])


def _pick(rng: Rng, options: Sequence[T], probs: Sequence[float] | None = None) -> T:
    """One of `options`, uniformly or by `probs`, which need not sum to one."""
    # Not rng.choice, which costs ten times as much and draws other numbers.
    if probs is None:
        return options[int(rng.integers(len(options)))]
    bounds = np.cumsum(probs)
    return options[int(np.searchsorted(bounds, rng.random() * bounds[-1], side="right"))]


def draw_blur(rng: Rng, config: DegradationConfig, sigmas: Range) -> Params:
    """A blur kernel of either stage; `sigmas` bounds both axes, in pixels."""
    # A sinc filter now and then, for the rings of bad sharpening.
    size = _pick(rng, config.blur_kernel_sizes)
    if rng.random() < config.sinc_prob:
        # realesrgan_dataset.py has these lower bounds.
        return _draw_sinc(rng, size, math.pi / 3 if size < 13 else math.pi / 5)
    # Otherwise a Gaussian or a plateau, round or, by a second sigma and an angle, stretched.
    kind = _pick(rng, KERNELS, config.kernel_probs)
    sigma_x = sigma_y = rng.uniform(*sigmas)
    rotation = 0.0
    if kind.endswith("aniso"):
        sigma_y, rotation = rng.uniform(*sigmas), rng.uniform(-math.pi, math.pi)
    params = {"kind": kind, "size": size, "sigma_x": sigma_x, "sigma_y": sigma_y}
    return params | {"rotation": rotation, "beta": _draw_beta(rng, config, kind)}


def _draw_beta(rng: Rng, config: DegradationConfig, kind: str) -> float:
    """Exponent of a generalized or plateau kernel: below 1 and above 1 equally often."""
    if kind in ("iso", "aniso"):
        return 1.0
    low, high = config.betap_range if kind.startswith("plateau") else config.betag_range
    return rng.uniform(low, 1) if rng.random() < 0.5 else rng.uniform(1, high)


def _draw_sinc(rng: Rng, size: int, low: float) -> Params:
    """A cutoff between `low` and pi, radians per pixel."""
    return {"kind": "sinc", "size": size, "omega": rng.uniform(low, math.pi)}


def draw_final_sinc(rng: Rng, config: DegradationConfig) -> Params:
    """The last filter: a sinc, or nothing (the reference's delta)."""
    if rng.random() >= config.final_sinc_prob:
        return {"kind": "none"}
    return _draw_sinc(rng, _pick(rng, config.blur_kernel_sizes), math.pi / 3)


def draw_resize(rng: Rng, probs: Sequence[float], scales: Range) -> Params:
    """Direction (up, down, keep: `probs`), scale within `scales`, and mode."""
    kind = _pick(rng, ("up", "down", "keep"), probs)
    bounds = {"up": (1.0, scales[1]), "down": (scales[0], 1.0), "keep": (1.0, 1.0)}[kind]
    return {"kind": kind, "scale": rng.uniform(*bounds), "mode": _pick(rng, MODES)}


def draw_noise(rng: Rng, config: DegradationConfig, sigmas: Range, scales: Range) -> Params:
    """Kind, level (a sigma of 255 if Gaussian, a scale if Poisson) and whether it is gray."""
    gaussian = rng.random() < config.gaussian_noise_prob
    level = rng.uniform(*(sigmas if gaussian else scales))
    gray = bool(rng.random() < config.gray_noise_prob)
    return {"kind": "gaussian" if gaussian else "poisson", "level": level, "gray": gray}


def draw_quality(rng: Rng, config: DegradationConfig) -> int:
    """JPEG quality, both ends of the range included."""
    return int(rng.integers(*config.jpeg_range, endpoint=True))


# The chain ---------------------------------------------------------------------------------------


def degrade(
    hq: np.ndarray,
    rng: Rng,
    config: DegradationConfig,
    full: bool = True,
    parts: PartMap | None = None,
) -> tuple[LQ, Params, Mask]:
    """LQ of `hq`, both (h, w, 3) uint8 RGB; the record of all that was drawn; what motion blurred.

    The mask is (h, w) and False all over unless a part of a person moved, which needs `parts`, the
    labels of the HQ's pixels. If not `full`, the LQ is not resized back and stays (h // scale,
    w // scale, 3). With `config.usm` it is the sharpened HQ that is degraded; sharpening the
    target, too, is for the caller. Raises ValueError on another shape or dtype or on a side below
    32.
    """
    if hq.dtype != np.uint8 or hq.ndim != 3 or hq.shape[2] != 3:
        raise ValueError(f"expected (h, w, 3) uint8, got {hq.shape} {hq.dtype}")
    # Of much smaller ones the two resizes would leave no picture.
    h, w = hq.shape[:2]
    if min(h, w) < MIN_SIDE:
        raise ValueError(f"{w} x {h} is below {MIN_SIDE} pixels a side")
    if parts is not None and (parts.shape != (h, w) or parts.dtype != np.uint8):
        raise ValueError(f"expected ({h}, {w}) uint8 parts, got {parts.shape} {parts.dtype}")
    # First all parameters, then what they make: the noises alone are drawn on the way.
    record = draw_record(rng, config, (h, w), parts)
    weights = np.zeros((h, w), np.float32)
    if parts is not None and "part" in record:
        weights = soft_mask(parts, record["part"])
    lq = apply_record(to_unit(hq), record, rng, weights)
    lq = resize(lq, record["resize_back"], (h, w)) if full else lq
    return from_unit(lq), record, moved(weights)


def draw_record(
    rng: Rng, config: DegradationConfig, size: Size, parts: PartMap | None = None
) -> Params:
    """All parameters of one sample of an HQ of `size`, whatever its pixels."""
    # In this order, which belongs to the format: another one would draw other samples by a seed.
    record: Params = {
        "size": list(size),
        "usm": config.usm,
        "blur1": draw_blur(rng, config, config.blur_sigma),
        "resize1": draw_resize(rng, config.resize_probs, config.resize_range),
        "noise1": draw_noise(rng, config, config.noise_range, config.poisson_scale_range),
        "jpeg1": draw_quality(rng, config),
        "blur2": {"kind": "none"},
        "resize2": draw_resize(rng, config.resize_probs2, config.resize_range2),
        "noise2": draw_noise(rng, config, config.noise_range2, config.poisson_scale_range2),
        "order": _pick(rng, ORDERS),
        "resize3": {"mode": _pick(rng, MODES), "size": [side // config.scale for side in size]},
        "blur3": draw_final_sinc(rng, config),
        "jpeg2": draw_quality(rng, config),
        "resize_back": _pick(rng, MODES),
    }
    # Drawn last, so that the other parameters are the same whether there is a second blur or not.
    if rng.random() < config.second_blur_prob:
        record["blur2"] = draw_blur(rng, config, config.blur_sigma2)
    # The second resize goes to a size that is taken from the HQ's, not from the picture before it.
    scale = record["resize2"]["scale"] / config.scale
    record["resize2"]["size"] = [max(1, int(side * scale)) for side in size]
    # A config that has no other state draws nothing here: old seeds and records stay what they are.
    if any(config.first_order[:2]):
        record |= draw_first_order(rng, config.first_order, parts)
    return record


def apply_record(
    image: UnitImage, record: Params, rng: Rng, weights: Weights | None = None
) -> Resized:
    """The image that `record` makes of `image`, before the resize back; `rng` draws the noises.

    `weights` are W_S of a record whose state is "motion" (`soft_mask`). Returns (h // scale,
    w // scale, 3), which may leave [0, 1].
    """
    # First order; a record without a state is of a config that knows one alone.
    image = usm_sharpen(image) if record["usm"] else image
    state = record.get("state", "generic")
    if state == "motion" and weights is not None:
        image = motion_blur(image, weights, motion_psf(record["trajectory"]))
    elif state == "generic":
        image = _blur(image, record["blur1"])
        image = resize(image, record["resize1"]["mode"], scale=record["resize1"]["scale"])
        image = _add_noise(image, rng, record["noise1"])
        image = jpeg(image, record["jpeg1"])
    # Second order.
    image = _blur(image, record["blur2"])
    image = resize(image, record["resize2"]["mode"], tuple(record["resize2"]["size"]))
    image = _add_noise(image, rng, record["noise2"])
    # The last resize and the sinc filter, which makes ringing, before or after the last JPEG.
    if record["order"] == "jpeg_resize_sinc":
        image = jpeg(image, record["jpeg2"])
    image = resize(image, record["resize3"]["mode"], tuple(record["resize3"]["size"]))
    image = _blur(image, record["blur3"])
    return jpeg(image, record["jpeg2"]) if record["order"] == "resize_sinc_jpeg" else image


def make_kernel(params: Params) -> Kernel:
    """Kernel that `draw_blur` or `draw_final_sinc` described.

    The reference pads it with zeros to 21 x 21; under the reflected border that changes nothing.
    """
    # A record names its kernel; the numbers that the kernel needs have the names of its arguments.
    if params["kind"] == "sinc":
        return sinc_kernel(params["size"], params["omega"])
    make = plateau_kernel if params["kind"].startswith("plateau") else gaussian_kernel
    return make(*(params[k] for k in ("size", "sigma_x", "sigma_y", "rotation", "beta")))


def _blur(image: UnitImage, params: Params) -> UnitImage:
    """The image under a kernel that was drawn, or as it is."""
    return image if params["kind"] == "none" else filter2d(image, make_kernel(params))


def _add_noise(image: UnitImage, rng: Rng, params: Params) -> UnitImage:
    """The image with a noise that was drawn; its pixels' values come from `rng`."""
    add = gaussian_noise if params["kind"] == "gaussian" else poisson_noise
    return add(image, rng, params["level"], params["gray"])
