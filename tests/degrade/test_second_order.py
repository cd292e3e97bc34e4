import json
import math
from collections import Counter
from dataclasses import replace
from functools import partial

import cv2
import numpy as np
import pytest
import scipy.integrate
import scipy.ndimage
import scipy.special
import scipy.stats
import skimage.data
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from osdhuman_jax.config import DegradationConfig
from osdhuman_jax.degrade import second_order as d

torch.set_num_threads(1)

CONFIG = DegradationConfig()
NOISELESS = replace(
    CONFIG,
    noise_range=(0.0, 0.0),
    noise_range2=(0.0, 0.0),
    poisson_scale_range=(0.0, 0.0),
    poisson_scale_range2=(0.0, 0.0),
)
KERNEL_KEYS = {"kind", "size", "sigma_x", "sigma_y", "rotation", "beta"}


def photo(side: int = 64) -> np.ndarray:
    return cv2.resize(skimage.data.astronaut(), (side, side), interpolation=cv2.INTER_AREA)


def noise_image(h: int, w: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((h, w, 3), dtype=np.float32)


def to_torch(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image.transpose(2, 0, 1).copy())[None]


def from_torch(tensor: torch.Tensor) -> np.ndarray:
    return tensor[0].numpy().transpose(1, 2, 0)


def assert_share(count: int, total: int, p: float) -> None:
    """Within four standard deviations of a binomial."""
    assert abs(count - total * p) <= 4 * math.sqrt(total * p * (1 - p)), (count, total * p)


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


def test_gaussian_kernel_turns_from_x_towards_y():
    kernel = d.gaussian_kernel(21, 3.0, 1.0, np.pi / 4)
    assert kernel[15, 15] > 10 * kernel[5, 15]


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


def test_resize_by_area_is_adaptive_average_pooling():
    image = noise_image(50, 33)
    expected = from_torch(F.adaptive_avg_pool2d(to_torch(image), (17, 40)))
    np.testing.assert_allclose(d.resize(image, "area", (17, 40)), expected, atol=1e-5)


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


def test_jpeg_error_falls_with_quality():
    image = d.to_unit(photo(128))
    errors = [np.abs(d.jpeg(image, quality) - image).mean() for quality in (10, 30, 60, 95)]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 3 * errors[-1] and errors[-1] < 0.02


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


def test_unit_range_round_trip():
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=-1)
    np.testing.assert_array_equal(d.from_unit(d.to_unit(levels)), levels)
    over = np.float32([-0.2, 1.2, 0.5]).reshape(1, 1, 3)
    assert d.from_unit(over).tolist() == [[[0, 255, 128]]]


# Draws

DRAWS = 3000


def drawn(draw, seed: int = 0) -> list:
    rng = np.random.default_rng(seed)
    return [draw(rng) for _ in range(DRAWS)]


def within(values: list[float], low: float, high: float) -> bool:
    """In the range, and within a tenth of its width of both ends."""
    slack = (high - low) / 10
    return low <= min(values) < low + slack and high - slack < max(values) <= high


def test_draw_blur_frequencies():
    draws = drawn(lambda rng: d.draw_blur(rng, CONFIG, CONFIG.blur_sigma))
    kinds = Counter(p["kind"] for p in draws)
    assert_share(kinds["sinc"], DRAWS, 0.1)
    for kind, p in zip(d.KERNELS, (0.45, 0.25, 0.12, 0.03, 0.12, 0.03), strict=True):
        assert_share(kinds[kind], DRAWS, 0.9 * p)
    sizes = Counter(p["size"] for p in draws)
    assert sorted(sizes) == [7, 9, 11, 13, 15, 17, 19, 21]
    for count in sizes.values():
        assert_share(count, DRAWS, 1 / 8)


