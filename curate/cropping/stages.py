"""The stages between a decoded picture and its crops: pure functions of pixels and boxes.

Their order and purpose are the paper's (section 3.1): blur, boxes, squares, crowds, non-maximum
suppression, crops. The paper gives no numbers, so they come from the configuration. A candidate
keeps what was computed for it when a rule drops it, and only the first reason counts.
"""

from collections.abc import Sequence
from dataclasses import replace

import cv2
import numpy as np
from jaxtyping import Float64

from curate.config import BlurConfig, BoxConfig, CurateConfig, DenseConfig, NmsConfig, SquareConfig
from curate.schema import CROP_SIDE, WHOLE_PICTURE, Box, Candidate, Pixels, Reason

BoxCorners = Float64[np.ndarray, "n 4"]
# Corners x0, y0, x1, y1 in pixels of a finished crop, half-open.
Region = tuple[int, int, int, int]
# Pixels of the shorter side at which a source's sharpness is measured. The variance of the
# Laplacian changes with size, so that one threshold needs one size.
SHORT = 512
# Pixels of the side of a tile, in which sharpness is looked for.
TILE = 32
# Percentile of the tiles' sharpness that stands for all: of a crop's person, of whom most is skin
# and cloth without an edge, and of a source, of which only a small part may be in focus.
PERSON_PERCENTILE, SOURCE_PERCENTILE = 90, 98
# Least side in pixels of the region that stands for a person: a smaller one has too few tiles.
REGION_MIN = 128


def laplacian_variance(rgb: Pixels) -> float:
    """Variance of the Laplacian of the luma (3 x 3 kernel 0 1 0, 1 -4 1, 0 1 0)."""
    # In 64-bit floats, since eight bits would cut off what is negative.
    return float(cv2.Laplacian(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), cv2.CV_64F).var())


