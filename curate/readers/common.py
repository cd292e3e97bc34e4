"""What several formats need: their error, Flickr numbers, overlap of boxes, notes for the user."""

import math
import re
from collections import Counter

from curate.schema import Box, InputError

# The end of a static Flickr address: the photo's number, its secret, a letter for the size.
FLICKR = re.compile(r"/(\d+)_[0-9a-f]+(?:_\w+)?\.(?:jpg|jpeg|png|gif)$", re.IGNORECASE)

# How often something was met that was not understood or not used, by its words.
Notes = Counter[str]


class ReaderError(InputError):
    """Annotations that cannot be read as what they are said to be."""


def flickr_id(url: str) -> str:
    """The photo's number in a static Flickr address; empty where the address is no such one."""
    match = FLICKR.search(url or "")
    return match.group(1) if match else ""


def note_size(box: Box, notes: Notes) -> Box:
    """Gives the box back, and counts it in `notes` if it has no size.

    It goes on in spite of that, so that it ends in the manifest, as box_invalid.
    """
    x0, y0, x1, y1 = box.xyxy
    if not (math.isfinite(x0 + y0 + x1 + y1) and x1 > x0 and y1 > y0):
        notes["boxes of people without a size"] += 1
    return box


def iou(a: Box, b: Box) -> float:
    """Intersection over union of two boxes; 0 for boxes without a size."""
    ax0, ay0, ax1, ay1 = a.xyxy
    bx0, by0, bx1, by1 = b.xyxy
    common = max(0.0, min(ax1, bx1) - max(ax0, bx0)) * max(0.0, min(ay1, by1) - max(ay0, by0))
    union = (ax1 - ax0) * (ay1 - ay0) + (bx1 - bx0) * (by1 - by0) - common
    return common / union if union > 0 else 0.0
