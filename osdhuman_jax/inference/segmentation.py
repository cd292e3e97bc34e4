"""Part maps by somebody's segmentation network in an ONNX file, run by onnxruntime.

Needed by `osdhuman parts --from onnx:FILE --classes MAP.json`. The layout and the size of its input
are read from the file; it gives scores of its classes for each pixel, or the class itself. MAP.json
has an entry for each class in the network's order, its name and which label it is:

    {"Background": "background", "Hat": "head", "Left-arm": "left_arm", "Skirt": "rest", ...}

Pictures of a float input are normalised as most such networks were trained, by ImageNet's mean and
deviation; a uint8 input takes them as they are.
"""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import UInt8

from osdhuman_jax.degrade.motion import LABELS, PartMap
from osdhuman_jax.disk import parse_json
from osdhuman_jax.filenames import spelled
from osdhuman_jax.inference.onnx_networks import MEAN, STD, OnnxError, open_session

Pixels = UInt8[np.ndarray, "h w 3"]

SIDE = 512  # pixels, where a network takes any size


class Segmenter:
    """A segmentation network whose classes are known as labels of part maps."""

    def __init__(self, model: Path, classes: Path) -> None:
        """Raises OnnxError."""
        self._where = spelled(model)
        self._labels = read_classes(classes)
        self._session = open_session(model)
        # Where the three channels are tells the layout.
        self._entry: Any = self._session.get_inputs()[0]
        shape = list(self._entry.shape)
        if len(shape) != 4 or 3 not in (shape[1], shape[3]):
            raise OnnxError(f"{self._where}: takes {shape}, no batch of RGB pictures")
        self._channels_first = shape[1] == 3
        sides = shape[2:] if self._channels_first else shape[1:3]
        self._size = tuple(side if isinstance(side, int) else SIDE for side in sides)

    def __call__(self, rgb: Pixels) -> PartMap:
        """Labels of a picture's pixels. Raises OnnxError where the output is no map."""
        output = np.asarray(self._session.run(None, {self._entry.name: self._input(rgb)})[0])
        numbers = self._classes(output)
        if numbers.min() < 0 or numbers.max() >= len(self._labels):
            raise OnnxError(f"{self._where}: gives a class that --classes does not have")
        # Labels are looked up at the network's size and then enlarged: they cannot be mixed.
        labels = self._labels[numbers]
        size = rgb.shape[1], rgb.shape[0]
        return cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST_EXACT)

    def _input(self, rgb: Pixels) -> np.ndarray:
        """A batch of one picture, squashed to the network's size."""
        height, width = self._size
        # Area means would be blocks where a picture is enlarged.
        smaller = height * width < rgb.shape[0] * rgb.shape[1]
        filter_ = cv2.INTER_AREA if smaller else cv2.INTER_LINEAR
        picture = cv2.resize(rgb, (width, height), interpolation=filter_)
        if "uint8" not in self._entry.type:
            kind = np.float16 if "float16" in self._entry.type else np.float32
            picture = ((picture - MEAN) / STD).astype(kind)
        picture = picture.transpose(2, 0, 1) if self._channels_first else picture
        return np.ascontiguousarray(picture[None])

    def _classes(self, output: np.ndarray) -> np.ndarray:
        """(h, w) numbers of classes: the output's own, or those of the highest scores."""
        count = len(self._labels)
        if output.ndim == 3 and output.dtype.kind in "iu":
            return output[0]
        for axis in (1, 3):
            if output.ndim == 4 and output.shape[axis] == count:
                return output.argmax(axis=axis)[0]
        text = f"gives {output.shape}, no scores of the {count} classes of --classes"
        raise OnnxError(f"{self._where}: {text}")


def read_classes(path: Path) -> UInt8[np.ndarray, " classes"]:
    """The label of each class of a MAP.json. Raises OnnxError."""
    where = spelled(path)
    try:
        table = parse_json(path.read_bytes())
    except OSError as error:
        raise OnnxError(f"{where}: {error.strerror or error}") from error
    except ValueError as error:
        raise OnnxError(f"{where}: not a json file: {error}") from error
    if not isinstance(table, dict) or not table:
        raise OnnxError(f"{where}: not an object of classes and their labels")
    for name, label in table.items():
        if label not in LABELS:
            text = f"class {name} is {json.dumps(label):.40}, which is none of {', '.join(LABELS)}"
            raise OnnxError(f"{where}: {text}")
    return np.array([LABELS.index(label) for label in table.values()], np.uint8)