def tile_sharpness(rgb: Pixels, percentile: float) -> float:
    """Variance of the Laplacian of the sharp tiles: a percentile of that of all whole tiles.

    A picture smaller than a tile is one tile.
    """
    laplacian = cv2.Laplacian(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), cv2.CV_64F)
    if min(laplacian.shape) < TILE:
        return float(laplacian.var())
    height, width = (n - n % TILE for n in laplacian.shape)
    tiles = laplacian[:height, :width].reshape(height // TILE, TILE, width // TILE, TILE)
    return float(np.percentile(tiles.var(axis=(1, 3)), percentile))


def crop_sharpness(crop: Pixels, region: Region, config: BlurConfig) -> float:
    """Variance of the Laplacian of a crop, or of the sharp tiles of the person's region on it."""
    if config.of == "picture":
        return laplacian_variance(crop)
    x0, y0, x1, y1 = region
    return tile_sharpness(crop[y0:y1, x0:x1], PERSON_PERCENTILE)


def person_region(
    xyxy: tuple[float, float, float, float], place: tuple[int, int, int], aspect: int, whole: bool
) -> Region:
    """Where on a finished crop its person is, in whole pixels: (x0, y0, x1, y1).

    Args:
        xyxy: the person's box in pixels of the source.
        place: x0, y0 and s of the crop's square there.
        whole: whether the box is all of the picture. Nobody said then where the person is, who is
            taken to stand in the middle half of the width.
    """
    width, height = CROP_SIDE, CROP_SIDE * aspect
    if whole:
        return width // 4, 0, width - width // 4, height
    x, y, scale = *place[:2], CROP_SIDE / place[2]
    left, right = ((v - x) * scale for v in xyxy[::2])
    top, bottom = ((v - y) * scale for v in xyxy[1::2])
    (x0, x1), (y0, y1) = _extent(left, right, width), _extent(top, bottom, height)
    return x0, y0, x1, y1


def _extent(low: float, high: float, size: int) -> tuple[int, int]:
    """The part of an interval in [0, size), widened to REGION_MIN round its middle."""
    low, high = max(low, 0.0), min(high, float(size))
    missing = max(0.0, REGION_MIN - (high - low)) / 2
    start = min(max(round(low - missing), 0), size - REGION_MIN)
    return start, max(start + REGION_MIN, min(round(high + missing), size))


def source_blur(rgb: Pixels, config: BlurConfig) -> float:
    """Variance of the Laplacian of a source, as the settings want it measured."""
    # Scaled down, never up: enlarging a small picture would blur it.
    scale = SHORT / min(rgb.shape[:2])
    if config.at == "short512" and scale < 1:
        size = [max(1, round(n * scale)) for n in rgb.shape[1::-1]]
        rgb = cv2.resize(rgb, size, interpolation=cv2.INTER_AREA)
    if config.of == "person":
        # No detector has run yet: what has nothing in focus anywhere has no sharp person.
        return tile_sharpness(rgb, SOURCE_PERCENTILE)
    return laplacian_variance(rgb)


def clip(box: Box, width: int, height: int) -> tuple[float, float, float, float]:
    """The part of a box inside the image; negative sides if there is none."""
    x0, y0, x1, y1 = box.xyxy
    return max(x0, 0.0), max(y0, 0.0), min(x1, float(width)), min(y1, float(height))


def judge_box(box: Box, width: int, height: int, config: BoxConfig) -> str:
    """Why a box is not worth a crop: box_invalid, box_small, or "" if it is."""
    # Only the part inside the image counts.
    x0, y0, x1, y1 = clip(box, width, height)
    w, h = x1 - x0, y1 - y0
    if not all(map(np.isfinite, box.xyxy)) or min(w, h) <= 1:
        return Reason.BOX_INVALID
    if max(w, h) > config.aspect_max * min(w, h):
        return Reason.BOX_INVALID
    small = max(w, h) < config.long_min or min(w, h) < config.short_min
    return Reason.BOX_SMALL if small or w * h < config.area_min * width * height else ""


def square(
    box: tuple[float, float, float, float], width: int, height: int, config: SquareConfig
) -> tuple[int, int, int, str]:
    """(x0, y0, s, reason) of the square crop around a clipped box.

    The side is the box's longer one, in whole pixels, plus the margin. The square is centred on
    the box and then shifted into the image. Where the image is too narrow for it, it is as large
    as the image allows and stands at the top of the box (heads stay). Otherwise it holds the box.
    With `config.aspect` s is the width of a crop so many times as high, for which the same holds.
    """
    # The square has to hold all pixels that the box touches.
    (x0, y0, x1, y1), aspect = box, config.aspect
    hull = max(np.ceil(x1) - np.floor(x0), np.ceil((np.ceil(y1) - np.floor(y0)) / aspect))
    # A square larger than the image would have to be padded; it is made smaller instead.
    wanted = max(int(hull), round(max(x1 - x0, (y1 - y0) / aspect) * (1 + 2 * config.margin)))
    s = max(1, min(wanted, width, height // aspect))
    h = s * aspect
    left, top = (x0 + x1 - s) / 2, (y0 + y1 - h) / 2
    # A person who does not fit loses the feet rather than the head.
    if h < y1 - y0:
        top = y0
    sx, sy = _place(left, x0, x1, s, width), _place(top, y0, y1, h, height)
    # What of the box is not in the square.
    overlap_w = min(x1, sx + s) - max(x0, sx)
    overlap_h = min(y1, sy + h) - max(y0, sy)
    lost = 1 - overlap_w * overlap_h / ((x1 - x0) * (y1 - y0))
    if lost > config.border_loss:
        return sx, sy, s, Reason.BORDER
    return sx, sy, s, Reason.CROP_SMALL if s < config.side_min else ""


def _place(start: float, low: float, high: float, s: int, size: int) -> int:
    """The whole pixel nearest to `start` from which s pixels lie inside and hold [low, high)."""
    place = int(np.floor(start + 0.5))
    # Between these bounds the square holds the whole interval.
    first, last = int(np.ceil(high)) - s, int(np.floor(low))
    if first <= last:
        place = min(max(place, first), last)
    return min(max(place, 0), size - s)


def overlaps(a: BoxCorners, b: BoxCorners) -> Float64[np.ndarray, "n m"]:
    """The area that each box of `a` has in common with each of `b`."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])  # [n, m, 2]
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])  # [n, m, 2]
    return np.prod(np.maximum(high - low, 0.0), axis=-1)


def areas(boxes: BoxCorners) -> Float64[np.ndarray, " n"]:
    """The area of each box; 0 where a side is negative."""
    return np.prod(np.maximum(boxes[:, 2:] - boxes[:, :2], 0.0), axis=-1)


def ious(a: BoxCorners, b: BoxCorners) -> Float64[np.ndarray, "n m"]:
    """Intersection over union; 0 for empty boxes."""
    common = overlaps(a, b)
    union = areas(a)[:, None] + areas(b)[None] - common
    return np.divide(common, union, out=np.zeros_like(common), where=union > 0)


def is_dense(
    at: int, xyxy: BoxCorners, persons: np.ndarray, region: BoxCorners, config: DenseConfig
) -> str:
    """Why a candidate stands in a crowd, or "" if it does not.

    Args:
        at: the place of the candidate's box among all.
        xyxy: all boxes of the image, clipped, also those that were dropped.
        persons: (n,) booleans, False for those that are "ignore".
        region: (1, 4), the candidate's square.
    """
    # Boxes that overlap this one: limbs of others would be on the crop.
    neighbours = ious(xyxy[at : at + 1], xyxy)[0]
    neighbours[at] = 0.0
    if int((neighbours >= config.overlap_iou).sum()) >= config.overlap_count:
        return "overlapping boxes"
    # People at least half inside the square.
    common, size = overlaps(region, xyxy)[0], areas(xyxy)
    inside = (common >= 0.5 * size) & (size > 0)
    if int((inside & persons).sum()) > config.inside_most:
        return "too many persons"
    # One box around a crowd that nobody has labelled person by person.
    side = float(region[0, 3] - region[0, 1])
    if (common[~persons] > config.ignore_share * areas(region)[0]).any():
        return "a crowd"
    # Mostly people far away, whose faces have too few pixels.
    longer = (xyxy[:, 2:] - xyxy[:, :2]).max(axis=1)[inside]
    if len(longer) and float(np.median(longer)) < config.median_side * side:
        return "small people"
    return ""


def centre_first_nms(
    candidates: Sequence[Candidate], width: int, height: int, config: NmsConfig
) -> list[Candidate]:
    """The candidates to keep, none of whose squares overlaps that of one before it.

    Those nearest to the image's centre come first, as in the paper; at equal distances the larger
    box, then the lower index. At most `config.most` are kept.
    """
    diagonal = float(np.hypot(width, height))

    def order(c: Candidate) -> tuple[float, float, int]:
        x0, y0, x1, y1 = clip(c.box, width, height)
        away = float(np.hypot((x0 + x1 - width) / 2, (y0 + y1 - height) / 2)) / diagonal
        return away, -(x1 - x0) * (y1 - y0), c.box_index

    # Squares are compared, not boxes: two crops must not show the same.
    kept: list[Candidate] = []
    for candidate in sorted(candidates, key=order):
        region = squares([candidate])
        near = ious(region, squares(kept)) if kept else np.zeros((1, 1))
        if len(kept) < config.most and float(near.max()) <= config.iou:
            kept.append(candidate)
    return kept


def squares(candidates: Sequence[Candidate]) -> BoxCorners:
    """The squares of candidates as corners, one row each."""
    found = [(c.x0 or 0, c.y0 or 0, c.s or 0, (c.s or 0) * c.aspect) for c in candidates]
    return np.array([(x, y, x + w, y + h) for x, y, w, h in found], np.float64).reshape(-1, 4)


def cut_square(rgb: Pixels, x0: int, y0: int, s: int, aspect: int = 1) -> Pixels:
    """The square at CROP_SIDE pixels: area filter down, Lanczos up, a copy at equal size."""
    region = np.ascontiguousarray(rgb[y0 : y0 + s * aspect, x0 : x0 + s])
    if s == CROP_SIDE:
        return region
    how = cv2.INTER_AREA if s > CROP_SIDE else cv2.INTER_LANCZOS4
    return cv2.resize(region, (CROP_SIDE, CROP_SIDE * aspect), interpolation=how)


def make_candidates(rgb: Pixels, boxes: Sequence[Box], config: CurateConfig) -> list[Candidate]:
    """A candidate for each person box, with its crop or the reason why it has none."""
    height, width = rgb.shape[:2]
    xyxy = np.array([clip(box, width, height) for box in boxes], np.float64).reshape(-1, 4)
    persons = np.array([box.kind == "person" for box in boxes], bool)
    aspect = config.square.aspect
    people = [(at, box) for at, box in enumerate(boxes) if box.kind == "person"]
    found = [Candidate(at, box, aspect=aspect) for at, box in people]
    # Rules that look at one candidate; the first that it fails gives the reason.
    for c in found:
        c.reason = judge_box(c.box, width, height, config.box)
        if not c.reason:
            region = tuple(xyxy[c.box_index].tolist())
            # A box around the whole picture has no person to lose.
            rules = (
                replace(config.square, border_loss=1.0)
                if WHOLE_PICTURE in c.box.flags
                else config.square
            )
            c.x0, c.y0, c.s, c.reason = square(region, width, height, rules)
        if not c.reason:
            place = c.box_index
            c.detail = is_dense(place, xyxy, persons, squares([c]), config.dense)
            c.reason = Reason.DENSE if c.detail else ""
    # Squares that overlap: the nearest to the centre stays.
    kept = centre_first_nms([c for c in found if not c.reason], width, height, config.nms)
    for c in found:
        if not c.reason and not any(c is other for other in kept):
            c.reason = Reason.NMS
    # Only what is left is resized, and judged once more at its final size.
    for c in kept:
        c.crop = cut_square(rgb, c.x0 or 0, c.y0 or 0, c.s or CROP_SIDE, aspect)
        place, whole = (c.x0 or 0, c.y0 or 0, c.s or CROP_SIDE), WHOLE_PICTURE in c.box.flags
        region = person_region(c.box.xyxy, place, aspect, whole)
        c.lap_crop = crop_sharpness(c.crop, region, config.blur)
        c.reason = Reason.CROP_BLUR if c.lap_crop < config.blur.crop_min else ""
    return found
