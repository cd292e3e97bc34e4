"""Colour fixes against their formulas in torch, and what they promise."""

import tracemalloc

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from osdhuman_jax.config import COLOR_FIXES
from osdhuman_jax.images.codec import Picture
from osdhuman_jax.inference import colour
from osdhuman_jax.inference.colour import moments, wavelet
from osdhuman_jax.inference.finishing import finish


def adain(content: np.ndarray, source: np.ndarray) -> np.ndarray:
    """Of whole pictures."""
    return colour.adain(content, moments([content]), moments([source]))


def image(seed: int, low: float = 0.2, high: float = 0.8, size: tuple = (40, 56)) -> np.ndarray:
    return np.random.default_rng(seed).uniform(low, high, (*size, 3)).astype(np.float32)


def planes(values: np.ndarray) -> torch.Tensor:
    return torch.tensor(values).permute(2, 0, 1)[None]


def torch_adain(content: np.ndarray, source: np.ndarray) -> np.ndarray:
    c, s = planes(content), planes(source)

    def statistics(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        flat = x.flatten(2)
        mean, std = flat.mean(2), (flat.var(2) + 1e-5).sqrt()
        return mean[..., None, None], std[..., None, None]

    (cm, cs), (sm, ss) = statistics(c), statistics(s)
    return ((c - cm) / cs * ss + sm).clamp(0, 1)[0].permute(1, 2, 0).numpy()


def torch_bands(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum of the details of five levels, and what is left."""
    row = torch.tensor([1.0, 2.0, 1.0])
    kernel = (torch.outer(row, row) / 16)[None, None].repeat(3, 1, 1, 1)
    high = torch.zeros_like(x)
    for radius in (1, 2, 4, 8, 16):
        padded = F.pad(x, (radius,) * 4, mode="replicate")
        low = F.conv2d(padded, kernel, groups=3, dilation=radius)
        high, x = high + (x - low), low
    return high, x


def torch_wavelet(content: np.ndarray, source: np.ndarray) -> np.ndarray:
    mixed = torch_bands(planes(content))[0] + torch_bands(planes(source))[1]
    return mixed.clamp(0, 1)[0].permute(1, 2, 0).numpy()


@pytest.mark.parametrize("fix,theirs", [(adain, torch_adain), (wavelet, torch_wavelet)])
@pytest.mark.parametrize("size", [(40, 56), (3, 5)])
def test_against_torch(fix, theirs, size):
    content, source = image(0, 0.0, 1.0, size), image(1, 0.3, 0.5, size)
    ours = fix(content, source)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, theirs(content, source), atol=1e-5)


def test_adain_of_flat_and_single_pixels_is_finite():
    flat = np.full((4, 4, 3), 0.5, np.float32)
    assert np.isfinite(adain(flat, image(0, size=(4, 4)))).all()
    np.testing.assert_allclose(adain(flat[:1, :1], flat[:1, :1] / 2), 0.25, atol=1e-6)


@pytest.mark.parametrize("blend", [1.0, 0.7])
@pytest.mark.parametrize("method", COLOR_FIXES)
@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_bands_are_the_whole_picture_and_take_their_own_memory(method, blend, kind, monkeypatch):
    size = (600, 210)
    output = image(0, -1.1, 1.1, size)
    source = Picture((image(1, 0, 1, size) * np.iinfo(kind).max).astype(kind))
    whole = finish(output, source, method, blend)
    monkeypatch.setattr(colour, "BAND", 20 * 210)
    tracemalloc.start()
    banded = finish(output, source, method, blend)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert np.abs(banded.rgb.astype(int) - whole.rgb).max() <= (kind is np.uint16)
    rows = 20 + 2 * colour.REACH * (method == "wavelet")
    assert peak < banded.rgb.nbytes + 150 * 210 * rows


def cast(size: tuple[int, int], kind: type) -> tuple[np.ndarray, np.ndarray]:
    """A model's output with colours, and a gray source."""
    levels = np.random.default_rng(2).integers(0, np.iinfo(kind).max, size, kind)
    return image(0, -1, 1, size), np.repeat(levels[..., None], 3, axis=-1)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
@pytest.mark.parametrize("method", COLOR_FIXES)
@pytest.mark.parametrize("blend", [1.0, 0.5])
def test_gray_stays_gray(method, kind, blend, monkeypatch):
    output, source = cast((30, 20), kind)
    monkeypatch.setattr(colour, "BAND", 7 * 20)
    result = finish(output, Picture(source), method, blend).rgb
    assert result.dtype == kind and np.ptp(result.astype(int), axis=-1).max() == 0
    if (method, blend) == ("none", 1.0):
        luma = output @ np.array([0.299, 0.587, 0.114])
        want = (luma + 1) / 2 * np.iinfo(kind).max
        assert np.abs(result[..., 0] - want).max() <= 0.51
    source[3, 4, 1] ^= 1  # a single level of a single pixel
    assert np.ptp(finish(output, Picture(source), method, blend).rgb.astype(int), axis=-1).max() > 0
