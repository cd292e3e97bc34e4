"""People of a photograph by BlazePose: joints and pixels of each, as pixels of the photograph.

A detector looks at the whole picture in a square of 224 pixels and gives, for each person, the
middle of the hips and a point of the circle around the body. By these a square is cut out, turned
so that the person is upright, in which the landmarker finds 33 joints and the outline. Sizes,
anchors and thresholds are those of MediaPipe's graphs `pose_detection` and `pose_landmark`.

The two .tflite files are Google's (Apache-2.0) and not part of this package: they are read out of
a wheel of mediapipe 0.10, of that package where it is installed, or of a folder. None is fetched.
"""

import zipfile
import zlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import cv2
import jax
import numpy as np
from jaxtyping import Bool, Float32, Float64, UInt8

from osdhuman_jax.data.structures import Structure, nobody, openpose
from osdhuman_jax.filenames import spelled
from osdhuman_jax.networks.blazepose import Graph, run
from osdhuman_jax.weights.choices import POSE_FILES
from osdhuman_jax.weights.model_folder import IMPOSSIBLE
from osdhuman_jax.weights.packages import packed_files
from osdhuman_jax.weights.tflite import Constants, read_tflite
from osdhuman_jax.weights.torch_files import WeightsError

Pixels = UInt8[np.ndarray, "h w 3"]
Affine = Float64[np.ndarray, "2 3"]  # from pixels of a square to pixels of the picture
Network = Callable[[np.ndarray], tuple[jax.Array, ...]]

# Shapes of a network's input and of the outputs that are used.
SHAPES = {
    POSE_FILES[0]: [(1, 224, 224, 3), (1, 2254, 12), (1, 2254, 1)],
    POSE_FILES[1]: [(1, 256, 256, 3), (1, 195), (1, 1), (1, 256, 256, 1)],
}
FILES = POSE_FILES
PACKAGE = "mediapipe"
ADVICE = "pip download mediapipe==0.10.21 --no-deps, and name its wheel as blazepose:FILE.whl"

DETECTED, CUT = 224, 256  # pixels, sides of the two networks' squares
GRIDS = ((28, 2), (14, 2), (7, 6))  # cells a side of a detector's output, and boxes of each cell
SURE = 0.5  # least score of a person, of the landmarker's own, and of a joint that is visible
OVERLAP = 0.3  # of two boxes, from which they are of one person
MOST = 4  # people of a picture
LARGEST = 64 << 20  # bytes of a network in a wheel; the larger one has 6.4 million
# What a file that is no whole archive makes of reading it.
UNREADABLE = (OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)
LARGER = 1.25  # side of the landmarker's square / diameter of the circle around the body
# BlazePose's joints in COCO's order: nose, eyes, ears, shoulders, elbows, wrists, hips, knees and
# ankles.
COCO = (0, 2, 5, 7, 8, 11, 12, 13, 14, 15, 16, 23, 24, 25, 26, 27, 28)


class Pose(NamedTuple):
    """One person of a picture."""

    points: Float64[np.ndarray, "17 2"]  # x, y in pixels, in COCO's order
    scores: Float64[np.ndarray, "17"]  # how sure each is to be visible, in [0, 1]
    attention: Float32[np.ndarray, "h w"]  # how sure each pixel is to be of the person, in [0, 1]
    square: Affine | None = None  # that the landmarker saw

    @property
    def seen(self) -> Bool[np.ndarray, "17"]:
        """Which joints are visible."""
        return self.scores > SURE

    @property
    def outline(self) -> Bool[np.ndarray, "h w"]:
        """Which pixels are the person's."""
        return self.attention > SURE


def structure(poses: list[Pose], size: tuple[int, int]) -> Structure:
    """Joints and attention of all people of a picture of `size`, height and width (Eq. 3)."""
    if not poses:
        return nobody(size)
    people = np.stack([openpose(pose.points, pose.scores) for pose in poses])
    return Structure(people, np.max([pose.attention for pose in poses], axis=0))


