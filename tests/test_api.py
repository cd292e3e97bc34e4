"""The Python class: what it takes and gives back, what it refuses, and that it is infer.py's."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from picture_files import SRGB
from PIL import Image
from tiny import PHOTO, halving

import osdhuman_jax
from osdhuman_jax.api import Restorer
from osdhuman_jax.commands import restore
from osdhuman_jax.images.codec import to_float, to_uint8, to_uint16
from osdhuman_jax.inference.finishing import RestoreError
from osdhuman_jax.weights import WeightsError


@pytest.fixture(scope="module")
def restorer() -> Restorer:
    """Halves contrast."""
    return Restorer(halving())


def halved(rgb: np.ndarray) -> np.ndarray:
    back = to_uint16 if rgb.dtype == np.uint16 else to_uint8
    return back(to_float(rgb) * np.float32(0.5))


def test_the_class_is_imported_at_its_first_use() -> None:
    code = "import sys, osdhuman_jax; sys.exit('jax' in sys.modules or 'PIL' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent.parent, check=True)
    assert osdhuman_jax.Restorer is Restorer
    with pytest.raises(AttributeError, match="no attribute 'Denoiser'"):
        osdhuman_jax.Denoiser  # noqa: B018


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_arrays_come_back_as_arrays(restorer: Restorer, dtype: type) -> None:
    colour = PHOTO.astype(dtype) * dtype(np.iinfo(dtype).max // 255)
    alpha = np.maximum(colour[..., :1], 1)  # of what is not seen, colours are not kept
    np.testing.assert_array_equal(restorer(colour), halved(colour))
    assert restorer(colour).dtype == dtype
    clear = restorer(np.dstack([colour, alpha]))
    np.testing.assert_array_equal(clear, np.dstack([halved(colour), alpha]))
    gray = restorer(colour[..., 0])
    np.testing.assert_array_equal(gray, halved(np.repeat(colour[..., :1], 3, axis=-1)))
    given = np.asfortranarray(colour)[::-1]
    np.testing.assert_array_equal(restorer(given), halved(colour)[::-1])


def test_one_for_one_and_a_list_for_a_list(restorer: Restorer) -> None:
    sizes = [(60, 48), (20, 200), (1, 1)]
    pictures = [np.full((*size, 3), 255, np.uint8) for size in sizes]
    results = restorer(pictures)
    assert isinstance(results, list) and [r.shape[:2] for r in results] == sizes
    assert isinstance(restorer(tuple(pictures)), list) and restorer([]) == []
    one: np.ndarray = restorer(pictures[0])  # pyright reads this file too
    assert isinstance(one, np.ndarray)
    mixed: list[Any] = [PHOTO, Image.fromarray(PHOTO)]
    both = restorer(mixed, upscale=2.0)
    assert both[0].shape == (120, 96, 3) and both[1].size == (96, 120)


def test_pillow_comes_back_upright_with_what_it_carried(restorer: Restorer) -> None:
    alpha = np.maximum(PHOTO[..., 0], 1)
    image = Image.fromarray(np.dstack([PHOTO, alpha]))
    image.getexif()[0x0112], image.getexif()[0x010F] = 6, "Maker"
    image.info["icc_profile"] = SRGB
    for _ in range(2):  # the caller's own image is not changed
        result: Image.Image = restorer(image)
        assert (result.mode, result.size) == ("RGBA", (60, 48))
        expected = np.rot90(np.dstack([halved(PHOTO), alpha]), -1)
        np.testing.assert_array_equal(np.asarray(result), expected)
        assert result.info["icc_profile"] == SRGB
        assert result.getexif()[0x010F] == "Maker" and 0x0112 not in result.getexif()


def test_sixteen_bits_of_pillow_become_eight(restorer: Restorer) -> None:
    deep = Image.fromarray(PHOTO[..., 0].astype(np.uint16) * np.uint16(257))
    result = restorer(deep)
    assert result.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(result)[..., 0], halved(PHOTO)[..., 0])


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ("photo.jpg", TypeError, ""),
        (3, TypeError, ""),
        (np.zeros((4, 4, 2), np.uint8), ValueError, "uint8 or uint16"),
        (np.zeros((1, 4, 4, 3), np.uint8), ValueError, r"of \(1, 4, 4, 3\)"),
        (np.zeros((0, 4, 3), np.uint8), ValueError, r"of \(0, 4, 3\)"),
        (np.zeros((4, 4, 3), np.float32), ValueError, "not float32"),
        (np.zeros((4, 4, 3), bool), ValueError, "not bool"),
    ],
)
def test_what_is_no_picture_is_refused(restorer: Restorer, given, error: type, words: str) -> None:
    for images in (given, [PHOTO, given]):
        with pytest.raises(error, match=words):
            restorer(images)


@pytest.mark.parametrize(
    ("name", "value"),
    [("upscale", 0.5), ("upscale", float("nan")), ("upscale", float("inf"))]
    + [("color_fix", "sepia"), ("blend", -0.1), ("blend", 2.0)],
)
def test_bad_options_are_refused(restorer: Restorer, name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=name):
        restorer(PHOTO, **{name: value})


def test_it_gives_the_commands_pixels_to_every_thread(model: Path, tmp_path: Path) -> None:
    Image.fromarray(PHOTO).save(tmp_path / "a.png")
    flags = {"input": tmp_path / "a.png", "output": tmp_path / "out", "model": model}
    flags |= {"upscale": 1.5, "color_fix": "wavelet", "blend": 0.8, "max_memory": "4GiB"}
    assert restore.main([f"--{name}={value}" for name, value in flags.items()]) == 0
    expected = Image.open(tmp_path / "out" / "a.png").tobytes()
    restorer = Restorer.load(model, max_memory="4GiB")
    assert restorer.pipeline.max_memory == 2**32
    options = {"upscale": 1.5, "color_fix": "wavelet", "blend": 0.8}
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda _: restorer(PHOTO, **options).tobytes(), range(3)))
    assert found == [expected] * 3


def test_loading_refuses_in_words(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="precision must be one of fp32, bf16, got 'half'"):
        Restorer.load(model, precision="half")
    with pytest.raises(ValueError, match="no amount of memory"):
        Restorer.load(model, max_memory="much")
    with pytest.raises((WeightsError, FileNotFoundError), match=str(tmp_path)):
        Restorer.load(tmp_path)
    with pytest.raises(RestoreError, match="out of memory"):
        Restorer.load(model, max_memory=1000)(PHOTO)
