"""Decoding of every kind of file that users bring, refusal of hostile ones, atomic writing."""

import io
import struct
import warnings

import cv2
import numpy as np
import pytest
from damage import raising
from hypothesis import given, settings
from hypothesis import strategies as st
from picture_files import SRGB, bomb, encoded, exif, noise
from PIL import Image, ImageCms, ImageOps
from refusals import one_line

from osdhuman_jax.images import codec
from osdhuman_jax.images.codec import ImageError, decode, from_pillow, read_image, read_size
from osdhuman_jax.images.icc import gray_profile

WRITTEN = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "AVIF")  # by Pillow
NOISE = noise()


def test_jpeg_equals_opencv():
    smooth = cv2.resize(noise(4, 4), (64, 64), interpolation=cv2.INTER_CUBIC)
    data = encoded(smooth, "JPEG", quality=95, subsampling=0)
    theirs = cv2.cvtColor(cv2.imdecode(np.frombuffer(data, np.uint8), 1), cv2.COLOR_BGR2RGB)
    assert np.abs(codec.read_rgb_bytes(data).astype(int) - theirs).max() <= 2


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "PA"])
def test_modes_give_rgb_and_alpha(mode):
    image = Image.fromarray(NOISE).convert("RGBA")
    image.putalpha(Image.fromarray(NOISE[..., 0]))
    image = image.convert("RGB").convert(mode) if mode in ("1", "L", "P") else image.convert(mode)
    if mode == "PA":  # a palette with transparency, as GIMP writes it
        image = image.convert("RGBA").quantize(16)
    picture = decode(encoded(image))
    np.testing.assert_array_equal(picture.rgb, np.asarray(image.convert("RGB")))
    assert (picture.alpha is not None) == (mode in ("LA", "RGBA", "PA"))
    if picture.alpha is not None:
        np.testing.assert_array_equal(picture.alpha, np.asarray(image.convert("RGBA"))[..., 3])


def test_sixteen_bit_samples_are_scaled_not_clipped():
    values = np.array([[0, 128, 129, 32768, 65535]], np.uint16)
    picture = decode(cv2.imencode(".png", values)[1].tobytes())
    assert picture.rgb[0, :, 0].tolist() == [0, 0, 1, 128, 255]
    assert picture.rgb.shape == (1, 5, 3)
    colour = decode(cv2.imencode(".png", np.dstack([values] * 3))[1].tobytes())
    assert np.abs(colour.rgb.astype(int) - picture.rgb).max() <= 1


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation(kind, orientation, tmp_path):
    data = encoded(NOISE, kind, exif=exif(orientation))
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    picture = decode(data)
    np.testing.assert_array_equal(picture.rgb, np.asarray(upright))
    (tmp_path / "x").write_bytes(data)
    assert read_size(tmp_path / "x") == picture.size


def test_the_callers_image_stays_as_it_was():
    image = Image.open(io.BytesIO(encoded(NOISE, "JPEG", exif=exif(6, "Maker", 64))))
    before = image.getexif().tobytes()
    first, second = from_pillow(image), from_pillow(image)
    np.testing.assert_array_equal(first.rgb, second.rgb)
    assert first.size == (16, 12) and first.exif == second.exif
    assert image.getexif().tobytes() == before and image.getexif()[0x0112] == 6


def test_damaged_exif_leaves_the_picture():
    data = encoded(NOISE, "JPEG", exif=b"Exif\0\0garbage garbage")
    assert decode(data).size == (12, 16)


def test_rgb_profile_is_kept_and_others_are_not():
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    assert decode(encoded(NOISE, icc_profile=SRGB)).icc == SRGB
    assert decode(encoded(NOISE, icc_profile=lab)).icc is None
    assert decode(encoded(NOISE[..., 0], icc_profile=SRGB)).icc == SRGB


LINEAR = gray_profile(0, 1.0)


def from_linear(part: np.ndarray) -> np.ndarray:
    """sRGB's curve."""
    return np.where(part <= 0.0031308, 12.92 * part, 1.055 * part ** (1 / 2.4) - 0.055)


@pytest.mark.parametrize("mode", ["L", "LA", "1"])
def test_gray_becomes_srgb_by_its_profile(mode):
    levels = np.arange(256, dtype=np.uint8)[None]
    image = Image.fromarray(levels).convert(mode)
    if mode == "LA":
        image.putalpha(Image.fromarray(levels[:, ::-1]))
    picture = decode(encoded(image, icc_profile=LINEAR))
    expected = from_linear(np.asarray(image.convert("L")) / 255) * 255
    for channel in range(3):
        np.testing.assert_allclose(picture.rgb[..., channel], expected, atol=0.501)
    assert picture.icc is None and (picture.alpha is not None) == (mode == "LA")
    if picture.alpha is not None:
        np.testing.assert_array_equal(picture.alpha, levels[:, ::-1])


