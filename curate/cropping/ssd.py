"""A small person detector of a permissive licence: SSD with MobileNetV2 (Liu et al. 2016).

Google trained it on Open Images V4 for 23 kinds of things and ships it inside the npm package
`@mediapipe/objectron` (Apache-2.0); `make detector` downloads that package. It is read out of the
package as npm gives it (.tgz), out of the package's `..._packed_assets.data`, or from a .tflite
file. One look takes some 20 milliseconds of a CPU. How many people it finds is in docs/curation.md.

A picture goes in as RGB and comes out as corners of boxes with scores. Suppressing overlapping
boxes, and looking at long pictures in tiles, is up to detect.py.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Float32, Float64

from curate.cropping.litert import load_network
from curate.cropping.stages import BoxCorners
from curate.schema import Pixels

# Pixels of the network's square input.
SIDE = 300
# The gray level beside a picture: 0 where pixels are scaled to [-1, 1], as the network wants them.
GRAY = 127
# Classes of the network, and the one that is a person in its list of names.
CLASSES, PERSON = 24, 4
# Boxes less likely than this are not looked at, whatever the settings say.
UNLIKELY = 0.05
# Cells a side of the maps that boxes are predicted from, and the scales of boxes, from the first
# map's to the last one's and one more (MediaPipe's `object_detection_oidv4_cpu` graph).
GRIDS = (19, 10, 5, 3, 2, 1)
SCALES = (*np.linspace(0.2, 0.95, len(GRIDS)).tolist(), 1.0)
# By these the network's numbers for centres and sizes are divided.
CENTRE_SCALE, SIZE_SCALE = 10.0, 5.0
# The part of the package that holds the network, behind a list of its classes.
ASSETS = "objectron_solution_packed_assets.data"

# Corners and scores of the likely people of a picture.
Found = tuple[BoxCorners, Float64[np.ndarray, " n"]]


def load_ssd(path: Path) -> Callable[[Pixels], Found]:
    """The detector in a file, on one thread. Raises ConfigError if it cannot be made."""
    count = len(anchors())
    shapes = [(1, SIDE, SIDE, 3), (1, count, 4), (1, count, CLASSES)]
    run = load_network(path, ASSETS, shapes)

    def find(rgb: Pixels) -> Found:
        batch, scale = to_square(rgb)
        boxes, logits = run(batch)
        corners, scores = decode_ssd(boxes[0], logits[0])
        return corners * SIDE / np.array([*scale, *scale]), scores

    return find


def to_square(rgb: Pixels) -> tuple[Float32[np.ndarray, "1 300 300 3"], tuple[float, float]]:
    """A picture scaled into the left upper corner of the network's square, in [-1, 1].

    Returns the square, and by how much width and height were multiplied. Stretched to the square,
    as MediaPipe does it, tall people are missed more often.
    """
    height, width = rgb.shape[:2]
    fit = SIDE / max(height, width)
    w, h = max(1, round(width * fit)), max(1, round(height * fit))
    how = cv2.INTER_AREA if fit < 1 else cv2.INTER_LINEAR
    canvas = np.full((SIDE, SIDE, 3), GRAY, np.uint8)
    canvas[:h, :w] = cv2.resize(rgb, (w, h), interpolation=how)
    return canvas[None].astype(np.float32) / np.float32(127.5) - 1, (w / width, h / height)


@cache
def anchors() -> Float64[np.ndarray, "1917 4"]:
    """The boxes that predictions are relative to: centre x, y, width, height in [0, 1]."""
    found = []
    for k, side in enumerate(GRIDS):
        # Width over height, and the root of the area; the first map has three small ones.
        between = (1.0, (SCALES[k] * SCALES[k + 1]) ** 0.5)
        shapes = [(ratio, SCALES[k]) for ratio in (1.0, 2.0, 0.5, 3.0, 1 / 3)] + [between]
        if k == 0:
            shapes = [(1.0, 0.1), (2.0, SCALES[0]), (0.5, SCALES[0])]
        sizes = np.array([(size * ratio**0.5, size / ratio**0.5) for ratio, size in shapes])
        axis = (np.arange(side) + 0.5) / side
        y, x = np.meshgrid(axis, axis, indexing="ij")
        # Every cell has all shapes, one after the other.
        centres = np.repeat(np.stack([x, y], axis=-1).reshape(-1, 2), len(shapes), axis=0)
        found.append(np.concatenate([centres, np.tile(sizes, (side * side, 1))], axis=1))
    return np.concatenate(found)


def decode_ssd(boxes: np.ndarray, logits: np.ndarray) -> Found:
    """The likely people in the network's outputs, with corners in shares of the square.

    Args:
        boxes: (1917, 4): of each anchor's box the shift in y and x, the growth in height and width.
        logits: (1917, 24), one for each class.
    """
    scores = 1 / (1 + np.exp(-np.clip(logits[:, PERSON].astype(np.float64), -100, 100)))
    likely = scores >= UNLIKELY
    base, moved = anchors()[likely], boxes[likely].astype(np.float64)
    centres = base[:, :2] + base[:, 2:] * moved[:, 1::-1] / CENTRE_SCALE
    sizes = base[:, 2:] * np.exp(moved[:, :1:-1] / SIZE_SCALE)
    return np.concatenate([centres - sizes / 2, centres + sizes / 2], axis=1), scores[likely]
