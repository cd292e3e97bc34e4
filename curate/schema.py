"""What the stages hand to each other: source images, their boxes, candidates, reasons.

Every room of `curate` imports this module, and it imports none of them. Every source image and
every candidate box ends in the manifest exactly once, either kept or with one reason of a closed
list. Boxes are xyxy in pixels of the upright image, counted from 0, without their right and lower
ends (half-open).
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal, TypeAlias

import numpy as np
from jaxtyping import Float64, UInt8

Pixels = UInt8[np.ndarray, "h w 3"]
CropBatch = UInt8[np.ndarray, "n h w 3"]
BoxKind = Literal["person", "ignore"]
BoxPolicy = Literal["labels", "detect", "whole_image"]
# Of which pixels labels are, where a source says it (see `SourceImage.exif`).
ExifPolicy = Literal["", "stored", "upright", "ignore"]
# One number for each crop of a pool or of a batch.
Column = Float64[np.ndarray, " n"]
# A value of a JSON text or of a Parquet row whose type only the file knows. Code that takes one out
# of a file that a person gave has to expect TypeError and KeyError.
Json: TypeAlias = Any
# What a job or a metric says about itself: values that can be written as JSON.
Facts = dict[str, Json]

# Raised when the manifest's columns change their meaning; written into the manifest's files.
MANIFEST_VERSION = 1
# Pixels of a crop's side (section 3.1 of the paper), or of its width where it is an upright one.
CROP_SIDE = 512
# The flag of a box that is all of the picture. Its square may lose whatever part of it must go.
WHOLE_PICTURE = "whole"
# The beginning of the flag of a box whose label has keypoints: names of the visible ones follow.
SEES = "sees "


class InputError(ValueError):
    """What a person gave is at fault. The message is one line: what is wrong, where, what to do."""


class Reason(StrEnum):
    """Why an image or a candidate is not in the set.

    BELOW_THRESHOLD and STAGE_ERROR are followed by a colon and a detail: the metric that failed,
    the type of the exception.
    """

    # The picture as a file, and as a whole.
    MISSING_FILE = "missing_file"
    CORRUPT = "corrupt"
    TOO_LARGE = "too_large"
    SIZE_MISMATCH = "size_mismatch"
    GRAYSCALE = "grayscale"
    ALPHA = "alpha"
    NO_PERSON = "no_person"
    BLUR = "blur"
    # A box, its square and its crop.
    BOX_SMALL = "box_small"
    BOX_INVALID = "box_invalid"
    CROP_SMALL = "crop_small"
    BORDER = "border"
    DENSE = "dense"
    NMS = "nms"
    CROP_BLUR = "crop_blur"
    # The crop shows no head and shoulders, or too little of them.
    NO_BODY = "no_body"
    # Scores and ranks. UNRANKED: Eq. 1 cannot be computed over this pool.
    NAN_SCORE = "nan_score"
    UNRANKED = "unranked"
    NOT_TOP_THIRD = "not_top_third"
    BELOW_THRESHOLD = "below_threshold"
    # The crop's source has select.source_most better ones.
    SOURCE_CAP = "source_cap"
    # Copies, other sets, licences that --license_allow does not name, a person's decision.
    DUP_EXACT = "dup_exact"
    DUP_NEAR = "dup_near"
    SPLIT_CONFLICT = "split_conflict"
    LICENSE = "license"
    REVIEW = "review"
    # Only where a test set is made: the crop is fit for it, but was not drawn.
    NOT_SAMPLED = "not_sampled"
    # The process died or an exception was raised while the image or the crop was worked on.
    DECODER_CRASH = "decoder_crash"
    STAGE_ERROR = "stage_error"


# Reasons that a person's decision to keep the crop outweighs: those that come from its rank.
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
    # Some of crowd, group, depiction, difficult, truncated, occluded and others of one format.
    flags: tuple[str, ...] = ()
    # The detector's confidence; 1 for a labelled box.
    score: float = 1.0


@dataclass(frozen=True)
class SourceImage:
    """One picture of a source, as its labels describe it, before anything is decoded.

    `policy` says where boxes come from: "labels" (the `boxes` here), "detect" (a detector finds
    them) or "whole_image" (one box around everything).
    """

    # Dataset/split/key, which is unique over all sources.
    image_id: str
    dataset: str
    # Of the file, spelled as osdhuman_jax.filenames does.
    path: str
    split_of_source: str = ""
    # The size in pixels that the labels state; 0 where they state none.
    label_w: int = 0
    label_h: int = 0
    # Whether boxes are shares of width and height rather than pixels.
    normalized: bool = False
    # Degrees counterclockwise by which image and boxes are to be turned (Open Images).
    rotation: int = 0
    boxes: tuple[Box, ...] = ()
    policy: BoxPolicy = "labels"
    # "stored": the labels were drawn on the file's pixels as they are stored; "upright": after
    # EXIF's turn; "ignore": EXIF is wrong and the stored pixels are upright. "" = not said: the
    # labels' size tells, and where both would fit it is "stored".
    exif: ExifPolicy = ""
    flickr_id: str = ""
    # As the source states it; empty where it is unknown.
    license: str = ""


@dataclass
class Candidate:
    """One person box on its way to a crop; what is unknown is None."""

    box_index: int
    box: Box
    # Empty as long as no rule has dropped the candidate.
    reason: str = ""
    detail: str = ""
    # The square: its corner and side in pixels of the upright image.
    x0: int | None = None
    y0: int | None = None
    s: int | None = None
    # Height over width: 1 of a square.
    aspect: int = 1
    lap_crop: float | None = None
    # The square resized to CROP_SIDE, as many times as high as `aspect` says.
    crop: Pixels | None = field(default=None, repr=False)


def crop_id(image_id: str, candidate: Candidate, rule: str) -> str:
    """Name of a crop: the same square of the same image by the same resize rule has one name."""
    c = candidate
    place = (image_id, c.x0 or 0, c.y0 or 0, c.s or 0, rule)
    # Squares have the names that they had before there was anything else.
    text = "|".join(map(str, place if c.aspect == 1 else (*place, c.aspect)))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def sorted_counts(names: Iterable[str]) -> dict[str, int]:
    """How often each name occurs, sorted by name."""
    found: dict[str, int] = {}
    for name in names:
        found[name] = found.get(name, 0) + 1
    return dict(sorted(found.items()))