class BlazePose:
    """Both networks, compiled when they first see a picture, which takes a minute on a CPU."""

    def __init__(
        self,
        detector: Network,
        landmarker: Network,
        landmarks: tuple[Graph, Constants] | None = None,
    ) -> None:
        """`landmarks` is the landmarker as it was read, for those who ask it for more."""
        self._detector, self._landmarker, self.landmarks = detector, landmarker, landmarks

    def __call__(self, rgb: Pixels) -> list[Pose]:
        """The people of an upright picture, at most `MOST`; none where nobody is found."""
        square = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]) * max(rgb.shape[:2])
        middle = (np.array(rgb.shape[1::-1]) - max(rgb.shape[:2])) / 2
        fit = _affine(square + middle, DETECTED)
        boxes, scores = map(
            np.asarray, self._detector(_cut(rgb, fit, DETECTED) / np.float32(127.5) - 1)
        )
        found = (self._person(rgb, *_points(fit, p)) for p in people(boxes[0], scores[0, :, 0]))
        return [pose for pose in found if pose is not None]

    def _person(self, rgb: Pixels, hips: np.ndarray, rim: np.ndarray) -> Pose | None:
        """Who stands around `hips` in a circle through `rim`; None where nobody does."""
        # Corners of the square: the person's left upper one, right upper one, left lower one.
        up = LARGER * (rim - hips)
        right = np.array([-up[1], up[0]])
        to_picture = _affine(hips + np.array([up - right, up + right, -up - right]), CUT)
        cut = _cut(rgb, to_picture, CUT) / np.float32(255)
        landmarks, flag, mask = map(np.asarray, self._landmarker(cut)[:3])
        if flag.item() < SURE:
            return None
        # The 33 joints come before six points that are only for the next frame of a video.
        rows = landmarks.reshape(-1, 5)[list(COCO)].astype(np.float64)
        height, width = rgb.shape[:2]
        # Logits, clipped so that the picture's pixels between two of the square's are sensible.
        logits = np.clip(mask[0, :, :, 0], -8, 8)
        inside = cv2.warpAffine(logits, to_picture, (width, height), borderValue=(-8.0,))
        points = _points(to_picture, rows[:, :2])
        return Pose(points, _sigmoid(rows[:, 3]), _sigmoid(inside), to_picture)


def people(boxes: np.ndarray, logits: np.ndarray) -> list[Float64[np.ndarray, "2 2"]]:
    """Middle of the hips and a point of the circle of each person, in pixels of the square.

    Of the detector's `boxes` (2254, 12: centre, size, four points) and their `logits` (2254,).
    """
    raw = np.array(boxes, np.float64).reshape(-1, 6, 2)
    # Centres and points are relative to their cell's centre, in pixels.
    raw[:, [0, 2, 3, 4, 5]] += DETECTED * anchors()[:, None]
    scores = _sigmoid(np.asarray(logits, np.float64))
    corners = np.concatenate([raw[:, 0] - raw[:, 1] / 2, raw[:, 0] + raw[:, 1] / 2], axis=1)
    # Greedy: the surest first, and none that overlaps one of them.
    kept: list[int] = []
    for i in np.argsort(-scores, kind="stable"):
        if scores[i] <= SURE or len(kept) == MOST:
            break
        if all(_overlap(corners[i], corners[j]) <= OVERLAP for j in kept):
            kept.append(int(i))
    return [raw[i, 2:4] for i in kept]


def anchors() -> Float64[np.ndarray, "2254 2"]:
    """Centres of the cells that the detector's boxes belong to, x and y in [0, 1]."""
    found = []
    for side, count in GRIDS:
        axis = (np.arange(side) + 0.5) / side
        y, x = np.meshgrid(axis, axis, indexing="ij")
        found.append(np.repeat(np.stack([x, y], axis=-1).reshape(-1, 2), count, axis=0))
    return np.concatenate(found)


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.clip(logits, -100, 100)))


