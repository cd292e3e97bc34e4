"""What is said of a picture before it is restored."""

import cv2
import numpy as np
import pytest

from osdhuman_jax.config import UseConfig
from osdhuman_jax.inference import condition


def scene(side: int = 256) -> np.ndarray:
    """Shapes with sharp edges on a smooth ground, (side, side, 3) uint8."""
    ramp = np.linspace(60, 180, side, dtype=np.float32)
    picture = np.repeat(np.add.outer(ramp, ramp)[..., None] / 2, 3, axis=-1)
    rng = np.random.default_rng(0)
    for _ in range(40 * side**2 // 256**2):
        centre = tuple(int(n) for n in rng.integers(0, side, 2))
        colour = tuple(float(n) for n in rng.integers(0, 255, 3))
        cv2.circle(picture, centre, int(rng.integers(5, 30)), colour, -1, cv2.LINE_AA)
    return picture.round().astype(np.uint8)


def jpeg(picture: np.ndarray, quality: int) -> np.ndarray:
    data = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    picture = cv2.imdecode(data, cv2.IMREAD_COLOR)
    assert picture is not None
    return picture


def noisy(picture: np.ndarray, sigma: float) -> np.ndarray:
    drawn = np.random.default_rng(1).normal(0, sigma, picture.shape)
    return np.clip(np.round(picture + drawn), 0, 255).astype(np.uint8)


def luma(picture: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(picture.astype(np.float32), cv2.COLOR_RGB2GRAY)


def test_a_clean_picture_is_clean_at_8_and_16_bits_and_any_offset():
    assert condition.is_clean(scene())
    assert condition.is_clean(scene().astype(np.uint16) * 257)
    assert condition.is_clean(scene(1400))


@pytest.mark.parametrize(
    "damaged",
    [
        cv2.GaussianBlur(scene(), (0, 0), 2.0),
        cv2.resize(scene(), (768, 768), interpolation=cv2.INTER_CUBIC),
        noisy(scene(), 6.0),
        jpeg(scene(), 30),
    ],
    ids=["blur", "enlarged", "noise", "jpeg"],
)
def test_damage_is_seen(damaged):
    assert not condition.is_clean(damaged)


@pytest.mark.parametrize("sigma", [3.0, 6.0, 12.0])
def test_noise_is_measured(sigma):
    """Of luma: three channels' weighted mean."""
    weights = np.array([0.299, 0.587, 0.114])
    want = sigma * np.sqrt((weights**2).sum())
    flat = np.full((256, 256, 3), 128, np.uint8)
    picture = luma(noisy(flat, sigma))
    found = condition.noise(picture, condition.blurred_slope(picture))
    assert found == pytest.approx(want, rel=0.05)


def test_blocks_are_measured():
    steps = np.repeat(np.repeat(np.random.default_rng(0).integers(0, 9, (32, 32)), 8, 0), 8, 1)
    picture = (100 + steps).astype(np.float32)
    assert condition.blocking(picture) > 10  # no step at all within a block
    assert condition.blocking(np.roll(picture, (3, 3), (0, 1))) < 0.5


def test_remarks():
    use, clean = UseConfig(sides=(128, 512)), scene()
    assert condition.remark(clean, use) == "it looks clean already, there is little to restore"
    assert "shorter side has 100 pixels, the model is made for 128" in condition.remark(
        clean[:100], use
    )
    assert "shorter side has 600 pixels, the model is made for 512 at most" in condition.remark(
        scene(600), use
    )
    assert condition.remark(clean, use, enlarged=True) == ""
    assert condition.remark(cv2.GaussianBlur(clean, (0, 0), 2.0), use) == ""
    assert condition.remark(clean[:40, :40], UseConfig()) == ""  # too few pixels to measure
