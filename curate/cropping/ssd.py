"""A small person detector of a permissive licence: SSD with MobileNetV2 (Liu et al. 2016).

Google trained it on Open Images V4 for 23 kinds of things and ships it inside the npm package
`@mediapipe/objectron` (Apache-2.0); `make detector` downloads that package. It is read out of the
package as npm gives it (.tgz), out of the package's `..._packed_assets.data`, or from a .tflite
file, and LiteRT runs it (extra `detector`): OpenCV's reader of such files gives wrong boxes for it.
One look takes some 20 milliseconds of a CPU. How many people it finds is in docs/curation.md.

A picture goes in as RGB and comes out as corners of boxes with scores. Suppressing overlapping
boxes, and looking at long pictures in tiles, is up to detect.py.
"""

import tarfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Float32, Float64

from curate.config import ConfigError
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
# What a .tflite file has at byte 4, and a limit of what is read: the network has 10 million bytes.
MAGIC, LARGEST = b"TFL3", 64 << 20
GET = "`make detector` downloads @mediapipe/objectron by npm"

# Corners and scores of the likely people of a picture.
Found = tuple[BoxCorners, Float64[np.ndarray, " n"]]


def read_network(path: Path) -> bytes:
    """The .tflite file in a package, in its assets, or as it is. Raises ConfigError."""
    try:
        if tarfile.is_tarfile(path):
            with tarfile.open(path) as package:
                member = next(m for m in package if m.name.endswith(f"/{ASSETS}"))
                stream = package.extractfile(member)
                data = stream.read(LARGEST) if stream else b""
        else:
            with open(path, "rb") as file:
                data = file.read(LARGEST)
    except (OSError, EOFError, StopIteration, tarfile.TarError) as error:
        raise ConfigError(f"{path}: cannot be read or has no {ASSETS} ({error}); {GET}") from None
    # In the assets a short list of names comes first.
    at = data.find(MAGIC, 0, 4096) - 4
    if at < 0:
        raise ConfigError(f"{path}: holds no .tflite network; {GET}")
    return data[at:]


def load_ssd(path: Path) -> Callable[[Pixels], Found]:
    """The detector in a file, on one thread. Raises ConfigError if it cannot be made."""
    run = _interpreter(read_network(path), path)

    def find(rgb: Pixels) -> Found:
        batch, scale = to_square(rgb)
        boxes, logits = run(batch)
        corners, scores = decode_ssd(boxes[0], logits[0])
        return corners * SIDE / np.array([*scale, *scale]), scores

    return find


def _interpreter(data: bytes, path: Path) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """A function from the square to the network's two outputs. Raises ConfigError."""
    try:
        from ai_edge_litert.interpreter import Interpreter  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ConfigError(
            "--detector ssd needs LiteRT: pip install 'osdhuman-jax[detector]'"
        ) from None
    # One thread, since there is a worker process for every core.
    try:
        network = Interpreter(model_content=data, num_threads=1)
        network.allocate_tensors()
        entries, ends = network.get_input_details(), network.get_output_details()
        shapes = [tuple(map(int, end["shape"])) for end in (*entries, *ends)]
    except (ValueError, RuntimeError) as error:
        line = str(error).partition("\n")[0]
        raise ConfigError(f"{path}: not a network that LiteRT runs: {line}") from None
    count = len(anchors())
    if shapes != [(1, SIDE, SIDE, 3), (1, count, 4), (1, count, CLASSES)]:
        raise ConfigError(f"{path}: another network than MediaPipe's detector of Objectron; {GET}")

    def run(batch: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        network.set_tensor(entries[0]["index"], batch)
        network.invoke()
        boxes, logits = (network.get_tensor(end["index"]) for end in ends)
        return boxes, logits

    return run


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
