"""Kernels, filters, resizing, noise, JPEG and sharpening, each against an independent one."""

import numpy as np
import pytest
import scipy.integrate
import scipy.ndimage
import scipy.special
import scipy.stats
import torch
import torch.nn.functional as F
from picture_files import photo

from osdhuman_jax.degrade import second_order as d


def noise_image(h: int, w: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((h, w, 3), dtype=np.float32)


def to_torch(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image.transpose(2, 0, 1).copy())[None]


def from_torch(tensor: torch.Tensor) -> np.ndarray:
    return tensor[0].numpy().transpose(1, 2, 0)


# Kernels


def covariance(sigma_x: float, sigma_y: float, rotation: float) -> np.ndarray:
    c, s = np.cos(rotation), np.sin(rotation)
    turn = np.array([[c, -s], [s, c]])
    return turn @ np.diag([sigma_x**2, sigma_y**2]) @ turn.T


def positions(size: int) -> np.ndarray:
    """(size, size, 2) of x, y from the centre."""
    rows, columns = np.mgrid[:size, :size] - size // 2
    return np.stack([columns, rows], axis=-1)


def quadratic(size: int, sigma_x: float, sigma_y: float, rotation: float) -> np.ndarray:
    x = positions(size)
    inverse = np.linalg.inv(covariance(sigma_x, sigma_y, rotation))
    return np.einsum("hwi,ij,hwj->hw", x, inverse, x)


@pytest.mark.parametrize("size, shape", [(7, (0.3, 0.3, 0.0)), (21, (2.9, 0.8, 0.7))])
def test_gaussian_kernel_is_the_normal_density(size, shape):
    density = scipy.stats.multivariate_normal(cov=covariance(*shape)).pdf(positions(size))
    np.testing.assert_allclose(d.gaussian_kernel(size, *shape), density / density.sum(), atol=1e-7)


@pytest.mark.parametrize("beta", [0.5, 1.7, 4.0])
def test_generalized_and_plateau_kernels(beta):
    shape = (2.0, 1.1, -2.5)
    q = quadratic(13, *shape)
    generalized, plateau = np.exp(-0.5 * q**beta), 1 / (1 + q**beta)
    expected = generalized / generalized.sum()
    np.testing.assert_allclose(d.gaussian_kernel(13, *shape, beta), expected, atol=1e-7)
    expected = plateau / plateau.sum()
    np.testing.assert_allclose(d.plateau_kernel(13, *shape, beta), expected, atol=1e-7)


@pytest.mark.parametrize("size, omega", [(7, np.pi / 3), (21, 2.5)])
def test_sinc_kernel_is_the_transform_of_a_disc(size, omega):
    def disc(r: float) -> float:
        integrand = lambda w: w * scipy.special.j0(w * r)  # noqa: E731
        return scipy.integrate.quad(integrand, 0, omega)[0] / (2 * np.pi)

    expected = np.vectorize(disc)(np.linalg.norm(positions(size), axis=-1))
    np.testing.assert_allclose(d.sinc_kernel(size, omega), expected / expected.sum(), atol=1e-6)


def test_make_kernel_follows_the_kind():
    params = {"size": 9, "sigma_x": 1.5, "sigma_y": 0.9, "rotation": 0.4, "beta": 2.0}
    args = (9, 1.5, 0.9, 0.4, 2.0)
    made = d.make_kernel(params | {"kind": "generalized_aniso"})
    np.testing.assert_array_equal(made, d.gaussian_kernel(*args))
    made = d.make_kernel(params | {"kind": "plateau_aniso"})
    np.testing.assert_array_equal(made, d.plateau_kernel(*args))
    made = d.make_kernel({"kind": "sinc", "size": 9, "omega": 2.0})
    np.testing.assert_array_equal(made, d.sinc_kernel(9, 2.0))


def test_kernels_hold_no_denormal_numbers():
    kernel = d.gaussian_kernel(21, 0.2, 3.0, 0.3)
    assert np.all((kernel == 0) | (np.abs(kernel) > 1e-12))
    assert kernel.sum() == pytest.approx(1, abs=1e-6)


# Operations against torch


@pytest.mark.parametrize("size", [7, 11, 13, 17, 19, 21])
def test_filter2d_equals_the_padded_kernel_in_torch(size):
    image = noise_image(37, 26)
    kernel = np.random.default_rng(size).random((size, size), dtype=np.float32)  # not symmetric
    kernel /= kernel.sum()
    padded = torch.from_numpy(np.pad(kernel, (21 - size) // 2)).expand(3, 1, 21, 21)
    expected = F.conv2d(F.pad(to_torch(image), (10,) * 4, mode="reflect"), padded, groups=3)
    np.testing.assert_allclose(d.filter2d(image, kernel), from_torch(expected), atol=1e-5)


def test_filter2d_of_an_image_smaller_than_the_kernel_keeps_a_constant():
    image = np.full((2, 3, 3), 0.25, np.float32)
    np.testing.assert_allclose(d.filter2d(image, d.sinc_kernel(21, 2.0)), image, atol=1e-6)


@pytest.mark.parametrize("mode", d.MODES)
@pytest.mark.parametrize("scale", [0.15, 0.5, 0.731, 0.997, 1.0, 1.004, 1.018, 1.4999])
def test_resize_by_scale_equals_torch(mode, scale):
    image = noise_image(45, 64)
    expected = from_torch(F.interpolate(to_torch(image), scale_factor=scale, mode=mode))
    actual = d.resize(image, mode, scale=scale)
    assert actual.dtype == np.float32
    np.testing.assert_allclose(actual, expected, atol=1e-5, strict=True)


@pytest.mark.parametrize("mode", d.MODES)
@pytest.mark.parametrize("size", [(45, 64), (11, 16), (180, 256), (90, 7), (44, 65), (1, 2)])
def test_resize_by_size_equals_torch(mode, size):
    image = noise_image(45, 64)
    expected = from_torch(F.interpolate(to_torch(image), size=size, mode=mode))
    np.testing.assert_allclose(d.resize(image, mode, size), expected, atol=1e-5, strict=True)


def test_resize_takes_size_or_scale():
    for given_both_or_none in ({}, {"size": (8, 8), "scale": 0.5}):
        with pytest.raises(ValueError, match="size or scale"):
            d.resize(noise_image(16, 16), "area", **given_both_or_none)


# Noise


@pytest.mark.parametrize("gray", [False, True])
def test_gaussian_noise(gray):
    image = np.full((160, 160, 3), 0.5, np.float32)
    noise = d.gaussian_noise(image, np.random.default_rng(1), 12.0, gray) - image
    assert noise.mean() == pytest.approx(0, abs=1e-3)
    assert noise.std() * 255 == pytest.approx(12, rel=0.02)
    correlation = np.corrcoef(noise.reshape(-1, 3).T)[0, 1:]
    np.testing.assert_allclose(correlation, 1.0 if gray else 0.0, atol=0.03)


def test_noises_clip():
    image = np.tile(np.float32([0, 0.5, 1]), (40, 40, 1))
    for add, level in ((d.gaussian_noise, 60.0), (d.poisson_noise, 3.0)):
        noisy = add(image, np.random.default_rng(2), level, False)
        assert noisy.min() == 0 and noisy.max() == 1


@pytest.mark.parametrize("distinct, v", [(2, 2), (3, 4), (65, 128), (128, 128)])
@pytest.mark.parametrize("gray", [False, True])
def test_poisson_noise_counts_in_steps_of_v(distinct, v, gray):
    """The unrounded image is kept; what is added is scale * (k / v - x) with whole k >= 0."""
    levels = 60 + np.arange(120 * distinct).reshape(-1, 24, 1) % distinct
    x = np.repeat(levels / 255, 3, axis=-1)
    image = (x + 0.3 / 255).astype(np.float32)
    scale = 0.05
    noisy = d.poisson_noise(image, np.random.default_rng(3), scale, gray)
    counts = ((noisy - image) / scale + x) * v
    np.testing.assert_allclose(counts, np.rint(counts), atol=0.01)
    assert counts.min() > -0.01
    assert set(np.rint(counts).ravel() % 2) == {0, 1}  # steps of 1 / v, not of 2 / v
    assert bool(np.all(np.ptp(noisy, axis=-1) < 1e-6)) == gray


def test_poisson_noise_has_the_variance_of_its_mean():
    """Of scale * Poisson(v x) / v it is scale^2 x / v, v = 256 for 160 distinct values."""
    levels = np.repeat(np.arange(40, 200), 2000)
    image = np.repeat(levels.reshape(400, 800, 1), 3, axis=-1).astype(np.float32) / 255
    noise = d.poisson_noise(image, np.random.default_rng(4), 0.5, False) - image
    groups = noise.reshape(160, -1)
    expected = 0.25 * np.arange(40, 200) / 255 / 256
    np.testing.assert_allclose(groups.var(axis=1), expected, rtol=0.1)
    assert np.mean(groups.var(axis=1) / expected) == pytest.approx(1, abs=0.01)
    assert np.abs(groups.mean(axis=1) / np.sqrt(expected / 6000)).max() < 5


def test_gray_poisson_noise_follows_the_luma():
    """Columns of pure green are brighter than columns of pure blue, hence noisier."""
    image = np.zeros((400, 200, 3), np.float32)
    image[:, :100, 1] = image[:, 100:, 2] = 0.6
    noise = d.poisson_noise(image, np.random.default_rng(5), 0.1, True)[..., 1:] - image[..., 1:]
    luma = np.rint(153 * np.array([0.587, 0.114])) / 255
    deviation = 0.1 * np.sqrt(luma / 2)  # two distinct lumas: v = 2
    assert noise[:, :100, 0].std() == pytest.approx(deviation[0], rel=0.05)
    assert noise[:, 100:, 1].std() == pytest.approx(deviation[1], rel=0.05)


# JPEG and sharpening


def test_jpeg_keeps_channels_in_place_and_halves_chroma():
    red = np.tile(np.float32([1, 0, 0]), (32, 32, 1))
    np.testing.assert_allclose(d.jpeg(red, 95), red, atol=0.02)
    stripes = red.copy()
    stripes[:, ::2] = [0, 0, 1]
    decoded = d.jpeg(stripes, 95)
    chroma = decoded[..., 0] - decoded[..., 2]
    assert np.abs(chroma).max() < 0.2  # 1 in `stripes`


def test_jpeg_clamps_first():
    image = noise_image(24, 40) * 3 - 1
    np.testing.assert_array_equal(d.jpeg(image, 80), d.jpeg(np.clip(image, 0, 1), 80))


def test_usm_sharpen():
    image = d.to_unit(photo(96))
    axis = np.arange(-25, 26)
    weights = np.exp(-(axis**2) / (2 * 8.0**2))
    weights /= weights.sum()

    def blur(x: np.ndarray) -> np.ndarray:
        for dim in (0, 1):
            x = scipy.ndimage.correlate1d(x, weights, axis=dim, mode="mirror")
        return x

    detail = image - blur(image.astype(np.float64))
    mask = blur((np.abs(detail) > 10 / 255).astype(np.float64))
    expected = mask * np.clip(image + 0.5 * detail, 0, 1) + (1 - mask) * image
    np.testing.assert_allclose(d.usm_sharpen(image), expected, atol=1e-4)
    assert d.usm_sharpen(image).std() > image.std()
