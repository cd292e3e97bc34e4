"""Faces of a photograph and of its restoration: found, compared, and given back where one is lost.

    keep = KeepFaces(0.9)
    kept = keep(source, restored)    # Kept: the picture, what is to be remembered, a remark

A face of the source counts as lost where the detector does not find it again at its place, with a
lower bar than it was found by: a face that just passes must not be lost by a grain of noise. It
counts as changed where its similarity is below what was asked for. In both cases the source's own
pixels come back through a soft mask, which can do no harm where the detector took a wall for a
face: there the picture stays as it was.

Detectors are OpenCV's cascade, which comes with it, or BlazeFace of MediaPipe's wheel. Of the
cascades `alt` is the one that noise misleads least (the card of the bundled model has the counts).
Similarity is 1 less the change of luma where a face changed most, or, with somebody's face
embedding, the cosine between the two faces' vectors. The former sees that something was drawn into
a face; that it is another person's it cannot tell.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import jax
import numpy as np
from jaxtyping import Float32, UInt8

from osdhuman_jax.config import Json
from osdhuman_jax.filenames import spelled
from osdhuman_jax.images.codec import Picture, narrow
from osdhuman_jax.inference.onnx_networks import OnnxError, open_session
from osdhuman_jax.inference.poses import read_files
from osdhuman_jax.inference.regions import mixed
from osdhuman_jax.networks.blazepose import run
from osdhuman_jax.weights.tflite import read_tflite
from osdhuman_jax.weights.torch_files import WeightsError

Pixels = UInt8[np.ndarray, "h w 3"]
Box = tuple[int, int, int, int]  # left, top, width, height
# Finds faces of a picture; `sure` tells it whether by the bar for a face or by the lower one for a
# face that is looked for again.
Detector = Callable[..., list[Box]]
Similarity = Callable[[Pixels, Pixels, Box], float]  # of a box in two pictures, 0 to 1

CASCADE = "haarcascade_frontalface_alt"
LEAST = 24  # pixels of the smallest face
# Of the cascade, for a face and for one that is looked for again: between two sizes, and how many
# neighbours make a face.
SURE_STEP, SURE_HITS = 1.2, 3
AGAIN_STEP, AGAIN_HITS = 1.1, 1
SURE, LESS_SURE = 0.5, 0.3  # scores of BlazeFace, likewise
LOOKED_AT = 1024  # pixels of the longer side in which faces are looked for
SAME = 0.3  # intersection over union of two boxes of one face
BLAZEFACE = "face_detection_full_range_sparse.tflite"
SEEN, GRID = 192, 48  # pixels of BlazeFace's square, and its cells a side
GET = "pip download mediapipe==0.10.21 --no-deps"
SIDE, WORST = 32, 0.99  # squares a side of a face, and which of them tell how much it changed
FACE = 112  # pixels of an embedding's input
WIDE, HIGH, SOFT = 0.75, 0.85, 0.35  # of the mask, in boxes, and the part of it that fades


class Kept(NamedTuple):
    """A picture after its faces were looked at."""

    picture: Picture
    facts: Json  # faces_before, faces_after, faces
    remark: str  # in one line, or ""


class KeepFaces:
    """Gives faces back that a restoration loses, or changes to less than `least` similarity."""

    def __init__(
        self,
        least: float,
        detector: Detector | None = None,
        similarity: Similarity | None = None,
    ) -> None:
        self.least, self._find = least, detector or cascade
        self._similarity = similarity or likeness

    def __call__(self, source: Picture, restored: Picture) -> Kept:
        """The restoration of a source of the same size, with faces of the source where need be."""
        before, after = _eight_bits(source), _eight_bits(restored)
        boxes = found(self._find, before)
        there, seen = self._again(after, boxes)
        # What is to be given back: what is not there any more, and what is no more the same.
        told: list[Json] = []
        mask = np.zeros(source.size, np.float32)
        for box, still in zip(boxes, there, strict=True):
            alike = round(self._similarity(before, after, box), 4)
            kept = not still or alike < self.least
            told.append({"box": [*box], "found": still, "similarity": alike, "kept": kept})
            if kept:
                mask = np.maximum(mask, _soft(box, source.size))
        if mask.any():
            restored = replace(restored, rgb=mixed(restored.rgb, source.rgb, mask))
            there, seen = self._again(_eight_bits(restored), boxes)
        # Faces that nobody saw in the source are faces of the result all the same.
        new = [box for box in seen if not _is_among(box, boxes)]
        facts = {"faces_before": len(boxes), "faces_after": sum(there) + len(new), "faces": told}
        return Kept(restored, facts, _remark(told))

    def _again(self, rgb: Pixels, boxes: list[Box]) -> tuple[list[bool], list[Box]]:
        """Which faces are still at their places in a picture, and all that it has."""
        seen = found(self._find, rgb)
        there = [_is_among(box, seen) for box in boxes]
        # The lower bar, a second look, only where the first one misses somebody.
        if not all(there):
            likely = found(partial(self._find, sure=False), rgb)
            there = [_is_among(box, seen + likely) for box in boxes]
        return there, seen


def found(detector: Callable[[Pixels], list[Box]], rgb: Pixels) -> list[Box]:
    """Faces of a picture of any size, from left to right, in its pixels."""
    shrunk = max(rgb.shape[:2]) / LOOKED_AT
    if shrunk <= 1:
        return sorted(detector(rgb))
    size = [max(1, round(side / shrunk)) for side in rgb.shape[1::-1]]
    boxes = detector(cv2.resize(rgb, size, interpolation=cv2.INTER_AREA))
    return sorted(_box([round(n * shrunk) for n in box]) for box in boxes)


@cache
def _classifier() -> cv2.CascadeClassifier:
    return cv2.CascadeClassifier(str(Path(cv2.__file__).parent / "data" / f"{CASCADE}.xml"))


def cascade(rgb: Pixels, sure: bool = True) -> list[Box]:
    """Faces by OpenCV's cascade of frontal faces."""
    gray = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
    step, hits = (SURE_STEP, SURE_HITS) if sure else (AGAIN_STEP, AGAIN_HITS)
    boxes = _classifier().detectMultiScale(gray, step, hits, minSize=(LEAST, LEAST))
    return [_box(box) for box in boxes]


