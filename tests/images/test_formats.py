"""TIFF, BMP, AVIF and HEIC as pictures: what is kept of them, and what is refused by name."""

import io
import struct
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from picture_files import SRGB, encoded, exif, noise, photo
from PIL import Image

from osdhuman_jax.images.codec import ImageError, decode, encode, read_size
from osdhuman_jax.images.exif import TURNS
from osdhuman_jax.images.listing import HINT, READS_HEIC, other_pictures

NOISE = noise()
DEEP = np.random.default_rng(1).integers(0, 65_536, (12, 16, 4), np.uint16)


def tiff(pixels: np.ndarray, photometric: str = "rgb", turn: int = 1, **options) -> bytes:
    """What tifffile writes of it."""
    buffer = io.BytesIO()
    tags = [(274, 3, 1, turn, True)]
    tifffile.imwrite(buffer, pixels, photometric=photometric, extratags=tags, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("turn", TURNS)
def test_tiffs_are_upright(tmp_path, turn):
    flat = encoded(NOISE, "TIFF", exif=exif(turn), compression="tiff_lzw")
    deep = [tiff(DEEP[..., :3], turn=turn, byteorder=order) for order in "<>"]
    deep += [tiff(DEEP[..., :3], turn=turn, bigtiff=True)]
    for data, pixels in [(flat, NOISE), *((data, DEEP[..., :3]) for data in deep)]:
        picture = decode(data, deep=True)
        np.testing.assert_array_equal(picture.rgb, TURNS[turn](pixels))
        (tmp_path / "a.tif").write_bytes(data)
        assert read_size(tmp_path / "a.tif") == picture.size
    assert decode(deep[0]).rgb.dtype == np.uint8


def test_profile_exif_and_density_of_a_tiff_go_into_the_png():
    block = exif(6, "Maker")
    block.get_ifd(0x8769)[0x9003] = "2024:05:06 07:08:09"
    # As read from a file: of a block that was made here, Pillow writes no block inside.
    block.load(block.tobytes())
    data = encoded(NOISE, "TIFF", icc_profile=SRGB, dpi=(300, 200), exif=block)
    picture = decode(encode(decode(data)))
    assert picture.icc == SRGB and picture.density == pytest.approx((200, 300), abs=0.02)
    found = Image.Exif()
    found.load(picture.exif or b"")
    # Nothing of where the pixels lay in the TIFF.
    assert dict(found) == {0x010F: "Maker", 0x8769: found[0x8769]}
    assert found.get_ifd(0x8769)[0x9003] == "2024:05:06 07:08:09"


@pytest.mark.parametrize("extra", ["unspecified", "assocalpha", "unassalpha"])
def test_a_fourth_plane_of_a_deep_tiff_is_what_it_says(extra):
    alpha = np.maximum(DEEP[..., 3:], 1)
    colours = DEEP[..., :3].astype(float)
    stored = np.rint(colours * alpha / 65_535) if extra == "assocalpha" else colours
    data = tiff(np.dstack([stored, alpha]).astype(np.uint16), extrasamples=[extra])
    picture = decode(data, deep=True)
    assert (picture.alpha is None) == (extra == "unspecified")
    step = 65_535 / alpha if extra == "assocalpha" else 0
    assert (np.abs(picture.rgb - colours) <= step / 2 + 1).all()


def test_gray_palette_and_print_colours_of_a_tiff():
    gray = decode(tiff(DEEP[..., 0], "minisblack"), deep=True)
    np.testing.assert_array_equal(gray.rgb, DEEP[..., :1].repeat(3, axis=2))
    assert gray.gray and decode(encode(gray), deep=True).gray
    inverted = decode(tiff(NOISE[..., 0], "miniswhite"))
    np.testing.assert_array_equal(inverted.rgb[..., 0], 255 - NOISE[..., 0])
    for pixels in (DEEP, np.zeros((4, 4, 4), np.uint8)):
        assert decode(tiff(pixels, "separated"), deep=True).rgb.dtype == np.uint8
    assert decode(tiff(np.zeros((4, 4, 4), np.uint8), "separated")).rgb.min() == 255


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (tiff(DEEP[..., 0].astype(np.float32), "minisblack"), "of fractions or of more than 16"),
        (tiff(DEEP[..., 0].astype(np.uint32), "minisblack"), "of fractions or of more than 16"),
        (tiff(DEEP[..., 0], "miniswhite"), "16 bits with white as 0"),
        (tiff(DEEP[..., :3].transpose(2, 0, 1), planarconfig="separate"), "planes of colour apart"),
        (encoded(NOISE, "TIFF", save_all=True, append_images=[Image.new("L", (9, 9))]), "pages"),
    ],
    ids=["fractions", "32 bits", "white is 0", "planes", "pages"],
)
def test_tiffs_that_are_not_read_are_refused_by_name(data, reason):
    with pytest.raises(ImageError, match=reason):
        decode(data, deep=True)


