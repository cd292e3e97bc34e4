"""Files to pixels, with boxes that lie on them: strict, and with one reason for each refusal.

A `SourceImage` goes in; a `DecodedPicture` in upright sRGB comes out, or `Refused` is raised. Files
are those that osdhuman_jax.images reads. Damaged, gray and transparent ones, and those deeper than
eight bits, are refused.

EXIF may say that a file is to be turned. Its labels then refer either to the stored pixels or to
the upright picture: the source says which, or else the size that the labels state. The picture is
turned upright in any case, and its boxes with it if they were drawn before the turn.
"""

import hashlib
import io
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from curate.config import DecodeConfig
from curate.schema import Box, Pixels, Reason, SourceImage
from osdhuman_jax.filenames import unspelled_path
from osdhuman_jax.images import exif
from osdhuman_jax.images.codec import ImageError, Opened, TooLargeError, opened
from osdhuman_jax.images.icc import rgb_to_srgb

# Labels drawn on a copy of another size are scaled if its aspect differs by no more than this.
ASPECT_TOLERANCE = 0.01
# Levels between channels that a gray photograph stays below.
GRAY_SPREAD = 4


class Refused(ValueError):
    """A picture that is not used: a reason code and one line."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class DecodedPicture:
    """A decoded photograph and its boxes in its own pixels."""

    rgb: Pixels
    boxes: tuple[Box, ...]
    # The EXIF orientation that was applied; 1 = none.
    orientation: int
    # Some of exif, rotated, scaled_boxes, icc, cmyk, palette.
    flags: tuple[str, ...]
    file_sha256: str


def decode_source(image: SourceImage, config: DecodeConfig) -> DecodedPicture:
    """Decode a source image. Raises Refused."""
    # The digest is of the file, so that placeholders are known without decoding them.
    data = read_file(unspelled_path(image.path))
    digest = hashlib.sha256(data).hexdigest()
    if digest in config.blocked:
        raise Refused(Reason.CORRUPT, "placeholder of a photo that is gone")
    # Pillow warns of odd files; here they are either decoded or refused with a reason.
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            rgb, orientation, flags = _pixels(data, config.max_pixels)
    except TooLargeError as error:
        raise Refused(Reason.TOO_LARGE, str(error)) from None
    except (ImageError, MemoryError) as error:
        raise Refused(Reason.CORRUPT, (str(error) or type(error).__name__)[:200]) from None
    return orient(refuse_gray(rgb), image, orientation, flags, digest)


def read_file(path: Path) -> bytes:
    """The file's bytes. Raises Refused where there is no such file or nothing in it."""
    try:
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise Refused(Reason.MISSING_FILE, path.name) from None
    if not data:
        raise Refused(Reason.CORRUPT, "empty file")
    return data


def _pixels(data: bytes, max_pixels: int) -> tuple[Pixels, int, list[str]]:
    """Stored pixels in sRGB, the EXIF orientation, flags. Raises Refused or ImageError."""
    with opened(io.BytesIO(data), max_pixels) as found:
        # What is refused by its header alone is not decoded. Refused is raised after this block,
        # inside which every exception becomes an ImageError.
        refused = _refusal(found)
        picture = None if refused else found.picture(upright=False)
        orientation, mode = exif.orientation(found.image), found.image.mode
    if picture is None or refused:
        raise refused or Refused(Reason.CORRUPT)
    if picture.alpha is not None and picture.alpha.min() < 255:
        raise Refused(Reason.ALPHA, "transparent pixels")
    # Pixels with a colour profile are converted to sRGB, which the rest of the pipeline assumes.
    flags = {"CMYK": ["cmyk"], "P": ["palette"]}.get(mode, [])
    converted = rgb_to_srgb(Image.fromarray(picture.rgb), picture.icc) if picture.icc else None
    if converted is None:
        return picture.rgb, orientation, flags
    return np.array(converted), orientation, [*flags, "icc"]


def _refusal(found: Opened) -> Refused | None:
    """Why a picture is not used, as far as its header tells."""
    if found.depth > 8:
        return Refused(Reason.CORRUPT, f"{found.depth} bits a channel")
    if found.image.mode in ("1", "L", "LA", "La"):
        return Refused(Reason.GRAYSCALE, f"mode {found.image.mode}")
    return None


