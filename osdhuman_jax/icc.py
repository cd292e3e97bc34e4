"""Colour profiles: CMYK and gray, which RGB pixels cannot keep the profile of, become sRGB."""

import io
import struct

import numpy as np
from PIL import Image, ImageCms

_WHITE = struct.pack(">3i", 63_190, 65_536, 54_061)  # D50, in 65536ths
_SRGB = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)  # IEC 61966-2-1, as a curve of type 3


def cmyk_to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """By the embedded profile; without a usable one by Pillow's plain formula."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        srgb = ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(image, source, srgb, outputMode="RGB")
    except (OSError, ImageCms.PyCMSError):
        converted = None
    return converted or image.convert("RGB")


def gray_levels(profile: bytes, dtype: np.dtype) -> np.ndarray:
    """sRGB's level for each level of gray, uint8 or uint16, by a profile; if unusable, itself."""
    levels = np.arange(np.iinfo(dtype).max + 1, dtype=dtype)
    try:
        source, srgb = (
            ImageCms.ImageCmsProfile(io.BytesIO(data))
            for data in (profile, gray_profile(3, *_SRGB))
        )
        exact = ImageCms.Flags.NOOPTIMIZE  # its tables of curves are too coarse for the dark
        converted = ImageCms.profileToProfile(
            Image.fromarray(levels[None]), source, srgb, flags=exact
        )
    except (OSError, ImageCms.PyCMSError):
        converted = None
    return levels if converted is None else np.asarray(converted)[0]


def gray_profile(kind: int, *numbers: float) -> bytes:
    """ICC profile of gray whose tone curve is parametric, of this type (ICC.1:2010, 10.15)."""
    curve = struct.pack(f">4s4x2H{len(numbers)}i", b"para", kind, 0, *_fixed(numbers))
    tags = {b"wtpt": b"XYZ \0\0\0\0" + _WHITE, b"kTRC": curve}
    start = 132 + 12 * len(tags)
    table, body = struct.pack(">I", len(tags)), b""
    for name, data in tags.items():
        table += name + struct.pack(">2I", start + len(body), len(data))
        body += data
    head = struct.pack(">I4xI", start + len(body), 0x04200000)
    head += b"mntrGRAYXYZ ".ljust(24, b"\0") + b"acsp"
    return (head.ljust(68, b"\0") + _WHITE).ljust(128, b"\0") + table + body


def _fixed(numbers: tuple[float, ...]) -> list[int]:
    """In 65536ths."""
    return [round(number * 65_536) for number in numbers]