def _overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two boxes (left, top, right, bottom)."""
    sides = np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None)
    areas = np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2])
    return float(sides.prod() / max(areas - sides.prod(), 1e-9))


def _affine(corners: np.ndarray, side: int) -> Affine:
    """From pixels of a square of `side` to the picture, where its corners are as given.

    The corners are the left upper, the right upper and the left lower one, x and y.
    """
    origin, right, down = corners[0], corners[1] - corners[0], corners[2] - corners[0]
    matrix = np.stack([right, down], axis=1) / side
    # OpenCV's coordinates are those of pixels' centres.
    return np.column_stack([matrix, origin + matrix @ [0.5, 0.5] - 0.5])


def _points(affine: Affine, points: np.ndarray) -> Float64[np.ndarray, "n 2"]:
    """Points of a square (from its corner, in its pixels) as points of the picture."""
    return (points - 0.5) @ affine[:, :2].T + affine[:, 2]


def _cut(rgb: Pixels, affine: Affine, side: int) -> np.ndarray:
    """A square of the picture, (1, side, side, 3) float32 in [0, 255]; black beyond the picture."""
    # Halved first while pixels would be left out: bilinear looks at the nearest four alone.
    size, less = np.hypot(*affine[:, 0]), 1
    while size / less >= 2 and min(rgb.shape[:2]) // (2 * less) > 1:
        less *= 2
    if less > 1:
        height, width = rgb.shape[:2]
        shape = max(1, round(width / less)), max(1, round(height / less))
        rgb = cv2.resize(rgb, shape, interpolation=cv2.INTER_AREA)
        ratio = np.array([shape[0] / width, shape[1] / height])[:, None]
        affine = np.column_stack([affine[:, :2], affine[:, 2] + 0.5]) * ratio - [[0, 0, 0.5]]
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(rgb, affine, (side, side), flags=flags)[None].astype(np.float32)


# Files -------------------------------------------------------------------------------------------


def load_blazepose(source: Path | None) -> BlazePose:
    """Both networks of a wheel of mediapipe, a folder, or (None) of the installed package.

    Raises WeightsError where a file is not there or is not what it should be.
    """
    read = [_network(name, data) for name, data in zip(FILES, read_files(source), strict=True)]
    networks = [partial(jax.jit(partial(run, g)), jax.device_put(w)) for g, w in read]
    return BlazePose(networks[0], networks[1], read[1])


def checked_files(source: Path | None) -> dict[str, bytes]:
    """The same two files by their names, for a model's folder. Raises WeightsError likewise."""
    found = dict(zip(FILES, read_files(source), strict=True))
    for name, data in found.items():
        _network(name, data)
    return found


def _network(name: str, data: bytes) -> tuple[Graph, Constants]:
    graph, weights = read_tflite(data, name)
    shapes = [graph.shapes[number] for number in (graph.input, *graph.outputs)]
    if shapes[: len(SHAPES[name])] != SHAPES[name]:
        raise WeightsError(f"{name}: not BlazePose's network of that name; {ADVICE}")
    # Layers that do not fit each other are found out here, and nothing is computed.
    try:
        picture = jax.ShapeDtypeStruct(shapes[0], np.float32)
        made = [x.shape for x in jax.eval_shape(partial(run, graph), weights, picture)]
    except IMPOSSIBLE as error:
        reason = f"{error!s:.100}".partition("\n")[0]
        raise WeightsError(f"{name}: damaged: layers that do not fit: {reason}") from error
    if made != shapes[1:]:
        raise WeightsError(f"{name}: damaged: it computes other shapes than it says")
    return graph, weights


def read_files(
    source: Path | None, names: Sequence[str] = FILES, advice: str = ADVICE
) -> list[bytes]:
    """The bytes of the networks of these names. Raises WeightsError where one is missing."""
    if source is None:
        return [path.read_bytes() for path in packed_files(PACKAGE, names, advice)]
    where = spelled(source)
    try:
        if source.is_dir():
            found = [next(source.rglob(name), None) for name in names]
            data = [path.read_bytes() for path in found if path]
        else:
            with zipfile.ZipFile(source) as archive:
                every = archive.infolist()
                members = [
                    next((m for m in every if m.filename.endswith("/" + f)), None) for f in names
                ]
                if any(member and member.file_size > LARGEST for member in members):
                    raise zipfile.BadZipFile(f"its networks have more than {LARGEST} bytes")
                data = [archive.read(member) for member in members if member]
    except UNREADABLE as error:
        raise WeightsError(f"{where}: no wheel of mediapipe and no folder: {error}") from error
    if len(data) < len(names):
        raise WeightsError(f"{where}: has no {' or no '.join(names)}; {advice}")
    return data
