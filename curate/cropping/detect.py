"""Person detectors for pictures without labels: an SSD, the user's YOLO11, a csv, the whole image.

A decoded picture goes in, boxes in its pixels come out. The paper detects people with YOLO11
(section 3.1). Nothing is bundled or fetched. YOLO11's weights are under AGPL-3.0, and so is
ultralytics, which a .pt file needs and which unpickles it: whoever names such a file has to mind
that. The small SSD of ssd.py is under Apache-2.0.
"""

import csv
import os
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Float32

from curate.config import ConfigError, DetectConfig
from curate.cropping import litert, ssd, stages
from curate.cropping.stages import BoxCorners
from curate.readers.text_files import open_text
from curate.schema import WHOLE_PICTURE, Box, Facts, Pixels, SourceImage
from osdhuman_jax.disk import known_digest

# Boxes by source ("" = any source) and by the picture's path below the source's folder.
Listed = dict[tuple[str, str], list[Box]]
DETECTORS = ("ssd", "yolo", "whole-image", "boxes")
# Detectors of files below, without which they find nothing.
BY_FILE = ("ssd", "yolo", "boxes")
# Detectors that look at pixels, so that they can judge a crop too.
BY_PIXELS = ("ssd", "yolo")
# An earlier version had it. Sets that were made with it go on; no more can be made.
RETIRED = ("hog",)
RETIRED_HELP = (
    "the detector hog is gone, since it found 5 of 196 people; take ssd or yolo in its place"
)
# The class "person" in the order of YOLO's classes, which is COCO's without gaps.
PERSON = 0
# The gray level that YOLO's own letterbox puts around a picture.
PAD = 114
# Least overlap at which the detector ssd is taken to have found one person twice.
SSD_IOU = 0.5
HELP = (
    "pictures without labels need --detector: ssd (--detector_weights FILE.tgz, which "
    "`make detector` downloads), yolo (--detector_weights FILE.onnx or .pt), boxes "
    "(--detector_weights FILE.csv) or whole-image (each picture is of one person)"
)


class Detector:
    """Finds the people of a picture: `detector(rgb, image)` gives boxes in the picture's pixels.

    Its name goes into the manifest and into the report.
    """

    def __init__(self, name: str, find: Callable[[Pixels, SourceImage], list[Box]]) -> None:
        self.name = name
        self._find = find

    def __call__(self, rgb: Pixels, image: SourceImage) -> tuple[Box, ...]:
        return tuple(self._find(rgb, image))


def check(config: DetectConfig, needed: bool) -> None:
    """Raises ConfigError if a detector is needed and none can be made."""
    if config.kind not in (*DETECTORS, *RETIRED, "none"):
        raise ConfigError(f"no detector {config.kind!r}: {HELP}")
    if config.kind == "none" and needed:
        raise ConfigError(HELP)
    if config.kind in BY_FILE and not Path(config.weights).is_file():
        given = config.weights or "FILE"
        raise ConfigError(f"--detector {config.kind} needs --detector_weights {given}: not there")
    if config.kind == "ssd":
        litert.check(Path(config.weights))


def counter_kind(weights: str) -> str:
    """The detector that counts people by a file of weights, told by its name; "" without one."""
    return "yolo" if weights.endswith((".onnx", ".pt")) else "ssd" if weights else ""


def describe(config: DetectConfig) -> Facts:
    """All that a detector's boxes depend on, except the picture; part of the crop job's key."""
    facts: Facts = {"kind": config.kind}
    if config.kind in BY_FILE:
        facts["sha256"] = known_digest(Path(config.weights))
    if config.kind == "yolo":
        names = ("conf", "iou", "size", "tile", "most")
        facts |= {name: getattr(config, name) for name in names}
    if config.kind == "ssd":
        settings = (config.ssd_conf, config.most, _ssd_tile(config))
        facts |= dict(zip(("conf", "most", "tile"), settings, strict=True), iou=SSD_IOU)
    return facts