class BlazeFace:
    """MediaPipe's detector for faces at up to five metres, compiled at the first picture."""

    def __init__(self, source: Path | None) -> None:
        """Of a wheel of mediapipe, a folder, or (None) the installed one. Raises WeightsError."""
        (data,) = read_files(source, (BLAZEFACE,), GET)
        graph, weights = read_tflite(data, BLAZEFACE)
        shapes = [graph.shapes[n] for n in (graph.input, *graph.outputs)]
        cells = GRID * GRID
        if shapes != [(1, SEEN, SEEN, 3), (1, cells, 16), (1, cells, 1)]:
            raise WeightsError(f"{BLAZEFACE}: not BlazeFace's network of that name; {GET}")
        self._network = partial(jax.jit(partial(run, graph)), jax.device_put(weights))

    def __call__(self, rgb: Pixels, sure: bool = True) -> list[Box]:
        """Faces, the surest first of those that overlap."""
        # The whole picture in the middle of a square, the rest black.
        scale = SEEN / max(rgb.shape[:2])
        width, height = (max(1, round(side * scale)) for side in rgb.shape[1::-1])
        left, top = (SEEN - width) // 2, (SEEN - height) // 2
        square = np.zeros((SEEN, SEEN, 3), np.float32)
        way = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        square[top : top + height, left : left + width] = cv2.resize(
            rgb, (width, height), interpolation=way
        )
        values, logits = map(np.asarray, self._network((square / np.float32(127.5) - 1)[None]))
        scores = 1 / (1 + np.exp(-np.clip(logits[0, :, 0], -80, 80)))
        # A box's centre is told from that of its cell.
        axis = (np.arange(GRID) + 0.5) * (SEEN / GRID)
        y, x = np.meshgrid(axis, axis, indexing="ij")
        centres = values[0, :, :2] + np.stack([x, y], axis=-1).reshape(-1, 2)
        sides = values[0, :, 2:4]
        boxes = np.concatenate([centres - sides / 2 - [left, top], sides], axis=1) / scale
        bar = SURE if sure else LESS_SURE
        likely = np.flatnonzero(scores > bar)
        kept = cv2.dnn.NMSBoxes(boxes[likely].tolist(), scores[likely].tolist(), bar, SAME)
        return [_box(boxes[likely[i]]) for i in np.ravel(kept)]


def likeness(before: Pixels, after: Pixels, box: Box) -> float:
    """1 less what the most changed hundredth of a face differs by, of white.

    Luma is compared in SIDE x SIDE mean squares, in which noise is small, and without the change
    that most of them share, which is of brightness.
    """
    first, second = (_luma(_cut(rgb, box), SIDE) for rgb in (before, after))
    change = second - first
    change = np.abs(change - np.median(change))
    return max(0.0, 1 - float(np.quantile(change, WORST)) / 255)


