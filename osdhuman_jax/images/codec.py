"""Image files in, arrays out, and back: the only place where photographs are decoded and encoded.

Pixels are uint8 (height, width, 3) RGB at this edge (uint16 where a caller asks for deep samples)
and float32 in [-1, 1] inside the package. Formats are told by content, never by a file's name, and
only those of KINDS are decoded; every other parser of Pillow stays out of reach of a hostile file.
The module is long because one idea of a picture, what is kept of it and what is refused, is
behind reading, writing and Pillow's images alike.
"""

import hashlib
import io
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, UInt8, UInt16
from PIL import Image, ImageFile

from osdhuman_jax.disk import write_bytes
from osdhuman_jax.images import exif, heif, jpeg, png, tiff
from osdhuman_jax.images.alpha import filled
from osdhuman_jax.images.exif import Density
from osdhuman_jax.images.formats import LONGEST, LOSSLESS
from osdhuman_jax.images.icc import (
    HIGH_RANGE,
    ColourError,
    bmp_profile,
    cmyk_to_srgb,
    described,
    gray_levels,
    rgb_to_srgb,
)
from osdhuman_jax.images.png import Source

Pixels = UInt8[np.ndarray, "h w 3"]
Deep = UInt16[np.ndarray, "h w 3"]
Alpha = UInt8[np.ndarray, "h w"] | UInt16[np.ndarray, "h w"]
Floats = Float[np.ndarray, "*b h w 3"]
Samples = Float32[np.ndarray, "..."]

# Every further parser of Pillow would be one more that a hostile file can reach. TIFF and HEIC have
# readers of their own.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
KINDS = "PNG, JPEG, WebP, TIFF, BMP, AVIF or HEIC"
# What has more than one picture, and why it is not taken for one.
SEVERAL: dict[str | None, str] = dict.fromkeys(("PNG", "WEBP", "AVIF"), "animated image")
SEVERAL |= {"TIFF": "several pages in one file: save the one that is meant as a file of its own"}
SEVERAL |= {"HEIF": "several pictures in one file: save the one that is meant as a file of its own"}
MAX_PIXELS = 200_000_000  # the largest phone sensors; 600 MB once decoded

# What the two libraries and formats leave no choice about.
_GRAY = ("1", "L", "I")  # how Pillow's modes of gray begin
_JPEG_ICC = 255 * 65_519  # bytes of a profile that a JPEG's segments can hold


class ImageError(ValueError):
    """A file that cannot be used as a picture; the message is one line without the file's name."""


class TooLargeError(ImageError):
    """A picture of more pixels than are allowed."""


@dataclass
class Picture:
    """A decoded photograph, upright."""

    rgb: Pixels | Deep
    alpha: Alpha | None = None
    icc: bytes | None = None  # colour profile of `rgb`; None = sRGB
    exif: bytes | None = None  # without orientation, sizes, density and thumbnail
    density: Density | None = None  # pixels per inch, across and down
    gray: bool = False  # whether its file was one of gray; the channels of `rgb` are equal then

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.rgb.shape[0], self.rgb.shape[1]


@dataclass
class Opened:
    """A file whose header was read and judged."""

    image: Image.Image  # profile, EXIF and density in its `info`, whatever they weigh
    depth: int = 8  # bits of a sample
    # Planes R, G, B (and alpha) of 16 bits, None where they cannot be read.
    deep_samples: Callable[[], list[np.ndarray] | None] = lambda: None

    def picture(self, deep: bool = False, upright: bool = True) -> Picture:
        """Its picture; 16-bit samples as they are if `deep`, turned as its EXIF says if `upright`.

        Raises whatever Pillow does on damaged pixels.
        """
        image = self.image
        # Pillow keeps 16 bits of gray alone; of colour it would drop the lower eight in silence.
        if self.depth <= 8 or image.mode.startswith(_GRAY):
            image.load()
            return _picture(image, *_split(image), deep, upright)
        planes = self.deep_samples()
        if planes is None:
            raise ImageError("damaged image: its 16-bit samples cannot be read")
        alpha = np.ascontiguousarray(planes[3]) if planes[3:] else None
        return _picture(image, np.stack(planes[:3], axis=-1), alpha, deep, upright)


def read_image(path: str | Path, max_pixels: int = MAX_PIXELS) -> Picture:
    """Decode the file at `path`. Raises ImageError, or OSError where it cannot be read."""
    return decode(Path(path).read_bytes(), max_pixels)


def read_rgb(path: str | Path) -> Pixels:
    """RGB pixels of a file, without transparency and what it hid. Raises ImageError or OSError."""
    return read_rgb_bytes(Path(path).read_bytes())