def make_detector(config: DetectConfig) -> Detector:
    """The detector that a setting names; loads its weights. Raises ConfigError."""
    if config.kind == "yolo":
        return Detector("yolo", _yolo(config))
    if config.kind == "ssd":
        return Detector("ssd", _ssd(config))
    if config.kind in RETIRED:
        raise ConfigError(RETIRED_HELP)
    if config.kind == "whole-image":
        return Detector("whole-image", lambda rgb, image: [whole(rgb)])
    if config.kind == "boxes":
        boxes = read_boxes(Path(config.weights))
        return Detector("boxes", lambda rgb, image: _listed(boxes, image))
    return Detector("none", _refuse)


# A source that needs a detector is refused by `check` before this could be called.
def _refuse(rgb: Pixels, image: SourceImage) -> list[Box]:
    raise ConfigError(HELP)


def whole(rgb: Pixels) -> Box:
    """A box around the whole picture."""
    height, width = rgb.shape[:2]
    return Box((0.0, 0.0, float(width), float(height)), flags=(WHOLE_PICTURE,))


def read_boxes(path: Path) -> Listed:
    """The boxes of a csv file with columns path,x0,y0,x1,y1[,score][,source].

    Paths are relative to the source's folder, corners are pixels of the upright picture. Raises
    ConfigError that names the line.
    """
    found: Listed = defaultdict(list)
    with open_text(path) as file:
        reader = csv.DictReader(file)
        if not {"path", "x0", "y0", "x1", "y1"} <= set(reader.fieldnames or ()):
            raise ConfigError(f"{path}: the first line is to name path,x0,y0,x1,y1")
        # Line 1 is the header. A row without a source is for the picture of any source.
        for number, row in enumerate(reader, 2):
            try:
                x0, y0, x1, y1 = (float(row[name]) for name in ("x0", "y0", "x1", "y1"))
                score = float(row.get("score") or 1.0)
                place = (row.get("source") or "", row["path"])
                found[place].append(Box((x0, y0, x1, y1), score=score))
            except (TypeError, ValueError):
                raise ConfigError(f"{path}, line {number}: a corner is not a number") from None
    return dict(found)


def _listed(boxes: Listed, image: SourceImage) -> list[Box]:
    """The boxes of one picture in a csv file."""
    source, path = picture_of(image.image_id)
    return boxes.get(("", path), []) + boxes.get((source, path), [])


def picture_of(image_id: str) -> tuple[str, str]:
    """The source of a picture without labels, and the picture's path below its folder."""
    source, _, path = image_id.split("/", 2)
    return source, path


def check_listed(config: DetectConfig, image_ids: Iterable[str]) -> None:
    """Raises ConfigError where boxes of the csv file belong to no picture, or to several.

    The latter is so where two sources have a picture of that path and the row names no source.
    """
    sources: dict[str, list[str]] = defaultdict(list)
    for source, path in sorted(map(picture_of, image_ids)):
        sources[path].append(source)
    listed = read_boxes(Path(config.weights))
    if lost := [p for s, p in listed if p not in sources or s not in ("", *sources[p])]:
        raise ConfigError(
            f"{config.weights}: {len(lost)} paths are no picture's, such as {lost[0]} "
            "(they are to be relative to the source's folder)"
        )
    if twice := [p for s, p in listed if not s and len(sources[p]) > 1]:
        raise ConfigError(
            f"{config.weights}: {twice[0]} is in {' and '.join(sources[twice[0]])}; "
            "say which in a column `source`"
        )


def _ssd(config: DetectConfig) -> Callable[[Pixels, SourceImage], list[Box]]:
    """The SSD of ssd.py from the user's file, over the picture and its tiles."""
    network = ssd.load_ssd(Path(config.weights))
    tiled = replace(config, tile=_ssd_tile(config), iou=SSD_IOU)

    def run(rgb: Pixels) -> list[Box]:
        corners, scores = network(rgb)
        likely = scores >= config.ssd_conf
        return in_picture(best_boxes(corners[likely], scores[likely], tiled), rgb)

    return lambda rgb, image: in_tiles(run, rgb, tiled)


def _ssd_tile(config: DetectConfig) -> int:
    """Tiles as much smaller than YOLO's as the network's input is; 0 = never."""
    return config.tile * ssd.SIDE // config.size


