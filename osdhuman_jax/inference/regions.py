"""Where a picture is restored: by a mask of a person's own, or where people are.

A mask is gray, of the picture's size: white is restored, black stays, gray is a mixture. Where it
is black the output is the input, bit for bit; where the picture is enlarged, its plain enlargement.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Float32, UInt8, UInt16
from PIL import Image

from osdhuman_jax.data.sources import DataError
from osdhuman_jax.filenames import spelled
from osdhuman_jax.images.codec import ImageError, Picture, from_pillow, narrow, read_image
from osdhuman_jax.inference.colour import bands

Mask = Float32[np.ndarray, "h w"]  # 1 where the picture is restored, 0 where it stays
Rgb = UInt8[np.ndarray, "h w 3"] | UInt16[np.ndarray, "h w 3"]
People = Callable[[UInt8[np.ndarray, "h w 3"]], Mask]

SOFT = 1 / 100  # of the shorter side: how far beyond people a mask fades
SOURCES = "blazepose, blazepose:FILE or onnx:FILE,MAP.json"


def mixed(under: Rgb, over: Rgb, mask: Mask) -> Rgb:
    """`over` where the mask is 1, `under` where it is 0, bit for bit; both of one type."""
    result = under.copy()
    # In bands of rows, so that a large picture is not held a second time as floats.
    for rows in bands(under.shape):
        part = mask[rows]
        if part.any():
            share, low = part[..., None], under[rows].astype(np.float32)
            values = np.rint(low + (over[rows].astype(np.float32) - low) * share)
            result[rows] = np.where(share == 0, under[rows], values.astype(under.dtype))
    return result


def restored_within(source: Picture, restored: Picture, mask: Mask) -> Picture:
    """The restored picture within a mask of any size, the source's pixels outside."""
    height, width = source.size
    if mask.shape != source.size:
        mask = cv2.resize(mask, (width, height), interpolation=cv2.INTER_LINEAR)
    return replace(restored, rgb=mixed(source.rgb, restored.rgb, mask))


def read_mask(mask: Path | Image.Image | np.ndarray) -> Mask:
    """A mask of a file, a Pillow image or an array (h, w) of uint8 or bool.

    What is transparent counts as black. Raises DataError or OSError.
    """
    if isinstance(mask, np.ndarray):
        if mask.ndim != 2 or not mask.size or mask.dtype not in (np.uint8, np.bool_):
            text = f"{mask.dtype} of {mask.shape}"
            raise DataError(f"a mask must be uint8 or bool of shape (height, width), not {text}")
        return mask.astype(np.float32) / (1 if mask.dtype == np.bool_ else 255)
    try:
        picture = from_pillow(mask) if isinstance(mask, Image.Image) else read_image(mask)
    except ImageError as error:
        name = "mask" if isinstance(mask, Image.Image) else spelled(mask)
        raise DataError(f"{name}: {error}") from None
    rgb = narrow(picture.rgb) if picture.rgb.dtype == np.uint16 else picture.rgb
    luma = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY).astype(np.float32) / 255
    if picture.alpha is None:
        return luma
    # A brush's strokes on nothing are such a picture.
    return luma * (picture.alpha.astype(np.float32) / np.iinfo(picture.alpha.dtype).max)


def open_people(source: str) -> People:
    """What tells people from the rest, as a mask that fades around them. Raises ValueError."""
    kind, colon, rest = source.partition(":")
    files = [Path(file) for file in rest.split(",") if file]
    if kind == "blazepose" and len(files) == bool(colon):
        from osdhuman_jax.inference.poses import load_blazepose

        find = load_blazepose(files[0] if files else None)

        def by_poses(rgb: UInt8[np.ndarray, "h w 3"]) -> Mask:
            outlines = [pose.outline for pose in find(rgb)]
            return _faded(np.any([np.zeros(rgb.shape[:2], bool), *outlines], axis=0))

        return by_poses
    if kind == "onnx" and len(files) == 2:
        from osdhuman_jax.inference.segmentation import Segmenter

        segmenter = Segmenter(*files)
        # Whatever the network calls a part of a person is a person.
        return lambda rgb: _faded(segmenter(rgb) > 0)
    raise ValueError(f"people_only is {source!r:.80}: give {SOURCES}")


def _faded(people: np.ndarray) -> Mask:
    """1 on people, and around them less and less; further away 0."""
    reach = max(1, round(SOFT * min(people.shape)))
    side = 2 * reach + 1
    # Grown first, so that people themselves stay whole, then a mean of as many pixels.
    grown = cv2.dilate(people.astype(np.float32), np.ones((side, side), np.uint8))
    return cv2.blur(grown, (side, side), borderType=cv2.BORDER_REPLICATE)
