"""What the stages hand to each other: source images, their boxes, candidates, reasons.

Every source image and every candidate box ends in the manifest once, either kept or with one
reason of a closed list. Boxes are 0-based, half-open xyxy in pixels of the upright image.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

import numpy as np
from jaxtyping import Float64, UInt8

Pixels = UInt8[np.ndarray, "h w 3"]
CropBatch = UInt8[np.ndarray, "n h w 3"]
BoxKind = Literal["person", "ignore"]
BoxPolicy = Literal["labels", "detect", "whole_image"]
Column = Float64[np.ndarray, " n"]  # a number for each crop

MANIFEST_VERSION = 1  # of the manifest's columns
CROP_SIDE = 512  # pixels of a crop
WHOLE_PICTURE = (
    "whole"  # flag of a box that is all of the picture: its square may lose what it must
)


class InputError(ValueError):
    """What a person gave is at fault: one line that says what, where, what to do."""


class Reason(StrEnum):
    """Why an image or a candidate is not in the set. Some are followed by ":detail"."""

    MISSING_FILE = "missing_file"
    CORRUPT = "corrupt"
    TOO_LARGE = "too_large"
    SIZE_MISMATCH = "size_mismatch"
    GRAYSCALE = "grayscale"
    ALPHA = "alpha"
    NO_PERSON = "no_person"
    BLUR = "blur"
    BOX_SMALL = "box_small"
    BOX_INVALID = "box_invalid"
    CROP_SMALL = "crop_small"
    BORDER = "border"
    DENSE = "dense"
    NMS = "nms"
    CROP_BLUR = "crop_blur"
    NAN_SCORE = "nan_score"
    UNRANKED = "unranked"  # Eq. 1 cannot be computed over this pool
    NOT_TOP_THIRD = "not_top_third"
    BELOW_THRESHOLD = "below_threshold"  # :metric
    SOURCE_CAP = "source_cap"  # its source has select.source_most better ones
    DUP_EXACT = "dup_exact"
    DUP_NEAR = "dup_near"
    SPLIT_CONFLICT = "split_conflict"
    LICENSE = "license"  # not in --license_allow
    REVIEW = "review"  # rejected by hand
    NOT_SAMPLED = "not_sampled"  # test profile: fit, but not drawn
    DECODER_CRASH = "decoder_crash"
    STAGE_ERROR = "stage_error"  # :type


# What a review by hand outweighs.
RANKED = (Reason.NOT_TOP_THIRD, Reason.BELOW_THRESHOLD, Reason.SOURCE_CAP)


def is_reason(text: str) -> bool:
    """Whether `text` is a reason code, with or without its detail."""
    return text.split(":")[0] in set(Reason)


@dataclass(frozen=True)
class Box:
    """A labelled or detected region.

    `kind` is "person" (may become a crop) or "ignore" (crowds, depictions: never a crop, but
    counted as neighbours).
    """

    xyxy: tuple[float, float, float, float]
    kind: BoxKind = "person"
    raw_label: str = "person"
    flags: tuple[str, ...] = ()  # crowd group depiction difficult truncated occluded ...
    score: float = 1.0  # the detector's; 1 = labelled


@dataclass(frozen=True)
class SourceImage:
    """One picture of a source, as its labels describe it, before anything is decoded.

    `policy` says where boxes come from: "labels" (the `boxes` here, and the pixels are those the
    labels were drawn on), "detect" (a detector's) or "whole_image" (one box: all of it).
    """

    image_id: str  # dataset/split/key: unique over all sources
    dataset: str
    path: str  # of the file, spelled (see osdhuman_jax.filenames)
    split_of_source: str = ""
    label_w: int = 0  # size that the labels state; 0 = unknown
    label_h: int = 0
    normalized: bool = False  # boxes are shares of width and height
    rotation: int = 0  # degrees counterclockwise to turn image and boxes (Open Images)
    boxes: tuple[Box, ...] = ()
    policy: BoxPolicy = "labels"
    flickr_id: str = ""
    license: str = ""  # as the source states it; empty = unknown


@dataclass
class Candidate:
    """One person box on its way to a crop; what is unknown is None."""

    box_index: int
    box: Box
    reason: str = ""  # empty = not dropped
    detail: str = ""
    x0: int | None = None  # the square, in pixels of the upright image
    y0: int | None = None
    s: int | None = None
    lap_crop: float | None = None
    persons: int | None = None  # labelled persons on the crop
    crop: Pixels | None = field(default=None, repr=False)  # SIDE x SIDE


def crop_id(image_id: str, x0: int, y0: int, s: int, rule: str) -> str:
    """Name of a crop: the same square of the same image by the same resize rule, everywhere."""
    text = "|".join(map(str, (image_id, x0, y0, s, rule)))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def sorted_counts(reasons: Iterable[str]) -> dict[str, int]:
    """How often each reason occurs, sorted by name; details merged for all but thresholds."""
    found: dict[str, int] = {}
    for reason in reasons:
        found[reason] = found.get(reason, 0) + 1
    return dict(sorted(found.items()))