def test_damage_of_a_deep_tiff_is_an_image_error():
    data = cv2.imencode(".tif", DEEP[..., 2::-1])[1].tobytes()
    np.testing.assert_array_equal(decode(data, deep=True).rgb, DEEP[..., :3])
    rng = np.random.default_rng(0)
    for _ in range(200):
        hurt = bytearray(data)
        hurt[int(rng.integers(len(hurt)))] ^= int(rng.integers(1, 256))
        try:
            decode(bytes(hurt), deep=True)
        except ImageError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA"])
def test_bmp(mode):
    image = Image.fromarray(NOISE).convert(mode)
    picture = decode(encoded(image, "BMP", dpi=(300, 300)))
    np.testing.assert_array_equal(picture.rgb, np.asarray(image.convert("RGB")))
    assert picture.density == pytest.approx((300, 300), abs=0.02)
    assert picture.gray == (mode in "1L")


def test_the_profile_of_a_bmp_is_kept():
    plain = encoded(NOISE, "BMP")
    header = bytearray(124)
    header[:40] = struct.pack("<I", 124) + plain[18:54]
    header[56:60] = b"DEBM"
    header[112:120] = struct.pack("<2I", 124 + len(plain) - 54, len(SRGB))
    data = plain[:10] + struct.pack("<I", 138) + header + plain[54:] + SRGB
    picture = decode(data)
    np.testing.assert_array_equal(picture.rgb, NOISE)
    assert picture.icc == SRGB


def test_avif():
    data = encoded(photo(), "AVIF", quality=95, icc_profile=SRGB, exif=exif(6, "Maker"))
    picture = decode(data)
    assert np.abs(picture.rgb - np.rot90(photo(), -1).astype(int)).mean() < 5
    assert picture.icc == SRGB and b"Maker" in (picture.exif or b"")
    plain = encoded(photo(), "AVIF")
    assert decode(plain).icc is None
    # The transfer stands behind the primaries, two bytes each.
    at = plain.index(b"colrnclx") + 10
    with pytest.raises(ImageError, match=r"high dynamic range \(PQ\)"):
        decode(plain[:at] + struct.pack(">H", 16) + plain[at + 2 :])


def heic(*pictures: np.ndarray, **options) -> bytes:
    """What pillow-heif writes of them: 8 bits, or 10 of what has 16."""
    pillow_heif = pytest.importorskip("pillow_heif")
    file, buffer = pillow_heif.HeifFile(), io.BytesIO()
    for pixels in pictures:
        mode = "RGB;16" if pixels.dtype == np.uint16 else "RGB"
        file.add_frombytes(mode, pixels.shape[1::-1], pixels.tobytes())
    file.save(buffer, quality=-1, chroma=444, **options)
    return buffer.getvalue()


def test_heic(tmp_path):
    data = heic(photo()[:48], exif=exif(6, "Maker").tobytes(), icc_profile=SRGB)
    (tmp_path / "a.heic").write_bytes(data)
    picture = decode(data)
    assert picture.size == read_size(tmp_path / "a.heic") == (64, 48)
    assert np.abs(picture.rgb - np.rot90(photo()[:48], -1).astype(int)).max() < 3
    assert picture.icc == SRGB and b"Maker" in (picture.exif or b"")
    # Ten bits are spread over sixteen.
    deep = decode(heic(DEEP[..., :3].copy()), deep=True)
    assert np.abs(deep.rgb - DEEP[..., :3].astype(int)).mean() < 64


def test_heics_that_are_not_read_are_refused_by_name():
    with pytest.raises(ImageError, match="several pictures in one file"):
        decode(heic(photo(), photo()))
    with pytest.raises(ImageError, match=r"high dynamic range \(PQ\)"):
        decode(heic(photo(), color_primaries=9, transfer_characteristics=16))
    with pytest.raises(ImageError):
        decode(heic(photo())[:-900])


@pytest.mark.skipif(READS_HEIC, reason="the extra is here")
def test_without_the_extra_it_is_named(tmp_path: Path):
    head = struct.pack(">I", 24) + b"ftypheic" + bytes(4) + b"mif1heic"
    with pytest.raises(ImageError) as caught:
        decode(head + bytes(99))
    assert str(caught.value) == f"HEIC is read by an extra: {HINT}"
    (tmp_path / "a.HEIC").write_bytes(head)
    (tmp_path / "b.gif").touch()
    told = f"1 .gif, 1 .heic; HEIC is read by an extra: {HINT}"
    assert other_pictures(tmp_path) == told
