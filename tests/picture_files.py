"""Pictures as files: noise and photographs, encoded with profiles and EXIF, and hostile ones."""

import io
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageCms
from skimage.data import astronaut

from osdhuman_jax.images.png import SIGNATURE, chunk

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def noise(height: int = 12, width: int = 16, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def photo(side: int = 64) -> np.ndarray:
    return cv2.resize(astronaut(), (side, side), interpolation=cv2.INTER_AREA)


def black_folder(folder: Path, size: tuple[int, int]) -> Path:
    """A folder of two black pictures, a.jpg and b/c.png."""
    (folder / "b").mkdir(parents=True)
    for name in ("a.jpg", "b/c.png"):
        Image.fromarray(np.zeros((*size, 3), np.uint8)).save(folder / name)
    return folder


def encoded(pixels: np.ndarray | Image.Image, kind: str = "PNG", **options) -> bytes:
    """What Pillow writes of it."""
    image = Image.fromarray(pixels) if isinstance(pixels, np.ndarray) else pixels
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def exif(turn: int = 0, maker: str = "", width: int = 0) -> Image.Exif:
    """A block with an orientation, a camera's maker and the width that it says, where given."""
    block = Image.Exif()
    for tag, value in ((0x0112, turn), (0x010F, maker)):
        if value:
            block[tag] = value
    if width:
        block.get_ifd(0x8769)[0xA002] = width
    return block


def with_chunks(png: bytes, *chunks: bytes) -> bytes:
    """A PNG with more chunks behind its header."""
    return png[:33] + b"".join(chunks) + png[33:]


def bomb(width: int = 60_000, height: int = 60_000) -> bytes:
    """A small PNG that declares a huge size."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(bytes(50_000)))]
    return SIGNATURE + b"".join([*chunks, chunk(b"IEND", b"")])