def test_a_profile_of_gray_that_is_srgbs_or_broken_changes_nothing():
    image = Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    srgb = gray_profile(3, 2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
    for profile in (srgb, LINEAR[:150], b"x" * 16 + b"GRAY"):
        picture = decode(encoded(image, icc_profile=profile))
        np.testing.assert_array_equal(picture.rgb[..., 0], np.asarray(image))
        assert picture.icc is None


@pytest.mark.parametrize("deep", [False, True])
def test_sixteen_bit_gray_becomes_srgb_too(deep):
    values = np.arange(0, 65_536, 7, dtype=np.uint16)[None]
    data = encoded(values, icc_profile=LINEAR, exif=exif(3))
    picture = decode(data, deep=deep)
    expected = from_linear(values[:, ::-1] / 65_535) * (65_535 if deep else 255)
    assert picture.rgb.dtype == (np.uint16 if deep else np.uint8) and picture.icc is None
    limit = 1.0 if deep else 7.0  # rounded to 8 bits before, where the curve is steep
    assert np.abs(picture.rgb[..., 0] - expected).max() <= limit


def test_cmyk_becomes_rgb():
    flat = Image.new("CMYK", (16, 16), (255, 0, 0, 0))
    for profile in (b"", b"not a profile"):
        picture = decode(encoded(flat, "JPEG", quality=95, icc_profile=profile))
        assert picture.rgb.mean((0, 1)) == pytest.approx([0, 255, 255], abs=3)
        assert picture.icc is None


def test_a_second_picture_behind_a_jpeg_is_no_animation():
    first, second = Image.fromarray(NOISE), Image.fromarray(NOISE[::-1])
    data = encoded(first, "MPO", save_all=True, append_images=[second])
    np.testing.assert_array_equal(decode(data).rgb, decode(encoded(first, "JPEG")).rgb)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "AVIF"])
def test_animation_is_refused(kind):
    frames = [Image.fromarray(NOISE), Image.fromarray(NOISE[::-1])]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    with pytest.raises(ImageError, match="animated image"):
        decode(data)


@pytest.mark.parametrize("width,height", [(60_000, 60_000), (15_000, 15_000)])
def test_bombs_are_refused_by_their_header(width, height, tmp_path):
    (tmp_path / "bomb.png").write_bytes(bomb(width, height))
    for read in (read_image, read_size):
        with pytest.raises(ImageError, match="more than [0-9]+ pixels"):
            read(tmp_path / "bomb.png")


@pytest.mark.parametrize("limit", [10, 150])  # Pillow refuses above twice this, and warns above it
def test_pillows_own_limit_is_left_to_the_process(limit, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decode(encoded(NOISE)).size == (12, 16)
    assert Image.MAX_IMAGE_PIXELS == limit


def test_a_want_of_memory_is_no_damage(monkeypatch):
    monkeypatch.setattr(codec, "_split", raising(MemoryError()))
    with pytest.raises(MemoryError):
        decode(encoded(NOISE))


def test_limit_is_an_argument():
    data = encoded(NOISE)
    assert decode(data, max_pixels=12 * 16).size == (12, 16)
    with pytest.raises(ImageError, match="16 x 12 is more than 191 pixels"):
        decode(data, max_pixels=191)


@pytest.mark.parametrize(
    "data,reason",
    [
        (b"", "empty file"),
        (b"hello, I am a text", "not a PNG, JPEG, WebP"),
        (b"%PDF-1.4\n%%EOF", "not a PNG, JPEG, WebP"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a PNG, JPEG, WebP"),
        (b"SIMPLE  =                    T" + b" " * 3000, "not a PNG, JPEG, WebP"),
        (encoded(NOISE, "GIF"), "not a PNG, JPEG, WebP"),
        (encoded(NOISE, "PPM"), "not a PNG, JPEG, WebP"),
    ],
)
def test_other_files_are_refused(data, reason):
    with pytest.raises(ImageError, match=reason):
        decode(data)


@pytest.mark.parametrize("kind", WRITTEN)
@pytest.mark.parametrize("kept", [0.3, 0.6, 0.9])
def test_truncated_files_are_refused_in_one_line(kind, kept):
    data = encoded(noise(64, 64), kind)
    with one_line(ImageError):
        decode(data[: int(len(data) * kept)])


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(WRITTEN), st.integers(0, 10**6), st.binary(max_size=9))
def test_damage_gives_a_picture_or_an_image_error(kind, where, noise):
    data = bytearray(encoded(NOISE, kind))
    where %= len(data)
    data[where : where + len(noise)] = noise
    try:
        assert decode(bytes(data)).rgb.dtype == np.uint8
    except ImageError as error:
        assert "\n" not in str(error)


def test_uint8_survives_the_float_range():
    levels = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 256, 3)
    values = codec.to_float(levels)
    assert values.dtype == np.float32 and values.min() == -1 and values.max() == 1
    np.testing.assert_array_equal(codec.to_uint8(values), levels)
    assert codec.to_uint8(np.full((1, 1, 3), [-9, 0.0, 9], np.float32)).tolist() == [
        [[0, 128, 255]]
    ]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("quantized", [codec.to_uint8, codec.to_uint16])
