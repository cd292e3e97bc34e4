"""EXIF: which way up a picture is, how dense it is printed, and what is kept of the rest.

Goes in: a block of EXIF as a file has it, which may be damaged or hostile: what cannot be read is
taken to be absent, as viewers do. Comes out: turns of arrays, pixels per inch, and a block without
what the written picture would make untrue (orientation, sizes, thumbnail).
"""

import math
import struct
from collections.abc import Callable

import numpy as np
from PIL import Image

# Tags of a TIFF that say something of the photograph: words, dates, names, EXIF's own and GPS.
_DESCRIPTIVE = {270, 271, 272, 305, 306, 315, 33432, 0x8769, 0x8825}
Density = tuple[float, float]  # pixels per inch, across and down

# What the formats can hold: a segment's length has two bytes, of which it counts itself.
LIMIT = 65_533  # bytes of a JPEG's segment
JFIF_MOST = 65_535  # density that a JPEG's header can hold
_MOST = 1_000_000  # that makes sense
TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a[::-1].swapaxes(0, 1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: a[:, ::-1].swapaxes(0, 1),
}  # by orientation: stored to upright
QUARTER_TURNED = (5, 6, 7, 8)

# Numbers of tags, of TIFF 6.0 and EXIF 2.3.
_ORIENTATION, _ACROSS, _DOWN, _UNIT = 0x0112, 0x011A, 0x011B, 0x0128
_IFD, _SIZES = 0x8769, (0xA002, 0xA003)  # width and height, untrue after a resize
# EXIF counts units from one, JFIF from nought; the first of each is a ratio of sides, no size.
_INCHES = {1: 0.0, 2: 1.0, 3: 2.54}  # units of density in an inch, by EXIF's and by JFIF's number
_JFIF_INCHES = {0: 0.0, 1: 1.0, 2: 2.54}
_DAMAGE = (SyntaxError, ValueError, TypeError, KeyError, IndexError, OSError, struct.error)
_DAMAGE += (ArithmeticError, AttributeError)  # what Pillow raises on a damaged block


def orientation(image: Image.Image) -> int:
    """1-8; 1 where there is none or the EXIF block is damaged, as viewers do."""
    try:
        # A damaged block says nothing of the picture, which is no reason to refuse it.
        found = int(_block(image).get(_ORIENTATION, 1))
    except _DAMAGE:
        return 1
    return found if found in TURNS else 1


def kept(image: Image.Image) -> bytes | None:
    """EXIF of the upright picture without its density; None where it is empty or damaged."""
    try:
        exif = Image.Exif()
        exif.load(_block(image).tobytes())  # a copy: the image keeps and shows its own
        # A TIFF's block is its own header, most of which is about where its pixels lie.
        for tag in set(exif) - _DESCRIPTIVE if image.format == "TIFF" else ():
            exif.pop(tag)
        # What would be untrue of the picture that is written: it is upright, and may be larger.
        for tag in (_ORIENTATION, _ACROSS, _DOWN, _UNIT):
            exif.pop(tag, None)
        for tag in _SIZES:
            exif.get_ifd(_IFD).pop(tag, None)
        return exif.tobytes() if len(exif) else None
    except _DAMAGE:
        return None


def density(image: Image.Image) -> Density | None:
    """Of the upright picture: the file's own, else its EXIF block's; None where neither is sane."""
    # The format's own place counts first, as viewers and printers have it.
    found = _stated(image) or _in_block(image)
    # Across becomes down with the pixels.
    if found and orientation(image) in QUARTER_TURNED:
        across, down = found
        return down, across
    return found


def with_density(block: bytes | None, dense: Density | None) -> bytes | None:
    """The block with the density in it."""
    if dense is None:
        return block
    exif = Image.Exif()
    exif.load(block or b"")
    exif[_ACROSS], exif[_DOWN], exif[_UNIT] = *dense, 2
    return exif.tobytes()


def _block(image: Image.Image) -> Image.Exif:
    """The image's EXIF; Pillow's method for PNG would decode all pixels to find it."""
    return Image.Image.getexif(image)


def _stated(image: Image.Image) -> Density | None:
    """The density that JFIF or pHYs says; what Pillow calls a JPEG's `dpi` may be a default."""
    info = image.info
    # MPO is how Pillow calls a JPEG that carries further pictures.
    if image.format in ("JPEG", "MPO"):
        return _sane(info.get("jfif_density"), _JFIF_INCHES.get(info.get("jfif_unit", 0), 0.0))
    return _sane(info.get("dpi"), 1.0)


def _in_block(image: Image.Image) -> Density | None:
    try:
        exif = _block(image)
        return _sane(
            (exif.get(_ACROSS, 0), exif.get(_DOWN, 0)), _INCHES.get(exif.get(_UNIT, 2), 0.0)
        )
    except _DAMAGE:
        return None


def _sane(pair: object, inches: float) -> Density | None:
    """Two densities in pixels per inch, if they are such."""
    # Callers of Pillow may put anything there, a text for one, which has characters and no numbers.
    if not isinstance(pair, (tuple, list)):
        return None
    try:
        across, down = (float(value) * inches for value in pair)
    except _DAMAGE:
        return None
    # Cameras write 0 or 1 where they do not know.
    fits = all(math.isfinite(value) and 0.1 <= value <= _MOST for value in (across, down))
    return (across, down) if fits else None
