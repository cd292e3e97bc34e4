"""Image files in, arrays out, and back: the only place where photographs are decoded and encoded.

Pixels are uint8 (height, width, 3) RGB at this edge (uint16 where a caller asks for deep samples)
and float32 in [-1, 1] inside the package. Formats are told by content, never by a file's name, and
only PNG, JPEG and WebP are decoded; every other parser of Pillow stays out of reach of a hostile
file.
"""

import hashlib
import io
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import Float, Float32, UInt8, UInt16
from PIL import Image, ImageFile

from osdhuman_jax.disk import write_bytes
from osdhuman_jax.icc import cmyk_to_srgb, gray_levels

Pixels = UInt8[np.ndarray, "h w 3"]
Deep = UInt16[np.ndarray, "h w 3"]
Alpha = UInt8[np.ndarray, "h w"] | UInt16[np.ndarray, "h w"]
Floats = Float[np.ndarray, "*b h w 3"]
Samples = Float32[np.ndarray, "..."]

FORMATS = ("PNG", "JPEG", "WEBP")
MAX_PIXELS = 200_000_000  # the largest phone sensors; 600 MB once decoded
LONGEST = {"png": 2**31 - 1, "jpeg": 65_500, "webp": 16_383}  # side that an output format can hold
LOSSLESS = 100  # quality at which WebP keeps every pixel

_ORIENTATION_TAG = 0x0112
_EXIF_IFD, _EXIF_SIZES = 0x8769, (0xA002, 0xA003)  # width and height, untrue after a resize
_EXIF_PREFIX, _EXIF_LIMIT = b"Exif\0\0", 65_533  # bytes of a JPEG segment
_PNG_DEPTH, _PNG_HEADER = 24, 33  # where the bits of a sample stand, where the header ends
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageError(ValueError):
    """A file that cannot be used as a picture; the message is one line without the file's name."""


@dataclass
class Picture:
    """A decoded photograph, upright."""

    rgb: Pixels | Deep
    alpha: Alpha | None = None
    icc: bytes | None = None  # colour profile of `rgb`; None = sRGB
    exif: bytes | None = None  # without orientation, sizes and thumbnail

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.rgb.shape[0], self.rgb.shape[1]


def read_image(path: str | Path, max_pixels: int = MAX_PIXELS) -> Picture:
    """Decode the file at `path`. Raises ImageError, or OSError where it cannot be read."""
    return decode(Path(path).read_bytes(), max_pixels)


