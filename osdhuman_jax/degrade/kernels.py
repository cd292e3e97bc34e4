"""Blur kernels of Real-ESRGAN's degradation (Wang et al. 2021, section 3.2 and Figure 3).

Three families: Gaussians, which may be stretched, turned and generalised by an exponent; plateaus,
which are flat on top; and sinc filters, which leave rings around edges. Needed by whatever blurs a
training picture. A kernel is a square float32 array of odd size that sums to one. The formulas are
those of BasicSR's data/degradations.py; nothing here is random.
"""

import math

import numpy as np
from jaxtyping import Float32
from scipy.special import j1

Kernel = Float32[np.ndarray, "k k"]


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
    radius = np.hypot(*_offsets(size))  # [size, size]
    # At the centre the formula is 0 / 0; its limit is filled in afterwards.
    radius[size // 2, size // 2] = 1
    kernel = omega * j1(omega * radius) / (2 * np.pi * radius)
    kernel[size // 2, size // 2] = omega**2 / (4 * np.pi)
    return _normalised(kernel)


def _offsets(size: int) -> tuple[np.ndarray, np.ndarray]:
    """x and y of each tap from the centre, two (size, size) arrays."""
    # x runs along a row, as in OpenCV: rotations turn the other way than in a drawing with y up.
    axis = np.arange(size) - (size - 1) / 2
    x, y = np.meshgrid(axis, axis)
    return x, y


def _quadratic(size: int, sigma_x: float, sigma_y: float, rotation: float) -> np.ndarray:
    """x' S^-1 x at every tap: the offset in the rotated frame, in sigmas, squared."""
    # The frame turns, not the picture: offsets are taken along the kernel's own two axes.
    x, y = _offsets(size)
    c, s = math.cos(rotation), math.sin(rotation)
    return ((c * x + s * y) / sigma_x) ** 2 + ((c * y - s * x) / sigma_y) ** 2


def _normalised(kernel: np.ndarray) -> Kernel:
    """The kernel with a sum of one, which keeps a picture's brightness."""
    kernel = kernel / kernel.sum()
    # OpenCV skips zeros; numbers as small as the far ends of a Gaussian would be very slow.
    kernel[np.abs(kernel) < 1e-10] = 0
    return kernel.astype(np.float32)
