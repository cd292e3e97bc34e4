"""What happens to a picture on its way to being a bad one: blur, resize, noise, JPEG, sharpening.

Each operation is a function of a picture and plain numbers, and of a random generator where it adds
noise; which numbers are drawn, and in which order the operations follow, is for `second_order.py`
and `mixture.py`. They do what BasicSR's and Real-ESRGAN's PyTorch code does (Wang et al. 2021,
section 3), by NumPy and OpenCV, so that they run in the workers that load data.

Images are (h, w, 3) RGB float32 in [0, 1]; `to_unit` and `from_unit` convert from and to uint8.
"""

import functools
import math

import cv2
import numpy as np
from jaxtyping import Float32, UInt8
from scipy.sparse import csr_array

from osdhuman_jax.degrade.kernels import Kernel

UnitImage = Float32[np.ndarray, "h w 3"]
Resized = Float32[np.ndarray, "h2 w2 3"]
Image8 = UInt8[np.ndarray, "h w 3"]
Rng = np.random.Generator
Size = tuple[int, int]  # height, width

# torchvision's rgb_to_grayscale, by which BasicSR makes noise gray.
LUMA = np.array([[0.2989, 0.587, 0.114]], np.float32)
# With more taps cv2.filter2D turns to a DFT, ten times slower at these sizes.
DIRECT_TAPS = 129


def filter2d(image: UnitImage, kernel: Kernel) -> UnitImage:
    """Cross-correlation of every channel with an odd square kernel; the border mirrors (101)."""
    # Small kernels go to OpenCV as they are.
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
    # The new size, and whether anything is to be done at all: no mode changes an equal size.
    h, w = image.shape[:2]
    new_h, new_w = size or (math.floor(h * scale), math.floor(w * scale))
    if (new_h, new_w) == (h, w) and scale in (None, 1):
        return image
    # Separable: rows, then columns, each a sparse matrix that is kept for the next picture.
    rows = _resample_matrix(mode, h, new_h, 1 / scale if scale else h / new_h)
    columns = _resample_matrix(mode, w, new_w, 1 / scale if scale else w / new_w)
    image = (rows @ image.reshape(h, -1)).reshape(new_h, w, 3)  # [H', W, 3]
    # The columns by the same product, on the picture turned over.
    image = (columns @ cv2.transpose(image).reshape(w, -1)).reshape(new_w, new_h, 3)
    return cv2.transpose(image)


@functools.lru_cache(maxsize=64)
def _resample_matrix(mode: str, n_in: int, n_out: int, step: float) -> csr_array:
    """(n_out, n_in) weights of one axis, float32; `step` is input pixels per output pixel."""
    taps = {"area": _area_taps, "bilinear": _bilinear_taps, "bicubic": _bicubic_taps}[mode]
    index, weight = taps(n_in, n_out, step)
    # Taps beyond the border are the border's pixel again; a sparse matrix adds their weights up.
    index = np.clip(index, 0, n_in - 1)
    # Every row has as many taps as the others, so that its place in the data is a multiple.
    rows = np.arange(0, index.size + 1, index.shape[1])
    data = weight.astype(np.float32).ravel()
    return csr_array((data, index.ravel(), rows), shape=(n_out, n_in))


def _area_taps(n_in: int, n_out: int, _step: float) -> tuple[np.ndarray, np.ndarray]:
    """adaptive_avg_pool: means over bins [floor(i in / out), ceil((i + 1) in / out))."""
    i = np.arange(n_out)
    start, stop = i * n_in // n_out, -(-(i + 1) * n_in // n_out)
    # Bins differ in size by a pixel: the last tap of a smaller one has no weight.
    count = (stop - start)[:, None]
    offset = np.arange(count.max())
    return start[:, None] + offset, (offset < count) / count


def _bilinear_taps(n_in: int, n_out: int, step: float) -> tuple[np.ndarray, np.ndarray]:
    """The two nearest centres, each weighed by how near it is."""
    # torch's bilinear copies equal sizes on a CPU whatever the scale says; its bicubic does not.
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
    # Drawn in float32: half the time of float64, and the picture is no more exact.
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
    # BasicSR's rule: the fewer levels a picture has, the fewer photons it is taken to be made of.
    v = 2.0 ** math.ceil(math.log2(distinct))
    x = np.arange(256) / 255
    noise = rng.poisson((v * x)[levels]).astype(np.float32)
    noise *= np.float32(scale / v)
    noise -= (scale * x).astype(np.float32)[levels]
    return np.clip(image + noise, 0, 1)


def jpeg(image: UnitImage, quality: int) -> UnitImage:
    """libjpeg and back at 4:2:0, the image clamped to [0, 1] first.

    It stands for the reference's DiffJPEG, which takes a fractional quality, neither rounds nor
    clips its tables, repeats chroma where libjpeg interpolates, and does not round to 8 bits.
    """
    # 4:2:0 whatever OpenCV's build has as its default: people's files are of this kind.
    flags = [cv2.IMWRITE_JPEG_QUALITY, quality]
    flags += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420]
    _, data = cv2.imencode(".jpg", cv2.cvtColor(from_unit(image), cv2.COLOR_RGB2BGR), flags)
    # For type checkers: libjpeg reads what it wrote.
    decoded = cv2.imdecode(data, cv2.IMREAD_COLOR_RGB)
    assert decoded is not None
    return to_unit(decoded)


def usm_sharpen(
    image: UnitImage, weight: float = 0.5, radius: int = 51, threshold: float = 10.0
) -> UnitImage:
    """Real-ESRGAN's unsharp mask, softly limited to where the detail exceeds `threshold` / 255.

    `radius` is the odd width of the Gaussian in pixels; its sigma is OpenCV's for that width.
    """

    def blur(x: np.ndarray) -> np.ndarray:
        return cv2.GaussianBlur(x, (radius, radius), 0, borderType=cv2.BORDER_REFLECT_101)

    # The mask is blurred too: where sharpening stops at once, an outline would remain.
    detail = image - blur(image)
    mask = blur((np.abs(detail) * 255 > threshold).astype(np.float32))
    return mask * np.clip(image + weight * detail, 0, 1) + (1 - mask) * image


def to_unit(image: Image8) -> UnitImage:
    """uint8 to float32 in [0, 1]."""
    return image.astype(np.float32) / np.float32(255)


def from_unit(image: UnitImage) -> Image8:
    """clamp(round(255 x))."""
    return np.clip(np.rint(image * np.float32(255)), 0, 255).astype(np.uint8)