def test_draw_blur_ranges():
    draws = drawn(lambda rng: d.draw_blur(rng, CONFIG, (0.2, 1.5)), seed=1)
    gaussians = [p for p in draws if p["kind"] != "sinc"]
    assert all(set(p) == KERNEL_KEYS for p in gaussians)
    aniso = [p for p in gaussians if p["kind"].endswith("aniso")]
    iso = [p for p in gaussians if not p["kind"].endswith("aniso")]
    assert within([p["sigma_x"] for p in iso], 0.2, 1.5)
    assert all(p["sigma_x"] == p["sigma_y"] and p["rotation"] == 0 for p in iso)
    assert within([p["sigma_y"] for p in aniso], 0.2, 1.5)
    assert all(p["sigma_x"] != p["sigma_y"] for p in aniso)
    assert within([p["rotation"] for p in aniso], -np.pi, np.pi)
    sinc = [p for p in draws if p["kind"] == "sinc"]
    assert within([p["omega"] for p in sinc if p["size"] < 13], np.pi / 3, np.pi)
    assert within([p["omega"] for p in sinc if p["size"] >= 13], np.pi / 5, np.pi)


def test_draw_blur_betas():
    config = replace(CONFIG, sinc_prob=0.0, kernel_probs=(0.0, 0.2, 0.4, 0.0, 0.0, 0.4))
    draws = drawn(lambda rng: d.draw_blur(rng, config, config.blur_sigma), seed=2)
    betas = {kind: [p["beta"] for p in draws if p["kind"] == kind] for kind in d.KERNELS}
    assert set(betas["aniso"]) == {1.0}
    assert betas["iso"] == betas["plateau_iso"] == []
    generalized, plateau = betas["generalized_iso"], betas["plateau_aniso"]
    assert_share(sum(beta < 1 for beta in generalized), len(generalized), 0.5)
    assert within([beta for beta in generalized if beta < 1], 0.5, 1)
    assert within([beta for beta in generalized if beta > 1], 1, 4)
    assert_share(sum(beta == 1 for beta in plateau), len(plateau), 0.5)
    assert within([beta for beta in plateau if beta > 1], 1, 2)


def test_draw_final_sinc():
    draws = drawn(lambda rng: d.draw_final_sinc(rng, CONFIG))
    sinc = [p for p in draws if p["kind"] == "sinc"]
    assert_share(len(sinc), DRAWS, 0.8)
    assert all(p == {"kind": "none"} for p in draws if p not in sinc)
    assert {p["size"] for p in sinc} == set(CONFIG.blur_kernel_sizes)
    assert within([p["omega"] for p in sinc if p["size"] == 21], np.pi / 3, np.pi)


def test_draw_resize():
    draws = drawn(lambda rng: d.draw_resize(rng, (0.2, 0.7, 0.1), (0.15, 1.5)))
    scales = {kind: [p["scale"] for p in draws if p["kind"] == kind] for kind in ("up", "down")}
    assert_share(len(scales["up"]), DRAWS, 0.2)
    assert_share(len(scales["down"]), DRAWS, 0.7)
    assert within(scales["up"], 1, 1.5) and within(scales["down"], 0.15, 1)
    assert {p["scale"] for p in draws if p["kind"] == "keep"} == {1.0}
    for mode in d.MODES:
        assert_share(sum(p["mode"] == mode for p in draws), DRAWS, 1 / 3)


def test_draw_noise():
    draws = drawn(lambda rng: d.draw_noise(rng, CONFIG, (1.0, 30.0), (0.05, 3.0)))
    levels = {k: [p["level"] for p in draws if p["kind"] == k] for k in ("gaussian", "poisson")}
    assert_share(len(levels["gaussian"]), DRAWS, 0.5)
    assert len(levels["poisson"]) == DRAWS - len(levels["gaussian"])
    assert within(levels["gaussian"], 1, 30) and within(levels["poisson"], 0.05, 3)
    assert_share(sum(p["gray"] for p in draws), DRAWS, 0.4)


def test_draw_quality_includes_both_ends():
    qualities = Counter(drawn(lambda rng: d.draw_quality(rng, CONFIG)))
    assert (min(qualities), max(qualities), len(qualities)) == (30, 95, 66)


# The chain