class Embedding:
    """Somebody's face embedding, such as ArcFace's, in an ONNX file."""

    def __init__(self, model: Path) -> None:
        """Raises OnnxError where it takes or gives something else than a face and a vector."""
        self._session, where = open_session(model), spelled(model)
        entry, leaving = self._session.get_inputs()[0], self._session.get_outputs()[0]
        shape, given = list(entry.shape), list(leaving.shape or ())
        if len(shape) != 4 or shape[1:] != [3, FACE, FACE] or "float" not in entry.type:
            raise OnnxError(f"{where}: takes {shape}, no face of (1, 3, {FACE}, {FACE})")
        if len(given) != 2 or shape[0] not in (1, None) and not isinstance(shape[0], str):
            raise OnnxError(f"{where}: gives {given}, not one vector for one face")
        self._name: Any = entry.name
        self._dtype = np.float16 if "float16" in entry.type else np.float32

    def __call__(self, before: Pixels, after: Pixels, box: Box) -> float:
        """Cosine between the vectors of a face in two pictures, at least 0."""
        first, second = (self._vector(rgb, box) for rgb in (before, after))
        size = float(np.linalg.norm(first) * np.linalg.norm(second))
        return float(np.clip(first @ second / max(size, 1e-12), 0, 1))

    def _vector(self, rgb: Pixels, box: Box) -> Float32[np.ndarray, " n"]:
        # A quarter larger than the detector's box and a little higher, which puts upright eyes
        # about where ArcFace has them.
        left, top, width, height = box
        larger = (
            round(left - width / 8),
            round(top - height / 5),
            round(width * 1.25),
            round(height * 1.25),
        )
        face = cv2.resize(_cut(rgb, larger), (FACE, FACE), interpolation=cv2.INTER_AREA)
        values = (face.transpose(2, 0, 1)[None] / 127.5 - 1).astype(self._dtype)
        (made, *_) = self._session.run(None, {self._name: np.ascontiguousarray(values)})
        return np.asarray(made, np.float32).ravel()


def open_detector(source: str | None) -> Detector:
    """What a flag names: the cascade, `blazeface` or `blazeface:FILE`. Raises ValueError."""
    if source is None:
        return cascade
    kind, colon, file = source.partition(":")
    if kind != "blazeface" or (colon and not file):
        raise ValueError(f"face_detector is {source!r:.80}: give blazeface or blazeface:FILE")
    return BlazeFace(Path(file) if file else None)


def _eight_bits(picture: Picture) -> Pixels:
    return narrow(picture.rgb) if picture.rgb.dtype == np.uint16 else picture.rgb


def _cut(rgb: Pixels, box: Box) -> UInt8[np.ndarray, "_ _ 3"]:
    """What of a box lies in the picture, at least a pixel."""
    left, top = max(box[0], 0), max(box[1], 0)
    return rgb[top : max(box[1] + box[3], top + 1), left : max(box[0] + box[2], left + 1)]


def _luma(rgb: Pixels, side: int) -> Float32[np.ndarray, "_ _"]:
    gray = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY).astype(np.float32)
    return cv2.resize(gray, (side, side), interpolation=cv2.INTER_AREA)


def _soft(box: Box, size: tuple[int, int]) -> Float32[np.ndarray, "h w"]:
    """1 in the middle of an ellipse around a box, 0 outside of it, smooth between."""
    left, top, width, height = box
    y, x = np.ogrid[: size[0], : size[1]]
    across = (x - (left + width / 2)) / (WIDE * width)
    down = (y - (top + height / 2)) / (HIGH * height)
    rise = np.clip((1 - np.hypot(across, down)) / SOFT, 0, 1)
    return (rise * rise * (3 - 2 * rise)).astype(np.float32)


def _box(numbers: Sequence[float] | np.ndarray) -> Box:
    left, top, width, height = (int(n) for n in numbers)
    return left, top, width, height


def _overlap(a: Box, b: Box) -> float:
    """Intersection over union of two boxes."""
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    both = max(width, 0) * max(height, 0)
    return both / max(a[2] * a[3] + b[2] * b[3] - both, 1)


def _is_among(box: Box, boxes: list[Box]) -> bool:
    """Whether a face is one of others."""
    return any(_overlap(box, other) >= SAME for other in boxes)


def _remark(told: list[Json]) -> str:
    """What became of the faces, where some came back from the input."""
    kept = [face for face in told if face["kept"]]
    if not kept:
        return ""
    lost = sum(not face["found"] for face in kept)
    why = [f"{lost} lost"] * bool(lost) + [f"{len(kept) - lost} changed"] * (lost < len(kept))
    faces = "1 face is" if len(kept) == 1 else f"{len(kept)} faces are"
    return f"{faces} as in the input ({' and '.join(why)} by the restoration; --keep_faces)"