def _yolo(config: DetectConfig) -> Callable[[Pixels, SourceImage], list[Box]]:
    """YOLO11 from the user's file: .onnx is run by onnxruntime, .pt by ultralytics."""
    run = _onnx(config) if config.weights.endswith(".onnx") else _ultralytics(config)
    return lambda rgb, image: in_tiles(run, rgb, config)


def in_tiles(run: Callable[[Pixels], list[Box]], rgb: Pixels, config: DetectConfig) -> list[Box]:
    """Boxes that `run` finds in a picture and, if the picture is a long one, in its tiles.

    Scaled down to the detector's input as a whole, a long picture would lose its smaller people. Of
    overlapping boxes the best stays.
    """
    height, width = rgb.shape[:2]
    found = run(rgb)
    if not 0 < config.tile < max(height, width):
        return found
    for top in tile_starts(height, config.tile):
        for left in tile_starts(width, config.tile):
            part = np.ascontiguousarray(rgb[top : top + config.tile, left : left + config.tile])
            moved = (shift(box, left, top) for box in run(part))
            # What a tile cuts off is left to its neighbours and to the whole picture.
            edges = (left, top, left + part.shape[1], top + part.shape[0])
            found += [box for box in moved if not is_cut(box, edges, width, height)]
    corners = np.array([box.xyxy for box in found], np.float64).reshape(-1, 4)
    return best_boxes(corners, np.array([box.score for box in found]), config)