def read_srgb(path: str | Path) -> Pixels:
    """The same pixels in sRGB, by the file's profile. Raises ImageError or OSError."""
    picture = read_image(path)
    rgb = filled(picture.rgb, picture.alpha)
    converted = rgb_to_srgb(Image.fromarray(rgb), picture.icc) if picture.icc else None
    return rgb if converted is None else np.array(converted)


def read_size(path: str | Path, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Upright (height, width) from the header alone. Raises ImageError or OSError."""
    with open(path, "rb") as file:
        return _read_size(file, max_pixels)


def read_size_of(data: bytes, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """The same of an encoded image."""
    return _read_size(io.BytesIO(data), max_pixels)


def _read_size(source: Source, max_pixels: int) -> tuple[int, int]:
    with opened(source, max_pixels, header_only=True) as found:
        # EXIF turns the picture by a quarter in four of its eight orientations.
        width, height = found.image.size
        turned = exif.orientation(found.image) in exif.QUARTER_TURNED
        return (width, height) if turned else (height, width)


def read_rgb_bytes(data: bytes) -> Pixels:
    """RGB pixels of an encoded image, without transparency and what it hid. Raises ImageError."""
    picture = decode(data)
    return filled(picture.rgb, picture.alpha)


def decode(data: bytes, max_pixels: int = MAX_PIXELS, deep: bool = False) -> Picture:
    """Picture of an encoded image, turned as its EXIF says, the rest of the EXIF kept.

    16-bit samples are scaled to 8 unless they are asked for by `deep`; others stay uint8. An RGB
    colour profile is kept with the pixels as they are; CMYK is converted to sRGB by its profile.
    Raises ImageError on anything that is not one whole, still picture of at most `max_pixels`,
    MemoryError where that is too large to hold.
    """
    with opened(io.BytesIO(data), max_pixels) as found:
        return found.picture(deep)


def from_pillow(image: Image.Image) -> Picture:
    """Picture of Pillow's image, turned as its EXIF says; as `decode` gives it of a file."""
    return _picture(image, *_split(image), deep=False, upright=True)


def to_pillow(picture: Picture) -> Image.Image:
    """RGB or RGBA image of 8 bits, with profile, EXIF and density in its `info`."""
    # Pillow has no mode of colour with 16 bits.
    planes = [p for p in (picture.rgb, picture.alpha) if p is not None]
    narrowed = [narrow(p) if p.dtype == np.uint16 else p for p in planes]
    image = Image.fromarray(np.dstack(narrowed) if narrowed[1:] else narrowed[0])
    block = exif.with_density(picture.exif, picture.density if picture.exif else None)
    # In `info`, where Pillow's own savers look for it.
    image.info |= {"icc_profile": picture.icc} if picture.icc else {}
    image.info |= {"exif": block} if block else {}
    image.info |= {"dpi": picture.density} if picture.density else {}
    return image


def _picture(
    image: Image.Image, rgb: Pixels | Deep, alpha: Alpha | None, deep: bool, upright: bool
) -> Picture:
    """The picture of decoded planes and an image's `info`; gray becomes sRGB by its profile."""
    gray = image.mode.startswith(_GRAY)
    profile = described(image.info, gray)
    space = profile[16:20]
    # A profile of gray is applied here: three channels cannot carry it (ICC.1:2010, 7.2.6).
    if space == b"GRAY" and gray:
        rgb = gray_levels(profile, rgb.dtype)[rgb]
    # Upright first, so that everything behind this point knows one orientation only.
    turn = exif.TURNS[exif.orientation(image) if upright else 1]
    planes = [turn(plane) for plane in (rgb, alpha) if plane is not None]
    planes = [narrow(p) if p.dtype == np.uint16 and not deep else p for p in planes]
    rgb, *rest = (np.ascontiguousarray(plane) for plane in planes)
    # A profile of gray or CMYK would be wrong for RGB pixels.
    fits = space == b"RGB "
    icc, dense = profile if fits else None, exif.density(image)
    return Picture(rgb, rest[0] if rest else None, icc, exif.kept(image), dense, gray)


@contextmanager
def opened(source: Source, max_pixels: int, header_only: bool = False) -> Iterator[Opened]:
    """A file with its header read and judged; whatever goes wrong inside is an ImageError.

    MemoryError excepted. If `header_only`, its pixels may not be read.
    """
    if not source.read(1):
        raise ImageError("empty file")
    source.seek(0)
    # A PNG is taken apart first: its pixels go to the decoder, the rest is read under bounds.
    try:
        parts = None
        if source.read(len(png.SIGNATURE)) == png.SIGNATURE:
            parts = png.take_apart(source, header_only)
            source = io.BytesIO(parts.bare)
        with _identified(source) as image:
            # Judged by the header, before a pixel is decoded.
            _refuse_unfit(image, max_pixels)
            _complete(image, parts, source)
            whole = source if header_only else _with_its_end(source, image)
            with image if whole is source else _identified(whole) as found:
                yield _judged(found, parts, source)
    except (ImageError, MemoryError):
        raise
    except ColourError as error:
        raise ImageError(str(error)) from error
    # On hostile bytes Pillow's parsers raise nearly anything.
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ImageError(f"damaged image: {reason}") from error


def _identified(source: Source) -> ImageFile.ImageFile:
    """Image.open without its guard: that one's limit is the process's, ours is an argument."""
    # Plugins are registered by the first call alone.
    Image.init()
    source.seek(0)
    prefix = source.read(heif.BRANDS)
    source.seek(0)
    for accept, factory in _readers():
        if accept(prefix):
            try:
                return factory(source)
            # How Pillow's readers say that a file is not theirs.
            except (SyntaxError, IndexError, TypeError, struct.error):
                break
            except ImportError as error:
                raise ImageError(str(error)) from error
    raise ImageError(f"not a {KINDS} image, or its header is damaged")


def _readers() -> Iterator[tuple[Callable[[bytes], object], Callable[[Source], Any]]]:
    """For each format: whether a file's first bytes are its own, and what opens such a file."""
    for name in FORMATS:
        factory, accept = Image.OPEN[name]
        yield accept or bool, lambda source, make=factory: make(source, "")
    yield lambda prefix: prefix.startswith(tiff.SIGNATURES), lambda source: tiff.StoredTiff(source)
    yield lambda prefix: heif.kind(prefix) == "AVIF", heif.avif_file
    yield lambda prefix: heif.kind(prefix) == "HEIF", heif.image_file


def _refuse_unfit(image: Image.Image, max_pixels: int) -> None:
    """Raise ImageError by the header alone, before any pixel is decoded."""
    width, height = image.size
    if width * height > max_pixels:
        raise TooLargeError(f"{width} x {height} is more than {max_pixels} pixels")
    # A JPEG may carry further pictures (depth or gain map, second eye) behind the photograph.
    reason = SEVERAL.get(image.format)
    if reason and getattr(image, "is_animated", False):
        raise ImageError(reason)


def _complete(image: Image.Image, parts: png.Parts | None, source: Source) -> None:
    """Add to `info` what Pillow does not see of a file, or sees otherwise than its pixels."""
    if image.format in ("AVIF", "HEIF"):
        # A profile says more than numbers, but of a brightness that it does not know.
        source.seek(0)
        cicp = heif.cicp(source.read())
        if cicp and (cicp[1] in HIGH_RANGE or not image.info.get("icc_profile")):
            image.info["cicp"] = cicp
    if image.format == "BMP":
        source.seek(0)
        data = source.read()
        image.info |= {"icc_profile": profile} if (profile := bmp_profile(data)) else {}
    if parts is None:
        return
    # It is required (PNG, 11.2.2): without it nobody knows what the indices mean.
    if parts.colour == 3 and not parts.palette:
        raise ImageError("damaged image: its palette is missing")
    image.info |= parts.info
    key = image.info.get("transparency")
    if isinstance(key, int) and parts.colour == 0 and parts.depth in (2, 4):
        # Samples are spread over eight bits; the transparent one is so only of one bit
        image.info["transparency"] = key * 255 // (2**parts.depth - 1)


def _judged(image: Image.Image, parts: png.Parts | None, source: Source) -> Opened:
    """The file with what reads its samples of more than eight bits. Raises ImageError."""
    if parts:
        return Opened(image, parts.depth, partial(png.deep_samples, parts))
    if isinstance(image, tiff.StoredTiff):
        try:
            bits = tiff.depth(image)
        except ValueError as error:
            raise ImageError(str(error)) from error
        return Opened(image, bits, partial(tiff.deep_samples, image, source))
    # In a HEIC they are ten or twelve, spread over sixteen; Pillow's AVIF has eight.
    deep = image.format == "HEIF" and image.info.get("bit_depth", 8) > 8
    return Opened(image, 16 if deep else 8, partial(heif.deep_samples, source))


def _with_its_end(source: Source, image: Image.Image) -> Source:
    """The file, or a copy with the end marker if that is all that a JPEG lacks; else ImageError."""
    if image.format not in ("JPEG", "MPO"):
        return source
    source.seek(0)
    data = source.read()
    # A camera that lost power, or a copy that was cut: told apart by decoding.
    whole = jpeg.mended(data)
    if whole is None:
        raise ImageError("damaged image: truncated before its last pixel")
    return source if whole is data else io.BytesIO(whole)


def _split(image: Image.Image) -> tuple[Pixels | Deep, Alpha | None]:
    """RGB and, if the image has any transparency, alpha of an image of any mode, as stored."""
    key = image.info.get("transparency")
    if image.mode.startswith("I") or (image.mode in ("1", "L") and isinstance(key, int)):
        return _split_gray(image, key)
    # Print colours: pixels of RGB have no place for their profile, so it is used up here.
    if image.mode == "CMYK":
        return np.array(cmyk_to_srgb(image, image.info.get("icc_profile") or b"")), None
    # Palettes and gray become RGB by Pillow, which knows their tables.
    if not image.has_transparency_data:
        return np.array(image.convert("RGB")), None
    rgba = np.array(image.convert("RGBA"))
    return np.ascontiguousarray(rgba[..., :3]), np.ascontiguousarray(rgba[..., 3])


def _split_gray(image: Image.Image, key: int | None) -> tuple[Pixels | Deep, Alpha | None]:
    """RGB and alpha of gray with a transparent level, or of 16 bits, which Pillow clips at 255."""
    # Bits of one become bytes of 255; the rest keeps its own range.
    kind = np.uint16 if image.mode.startswith("I") else np.uint8
    samples = np.asarray(image).astype(kind) * kind(255 if image.mode == "1" else 1)
    rgb = np.repeat(samples[..., None], 3, axis=-1)
    if key is None:
        return rgb, None
    return rgb, np.where(samples == key, 0, np.iinfo(kind).max).astype(kind)


def to_float(samples: UInt8[np.ndarray, "..."] | UInt16[np.ndarray, "..."]) -> Samples:
    """uint8 [0, 255] or uint16 [0, 65535] to float32 [-1, 1]."""
    # In place: a picture of 200 megapixels is 2.4 GB as floats, once.
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
    """File of `kind` (png, jpeg, webp) with profile, EXIF and density; repeats bit for bit.

    16-bit samples stay only in PNG, EXIF not in a JPEG whose segment it exceeds. `quality` is
    JPEG's and WebP's; 100 makes WebP lossless. Raises ImageError where the format cannot hold the
    picture.
    """
    check_side(picture.size, kind)
    check_alpha(picture, kind)
    block = exif.with_density(picture.exif, picture.density if picture.exif else None)
    # PNG: the chunks are written here, for Pillow writes neither 16 bits nor the same bytes always.
    if kind == "png":
        data = _png_pixels(picture)
        return png.with_chunks(data, picture.icc, block, picture.density)
    # JPEG and WebP: by Pillow, with what each can hold.
    image = _image(replace(picture, alpha=None) if kind == "jpeg" else picture, kind)
    options: dict[str, object] = {
        "quality": quality,
        "icc_profile": picture.icc,
        "exif": block or b"",
    }
    # WebP has no other place for density than EXIF.
    if kind == "webp":
        options["exif"] = exif.with_density(picture.exif, picture.density) or b""
        options["lossless"] = quality == LOSSLESS
    else:
        if len(picture.icc or b"") > _JPEG_ICC:
            raise ImageError("the colour profile is too large for JPEG: use --format png or webp")
        fits = picture.density and max(picture.density) <= exif.JFIF_MOST
        options |= {"subsampling": 0} | ({"dpi": picture.density} if fits else {})
        options["exif"] = block if block and len(block) <= exif.LIMIT else b""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _image(picture: Picture, kind: str) -> Image.Image:
    """The pixels alone, of 8 bits, for a file of `kind`; gray where such a file can be."""
    image = to_pillow(Picture(picture.rgb, picture.alpha))
    # A gray photograph stays a gray file, where the format has such and no profile needs RGB.
    if picture.gray and picture.icc is None and kind != "webp":
        return image.convert("L" if picture.alpha is None else "LA")
    return image


def _png_pixels(picture: Picture) -> bytes:
    """A PNG of nothing but the pixels."""
    # Eight bits by Pillow, which writes gray and transparency as they are.
    if picture.rgb.dtype == np.uint8:
        buffer = io.BytesIO()
        _image(picture, "png").save(buffer, "png", compress_level=6)
        return buffer.getvalue()
    # Sixteen bits by OpenCV, plane by plane.
    planes = [picture.rgb[..., channel] for channel in range(3)]
    if picture.alpha is not None:
        planes.append(picture.alpha)
    elif picture.gray and picture.icc is None:
        planes = planes[:1]
    data = png.encode_deep(planes)
    if data is None:
        raise ImageError("the picture cannot be written as PNG")
    return data


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