def refuse_gray(rgb: Pixels) -> Pixels:
    """Gives the picture back. Raises Refused if it is gray, judged on a thumbnail of 64 pixels."""
    # A percentile in place of the maximum: a coloured date stamp does not make a gray scan colour.
    step = max(1, max(rgb.shape[:2]) // 64)
    small = rgb[::step, ::step].astype(np.int16)
    spread = np.abs(small[..., :2] - small[..., 1:]).max(axis=-1)
    if np.percentile(spread, 99.5) <= GRAY_SPREAD:
        raise Refused(Reason.GRAYSCALE, "channels are equal")
    return rgb


# The EXIF orientation that turns a picture by so many degrees counterclockwise.
QUARTERS = {90: 8, 180: 3, 270: 6}


def turn_point(
    point: tuple[float, float], orientation: int, width: int, height: int
) -> tuple[float, float]:
    """Where a point of a (width, height) picture lies after an EXIF turn."""
    # Orientations from 5 on swap the axes, after a mirroring of one, of both or of none.
    x, y = point
    if orientation in (2, 3, 7, 8):
        x = width - x
    if orientation in (3, 4, 6, 7):
        y = height - y
    return (y, x) if orientation >= 5 else (x, y)


def turn_box(box: Box, orientation: int, width: int, height: int) -> Box:
    """The box after an EXIF turn of its (width, height) picture."""
    # A turn can make the left upper corner any of the four, so that corners are sorted anew.
    x0, y0, x1, y1 = box.xyxy
    (ax, ay), (bx, by) = (turn_point(p, orientation, width, height) for p in ((x0, y0), (x1, y1)))
    return replace(box, xyxy=(min(ax, bx), min(ay, by), max(ax, bx), max(ay, by)))


def orient(
    rgb: Pixels, image: SourceImage, orientation: int, flags: list[str], digest: str
) -> DecodedPicture:
    """Turn pixels and boxes upright.

    The turn is EXIF's or, where Open Images states one for the picture, that one. Raises Refused if
    no turn fits the labels.
    """
    height, width = rgb.shape[:2]
    # Open Images' rotation is of the stored pixels: EXIF's besides would turn them twice.
    turn = 1 if image.exif == "ignore" or image.rotation % 360 else orientation
    boxes = image.boxes
    if image.policy == "labels":
        upright, scale = _match(image, width, height, orientation)
        if image.normalized:
            # Shares become pixels of the picture that they were drawn on.
            sides = _turned_size(width, height, orientation) if upright else (width, height)
            boxes = tuple(_scale_box(box, *sides) for box in boxes)
        elif scale != (1.0, 1.0):
            flags = [*flags, "scaled_boxes"]
            boxes = tuple(_scale_box(box, *scale) for box in boxes)
        if upright:
            turn = orientation
        else:
            boxes = tuple(turn_box(box, turn, width, height) for box in boxes)
    rgb = exif.TURNS[turn](rgb)
    if image.rotation % 360:
        boxes, rgb = _rotate(boxes, rgb, image.rotation % 360)
        flags = [*flags, "rotated"]
    flags = [*flags, "exif"] if turn != 1 else flags
    return DecodedPicture(np.ascontiguousarray(rgb), boxes, turn, tuple(flags), digest)


def _turned_size(width: int, height: int, orientation: int) -> tuple[int, int]:
    """Width and height after an EXIF turn."""
    return (height, width) if orientation in exif.QUARTER_TURNED else (width, height)


def _match(
    image: SourceImage, width: int, height: int, orientation: int
) -> tuple[bool, tuple[float, float]]:
    """Whether labels were drawn on the upright picture, and the scale from them to its pixels.

    Raises Refused if their size is that of neither.
    """
    frames = {False: (width, height), True: _turned_size(width, height, orientation)}
    if image.exif:
        said = image.exif == "upright"
        frames = {said: frames[said]}
    stated = (image.label_w, image.label_h)
    if not all(stated):
        return next(iter(frames)), (1.0, 1.0)
    for upright, size in frames.items():
        if stated == size:
            return upright, (1.0, 1.0)
    # No turn gives the very size: the labels may be of a copy of another size.
    for upright, (w, h) in frames.items():
        across, down = w / stated[0], h / stated[1]
        if abs(across / down - 1) <= ASPECT_TOLERANCE:
            return upright, (across, down)
    raise Refused(Reason.SIZE_MISMATCH, f"labels {stated}, file {(width, height)}")


def _scale_box(box: Box, across: float, down: float) -> Box:
    x0, y0, x1, y1 = box.xyxy
    return replace(box, xyxy=(x0 * across, y0 * down, x1 * across, y1 * down))


def _rotate(boxes: tuple[Box, ...], rgb: Pixels, degrees: int) -> tuple[tuple[Box, ...], Pixels]:
    """Boxes and pixels turned counterclockwise. Raises Refused unless it is by quarter turns."""
    if degrees not in QUARTERS:
        raise Refused(Reason.SIZE_MISMATCH, f"rotation by {degrees} degrees")
    height, width = rgb.shape[:2]
    turn = QUARTERS[degrees]
    return tuple(turn_box(box, turn, width, height) for box in boxes), exif.TURNS[turn](rgb)