def read_size(path: str | Path, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Upright (height, width) from the header alone. Raises ImageError or OSError."""
    with open(path, "rb") as file, _opened(file, max_pixels) as image:
        width, height = image.size
        return (width, height) if _orientation(image) in (5, 6, 7, 8) else (height, width)


def read_rgb_bytes(data: bytes) -> Pixels:
    """RGB pixels of an encoded image, transparency dropped. Raises ImageError."""
    return decode(data).rgb


def decode(data: bytes, max_pixels: int = MAX_PIXELS, deep: bool = False) -> Picture:
    """Picture of an encoded image, turned as its EXIF says, the rest of the EXIF kept.

    16-bit samples are scaled to 8 unless they are asked for by `deep`; others stay uint8. An RGB
    colour profile is kept with the pixels as they are; CMYK is converted to sRGB by its profile.
    Raises ImageError on anything that is not one whole, still picture of at most `max_pixels`,
    MemoryError where that is too large to hold.
    """
    with _opened(io.BytesIO(data), max_pixels) as image:
        image.load()
        if deep and image.format == "PNG" and data[_PNG_DEPTH] == 16:
            return _picture(image, *_split_deep(image, data))
        return from_pillow(image)


def from_pillow(image: Image.Image) -> Picture:
    """Picture of Pillow's image, turned as its EXIF says; as `decode` gives it of a file."""
    turn = _TURNS.get(_orientation(image))
    upright = image if turn is None else image.transpose(turn)
    return _picture(image, *_split(upright, image.info.get("icc_profile") or b""))


def to_pillow(picture: Picture) -> Image.Image:
    """RGB or RGBA image of 8 bits, with profile and EXIF in its `info`."""
    planes = [p for p in (picture.rgb, picture.alpha) if p is not None]
    narrowed = [narrow(p) if p.dtype == np.uint16 else p for p in planes]
    image = Image.fromarray(np.dstack(narrowed) if narrowed[1:] else narrowed[0])
    image.info |= {"icc_profile": picture.icc} if picture.icc else {}
    image.info |= {"exif": picture.exif} if picture.exif else {}
    return image


def _picture(image: Image.Image, rgb: Pixels | Deep, alpha: Alpha | None) -> Picture:
    """With what else of the image is kept; gray is converted to sRGB by a profile of gray."""
    profile = image.info.get("icc_profile") or b""
    space = profile[16:20]
    if space == b"GRAY" and image.mode.startswith(("L", "I")):
        rgb = gray_levels(profile, rgb.dtype)[rgb]
    fits = space == b"RGB "  # a gray or CMYK profile would be wrong for RGB pixels
    return Picture(rgb, alpha, profile if fits else None, _exif(image))


@contextmanager
def _opened(source: io.BytesIO | io.BufferedReader, max_pixels: int) -> Iterator[Image.Image]:
    """The image with its header read and judged; whatever goes wrong inside is an ImageError."""
    if not source.read(1):
        raise ImageError("empty file")
    source.seek(0)
    try:
        with _identified(source) as image:
            _refuse_unfit(image, max_pixels)
            yield image
    except (ImageError, MemoryError):
        raise
    except Exception as error:  # on hostile bytes Pillow's parsers raise nearly anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ImageError(f"damaged image: {reason}") from error


def _identified(source: io.BytesIO | io.BufferedReader) -> ImageFile.ImageFile:
    """Image.open without its guard: that one's limit is the process's, ours is an argument."""
    Image.init()
    prefix = source.read(16)
    for factory, accept in (Image.OPEN[name] for name in FORMATS):
        if accept is None or accept(prefix):
            source.seek(0)
            try:
                return factory(source, "")
            except (SyntaxError, IndexError, TypeError, struct.error):
                break
    raise ImageError("not a PNG, JPEG or WebP image, or its header is damaged")


def _refuse_unfit(image: Image.Image, max_pixels: int) -> None:
    """Raise ImageError by the header alone, before any pixel is decoded."""
    width, height = image.size
    if width * height > max_pixels:
        raise ImageError(f"{width} x {height} is more than {max_pixels} pixels")
    # A JPEG may carry further pictures (depth or gain map, second eye) behind the photograph.
    if image.format in ("PNG", "WEBP") and getattr(image, "is_animated", False):
        raise ImageError("animated image")


def _orientation(image: Image.Image) -> int:
    """EXIF orientation 1-8; 1 where there is none or the EXIF block is damaged, as viewers do."""
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except (SyntaxError, ValueError, TypeError, KeyError, IndexError, OSError, struct.error):
        return 1


def _exif(image: Image.Image) -> bytes | None:
    """EXIF block of the upright picture; None where there is none or it is damaged."""
    try:
        exif = Image.Exif()
        exif.load(image.getexif().tobytes())  # a copy: the image keeps and shows its own
        exif.pop(_ORIENTATION_TAG, None)
        for tag in _EXIF_SIZES:
            exif.get_ifd(_EXIF_IFD).pop(tag, None)
        return exif.tobytes() if len(exif) else None
    except (SyntaxError, ValueError, TypeError, KeyError, IndexError, OSError, struct.error):
        return None


def _split(image: Image.Image, profile: bytes) -> tuple[Pixels, Alpha | None]:
    """RGB and, if the image has any transparency, alpha of an image of any mode."""
    if image.mode.startswith("I"):
        return _split_gray16(image)
    if image.mode == "CMYK":
        return np.array(cmyk_to_srgb(image, profile)), None
    if not image.has_transparency_data:
        return np.array(image.convert("RGB")), None
    rgba = np.array(image.convert("RGBA"))
    return np.ascontiguousarray(rgba[..., :3]), np.ascontiguousarray(rgba[..., 3])


def _split_gray16(image: Image.Image) -> tuple[Pixels, Alpha | None]:
    """The same for 16-bit gray, which Pillow's own conversion would clip at 255."""
    samples = np.asarray(image).astype(np.uint16)
    gray = narrow(samples)
    key = image.info.get("transparency")
    alpha = None if key is None else np.where(samples == key, 0, 255).astype(np.uint8)
    return np.repeat(gray[..., None], 3, axis=-1), alpha


def _split_deep(image: Image.Image, data: bytes) -> tuple[Deep, UInt16[np.ndarray, "h w"] | None]:
    """The same for a 16-bit PNG, uint16; Pillow judged the file, OpenCV reads its samples."""
    if image.mode.startswith("I"):
        gray = np.asarray(image).astype(np.uint16)
        key = image.info.get("transparency")
        alpha = [] if key is None else [np.where(gray == key, 0, 65_535).astype(np.uint16)]
        planes = [gray, gray, gray, *alpha]
    else:
        samples = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        if samples is None or samples.dtype != np.uint16 or samples.ndim != 3:
            raise ImageError("damaged image: its 16-bit samples cannot be read")
        planes = [samples[..., channel] for channel in (2, 1, 0, 3)[: samples.shape[2]]]
    if turn := _TURNS.get(_orientation(image)):
        planes = [np.asarray(Image.fromarray(plane).transpose(turn)) for plane in planes]
    return np.stack(planes[:3], axis=-1), planes[3] if planes[3:] else None


def to_float(samples: UInt8[np.ndarray, "..."] | UInt16[np.ndarray, "..."]) -> Samples:
    """uint8 [0, 255] or uint16 [0, 65535] to float32 [-1, 1]."""
    values = samples.astype(np.float32)
    values /= np.float32(np.iinfo(samples.dtype).max / 2)
    values -= np.float32(1)
    return values


def to_uint8(values: Floats) -> UInt8[np.ndarray, "*b h w 3"]:
    """Float [-1, 1] to uint8 [0, 255], clamped and rounded to the nearest.

    Raises ImageError where a value is not finite, which would be black or white otherwise.
    """
    _check_finite(values)
    return np.round((np.clip(values, -1, 1) + 1) * 127.5).astype(np.uint8)


def to_uint16(values: Floats) -> UInt16[np.ndarray, "*b h w 3"]:
    """Float [-1, 1] to uint16 [0, 65535], clamped and rounded to the nearest. Raises likewise."""
    _check_finite(values)
    return np.round((np.clip(values, -1, 1) + 1) * np.float32(32767.5)).astype(np.uint16)


def _check_finite(values: Floats) -> None:
    """Raise ImageError that says how many values are NaN or infinite, if any is."""
    if bad := values.size - np.count_nonzero(np.isfinite(values)):
        raise ImageError(f"{bad} of {values.size} values are not finite")


def narrow(samples: UInt16[np.ndarray, "..."]) -> UInt8[np.ndarray, "..."]:
    """16-bit samples as 8-bit ones, rounded to the nearest (257 is odd: there are no ties)."""
    return ((samples.astype(np.uint32) + 128) // 257).astype(np.uint8)


def check_side(size: tuple[int, int], kind: str) -> None:
    """Raise ImageError where a file of `kind` cannot be as high or wide as that."""
    if max(size) > LONGEST[kind]:
        raise ImageError(f"a {kind} file has no side longer than {LONGEST[kind]} pixels")


def check_alpha(picture: Picture, kind: str) -> None:
    """Raise ImageError where a JPEG would lose transparency; opaque alpha is no loss."""
    alpha = picture.alpha
    if kind == "jpeg" and alpha is not None and alpha.min() < np.iinfo(alpha.dtype).max:
        raise ImageError("JPEG has no transparency: use --format png or webp")


def encode(picture: Picture, kind: str = "png", quality: int = 95) -> bytes:
    """File of `kind` (png, jpeg, webp) with profile and EXIF; the same picture, the same bytes.

    16-bit samples stay only in PNG. `quality` is JPEG's and WebP's; 100 makes WebP lossless. Raises
    ImageError where the format cannot hold the picture.
    """
    check_side(picture.size, kind)
    check_alpha(picture, kind)
    if kind == "png" and picture.rgb.dtype == np.uint16:
        return _encode_deep_png(picture)
    image = to_pillow(Picture(picture.rgb) if kind == "jpeg" else picture)
    options: dict[str, Any] = {
        "png": {"compress_level": 6},
        "jpeg": {"quality": quality, "subsampling": 0},
        "webp": {"quality": quality, "lossless": quality == LOSSLESS},
    }[kind]
    fits = kind != "jpeg" or len(picture.exif or b"") <= _EXIF_LIMIT
    options["exif"] = picture.exif if picture.exif and fits else b""
    buffer = io.BytesIO()
    image.save(buffer, kind, icc_profile=picture.icc, **options)
    return buffer.getvalue()


def _encode_deep_png(picture: Picture) -> bytes:
    """16-bit PNG; OpenCV writes the samples, and profile and EXIF go in behind the header."""
    planes = [picture.rgb[..., ::-1], *([] if picture.alpha is None else [picture.alpha])]
    written, samples = cv2.imencode(".png", np.dstack(planes), [cv2.IMWRITE_PNG_COMPRESSION, 6])
    if not written:
        raise ImageError("the picture cannot be written as PNG")
    extra = b""
    if picture.icc:
        extra += _chunk(b"iCCP", b"ICC Profile\0\0" + zlib.compress(picture.icc))
    if picture.exif:
        extra += _chunk(b"eXIf", picture.exif.removeprefix(_EXIF_PREFIX))
    data = samples.tobytes()
    return data[:_PNG_HEADER] + extra + data[_PNG_HEADER:]


def _chunk(name: bytes, body: bytes) -> bytes:
    """One chunk of a PNG file."""
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def encode_png(rgb: Pixels, alpha: Alpha | None = None, icc: bytes | None = None) -> bytes:
    """PNG file as bytes; the same arguments give the same bytes."""
    return encode(Picture(rgb, alpha, icc))


def write_png(
    path: str | Path, rgb: Pixels, alpha: Alpha | None = None, icc: bytes | None = None
) -> str:
    """Write a PNG so that `path` is whole or not there at all. Returns the file's SHA-256.

    Raises OSError where the folder cannot be written or is full; the old file then stands.
    """
    data = encode_png(rgb, alpha, icc)
    write_bytes(path, data)
    return hashlib.sha256(data).hexdigest()
