"""Real-ESRGAN's second-order degradation (Wang et al. 2021) as OSEDiff and OSDHuman use it.

    blur, resize, noise, JPEG, blur, resize, noise, then (resize and sinc) and JPEG in either order

makes an image of 1/scale the size. That is resized back, so that the LQ has the size of the HQ.
Training makes its LQ by it (section 4.1 of OSDHuman), the command `degrade` makes test pictures.
The probabilities and ranges are `config.DegradationConfig`: those of Real-ESRGAN's
options/train_realesrgan_x4plus.yml, which OSEDiff's params_realesrgan.yml repeats. A number in this
file is one that their code holds outside these files.

What comes before the second blur, the first order, may be left out or be the motion blur of one
part of a person instead, as HAODiff has it (see motion.py); by default it never is.

Images are (h, w, 3) RGB, float32 in [0, 1] inside and uint8 at both ends. An operation takes its
parameters as plain numbers; a `draw_*` function draws them from `rng` and returns them as a dict
ready for JSON. Kernels, filters, resizes and noise are those of BasicSR's PyTorch code. The module
is long because it holds the whole chain: kernels, operations, draws and their order.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from jaxtyping import Float32, UInt8
from scipy.sparse import csr_array
from scipy.special import j1

from osdhuman_jax.config import DegradationConfig
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

UnitImage = Float32[np.ndarray, "h w 3"]
Resized = Float32[np.ndarray, "h2 w2 3"]
Image8 = UInt8[np.ndarray, "h w 3"]
Rng = np.random.Generator
Kernel = Float32[np.ndarray, "k k"]
Size = tuple[int, int]  # height, width
Range = tuple[float, float]  # low, high
Params = dict[str, Any]  # what a `draw_*` function drew

# The order of `kernel_list` in the yml, to which `kernel_prob` refers.
KERNELS = ("iso", "aniso", "generalized_iso", "generalized_aniso", "plateau_iso", "plateau_aniso")
# realesrgan_model.py draws one of these for every resize.
MODES = ("area", "bilinear", "bicubic")
# realesrgan_model.py takes the first or the second, at one half each.
ORDERS = ("resize_sinc_jpeg", "jpeg_resize_sinc")
# torchvision's rgb_to_grayscale, by which BasicSR makes noise gray.
LUMA = np.array([[0.2989, 0.587, 0.114]], np.float32)
MIN_SIDE = 32  # pixels
# With more taps cv2.filter2D turns to a DFT, ten times slower at these sizes.
DIRECT_TAPS = 129


# Kernels -----------------------------------------------------------------------------------------


def gaussian_kernel(
    size: int, sigma_x: float, sigma_y: float, rotation: float = 0.0, beta: float = 1.0
) -> Kernel:
    """exp(-(x' S^-1 x)^beta / 2), S = R diag(sigma^2) R'; sigmas in pixels, rotation in radians."""
    return _normalised(np.exp(-0.5 * _quadratic(size, sigma_x, sigma_y, rotation) ** beta))


def plateau_kernel(
    size: int, sigma_x: float, sigma_y: float, rotation: float = 0.0, beta: float = 1.0
) -> Kernel:
    """1 / (1 + (x' S^-1 x)^beta), arguments as `gaussian_kernel`'s."""
    return _normalised(1 / (1 + _quadratic(size, sigma_x, sigma_y, rotation) ** beta))


def sinc_kernel(size: int, omega: float) -> Kernel:
    """Circular low-pass omega J1(omega r) / (2 pi r) of cutoff omega, radians per pixel."""
    radius = np.hypot(*_offsets(size))
    radius[size // 2, size // 2] = 1  # avoids 0 / 0; the limit is filled in below
    kernel = omega * j1(omega * radius) / (2 * np.pi * radius)
    kernel[size // 2, size // 2] = omega**2 / (4 * np.pi)
    return _normalised(kernel)


def _offsets(size: int) -> tuple[np.ndarray, np.ndarray]:
    """x and y of each tap from the centre, two (size, size) arrays."""
    axis = np.arange(size) - (size - 1) / 2
    x, y = np.meshgrid(axis, axis)
    return x, y


def _quadratic(size: int, sigma_x: float, sigma_y: float, rotation: float) -> np.ndarray:
    """x' S^-1 x at every tap: the offset in the rotated frame, in sigmas, squared."""
    x, y = _offsets(size)
    c, s = math.cos(rotation), math.sin(rotation)
    return ((c * x + s * y) / sigma_x) ** 2 + ((c * y - s * x) / sigma_y) ** 2


def _normalised(kernel: np.ndarray) -> Kernel:
    kernel = kernel / kernel.sum()
    kernel[np.abs(kernel) < 1e-10] = 0  # skipped by the filter, and denormals would be very slow
    return kernel.astype(np.float32)


def make_kernel(params: Params) -> Kernel:
    """Kernel that `draw_blur` or `draw_final_sinc` described.

    The reference pads it with zeros to 21 x 21; under the reflected border that changes nothing.
    """
    if params["kind"] == "sinc":
        return sinc_kernel(params["size"], params["omega"])
    make = plateau_kernel if params["kind"].startswith("plateau") else gaussian_kernel
    return make(*(params[k] for k in ("size", "sigma_x", "sigma_y", "rotation", "beta")))


# Operations --------------------------------------------------------------------------------------


def filter2d(image: UnitImage, kernel: Kernel) -> UnitImage:
    """Cross-correlation of every channel with an odd square kernel; the border mirrors (101)."""
    if kernel.size <= DIRECT_TAPS:
        return cv2.filter2D(image, -1, kernel, borderType=cv2.BORDER_REFLECT_101)
    # The kernel in strips of rows, each few enough for OpenCV's direct filter, summed.
    (h, w), k = image.shape[:2], len(kernel)
    r = k // 2
    padded = cv2.copyMakeBorder(image, r, r, r, r, cv2.BORDER_REFLECT_101)
    out = np.zeros(image.shape, np.float32)
    for y in range(0, k, DIRECT_TAPS // k):
        strip = kernel[y : y + DIRECT_TAPS // k]
        part = cv2.filter2D(padded[y : y + h + len(strip) - 1], -1, strip, anchor=(r, 0))
        cv2.add(out, part[:h, r : r + w], dst=out)
    return out


def resize(
    image: UnitImage, mode: str, size: Size | None = None, scale: float | None = None
) -> Resized:
    """torch's F.interpolate: "area", "bilinear" or "bicubic" (a = -0.75), no antialias, no clamp.

    With `size` (height, width) coordinates follow the ratio of sizes. With `scale` the size is
    floor(side * scale) and coordinates follow the scale itself, as torch does by default.
    """
    if (size is None) == (scale is None):
        raise ValueError("resize takes either size or scale")
    h, w = image.shape[:2]
    new_h, new_w = size or (math.floor(h * scale), math.floor(w * scale))
    if (new_h, new_w) == (h, w) and scale in (None, 1):
        return image  # what all modes give
    # Separable: rows, then columns, each a sparse matrix that is kept for the next picture.
    rows = _resample_matrix(mode, h, new_h, 1 / scale if scale else h / new_h)
    columns = _resample_matrix(mode, w, new_w, 1 / scale if scale else w / new_w)
    image = (rows @ image.reshape(h, -1)).reshape(new_h, w, 3)
    image = (columns @ cv2.transpose(image).reshape(w, -1)).reshape(new_w, new_h, 3)
    return cv2.transpose(image)


@functools.lru_cache(maxsize=64)
def _resample_matrix(mode: str, n_in: int, n_out: int, step: float) -> csr_array:
    """(n_out, n_in) weights of one axis, float32; `step` is input pixels per output pixel."""
    taps = {"area": _area_taps, "bilinear": _bilinear_taps, "bicubic": _bicubic_taps}[mode]
    index, weight = taps(n_in, n_out, step)
    index = np.clip(index, 0, n_in - 1)
    rows = np.arange(0, index.size + 1, index.shape[1])
    data = weight.astype(np.float32).ravel()
    return csr_array((data, index.ravel(), rows), shape=(n_out, n_in))


def _area_taps(n_in: int, n_out: int, _step: float) -> tuple[np.ndarray, np.ndarray]:
    """adaptive_avg_pool: means over bins [floor(i in / out), ceil((i + 1) in / out))."""
    i = np.arange(n_out)
    start, stop = i * n_in // n_out, -(-(i + 1) * n_in // n_out)
    count = (stop - start)[:, None]
    offset = np.arange(count.max())
    return start[:, None] + offset, (offset < count) / count


def _bilinear_taps(n_in: int, n_out: int, step: float) -> tuple[np.ndarray, np.ndarray]:
    """Two nearest centres; equal sizes copy, as torch's bilinear (not its bicubic) does on CPU."""
    step = 1.0 if n_in == n_out else step
    position = (np.arange(n_out) + 0.5) * step - 0.5
    left = np.floor(position)
    t = position - left
    return left.astype(int)[:, None] + np.arange(2), np.stack([1 - t, t], axis=1)


def _bicubic_taps(n_in: int, n_out: int, step: float) -> tuple[np.ndarray, np.ndarray]:
    """Keys' kernel with a = -0.75: one cubic within a pixel of the centre, another up to two."""
    a = -0.75
    position = (np.arange(n_out) + 0.5) * step - 0.5
    left = np.floor(position)
    offset = np.arange(-1, 3)
    d = np.abs((position - left)[:, None] - offset)
    near = ((a + 2) * d - (a + 3)) * d**2 + 1
    far = a * (((d - 5) * d + 8) * d - 4)
    return left.astype(int)[:, None] + offset, np.where(d <= 1, near, far)


def gaussian_noise(image: UnitImage, rng: Rng, sigma: float, gray: bool) -> UnitImage:
    """White noise of deviation sigma / 255, the same in all channels if gray; clips to [0, 1]."""
    shape = (*image.shape[:2], 1 if gray else 3)
    noise = rng.standard_normal(shape, dtype=np.float32) * np.float32(sigma / 255)
    return np.clip(image + noise, 0, 1)


def poisson_noise(image: UnitImage, rng: Rng, scale: float, gray: bool) -> UnitImage:
    """Shot noise, in [0, 1]: image + scale * (Poisson(v x) / v - x), x the image in 8-bit steps.

    v = 2^ceil(log2(number of distinct values of x)). If gray, x is the luma, and all channels
    share its noise.
    """
    # A picture has 256 levels at most: their rates and means are looked up, not computed per pixel.
    levels = from_unit(image)
    if gray:
        luma = cv2.transform(levels.astype(np.float32), LUMA)
        levels = np.rint(luma).astype(np.uint8)[..., None]
    distinct = np.count_nonzero(np.bincount(levels.ravel(), minlength=256))
    v = 2.0 ** math.ceil(math.log2(distinct))
    x = np.arange(256) / 255
    noise = rng.poisson((v * x)[levels]).astype(np.float32)
    noise *= np.float32(scale / v)
    noise -= (scale * x).astype(np.float32)[levels]
    return np.clip(image + noise, 0, 1)


def jpeg(image: UnitImage, quality: int) -> UnitImage:
    """libjpeg and back at 4:2:0, the image clamped to [0, 1] first.

    Stands for the reference's DiffJPEG, which takes a fractional quality, neither rounds nor
    clips its tables, repeats chroma where libjpeg interpolates, and does not round to 8 bits.
    """
    flags = [cv2.IMWRITE_JPEG_QUALITY, quality]
    flags += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420]
    _, data = cv2.imencode(".jpg", cv2.cvtColor(from_unit(image), cv2.COLOR_RGB2BGR), flags)
    decoded = cv2.imdecode(data, cv2.IMREAD_COLOR_RGB)
    assert decoded is not None  # libjpeg reads what it wrote
    return to_unit(decoded)


def usm_sharpen(
    image: UnitImage, weight: float = 0.5, radius: int = 51, threshold: float = 10.0
) -> UnitImage:
    """Real-ESRGAN's unsharp mask, softly limited to where the detail exceeds `threshold` / 255.

    `radius` is the odd width of the Gaussian in pixels; its sigma is OpenCV's for that width.
    """

    def blur(x: np.ndarray) -> np.ndarray:
        return cv2.GaussianBlur(x, (radius, radius), 0, borderType=cv2.BORDER_REFLECT_101)

    detail = image - blur(image)
    mask = blur((np.abs(detail) * 255 > threshold).astype(np.float32))
    return mask * np.clip(image + weight * detail, 0, 1) + (1 - mask) * image


def to_unit(image: Image8) -> UnitImage:
    """uint8 to float32 in [0, 1]."""
    return image.astype(np.float32) / np.float32(255)


def from_unit(image: UnitImage) -> Image8:
    """clamp(round(255 x))."""
    return np.clip(np.rint(image * np.float32(255)), 0, 255).astype(np.uint8)


# Draws -------------------------------------------------------------------------------------------


def sample_rng(seed: int, epoch: int, index: int) -> Rng:
    """The generator of one sample, whichever worker makes it and when."""
    return np.random.default_rng([seed, epoch, index])


def _pick(rng: Rng, options: Sequence, probs: Sequence[float] | None = None) -> Any:
    """One of `options`, uniformly or by `probs`; rng.choice costs ten times as much."""
    if probs is None:
        return options[int(rng.integers(len(options)))]
    bounds = np.cumsum(probs)
    return options[int(np.searchsorted(bounds, rng.random() * bounds[-1], side="right"))]


def draw_blur(rng: Rng, config: DegradationConfig, sigmas: Range) -> Params:
    """A blur kernel of either stage; `sigmas` bounds both axes, in pixels."""
    size = _pick(rng, config.blur_kernel_sizes)
    if rng.random() < config.sinc_prob:
        # realesrgan_dataset.py has these lower bounds.
        return _draw_sinc(rng, size, math.pi / 3 if size < 13 else math.pi / 5)
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
) -> tuple[np.ndarray, Params, Mask]:
    """LQ of `hq`, both (h, w, 3) uint8 RGB; the record of all that was drawn; what motion blurred.

    The mask is (h, w) and False all over unless a part of a person moved, which needs `parts`, the
    labels of the HQ's pixels. If not `full`, the LQ is not resized back and stays (h // scale,
    w // scale, 3). With `config.usm` it is the sharpened HQ that is degraded; sharpening the
    target, too, is for the caller. Raises ValueError on another shape or dtype or on a side below
    32.
    """
    if hq.dtype != np.uint8 or hq.ndim != 3 or hq.shape[2] != 3:
        raise ValueError(f"expected (h, w, 3) uint8, got {hq.shape} {hq.dtype}")
    h, w = hq.shape[:2]
    if min(h, w) < MIN_SIDE:
        raise ValueError(f"{w} x {h} is below {MIN_SIDE} pixels a side")
    if parts is not None and (parts.shape != (h, w) or parts.dtype != np.uint8):
        raise ValueError(f"expected ({h}, {w}) uint8 parts, got {parts.shape} {parts.dtype}")
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


def _blur(image: UnitImage, params: Params) -> UnitImage:
    return image if params["kind"] == "none" else filter2d(image, make_kernel(params))


def _add_noise(image: UnitImage, rng: Rng, params: Params) -> UnitImage:
    add = gaussian_noise if params["kind"] == "gaussian" else poisson_noise
    return add(image, rng, params["level"], params["gray"])