@pytest.fixture(scope="module")
def records() -> list[dict]:
    hq = photo(32)
    return [d.degrade(hq, d.sample_rng(0, 0, i), CONFIG)[1] for i in range(400)]


def test_same_sample_same_bytes_other_sample_other_bytes():
    hq = photo(64)
    before = hq.copy()
    lqs = [d.degrade(hq, d.sample_rng(*at), CONFIG)[0].tobytes() for at in [(7, 1, 5)] * 2]
    assert lqs[0] == lqs[1]
    others = [(8, 1, 5), (7, 2, 5), (7, 1, 6), (1, 7, 5)]
    lqs += [d.degrade(hq, d.sample_rng(*at), CONFIG)[0].tobytes() for at in others]
    assert len(set(lqs)) == 5
    np.testing.assert_array_equal(hq, before)


def test_record_is_complete_json(records):
    keys = {"size", "usm", "blur1", "resize1", "noise1", "jpeg1", "blur2", "resize2", "noise2"}
    keys |= {"order", "resize3", "blur3", "jpeg2", "resize_back"}
    for record in records:
        assert json.loads(json.dumps(record)) == record
        assert set(record) == keys
        for noise in (record["noise1"], record["noise2"]):
            assert set(noise) == {"kind", "level", "gray"}
        for blur in (record["blur1"], record["blur2"], record["blur3"]):
            sets = {"sinc": {"kind", "size", "omega"}, "none": {"kind"}}
            assert set(blur) == sets.get(blur["kind"], KERNEL_KEYS)


def test_stages_take_their_own_parameters(records):
    def levels(stage: str, kind: str) -> list[float]:
        return [r[stage]["level"] for r in records if r[stage]["kind"] == kind]

    def sigmas(stage: str) -> list[float]:
        return [r[stage]["sigma_x"] for r in records if "sigma_x" in r[stage]]

    def scales(stage: str) -> list[float]:
        return [r[stage]["scale"] for r in records]

    assert within(levels("noise1", "gaussian"), 1, 30) and within(sigmas("blur1"), 0.2, 3)
    assert within(levels("noise2", "gaussian"), 1, 25) and within(sigmas("blur2"), 0.2, 1.5)
    assert within(levels("noise1", "poisson"), 0.05, 3)
    assert within(levels("noise2", "poisson"), 0.05, 2.5)
    assert within(scales("resize1"), 0.15, 1.5) and within(scales("resize2"), 0.3, 1.2)
    for stage, up, keep in (("resize1", 0.2, 0.1), ("resize2", 0.3, 0.3)):
        assert_share(sum(r[stage]["kind"] == "up" for r in records), 400, up)
        assert_share(sum(r[stage]["kind"] == "keep" for r in records), 400, keep)
    assert_share(sum(r["blur2"]["kind"] == "none" for r in records), 400, 0.2)
    assert_share(sum(r["blur3"]["kind"] == "none" for r in records), 400, 0.2)
    assert_share(sum(r["order"] == "resize_sinc_jpeg" for r in records), 400, 0.5)
    for mode in d.MODES:
        for stage in ("resize3", "resize1", "resize2"):
            assert_share(sum(r[stage]["mode"] == mode for r in records), 400, 1 / 3)
        assert_share(sum(r["resize_back"] == mode for r in records), 400, 1 / 3)


