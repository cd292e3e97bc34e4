"""PNG files whose chunks Pillow refuses or misreads; what is large, and what is a bomb."""

import struct
import zlib

import numpy as np
import pytest
from picture_files import SRGB, exif, noise

from osdhuman_jax.images import png
from osdhuman_jax.images.codec import ImageError, decode, encode, read_size
from osdhuman_jax.images.png import chunk

PHOTO = noise()


def raw(rows: np.ndarray, depth: int, colour: int, *extra: bytes) -> bytes:
    """A PNG of rows of packed samples."""
    size = rows.shape[1] * 8 // depth // {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    header = struct.pack(">IIBBBBB", size, len(rows), depth, colour, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    chunks = [chunk(b"IHDR", header), *extra, chunk(b"IDAT", body), chunk(b"IEND", b"")]
    return png.SIGNATURE + b"".join(chunks)


def plain(*extra: bytes, behind: bytes = b"") -> bytes:
    data = raw(PHOTO.reshape(12, 48), 8, 2, *extra)
    return data[:-12] + behind + data[-12:]


def large_profile(size: int = 3_000_000) -> bytes:
    """With a tail that no tag refers to."""
    tail = np.random.default_rng(1).integers(0, 4, size, dtype=np.uint8).tobytes()
    return struct.pack(">I", len(SRGB) + size) + SRGB[4:] + tail


TEXT = b"x" * 40_000_000
LARGE = {
    "profile": chunk(b"iCCP", b"p\0\0" + zlib.compress(large_profile())),
    "text": chunk(b"tEXt", b"Comment\0" + b"x" * 2_000_000),
    "packed text": chunk(b"zTXt", b"Comment\0\0" + zlib.compress(TEXT)),
    "international text": chunk(b"iTXt", b"Comment\0\1\0\0\0" + zlib.compress(TEXT)),
    "XMP": chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + b"<x/>" * 500_000),
    "many texts": b"".join(
        chunk(b"zTXt", b"C\0\0" + zlib.compress(bytes(900_000))) for _ in range(90)
    ),
    "bomb": chunk(b"iCCP", b"p\0\0" + zlib.compress(bytes(png.LARGEST + 1))),
}


@pytest.mark.parametrize("what", LARGE)
@pytest.mark.parametrize("behind", [False, True])
def test_what_lies_beside_the_pixels_may_be_large(what, behind, tmp_path):
    data = plain(behind=LARGE[what]) if behind else plain(LARGE[what])
    picture = decode(data)
    np.testing.assert_array_equal(picture.rgb, PHOTO)
    assert picture.icc == (large_profile() if what == "profile" else None)
    again = decode(encode(picture))
    np.testing.assert_array_equal(again.rgb, PHOTO)
    assert again.icc == picture.icc
    (tmp_path / "a").write_bytes(data)
    assert read_size(tmp_path / "a") == (12, 16)


def test_a_damaged_chunk_that_is_not_needed_is_as_good_as_none():
    whole = chunk(b"iCCP", b"p\0\0" + zlib.compress(SRGB))
    for broken in (whole[:-1] + b"?", chunk(b"iCCP", b"p\0\0" + zlib.compress(SRGB)[:-9])):
        picture = decode(plain(broken))
        np.testing.assert_array_equal(picture.rgb, PHOTO)
        assert picture.icc is None


@pytest.mark.parametrize("form", ["eXIf", "eXIf behind", "raw", "packed raw", "XMP", "packed XMP"])
def test_the_turn_is_found_wherever_it_is_said(form, tmp_path):
    block = exif(turn=6).tobytes()
    digits = b"\nexif\n%8d\n%s" % (len(block), block.hex().encode())
    xmp = b'<rdf tiff:Orientation="6"/>' + b" " * 2_000_000
    said = {
        "eXIf": chunk(b"eXIf", block[6:]),
        "eXIf behind": chunk(b"eXIf", block[6:]),
        "raw": chunk(b"tEXt", b"Raw profile type exif\0" + digits),
        "packed raw": chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(digits)),
        "XMP": chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp),
        "packed XMP": chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(xmp)),
    }[form]
    data = plain(behind=said) if "behind" in form else plain(said)
    np.testing.assert_array_equal(decode(data).rgb, np.rot90(PHOTO, -1))
    (tmp_path / "a").write_bytes(data)
    assert read_size(tmp_path / "a") == (16, 12)


def packed(levels: list[int], depth: int) -> np.ndarray:
    """One row of samples."""
    if depth == 16:
        return np.array([levels], ">u2").view(np.uint8)
    bits = "".join(f"{level:0{depth}b}" for level in levels).ljust(
        -(-len(levels) * depth // 8) * 8, "0"
    )
    return np.array([[int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)]], np.uint8)


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("deep", [False, True])
def test_the_transparent_gray_is_right_at_every_depth(depth, deep):
    top = 2**depth - 1
    levels = [0, top, 0, 0, top, top, 0, top] if depth == 1 else [0, 1, 2, 3, top - 1, top, 1, 2]
    levels = levels * 2 if depth == 2 else levels  # whole bytes
    for key in sorted(set(levels)):
        data = raw(packed(levels, depth), depth, 0, chunk(b"tRNS", struct.pack(">H", key)))
        picture = decode(data, deep=deep)
        largest = 65_535 if deep and depth == 16 else 255
        expected = np.array(levels) / top * largest
        assert np.abs(picture.rgb[0, :, 1] - expected).max() <= 0.5 and picture.gray
        assert picture.alpha is not None
        assert picture.alpha[0].tolist() == [0 if level == key else largest for level in levels]


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_palettes_with_transparent_entries(depth):
    levels = [0, 1] * 8
    palette = chunk(b"PLTE", bytes([200, 10, 20, 30, 40, 250]))
    data = raw(packed(levels, depth), depth, 3, palette, chunk(b"tRNS", bytes([0, 130])))
    picture = decode(data)
    assert picture.alpha is not None and picture.alpha[0].tolist() == [0, 130] * 8
    assert picture.rgb[0, :2].tolist() == [[200, 10, 20], [30, 40, 250]] and not picture.gray


def test_a_missing_palette_is_said():
    with pytest.raises(ImageError, match="^damaged image: its palette is missing$"):
        decode(raw(packed([0, 1] * 8, 8), 8, 3))


@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("deep", [False, True])
def test_the_transparent_colour_is_compared_in_all_its_bits(depth, deep):
    factor = 1 if depth == 8 else 257
    pixels = np.array([[[10, 20, 30], [10, 20, 31]]]) * factor
    pixels[0, 1] = pixels[0, 0] + (0, 0, 1)  # one level of 65,535 beside
    row = pixels.astype(">u2" if depth == 16 else np.uint8).reshape(1, -1).view(np.uint8)
    key = struct.pack(">3H", *pixels[0, 0].tolist())
    picture = decode(raw(row, depth, 2, chunk(b"tRNS", key)), deep=deep)
    largest = 65_535 if deep and depth == 16 else 255
    assert picture.alpha is not None and picture.alpha.tolist() == [[0, largest]]
