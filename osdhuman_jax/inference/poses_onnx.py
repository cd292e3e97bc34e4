"""People of a photograph by somebody's RTMPose or DWPose in ONNX files, run by onnxruntime.

Needed by `osdhuman poses --from onnx:POSE.onnx[,DETECTOR.onnx]`. The detector is a YOLOX without
its last decoding, as DWPose's `yolox_l.onnx`: boxes of people. Without one the whole picture is
the box. The pose network sees each box, and gives for each joint a histogram of its x and one of
its y (SimCC, Li et al. 2022), as `dw-ll_ucoco_384.onnx` and all RTMPoses do: COCO's 17 joints, or
COCO-WholeBody's 133, of which the first 17 are the same. Sizes are read off the files; thresholds
and proportions are those of MMPose and of YOLOX's demonstration.
"""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import Float32, Float64, UInt8

from osdhuman_jax.data.structures import MOST, SEEN, People, openpose
from osdhuman_jax.filenames import spelled
from osdhuman_jax.inference.onnx_networks import MEAN, STD, OnnxError, open_session

Pixels = UInt8[np.ndarray, "h w 3"]
Boxes = Float64[np.ndarray, "n 4"]  # left, top, right, bottom

STRIDES = (8, 16, 32)  # of a YOLOX's three grids, finest first
GRAY = 114  # what surrounds a picture in the detector's square
SURE, OVERLAP = 0.3, 0.45  # least score of a box; intersection over union of two of one person
LARGER = 1.25  # what the pose network sees / the box
COUNTS = (17, 133)  # joints of COCO and of COCO-WholeBody


