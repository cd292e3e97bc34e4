"""PSNR-Y by its closed form, SSIM-Y against scikit-image and against its definition in torch."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from jaxtyping import TypeCheckError
from skimage.data import astronaut
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from osdhuman_jax.evaluation.metrics import bt601_luma, psnr_rgb, psnr_y, ssim_rgb, ssim_y


def pair(sigma: float = 20) -> tuple[np.ndarray, np.ndarray]:
    """A photograph and a noisy copy."""
    photo = astronaut()[40:140, 150:270]
    noise = np.random.default_rng(0).normal(0, sigma, photo.shape)
    return photo, np.clip(photo + noise, 0, 255).astype(np.uint8)


def flat(value: int) -> np.ndarray:
    return np.full((16, 16, 3), value, np.uint8)


def test_luma_of_black_gray_and_white():
    levels = [float(bt601_luma(flat(v))[0, 0]) * 255 for v in (0, 51, 255)]
    assert levels == pytest.approx([16, 16 + 219 / 5, 235])


def test_psnr_closed_form():
    error = (219 / 255 * 10 / 255) ** 2  # 10 levels of gray are 219 / 255 * 10 of luma
    assert psnr_y(flat(100), flat(110)) == pytest.approx(-10 * math.log10(error + 1e-8), abs=1e-9)
    assert psnr_y(flat(7), flat(7)) == pytest.approx(80)


def test_psnr_weighs_the_channels():
    red = flat(0)
    red[..., 0] = 255
    assert psnr_y(flat(0), red) == pytest.approx(-20 * math.log10(65.481 / 255), abs=1e-5)


def torch_ssim(a: np.ndarray, b: np.ndarray) -> float:
    """The definition with a two-dimensional window."""
    weights = torch.tensor([65.481, 128.553, 24.966], dtype=torch.float64) / 255
    x, y = ((torch.tensor(i).double() @ weights + 16).round()[None, None] for i in (a, b))
    taps = torch.exp(-((torch.arange(11).double() - 5) ** 2) / 4.5)
    window = torch.outer(taps, taps)[None, None] / taps.sum() ** 2
    mx, my, xx, yy, xy = (F.conv2d(v, window) for v in (x, y, x * x, y * y, x * y))
    c1, c2 = 6.5025, 58.5225
    structure = (2 * (xy - mx * my) + c2) / (xx - mx**2 + yy - my**2 + c2)
    return float(((2 * mx * my + c1) / (mx**2 + my**2 + c1) * structure.relu()).mean())


@pytest.mark.parametrize("sigma", [3, 20, 60])
def test_ssim_against_torch(sigma):
    assert ssim_y(*pair(sigma)) == pytest.approx(torch_ssim(*pair(sigma)), abs=1e-9)


def test_rgb_against_scikit_image():
    photo, noisy = pair()
    expected = peak_signal_noise_ratio(photo, noisy)
    assert psnr_rgb(photo, noisy) == pytest.approx(expected, abs=1e-4)
    gauss = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    _, values = structural_similarity(photo, noisy, channel_axis=-1, full=True, **gauss)
    # Windows that reach beyond the border do not count, nor does negative structure, of which
    # there is none here.
    assert ssim_rgb(photo, noisy) == pytest.approx(values[5:-5, 5:-5].mean(), abs=1e-9)
    assert psnr_rgb(flat(7), flat(7)) == pytest.approx(80) and ssim_rgb(photo, photo) == 1


def test_negative_structure_counts_as_zero():
    photo = pair()[0]
    assert ssim_y(photo, 255 - photo) == pytest.approx(torch_ssim(photo, 255 - photo), abs=1e-9)
    assert ssim_y(photo, 255 - photo) >= 0


def test_unfit_images_are_refused():
    for metric in (psnr_y, ssim_y, psnr_rgb, ssim_rgb):
        with pytest.raises((ValueError, TypeCheckError)):
            metric(flat(0), flat(0)[1:])
    with pytest.raises(ValueError, match="at least 11"):
        ssim_y(flat(0)[:10], flat(0)[:10])