def test_what_is_not_finite_is_no_black_picture(quantized, value):
    values = np.zeros((2, 2, 3), np.float32)
    values[0, 1, :2] = value
    with pytest.raises(ImageError, match="2 of 12 values are not finite"):
        quantized(values)


def test_written_png_is_read_back_and_repeats_bit_for_bit(tmp_path):
    paths = [tmp_path / name for name in ("a.png", "b.png")]
    assert len({codec.write_png(path, NOISE, NOISE[..., 1], SRGB) for path in paths}) == 1
    picture = read_image(tmp_path / "a.png")
    np.testing.assert_array_equal(picture.rgb, NOISE)
    np.testing.assert_array_equal(picture.alpha, NOISE[..., 1])
    assert picture.icc == SRGB


def block(size: int) -> bytes:
    block = exif(maker="Maker")
    if size:
        block.get_ifd(0x8769)[0x927C] = bytes(size)
    return block.tobytes()


def profile(size: int) -> bytes:
    """sRGB's, with a tail that no tag refers to."""
    return struct.pack(">I", len(SRGB) + size) + SRGB[4:] + bytes(size)


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(["png", "jpeg", "webp"]),
    deep=st.booleans(),
    alpha=st.booleans(),
    gray=st.booleans(),
    icc=st.sampled_from([None, 0, 65_519, 70_000, 2_000_000]),
    more=st.sampled_from([None, 0, 60_000, 70_000]),
    density=st.sampled_from([None, (300.0, 200.0), (65_535.0, 1.0), (99.5, 99.5)]),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
)
def test_what_is_written_is_read(kind, deep, alpha, gray, icc, more, density, size):
    largest, dtype = (65_535, np.uint16) if deep else (255, np.uint8)
    rng = np.random.default_rng(0)
    rgb = rng.integers(0, largest, (*size, 3), dtype, endpoint=True)
    rgb = np.repeat(rgb[..., :1], 3, axis=-1) if gray else rgb
    # what alpha 0 hides, WebP is free to change
    low = largest if kind == "jpeg" else 200
    clear = rng.integers(low, largest, size, dtype, endpoint=True) if alpha else None
    icc_data = None if icc is None else profile(icc)
    exif_data = None if more is None else block(more)
    picture = codec.Picture(rgb, clear, icc_data, exif_data, density, gray)
    found = decode(codec.encode(picture, kind, quality=100), deep=True)
    assert found.size == size and found.icc == icc_data
    if kind != "jpeg":
        want = rgb if deep and kind == "png" or not deep else codec.narrow(rgb)
        np.testing.assert_array_equal(found.rgb, want)
        opaque = clear is None or clear.min() == largest  # which WebP does not keep
        assert (found.alpha is None) <= opaque
        if found.alpha is not None and clear is not None:
            narrowed = codec.narrow(clear) if deep and kind == "webp" else clear
            np.testing.assert_array_equal(found.alpha, narrowed)
    too_long = kind == "jpeg" and more == 70_000
    assert (b"Maker" in (found.exif or b"")) == (more is not None and not too_long)
    limit = 0.6 if kind == "jpeg" else 0.02  # whole numbers
    assert found.density == (density and pytest.approx(density, abs=limit))
    assert found.gray <= gray and (found.gray == (gray and icc is None) or kind == "webp" or deep)


def test_a_profile_beyond_a_jpegs_segments_is_said():
    picture = codec.Picture(NOISE, icc=profile(17_000_000))
    with pytest.raises(ImageError, match="profile is too large for JPEG: use --format png"):
        codec.encode(picture, "jpeg")
    assert decode(codec.encode(picture)).icc == picture.icc


@pytest.mark.parametrize("mode", ["1", "L", "LA", "I;16"])
def test_gray_files_become_gray_files(mode):
    plane = NOISE[..., 0]
    image = Image.fromarray(plane.astype(np.uint16) * 257 if mode == "I;16" else plane)
    image = image if mode == "I;16" else image.convert(mode)
    picture = decode(encoded(image), deep=True)
    assert picture.gray
    with Image.open(io.BytesIO(codec.encode(picture))) as written:
        assert written.mode == ("L" if mode == "1" else mode)
    if mode != "LA":
        with Image.open(io.BytesIO(codec.encode(picture, "jpeg"))) as written:
            assert written.mode == "L"
    assert not decode(encoded(NOISE)).gray