class OnnxPoses:
    """Pose network and, if there is one, detector; people of a picture, the surest first."""

    def __init__(self, pose: Path, detector: Path | None = None) -> None:
        """Raises OnnxError."""
        self._where = spelled(pose)
        self._pose, self._size = _opened(pose)
        self._detect = YoloX(detector) if detector else _whole

    def __call__(self, rgb: Pixels) -> People:
        """Joints of at most four people; those of whom no joint is seen are left out.

        Raises OnnxError where a network's outputs are not those of its kind.
        """
        boxes = self._detect(rgb)
        # DWPose looks at the whole picture where the detector finds nobody.
        found = [self._person(rgb, box) for box in (boxes if len(boxes) else _whole(rgb))]
        people = np.array(found, np.float32).reshape(-1, 18, 3)
        return people[(people[..., 2] > SEEN).any(axis=1)]

    def _person(self, rgb: Pixels, box: np.ndarray) -> Float32[np.ndarray, "18 3"]:
        """Joints of the person in a box."""
        height, width = self._size
        centre, sides = (box[:2] + box[2:]) / 2, (box[2:] - box[:2]) * LARGER
        # Grown to the proportions of the network's input.
        sides = np.maximum(sides, sides[::-1] * [width / height, height / width])
        scale = np.array([width, height]) / sides
        shift = np.array([width, height]) / 2 - scale * centre
        affine = np.column_stack([np.diag(scale), shift])
        seen = cv2.warpAffine(rgb, affine, (width, height), flags=cv2.INTER_LINEAR)
        x, y = self._histograms((seen - MEAN) / STD)
        # The histograms' bins are parts of a pixel.
        bins = np.stack([x.argmax(axis=1), y.argmax(axis=1)], axis=1)
        points = bins / [x.shape[1] / width, y.shape[1] / height]
        scores = np.clip(np.minimum(x.max(axis=1), y.max(axis=1)), 0, 1).astype(np.float64)
        return openpose(((points - shift) / scale)[:17], scores[:17])

    def _histograms(self, picture: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of x and of y, (joints, bins) each."""
        outputs = _run(self._pose, picture.astype(np.float32))
        shapes = [output.shape for output in outputs]
        height, width = self._size
        if not (
            len(shapes) == 2
            and all(len(shape) == 3 and shape[0] == 1 and shape[1] in COUNTS for shape in shapes)
            and shapes[0][1] == shapes[1][1]
            and shapes[0][2] * height == shapes[1][2] * width
        ):
            text = f"gives {shapes}, no histograms (SimCC) of x and y of 17 or 133 joints"
            raise OnnxError(f"{self._where}: {text}")
        return outputs[0][0], outputs[1][0]


class YoloX:
    """Boxes of people by a YOLOX."""

    def __init__(self, model: Path) -> None:
        """Raises OnnxError."""
        self._where = spelled(model)
        self._session, self._size = _opened(model)

    def __call__(self, rgb: Pixels) -> Boxes:
        """Boxes in pixels of the picture, at most four, the surest first. Raises OnnxError."""
        height, width = self._size
        ratio = min(height / rgb.shape[0], width / rgb.shape[1])
        shape = [max(1, int(side * ratio)) for side in rgb.shape[1::-1]]
        square = np.full((height, width, 3), GRAY, np.float32)
        # The channels are blue, green, red, as OpenCV reads files, and are not normalised.
        square[: shape[1], : shape[0]] = cv2.resize(rgb, shape)[..., ::-1]
        outputs = _run(self._session, square)
        grid = _grid(self._size)
        if len(outputs) != 1 or outputs[0].ndim != 3 or outputs[0].shape[:2] != (1, len(grid)):
            shapes = [output.shape for output in outputs]
            text = f"gives {shapes}, not (1, {len(grid)}, 85) as a YOLOX without its last decoding"
            raise OnnxError(f"{self._where}: {text}")
        raw = outputs[0][0].astype(np.float64)
        # Centre from the cell's corner and size, in strides; then how sure, of what kind.
        centre, sides = (raw[:, :2] + grid[:, :2]) * grid[:, 2:], np.exp(raw[:, 2:4]) * grid[:, 2:]
        corners = np.concatenate([centre - sides / 2, centre + sides / 2], axis=1) / ratio
        scores = raw[:, 4] * raw[:, 5]
        likely = np.flatnonzero(scores > SURE)
        likely = likely[np.argsort(-scores[likely], kind="stable")]
        return corners[_apart(corners, likely.tolist())]


def _apart(boxes: Boxes, order: list[int]) -> list[int]:
    """Those of `order`, at most four, that do not overlap one before them."""
    kept: list[int] = []
    for i in order:
        low = np.maximum(boxes[kept, :2], boxes[i, :2])
        common = np.prod(np.clip(np.minimum(boxes[kept, 2:], boxes[i, 2:]) - low, 0, None), axis=1)
        areas = np.prod(boxes[[*kept, i], 2:] - boxes[[*kept, i], :2], axis=1)
        if (common <= OVERLAP * (areas[:-1] + areas[-1] - common)).all():
            kept.append(i)
    return kept[:MOST]


def _grid(size: tuple[int, int]) -> Float64[np.ndarray, "n 3"]:
    """Column and row of each cell of the three grids, and its stride in pixels."""
    found = []
    for stride in STRIDES:
        y, x = np.mgrid[: size[0] // stride, : size[1] // stride]
        found.append(np.stack([x, y, np.full_like(x, stride)], axis=-1).reshape(-1, 3))
    return np.concatenate(found).astype(np.float64)


def _whole(rgb: Pixels) -> Boxes:
    return np.array([[0.0, 0.0, rgb.shape[1], rgb.shape[0]]])


def _opened(model: Path) -> tuple[Any, tuple[int, int]]:
    """A session, and height and width of the pictures that it takes. Raises OnnxError."""
    session = open_session(model)
    shape = list(session.get_inputs()[0].shape)
    if len(shape) != 4 or shape[1] != 3 or not all(isinstance(side, int) for side in shape[2:]):
        text = f"takes {shape}, no (1, 3, height, width) of numbers"
        raise OnnxError(f"{spelled(model)}: {text}")
    return session, (shape[2], shape[3])


def _run(session: Any, picture: np.ndarray) -> list[np.ndarray]:
    """A network's outputs for one picture (h, w, 3)."""
    batch = np.ascontiguousarray(picture.transpose(2, 0, 1)[None])
    return [
        np.asarray(output) for output in session.run(None, {session.get_inputs()[0].name: batch})
    ]