def replay(hq: np.ndarray, record: dict) -> np.ndarray:
    """LQ of a noiseless record, by another composition of the operations."""

    def blur(image: np.ndarray, params: dict) -> np.ndarray:
        if params["kind"] == "none":
            return image
        return d.filter2d(image, d.make_kernel(params))

    h, w = hq.shape[:2]
    image = blur(hq.astype(np.float32) / np.float32(255), record["blur1"])
    image = d.resize(image, record["resize1"]["mode"], scale=record["resize1"]["scale"])
    image = blur(d.jpeg(image, record["jpeg1"]), record["blur2"])
    size = tuple(int(side / 4 * record["resize2"]["scale"]) for side in (h, w))
    assert record["resize2"]["size"] == list(size)
    image = np.clip(d.resize(image, record["resize2"]["mode"], size), 0, 1)
    to_small = partial(d.resize, mode=record["resize3"]["mode"], size=(h // 4, w // 4))
    if record["order"] == "resize_sinc_jpeg":
        image = d.jpeg(blur(to_small(image), record["blur3"]), record["jpeg2"])
    else:
        image = blur(to_small(d.jpeg(image, record["jpeg2"])), record["blur3"])
    image = d.resize(image, record["resize_back"], (h, w))
    return np.clip(np.round(image * 255), 0, 255).astype(np.uint8)


def test_record_alone_makes_a_noiseless_sample_again():
    hq = photo(90)[:, :71]
    orders = set()
    for index in range(25):
        lq, record, _ = d.degrade(hq, d.sample_rng(3, 0, index), NOISELESS)
        np.testing.assert_array_equal(replay(hq, record), lq)
        orders.add((record["order"], record["blur2"]["kind"] == "none"))
    assert len(orders) == 4


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(32, 80), st.integers(32, 80), st.integers(0, 2**31))
def test_any_size_keeps_shape_and_dtype(h, w, seed):
    hq = np.random.default_rng(seed).integers(0, 256, (h, w, 3), dtype=np.uint8)
    lq, record, _ = d.degrade(hq, d.sample_rng(seed, 0, 0), CONFIG)
    assert lq.shape == (h, w, 3) and lq.dtype == np.uint8
    assert record["size"] == [h, w] and record["resize3"]["size"] == [h // 4, w // 4]


def test_not_full_stops_before_the_resize_back():
    hq = photo(67)
    small, record, _ = d.degrade(hq, d.sample_rng(0, 0, 2), CONFIG, full=False)
    assert small.shape == (16, 16, 3) and small.dtype == np.uint8
    lq, same, _ = d.degrade(hq, d.sample_rng(0, 0, 2), CONFIG)
    assert same == record and record["order"] == "resize_sinc_jpeg"  # `small` is whole levels
    back = d.resize(d.to_unit(small), record["resize_back"], (67, 67))
    np.testing.assert_array_equal(d.from_unit(back), lq)


def test_record_does_not_depend_on_pixels():
    black = np.zeros((64, 64, 3), np.uint8)
    for index in range(10):
        records = [d.degrade(hq, d.sample_rng(0, 0, index), CONFIG)[1] for hq in (black, photo(64))]
        assert (
            records[0] == records[1] == d.draw_record(d.sample_rng(0, 0, index), CONFIG, (64, 64))
        )


def test_views_degrade_as_their_copies():
    hq = photo(96)
    for view in (hq[:, ::-1], hq.transpose(1, 0, 2), hq[7:71, 3:70]):
        results = [d.degrade(v, d.sample_rng(0, 0, 1), CONFIG)[0] for v in (view, view.copy())]
        np.testing.assert_array_equal(*results)


def test_usm_is_off_by_default_and_sharpens_the_input():
    hq = photo(64)
    lq, record, _ = d.degrade(hq, d.sample_rng(0, 0, 0), replace(NOISELESS, usm=True))
    assert record["usm"] and not CONFIG.usm
    plain, _, _ = d.degrade(hq, d.sample_rng(0, 0, 0), NOISELESS)
    assert np.abs(lq.astype(int) - plain).max() > 0
    sharp = d.from_unit(d.usm_sharpen(d.to_unit(hq)))
    sharp_lq, _, _ = d.degrade(sharp, d.sample_rng(0, 0, 0), NOISELESS)
    assert np.abs(lq.astype(int) - sharp_lq).mean() < 0.5 * np.abs(lq.astype(int) - plain).mean()


@pytest.mark.parametrize(
    "hq", [np.zeros((31, 64, 3), np.uint8), np.zeros((64, 64), np.uint8), np.zeros((64, 64, 3))]
)
def test_unfit_input_is_refused(hq):
    with pytest.raises(ValueError, match="below 32|expected"):
        d.degrade(hq, d.sample_rng(0, 0, 0), CONFIG)
