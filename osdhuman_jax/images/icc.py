"""Colour profiles: made of what a file says of its colours, and applied.

RGB pixels keep their profile. CMYK and gray, which RGB pixels cannot keep the profile of, become
sRGB. Where a PNG describes its colours by chunks instead (cICP, gAMA, cHRM), they are kept too, as
the profile that says the same: to convert linear light of 8 bits to sRGB would leave steps. Section
numbers are those of ICC.1:2010; code points those of ITU-T H.273.
"""

import io
import math
import struct
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from PIL import Image, ImageCms

Curve = tuple[int, tuple[float, ...]]  # type and numbers of a parametric curve (10.15)
Point = tuple[float, float]  # chromaticity x, y
Primaries = tuple[Point, Point, Point, Point]  # white, red, green, blue
Info = Mapping[Any, Any]  # what Pillow says of a file, `Image.info`

# Profiles connect by the white of D50 (ICC.1:2010, 7.2.16), to which primaries are adapted.
# Bradford's matrix is the one that annex E recommends for it.
_D50 = (0.9642, 1.0, 0.8249)  # the white of profiles
_BRADFORD = np.array(
    [[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]]
)
_SRGB: Curve = (3, (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045))  # IEC 61966-2-1
# ITU-R BT.709-6, section 1.2, turned from encoding to decoding.
_BT709: Curve = (3, (1 / 0.45, 1 / 1.099, 0.099 / 1.099, 1 / 4.5, 0.081))
# CIE's daylight and the older C, by the chromaticities that H.273 gives them.
_D65, _C = (0.3127, 0.329), (0.310, 0.316)
_BT709_RGB: Primaries = (_D65, (0.64, 0.33), (0.30, 0.60), (0.15, 0.06))
_SMPTE_C: Primaries = (_D65, (0.630, 0.340), (0.310, 0.595), (0.155, 0.070))
# H.273, table 2, whose number 2 is "unspecified".
PRIMARIES: dict[int, Primaries] = {
    1: _BT709_RGB,
    4: (_C, (0.67, 0.33), (0.21, 0.71), (0.14, 0.08)),
    5: (_D65, (0.64, 0.33), (0.29, 0.60), (0.15, 0.06)),
    6: _SMPTE_C,
    7: _SMPTE_C,
    9: (_D65, (0.708, 0.292), (0.170, 0.797), (0.131, 0.046)),
    11: ((0.314, 0.351), (0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),
    12: (_D65, (0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),
}
# H.273, table 3; those that are no parametric curve are left to the profile beside them.
TRANSFERS: dict[int, Curve] = {
    **dict.fromkeys((1, 6, 14, 15), _BT709),
    4: (0, (2.2,)),
    5: (0, (2.8,)),
    8: (0, (1.0,)),
    13: _SRGB,
}
HIGH_RANGE = {16: "PQ", 18: "HLG"}  # transfers of pictures brighter than paper white
_SRGB_GAMMA = 0.45455  # what programs write of sRGB
_NEAR = 0.05  # of gammas that are one, as in libpng
_SAME = 0.002  # of chromaticities that are one


class ColourError(ValueError):
    """Colours that are not understood: one line."""


def described(info: Info, gray: bool) -> bytes:
    """Profile of a picture by what its file says, under Pillow's names; empty: sRGB.

    cICP counts before a profile, a profile before sRGB, and that before gAMA and cHRM. Of gray,
    the profile is one of gray. Raises ColourError on what only screens of high dynamic range show.
    """
    # PNG, third edition, 11.3.2.6: cICP counts before every other chunk of colour.
    if cicp := info.get("cicp"):
        primaries, transfer, matrix, full = cicp
        if transfer in HIGH_RANGE:
            kind = HIGH_RANGE[transfer]
            raise ColourError(f"high dynamic range ({kind}): convert it to standard range first")
        if matrix or not full:
            raise ColourError("its cICP chunk tells of video levels, not of RGB of full range")
        if primaries in PRIMARIES and transfer in TRANSFERS:
            return _profile(PRIMARIES[primaries], TRANSFERS[transfer], gray)
    # Then in the order of the same standard's table of precedence.
    if profile := info.get("icc_profile"):
        return profile
    if "srgb" in info:
        return b""
    return _profile(_by_chunk(info), _by_gamma(info), gray)


def _by_chunk(info: Info) -> Primaries:
    """Primaries of a cHRM chunk; sRGB's where there is none or it makes no sense."""
    values = info.get("chromaticity") or ()
    # y divides in what follows, so none may be nought.
    if len(values) != 8 or not all(0 < y <= 1 for y in values[1::2]):
        return _BT709_RGB
    white, red, green, blue = zip(values[::2], values[1::2], strict=True)
    found = (white, red, green, blue)
    # Programs round sRGB's chromaticities in several ways.
    near = np.abs(np.subtract(found, _BT709_RGB)).max() <= _SAME
    area = abs(np.linalg.det([[*point, 1] for point in (red, green, blue)]))
    return _BT709_RGB if near or area < _SAME else found


def _by_gamma(info: Info) -> Curve:
    """Curve of a gAMA chunk; sRGB's where there is none, or it is that of sRGB."""
    gamma = info.get("gamma") or 0
    if not 0.01 < gamma < 100:
        return _SRGB
    # The chunk holds an exponent, which sRGB's curve is not: 1 / 2.2 is what stands for it.
    srgb = abs(gamma / _SRGB_GAMMA - 1) < _NEAR
    if srgb and _by_chunk(info) == _BT709_RGB:
        return _SRGB
    return 0, (1 / gamma,)


def _profile(primaries: Primaries, curve: Curve, gray: bool) -> bytes:
    """Profile of gray or of RGB; empty if it would be sRGB's."""
    if curve == _SRGB and (gray or primaries == _BT709_RGB):
        return b""
    return gray_profile(curve[0], *curve[1]) if gray else rgb_profile(primaries, curve)


def bmp_profile(data: bytes) -> bytes:
    """The profile in a BMP, which a header of version 5 tells of (BITMAPV5HEADER); else empty."""
    # Behind the file's header of 14 bytes the size of the other, and where its colours are told.
    if len(data) < 138 or data[14:18] != struct.pack("<I", 124) or data[70:74] != b"DEBM":
        return b""
    start, size = struct.unpack("<2I", data[126:134])
    return data[14 + start : 14 + start + size]


def cmyk_to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """A CMYK image in sRGB by its profile; without a usable one by Pillow's plain formula."""
    return _converted(image, profile) or image.convert("RGB")


def rgb_to_srgb(image: Image.Image, profile: bytes) -> Image.Image | None:
    """An RGB image by its profile; None where that is sRGB's already or of no use."""
    try:
        # By its name: its numbers differ from maker to maker, and converting would change pixels.
        name = ImageCms.getProfileDescription(ImageCms.ImageCmsProfile(io.BytesIO(profile)))
    except (OSError, ImageCms.PyCMSError):
        return None
    return None if "srgb" in name.lower() else _converted(image, profile)


def _converted(image: Image.Image, profile: bytes) -> Image.Image | None:
    """The image in sRGB; None where the profile is of no use."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        srgb = ImageCms.createProfile("sRGB")
        return ImageCms.profileToProfile(image, source, srgb, outputMode="RGB")
    except (OSError, ImageCms.PyCMSError):
        return None


def gray_levels(profile: bytes, dtype: np.dtype) -> np.ndarray:
    """sRGB's level for each level of gray, uint8 or uint16, by a profile; if unusable, itself."""
    # A table of all levels costs less than converting the pixels, and is exact for 16 bits.
    levels = np.arange(np.iinfo(dtype).max + 1, dtype=dtype)
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        srgb = ImageCms.ImageCmsProfile(io.BytesIO(gray_profile(_SRGB[0], *_SRGB[1])))
        exact = ImageCms.Flags.NOOPTIMIZE  # its tables of curves are too coarse for the dark
        converted = ImageCms.profileToProfile(
            Image.fromarray(levels[None]), source, srgb, flags=exact
        )
    except (OSError, ImageCms.PyCMSError):
        converted = None
    return levels if converted is None else np.asarray(converted)[0]


def gray_profile(kind: int, *numbers: float) -> bytes:
    """Profile of gray whose tone curve is parametric, of this type."""
    return _file(b"GRAY", {b"kTRC": _curve(kind, numbers)})


def rgb_profile(primaries: Primaries, curve: Curve) -> bytes:
    """Profile of RGB with these primaries and one parametric tone curve."""
    white, *colours = (np.array([x / y, 1, (1 - x - y) / y]) for x, y in primaries)
    # Chromaticities to XYZ, scaled so that the three together are white.
    columns = np.stack(colours, axis=1)
    mixed = columns * np.linalg.solve(columns, white)  # so that their sum is white
    # From the file's white to the profile's (annex E).
    gains = np.diag((_BRADFORD @ _D50) / (_BRADFORD @ white))
    adapt = np.linalg.inv(_BRADFORD) @ gains @ _BRADFORD
    red, green, blue = (_xyz(*column) for column in (adapt @ mixed).T)
    # What a matrix profile of a display must have (8.4.3).
    tags = {b"rXYZ": red, b"gXYZ": green, b"bXYZ": blue}
    tags |= dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), _curve(*curve))
    tags[b"chad"] = b"sf32" + bytes(4) + struct.pack(">9i", *_fixed(adapt.ravel()))
    return _file(b"RGB ", tags)


