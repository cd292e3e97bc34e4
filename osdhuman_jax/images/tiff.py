"""TIFF files: pages as they are stored, and samples of 16 bits (TIFF 6.0).

Pillow reads the header and eight bits. It turns the pixels as the file says while it decodes them,
which here is left to exif.py as of every other format; and of colour it drops the lower eight of 16
bits, which OpenCV keeps.
"""

from typing import Any

import cv2
import numpy as np
from PIL import TiffImagePlugin

from osdhuman_jax.images.png import Source

SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0")  # the last one is BigTIFF's

# Numbers of tags and values, of TIFF 6.0.
_BITS, _FORMAT, _COLOURS, _LAYOUT, _EXTRA, _ORIENTATION = 258, 339, 262, 284, 338, 274
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB = 0, 1, 2
_UNSIGNED, _INTERLEAVED, _PREMULTIPLIED, _STRAIGHT = 1, 1, 1, 2
_SUB_IFDS = {0x8769, 0x8825}  # of EXIF and of GPS


class StoredTiff(TiffImagePlugin.TiffImageFile):
    """Pillow's, which turns nothing: neither the pixels nor the size."""

    def _setup(self) -> None:
        super()._setup()
        self._size = self._tile_size

    def load_end(self) -> None:
        # What lies elsewhere in the file is read before that may be closed.
        block = self.getexif()
        for tag in _SUB_IFDS & set(block):
            block.get_ifd(tag)


def depth(image: StoredTiff) -> int:
    """Bits of a sample that are kept. Raises ValueError where nothing here reads such samples."""
    tags = image.tag_v2
    bits, colours = max(_numbers(tags.get(_BITS, 1))), tags.get(_COLOURS)
    if bits > 16 or set(_numbers(tags.get(_FORMAT, _UNSIGNED))) != {_UNSIGNED}:
        raise ValueError("a TIFF of fractions or of more than 16 bits: save it with 8 or 16")
    # Of 16 bits Pillow inverts no gray, and OpenCV takes planes for rows.
    planes = colours == _RGB and tags.get(_LAYOUT, _INTERLEAVED) != _INTERLEAVED
    if bits > 8 and (planes or colours == _WHITE_IS_ZERO):
        kind = "planes of colour apart" if planes else "white as 0"
        raise ValueError(f"a TIFF of 16 bits with {kind}: save it as plain RGB or gray")
    # What is no RGB, CMYK for one, becomes sRGB of eight bits.
    return bits if colours in (_BLACK_IS_ZERO, _RGB) else min(bits, 8)


def deep_samples(image: StoredTiff, source: Source) -> list[np.ndarray] | None:
    """Planes R, G, B and, if there is transparency, alpha of 16-bit colour; None if unreadable."""
    source.seek(0)
    data = source.read()
    # OpenCV turns some of the eight ways by itself, so that it is told of none.
    samples = cv2.imdecode(np.frombuffer(_upright(data), np.uint8), cv2.IMREAD_UNCHANGED)
    if samples is None or samples.dtype != np.uint16 or samples.shape[2:] < (3,):
        return None
    if samples.shape[1::-1] != image.size:
        return None
    planes = [samples[..., channel] for channel in (2, 1, 0, 3)[: samples.shape[2]]]
    extra = _numbers(image.tag_v2.get(_EXTRA, 0))[0]
    if not planes[3:] or extra not in (_PREMULTIPLIED, _STRAIGHT):
        return planes[:3]
    return [*_straight(planes[:3], planes[3]), planes[3]] if extra == _PREMULTIPLIED else planes


def _straight(planes: list[np.ndarray], alpha: np.ndarray) -> list[np.ndarray]:
    """Colours that were stored times alpha, divided by it."""
    weights = np.maximum(alpha, 1).astype(np.float32) / np.float32(65_535)
    return [np.rint(np.minimum(plane / weights, 65_535)).astype(np.uint16) for plane in planes]


def _upright(data: bytes) -> bytes:
    """The file, whose first page says that it lies as it is stored."""
    order = "little" if data[:2] == b"II" else "big"

    def number(at: int, size: int) -> int:
        return int.from_bytes(data[at : at + size], order)

    # BigTIFF's offsets have eight bytes, and so have its entries' counts and values.
    large = number(2, 2) == 43
    word, entry = (8, 20) if large else (4, 12)
    start = number(8 if large else 4, word)
    first = start + (8 if large else 2)
    for at in range(first, first + number(start, first - start) * entry, entry):
        if at + entry > len(data):
            break
        if number(at, 2) == _ORIENTATION:
            value = at + 4 + word
            return data[:value] + (1).to_bytes(2, order) + data[value + 2 :]
    return data


def _numbers(value: Any) -> tuple[int, ...]:
    """The numbers of a tag, which Pillow gives alone where there is one."""
    found = value if isinstance(value, tuple) else (value,)
    return tuple(int(number) for number in found) or (0,)