def tile_starts(length: int, tile: int) -> list[int]:
    """Where the tiles begin that cover a length, each overlapping the next by a quarter or more."""
    if length <= tile:
        return [0]
    count = -(-(length - tile) // (tile * 3 // 4)) + 1
    return [i * (length - tile) // (count - 1) for i in range(count)]


def shift(box: Box, left: int, top: int) -> Box:
    """A tile's box in the pixels of the picture, where the tile begins at (left, top)."""
    x0, y0, x1, y1 = box.xyxy
    return replace(box, xyxy=(x0 + left, y0 + top, x1 + left, y1 + top))


def is_cut(box: Box, edges: tuple[int, int, int, int], width: int, height: int) -> bool:
    """Whether a box ends at an edge of its tile that is no edge of the picture.

    Args:
        edges: left, top, right and lower edge of the tile.
        width, height: of the picture.
    """
    outer = (0, 0, width, height)
    pairs = zip(box.xyxy, edges, outer, strict=True)
    return any(edge != rim and abs(side - edge) < 2 for side, edge, rim in pairs)


def _onnx(config: DetectConfig) -> Callable[[Pixels], list[Box]]:
    """YOLO11 exported to ONNX, on the CPU. Raises ConfigError if the file is no such network."""
    try:
        import onnxruntime
    except ImportError:
        raise ConfigError("a .onnx detector needs: pip install 'osdhuman-jax[curate]'") from None
    # One thread, since there is a worker process for every core.
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    try:
        session = onnxruntime.InferenceSession(config.weights, options, ["CPUExecutionProvider"])
    except Exception as error:
        # onnxruntime has an exception class of its own for each fault of a file.
        line = str(error).splitlines()[0]
        raise ConfigError(
            f"{config.weights}: not a network that onnxruntime runs: {line}"
        ) from None
    # A network of a fixed size says which; else the setting counts.
    entry = session.get_inputs()[0]
    size = entry.shape[-1] if isinstance(entry.shape[-1], int) else config.size

    def find(rgb: Pixels) -> list[Box]:
        batch, scale, offset = letterbox(rgb, size)
        output = np.asarray(session.run(None, {entry.name: batch})[0])
        if output.ndim != 3 or not 4 < output.shape[1] < output.shape[2]:
            raise ConfigError(
                f"{config.weights}: gives {output.shape}, not (1, 4 + classes, boxes)"
            )
        return in_picture(decode_yolo(output[0], scale, offset, config), rgb)

    return find


def in_picture(boxes: list[Box], rgb: Pixels) -> list[Box]:
    """Boxes clipped to the picture, without those that lie in the gray around it."""
    height, width = rgb.shape[:2]
    clipped = [replace(box, xyxy=stages.clip(box, width, height)) for box in boxes]
    return [b for b in clipped if b.xyxy[0] < b.xyxy[2] and b.xyxy[1] < b.xyxy[3]]


def letterbox(
    rgb: Pixels, size: int
) -> tuple[Float32[np.ndarray, "1 3 size size"], float, tuple[float, float]]:
    """Scale a picture into the middle of a gray square, as YOLO was trained on.

    Returns the square in [0, 1] with channels first, the scale, and the picture's offset (x, y) in
    it.
    """
    height, width = rgb.shape[:2]
    scale = size / max(height, width)
    w, h = max(1, round(width * scale)), max(1, round(height * scale))
    left, top = (size - w) // 2, (size - h) // 2
    canvas = np.full((size, size, 3), PAD, np.uint8)
    canvas[top : top + h, left : left + w] = cv2.resize(rgb, (w, h), interpolation=cv2.INTER_LINEAR)
    batch = canvas.astype(np.float32).transpose(2, 0, 1)[None] / np.float32(255)
    return np.ascontiguousarray(batch), scale, (float(left), float(top))


def decode_yolo(
    output: np.ndarray, scale: float, offset: tuple[float, float], config: DetectConfig
) -> list[Box]:
    """The people in YOLO's output, as boxes in the pixels of the picture.

    A person is where the person class is the likeliest one. Of overlapping boxes the best stays.

    Args:
        output: (4 + classes, anchors); its rows are cx, cy, w, h and the probability of each class.
        scale, offset: of the picture in the square (see `letterbox`).
    """
    scores = output[4 + PERSON].astype(np.float64)
    people = (scores >= config.conf) & (output[4:].argmax(axis=0) == PERSON)
    cx, cy, w, h = output[:4, people].astype(np.float64)
    corners = np.stack([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2], axis=1)
    # From the square back to the picture.
    corners = (corners - np.array([*offset, *offset])) / scale
    return best_boxes(corners, scores[people], config)


def best_boxes(corners: BoxCorners, scores: np.ndarray, config: DetectConfig) -> list[Box]:
    """The surest boxes of people, none of which overlaps a surer one too much."""
    kept = greedy_nms(corners, scores, config.iou)[: config.most]
    return [Box(tuple(corners[i].tolist()), score=float(scores[i])) for i in kept]


def greedy_nms(boxes: BoxCorners, scores: np.ndarray, iou: float) -> list[int]:
    """Places of the boxes that stay when each suppresses those that overlap it, best first."""
    overlap, kept = stages.ious(boxes, boxes), []
    for i in sorted(range(len(boxes)), key=lambda i: (-scores[i], i)):
        if all(overlap[i, j] <= iou for j in kept):
            kept.append(i)
    return kept


def _ultralytics(config: DetectConfig) -> Callable[[Pixels], list[Box]]:
    """YOLO11 from a .pt file. Raises ConfigError where ultralytics is not installed."""
    # Left to itself, ultralytics would use the network, and install packages that it misses.
    os.environ |= {"YOLO_OFFLINE": "true", "YOLO_AUTOINSTALL": "false"}
    try:
        from ultralytics import YOLO  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ConfigError(
            "a .pt detector needs ultralytics (AGPL-3.0): pip install ultralytics; "
            "or export the weights to .onnx"
        ) from None
    model = YOLO(config.weights)

    def find(rgb: Pixels) -> list[Box]:
        options = {"conf": config.conf, "iou": config.iou, "imgsz": config.size}
        # Arrays are taken for OpenCV's, whose channels are blue, green, red.
        bgr = np.ascontiguousarray(rgb[..., ::-1])
        result = model.predict(
            bgr, classes=[PERSON], max_det=config.most, verbose=False, **options
        )[0].boxes
        pairs = zip(result.xyxy.tolist(), result.conf.tolist(), strict=True)
        return [Box(tuple(xyxy), score=score) for xyxy, score in pairs]

    return find