def _file(space: bytes, tags: dict[bytes, bytes]) -> bytes:
    """A display profile of version 4.2 with these tags and those that every profile has."""
    tags = {b"desc": _words("colours of the PNG"), b"cprt": _words("CC0")} | tags
    tags[b"wtpt"] = _xyz(*_D50)
    # The header of 128 bytes, a count, and a row of the table for each tag (7.2, 7.3).
    start = 132 + 12 * len(tags)
    table, body = struct.pack(">I", len(tags)), b""
    # Data begin at multiples of four bytes.
    for name, data in tags.items():
        table += name + struct.pack(">2I", start + len(body), len(data))
        body += data.ljust(-(-len(data) // 4) * 4, b"\0")
    # Version 4.2, a display, and where colours meet: XYZ under D50 (7.2.4 to 7.2.16).
    head = struct.pack(">I4xI", start + len(body), 0x04200000)
    head += (b"mntr" + space + b"XYZ ").ljust(24, b"\0") + b"acsp"
    return (head.ljust(68, b"\0") + _xyz(*_D50)[8:]).ljust(128, b"\0") + table + body


def _curve(kind: int, numbers: tuple[float, ...]) -> bytes:
    return struct.pack(f">4s4x2H{len(numbers)}i", b"para", kind, 0, *_fixed(numbers))


def _xyz(*values: float) -> bytes:
    return b"XYZ \0\0\0\0" + struct.pack(">3i", *_fixed(values))


def _words(text: str) -> bytes:
    """A text in English as multiLocalizedUnicodeType (10.13)."""
    data = text.encode("utf-16-be")
    return struct.pack(">4s4x2I4s2I", b"mluc", 1, 12, b"enUS", len(data), 28) + data


def _fixed(numbers: Iterable[float]) -> list[int]:
    """Numbers as s15Fixed16Number (4.6): in 65536ths, to the nearest."""
    return [math.floor(number * 65_536 + 0.5) for number in numbers]
