"""Colours that a PNG describes by chunks, as profiles; against the formulas of their standards."""

import io
import struct
import zlib

import numpy as np
import pytest
from picture_files import SRGB, encoded, with_chunks
from PIL import Image, ImageCms
from refusals import one_line

from osdhuman_jax.images.codec import ImageError, decode, encode, from_pillow
from osdhuman_jax.images.icc import PRIMARIES, TRANSFERS, rgb_profile
from osdhuman_jax.images.png import chunk

COLOURS = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
ADOBE = (31270, 32900, 64000, 33000, 21000, 71000, 15000, 6000)
REC709 = (31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)

GAMMA = {value: chunk(b"gAMA", struct.pack(">I", value)) for value in (0, 45_455, 50_000, 100_000)}
CHRM = {values: chunk(b"cHRM", struct.pack(">8I", *values)) for values in (ADOBE, REC709)}
ICCP = chunk(b"iCCP", b"p\0\0" + zlib.compress(SRGB))
INTENT = chunk(b"sRGB", b"\0")


def cicp(*values: int) -> bytes:
    return chunk(b"cICP", bytes(values))


def png(pixels: np.ndarray, *extra: bytes) -> bytes:
    return with_chunks(encoded(pixels), *extra)


def to_srgb(rgb: np.ndarray, profile: bytes) -> np.ndarray:
    """By Little CMS."""
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    target = ImageCms.createProfile("sRGB")
    flags = ImageCms.Flags.NOOPTIMIZE
    converted = ImageCms.profileToProfile(Image.fromarray(rgb), source, target, flags=flags)
    return np.asarray(converted)


def primaries_matrix(white: tuple, *colours: tuple) -> np.ndarray:
    """RGB to XYZ, as SMPTE RP 177 has it."""
    columns = np.array([[x, y, 1 - x - y] for x, y in colours]).T
    x, y = white
    return columns @ np.diag(np.linalg.solve(columns, [x / y, 1, (1 - x - y) / y]))


def encode_srgb(linear: np.ndarray) -> np.ndarray:
    linear = np.clip(linear, 0, 1)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


DECODED = {
    1: lambda v: np.where(v < 0.081, v / 4.5, ((v + 0.099) / 1.099) ** (1 / 0.45)),
    4: lambda v: v**2.2,
    5: lambda v: v**2.8,
    8: lambda v: v,
    13: lambda v: np.where(v <= 0.04045, v / 12.92, ((v + 0.055) / 1.055) ** 2.4),
}


@pytest.mark.parametrize("primaries", [1, 6, 9, 12])  # whose white is sRGB's
@pytest.mark.parametrize("transfer", DECODED)
def test_cicp_against_the_formulas(primaries, transfer):
    picture = decode(png(COLOURS, cicp(primaries, transfer, 0, 1)))
    np.testing.assert_array_equal(picture.rgb, COLOURS)
    if (primaries, transfer) == (1, 13):
        assert picture.icc is None
        return
    assert picture.icc is not None
    to_xyz, srgb = primaries_matrix(*PRIMARIES[primaries]), primaries_matrix(*PRIMARIES[1])
    linear = DECODED[transfer](COLOURS / 255) @ (np.linalg.inv(srgb) @ to_xyz).T
    expected = encode_srgb(linear) * 255
    assert np.abs(to_srgb(COLOURS, picture.icc) - expected).max() <= 1.5


@pytest.mark.parametrize("primaries", PRIMARIES)
def test_white_stays_white_whatever_its_hue(primaries):
    ramp = np.repeat(np.arange(0, 256, 5, dtype=np.uint8)[None, :, None], 3, axis=-1)
    for curve in TRANSFERS.values():
        found = to_srgb(ramp, rgb_profile(PRIMARIES[primaries], curve)).astype(int)
        assert np.ptp(found, axis=-1).max() <= 1 and found[0, -1].min() >= 254


@pytest.mark.parametrize("deep", [False, True])
def test_linear_light_keeps_its_samples(deep):
    data = png(COLOURS, GAMMA[100_000])
    picture = decode(data, deep=deep)
    assert picture.icc is not None
    expected = encode_srgb(COLOURS / 255) * 255
    assert np.abs(to_srgb(COLOURS, picture.icc) - expected).max() <= 1
    for kind in ("png", "webp", "jpeg"):
        assert decode(encode(picture, kind)).icc == picture.icc


def icc_of(*extra: bytes) -> bytes | None:
    return decode(png(COLOURS, *extra)).icc


def test_which_chunk_counts():
    linear, adobe = icc_of(GAMMA[100_000]), icc_of(GAMMA[45_455], CHRM[ADOBE])
    p3 = icc_of(cicp(12, 13, 0, 1))
    assert linear and adobe and p3 and len({linear, adobe, p3}) == 3
    assert icc_of(INTENT, GAMMA[100_000], CHRM[ADOBE]) is None
    assert icc_of(INTENT, GAMMA[100_000], ICCP) == SRGB
    assert icc_of(cicp(12, 13, 0, 1), ICCP, INTENT, GAMMA[100_000]) == p3
    assert icc_of(cicp(1, 13, 0, 1), ICCP) is None
    # not known, or not said
    assert icc_of(cicp(2, 2, 0, 1), GAMMA[100_000]) == linear
    for senseless in (GAMMA[0], chunk(b"cHRM", bytes(32)), chunk(b"gAMA", b"12"), cicp(1, 13)):
        assert icc_of(senseless) is None


def test_what_is_srgb_by_its_chunks_has_no_profile():
    assert icc_of(GAMMA[45_455]) is None
    assert icc_of(GAMMA[45_455], CHRM[REC709]) is None
    assert icc_of(CHRM[REC709]) is None
    assert icc_of(GAMMA[50_000]) is not None


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ((9, 16, 0, 1), "PQ"),
        ((9, 18, 0, 1), "HLG"),
        ((1, 13, 1, 1), "video levels"),
        ((1, 13, 0, 0), "video levels"),
    ],
)
def test_what_is_no_plain_rgb_is_refused_in_one_line(values, reason):
    with one_line(ImageError, reason) as caught:
        decode(png(COLOURS, cicp(*values)))
    assert "damaged" not in str(caught.value)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_gray_of_linear_light_becomes_srgb(kind):
    largest = np.iinfo(kind).max
    levels = np.linspace(0, largest, 60).astype(kind)[None]
    picture = decode(png(levels, GAMMA[100_000]), deep=True)
    assert picture.icc is None and picture.gray
    expected = encode_srgb(levels / largest) * largest
    assert np.abs(picture.rgb[..., 2] - expected).max() <= 1


def test_pillows_images_tell_it_too():
    with Image.open(io.BytesIO(png(COLOURS, GAMMA[45_455], CHRM[ADOBE]))) as image:
        assert from_pillow(image).icc == icc_of(GAMMA[45_455], CHRM[ADOBE])


def test_profiles_are_whole_and_named():
    profile = rgb_profile(PRIMARIES[12], TRANSFERS[13])
    opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    assert int.from_bytes(profile[:4], "big") == len(profile)
    assert ImageCms.getProfileDescription(opened).strip() == "colours of the PNG"
