"""Image files in, arrays out, and back: the only place where photographs are decoded and encoded.

Pixels are uint8 (height, width, 3) RGB at this edge and float32 in [-1, 1] inside the package.
Formats are told by content, never by a file's name, and only PNG, JPEG and WebP are decoded; every
other parser of Pillow stays out of reach of a hostile file.
"""

import glob
import hashlib
import io
import os
import secrets
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageCms, UnidentifiedImageError

Pixels = UInt8[np.ndarray, "h w 3"]
Alpha = UInt8[np.ndarray, "h w"]
Floats = Float[np.ndarray, "*b h w 3"]

FORMATS = ("PNG", "JPEG", "WEBP")
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
MAX_PIXELS = 200_000_000  # the largest phone sensors; 600 MB once decoded

# Pillow's own guard stays on (it refuses twice this) but must not warn below our limit.
Image.MAX_IMAGE_PIXELS = MAX_PIXELS
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

_ORIENTATION_TAG = 0x0112
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

    rgb: Pixels
    alpha: Alpha | None = None
    icc: bytes | None = None  # colour profile of `rgb`; None = sRGB

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


def decode(data: bytes, max_pixels: int = MAX_PIXELS) -> Picture:
    """Picture of an encoded image, turned as its EXIF says, 16-bit samples scaled to 8.

    An RGB colour profile is kept with the pixels as they are; CMYK is converted to sRGB by its
    profile. Raises ImageError on anything that is not one whole, still picture of at most
    `max_pixels` (which may be up to 2 * MAX_PIXELS).
    """
    with _opened(io.BytesIO(data), max_pixels) as image:
        image.load()
        profile = image.info.get("icc_profile") or b""
        turn = _TURNS.get(_orientation(image))
        upright = image if turn is None else image.transpose(turn)
        rgb, alpha = _split(upright, profile)
    keep_profile = profile[16:20] == b"RGB "  # a gray or CMYK profile would be wrong for RGB pixels
    return Picture(rgb, alpha, profile if keep_profile else None)


@contextmanager
def _opened(source: io.BytesIO | io.BufferedReader, max_pixels: int) -> Iterator[Image.Image]:
    """The image with its header read and judged; whatever goes wrong inside is an ImageError."""
    if not source.read(1):
        raise ImageError("empty file")
    source.seek(0)
    try:
        with Image.open(source, formats=FORMATS) as image:
            _refuse_unfit(image, max_pixels)
            yield image
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise ImageError("not a PNG, JPEG or WebP image, or its header is damaged") from None
    except Image.DecompressionBombError:
        raise ImageError(f"more than {2 * MAX_PIXELS} pixels") from None
    except Exception as error:  # on hostile bytes Pillow's parsers raise nearly anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ImageError(f"damaged image: {reason}") from error


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


def _split(image: Image.Image, profile: bytes) -> tuple[Pixels, Alpha | None]:
    """RGB and, if the image has any transparency, alpha of an image of any mode."""
    if image.mode.startswith("I"):
        return _split_gray16(image)
    if image.mode == "CMYK":
        return np.array(_cmyk_to_srgb(image, profile)), None
    if not image.has_transparency_data:
        return np.array(image.convert("RGB")), None
    rgba = np.array(image.convert("RGBA"))
    return np.ascontiguousarray(rgba[..., :3]), np.ascontiguousarray(rgba[..., 3])


def _split_gray16(image: Image.Image) -> tuple[Pixels, Alpha | None]:
    """The same for 16-bit gray, which Pillow's own conversion would clip at 255."""
    samples = np.asarray(image).astype(np.uint32)
    gray = ((samples + 128) // 257).astype(np.uint8)  # rounds: 257 is odd, so there are no ties
    key = image.info.get("transparency")
    alpha = None if key is None else np.where(samples == key, 0, 255).astype(np.uint8)
    return np.repeat(gray[..., None], 3, axis=-1), alpha


def _cmyk_to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """By the embedded profile; without a usable one by Pillow's plain formula."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        srgb = ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(image, source, srgb, outputMode="RGB")
    except (OSError, ImageCms.PyCMSError):
        converted = None
    return converted or image.convert("RGB")


def to_float(pixels: UInt8[np.ndarray, "*b h w 3"]) -> Floats:
    """uint8 [0, 255] to float32 [-1, 1]."""
    return pixels.astype(np.float32) / np.float32(127.5) - np.float32(1)


def to_uint8(values: Floats) -> UInt8[np.ndarray, "*b h w 3"]:
    """Float [-1, 1] to uint8 [0, 255], clamped and rounded to the nearest."""
    return np.round((np.clip(values, -1, 1) + 1) * 127.5).astype(np.uint8)


def encode_png(rgb: Pixels, alpha: Alpha | None = None, icc: bytes | None = None) -> bytes:
    """PNG file as bytes; the same arguments give the same bytes."""
    channels = rgb if alpha is None else np.dstack([rgb, alpha])
    buffer = io.BytesIO()
    Image.fromarray(channels).save(buffer, "PNG", icc_profile=icc, compress_level=6)
    return buffer.getvalue()


def write_png(
    path: str | Path, rgb: Pixels, alpha: Alpha | None = None, icc: bytes | None = None
) -> str:
    """Write a PNG so that `path` is whole or not there at all. Returns the file's SHA-256.

    Raises OSError where the folder cannot be written or is full; the old file then stands.
    """
    data = encode_png(rgb, alpha, icc)
    write_file(path, data)
    return hashlib.sha256(data).hexdigest()


def write_file(path: str | Path, data: bytes) -> None:
    """Write a file so that it is whole or not there at all; an old one stands until then."""
    name = f".{secrets.token_hex(8)}.tmp"  # short: names end at 255 bytes
    temporary = Path(path).with_name(name)
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def list_images(source: str | Path) -> list[tuple[Path, Path]]:
    """(absolute path, path relative to the search's root) of each image, sorted.

    A folder gives the files below it that have an image's suffix, a file gives itself, anything
    else is a glob pattern (`**` descends) whose root is its part without wildcards. Links to
    folders are not followed. Raises OSError on a folder that cannot be read.
    """
    path = Path(os.path.abspath(source))
    if path.is_file():
        return [(path, Path(path.name))]
    root, found = (path, _walk(path)) if path.is_dir() else _expand(path)
    return sorted(((file, file.relative_to(root)) for file in found), key=lambda pair: pair[1])


def named_images(folder: str | Path) -> dict[str, Path]:
    """Files of a folder by relative path without suffix, so that a.png and a.jpg are partners.

    Raises ValueError where there is no image, or two of one name; OSError on an unreadable folder.
    """
    found: dict[str, Path] = {}
    for path, relative in list_images(folder) if Path(folder).is_dir() else []:
        name = relative.with_suffix("").as_posix()
        if name in found:
            raise ValueError(f"{folder}: {found[name].name} and {path.name} have one name")
        found[name] = path
    if not found:
        raise ValueError(f"{folder}: no folder with images")
    return found


def _walk(folder: Path) -> list[Path]:
    """Files with an image's suffix anywhere below `folder`."""

    def fail(error: OSError) -> None:
        raise error

    levels = os.walk(folder, onerror=fail)
    files = (Path(base, name) for base, _, names in levels for name in names)
    return [file for file in files if file.suffix.lower() in SUFFIXES]


def _expand(pattern: Path) -> tuple[Path, list[Path]]:
    """Root and files of a glob pattern."""
    root = next(parent for parent in pattern.parents if not glob.has_magic(str(parent)))
    matches = (Path(match) for match in glob.glob(str(pattern), recursive=True))
    return root, [match for match in matches if match.is_file()]
