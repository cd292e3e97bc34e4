"""Fingerprints, by which a photograph or a crop of one is recognised: digests, hashes, a thumbnail.

The crop job writes a fingerprint for every image with crops and for each of the crops. The
selection compares them (`curate.selection.split`), so that no copy of a photograph is kept twice or
stands on both sides of a split.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import UInt8

from curate.engine.parquet import Row
from curate.schema import Candidate, Pixels, SourceImage, crop_id

# Pixels of a thumbnail's side: enough to tell two scenes apart, and 4 KB an image.
THUMB_SIDE = 64
# How `stages.cut_square` resizes, as part of a crop's name: another rule makes another crop.
RESIZE_RULE = "area-lanczos4-512"


@dataclass(frozen=True)
class Fingerprint:
    """What is compared of two images to find out whether they show the same."""

    phash: int
    # The hash of the mirror image.
    mirrored: int
    # THUMB_SIDE * THUMB_SIDE gray values.
    thumb: bytes | memoryview


def fingerprint(rgb: UInt8[np.ndarray, "h w 3"]) -> Fingerprint:
    """Hashes and thumbnail of an upright image."""
    gray = cv2.cvtColor(np.ascontiguousarray(rgb), cv2.COLOR_RGB2GRAY)
    thumb = cv2.resize(gray, (THUMB_SIDE, THUMB_SIDE), interpolation=cv2.INTER_AREA)
    return Fingerprint(_phash(thumb), _phash(thumb[:, ::-1]), thumb.tobytes())


def _phash(thumb: UInt8[np.ndarray, "64 64"]) -> int:
    """The DCT hash of 64 bits: which of the 64 lowest coefficients are above their median."""
    # From 32 x 32 pixels, the usual size: noise and compression are averaged away.
    small = cv2.resize(thumb.astype(np.float32), (32, 32), interpolation=cv2.INTER_AREA)
    low = cv2.dct(small)[:8, :8].ravel()
    return int.from_bytes(np.packbits(low > np.median(low)).tobytes(), "big")


def fingerprint_rows(
    image: SourceImage, rgb: Pixels, facts: Row, kept: Iterable[Candidate]
) -> list[Row]:
    """Rows for an image and its crops, the whole image first.

    Args:
        facts: file_sha256 and pixel_sha256 of the image.
    """
    whole = fingerprint_row(image.image_id, image.flickr_id, rgb, facts)
    crops = []
    for candidate in kept:
        assert candidate.crop is not None
        pixels = {"pixel_sha256": pixels_digest(candidate.crop)}
        row = fingerprint_row(image.image_id, image.flickr_id, candidate.crop, facts | pixels)
        crops.append(row | {"crop_id": crop_id(image.image_id, candidate, RESIZE_RULE)})
    return [whole, *crops]


def fingerprint_row(name: str, flickr_id: str, rgb: Pixels, facts: Row) -> Row:
    """A row of FINGERPRINT_SCHEMA; `facts` gives file_sha256 and pixel_sha256."""
    marks = fingerprint(rgb)
    return {
        "image_id": name,
        "file_sha256": facts["file_sha256"],
        "pixel_sha256": facts["pixel_sha256"],
        "flickr_id": flickr_id,
        "pixels": rgb.shape[0] * rgb.shape[1],
        "phash": marks.phash,
        "mirrored": marks.mirrored,
        "thumb": marks.thumb,
    }


def pixels_digest(rgb: Pixels) -> str:
    """sha256 of the pixels' bytes, which is the same for lossless copies in other formats."""
    return hashlib.sha256(np.ascontiguousarray(rgb).data).hexdigest()
