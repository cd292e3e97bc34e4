"""The crop job: pictures in, 512 x 512 crops out, and a row for every image and every candidate.

It puts decoding, detection, the stages and the fingerprints together, one picture at a time: the
first half of section 3.1 of the paper. What a later step needs is in its three files, so that no
picture has to be decoded twice.
"""

import hashlib
import socket
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, astuple, dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path

import cv2
import numpy as np
import PIL

from curate import readers
from curate.config import BodyConfig, CurateConfig, DetectConfig
from curate.cropping import body, decode, detect, stages
from curate.cropping.fingerprints import RESIZE_RULE, fingerprint_rows, pixels_digest
from curate.engine.ledger import ShardLedger, digest
from curate.engine.parquet import (
    CANDIDATE_SCHEMA,
    FINGERPRINT_SCHEMA,
    Row,
    RowWriter,
    crop_writer,
    read_rows,
    source_image,
    write_rows,
)
from curate.engine.worker import Failure, ItemRunner
from curate.schema import (
    CROP_SIDE,
    WHOLE_PICTURE,
    Box,
    Candidate,
    Facts,
    Pixels,
    Reason,
    SourceImage,
    crop_id,
    sorted_counts,
)

# Raised whenever a job's output for the same input changes.
CODE = 3
# Other versions may decode or resize to other pixels, so that they are part of every key.
LIBRARIES = {"opencv": cv2.__version__, "pillow": PIL.__version__, "numpy": np.__version__}
# Level 3 of 9 is quick, since what is kept is packed smaller later: lossless WebP takes six times
# as long.
PNG = (cv2.IMWRITE_PNG_COMPRESSION, 3)


@dataclass(frozen=True)
class CropJob:
    """The crop job. A shard is a part of a source, `SOURCE-00000`.

    Outputs rows.parquet (images and candidates), crops.parquet (PNGs) and prints.parquet
    (fingerprints).
    """

    config: CurateConfig
    sources: tuple[readers.SourceSpec, ...] = ()
    name: str = "crop"
    gpus: float = 0.0

    @property
    def network(self) -> bool:
        return self.config.detect.kind in detect.BY_PIXELS or bool(self.config.body.weights)

    def key(self, ledger: ShardLedger, shard: str) -> str:
        # Of the settings those that a crop depends on: another threshold of scores changes none.
        c = self.config
        settings = [asdict(s) for s in (c.decode, c.blur, c.box, c.square, c.dense, c.nms)]
        # Crops stay done that were made before there was anything else.
        if c.blur.of == "picture":
            del settings[1]["of"]
        if c.square.aspect == 1:
            del settings[3]["aspect"]
        # Crops of runs without a gate stay done that were made before there was one.
        settings += body.describe(c.body)
        detector = detect.describe(c.detect)
        index = file_name_digest(index_file(ledger, shard))
        return digest(CODE, LIBRARIES, settings, detector, index)

    def work(self, ledger: ShardLedger, shard: str, folder: Path, run: ItemRunner) -> Facts:
        require(source for source in self.sources if source.name == source_and_number(shard)[0])
        images = [source_image(row) for row in read_rows(index_file(ledger, shard))]
        results = run.each(partial(make_cropper, self.config), images)
        # Crops are written as they come in: a shard's pictures are more than memory should hold.
        with crop_writer(folder / "crops.parquet") as crops:
            tally = Tally(shard, crops)
            for image, result in zip(images, results, strict=True):
                tally.add(image, result)
        write_rows(folder / "rows.parquet", CANDIDATE_SCHEMA, tally.rows)
        write_rows(folder / "prints.parquet", FINGERPRINT_SCHEMA, tally.fingerprints)
        return {
            "images": len(images),
            "crops": crops.count,
            "blur_of": self.config.blur.of,
            "reasons": sorted_counts(row["reason"] for row in tally.rows),
            "stages": {name: round(seconds, 3) for name, seconds in tally.seconds.items()},
        }


def require(sources: Iterable[readers.SourceSpec]) -> None:
    """Raises ReaderError where this machine lacks a source: all its pictures would seem missing.

    An empty folder counts as missing: a file system should have been mounted there.
    """
    for path in (Path(path) for source in sources for path in source.paths):
        if not path.exists() or (path.is_dir() and not any(path.iterdir())):
            host = socket.gethostname()
            raise readers.ReaderError(f"{path} is not there, or empty, on {host}: mount it there")


@dataclass
class Cropped:
    """What became of one image: values of the manifest's columns, pictures, fingerprints."""

    # Of the image.
    facts: Row
    # Of each candidate.
    candidates: list[Row] = field(default_factory=list)
    # The crops of those candidates that no rule has dropped, in their order.
    pngs: list[bytes] = field(default_factory=list)
    fingerprints: list[Row] = field(default_factory=list)
    # Why the image has no candidates.
    reason: str = ""
    detail: str = ""
    # CPU seconds by stage.
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass
class Tally:
    """Gathers a shard's rows as they come in; pictures go to the file `crops` and are not held."""

    shard: str
    crops: RowWriter
    rows: list[Row] = field(default_factory=list)
    fingerprints: list[Row] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    def add(self, image: SourceImage, result: Cropped | Failure) -> None:
        """Take in what `crop_image` made of an image."""
        # An image that could not be worked on is a row with its reason, as all others are.
        if isinstance(result, Failure):
            result = Cropped({}, reason=result.reason, detail=result.detail)
        base = {**label_facts(image), **result.facts}
        if not result.candidates:
            self.rows.append({**base, "reason": result.reason, "detail": result.detail})
        # Each candidate is a row; that of a crop says where its PNG lies.
        pngs = iter(result.pngs)
        for candidate in result.candidates:
            row = {**base, **candidate}
            if not row["reason"]:
                png = next(pngs)
                row |= {"crop_shard": self.shard, "crop_row": self.crops.count}
                row["crop_sha256"] = hashlib.sha256(png).hexdigest()
                self.crops.add({"crop_id": row["crop_id"], "png": png})
            self.rows.append(row)
        self.fingerprints += result.fingerprints
        for stage, seconds in result.seconds.items():
            self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds


def label_facts(image: SourceImage) -> Row:
    """Values of the columns that the labels alone fill."""
    names = ("image_id", "dataset", "split_of_source", "path", "flickr_id", "license")
    return {name: getattr(image, name) for name in names}


class Clock:
    """Adds up CPU seconds by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.process_time()

    def lap(self, stage: str) -> None:
        """Count the time since the last lap for `stage`."""
        now = time.process_time()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self._last
        self._last = now


def make_cropper(config: CurateConfig) -> Callable[[SourceImage], Cropped]:
    """The function on images that a worker process runs, with its networks loaded."""
    cv2.setNumThreads(1)
    # The digest is a key of the cache: another file under the same name is loaded anew.
    identity = digest(detect.describe(config.detect), body.describe(config.body))
    tools = _load_tools(astuple(config.detect), astuple(config.body), identity)
    return partial(crop_image, config, *tools)


@lru_cache(maxsize=1)
def _load_tools(detector: tuple, judge: tuple, identity: str) -> tuple[detect.Detector, body.Judge]:
    """The detector and the judge of crops, which stay loaded for the next shard."""
    return (
        detect.make_detector(DetectConfig(*detector)),
        body.make_judge(BodyConfig(*judge)),
    )


def crop_image(
    config: CurateConfig, detector: detect.Detector, judge: body.Judge, image: SourceImage
) -> Cropped:
    """Decode one picture and cut its crops out."""
    clock = Clock()
    if image.policy == "labels" and not any(box.kind == "person" for box in image.boxes):
        # Without people a picture is not worth decoding.
        return Cropped({}, reason=Reason.NO_PERSON, seconds=clock.seconds)
    # The file to upright pixels, or the reason why it is refused.
    try:
        picture = decode.decode_source(image, config.decode)
    except decode.Refused as refused:
        clock.lap("decode")
        return Cropped({}, reason=refused.reason, detail=refused.detail, seconds=clock.seconds)
    clock.lap("decode")
    # Blur is measured before any detector runs: it is cheap and drops much.
    result = Cropped(picture_facts(picture, image, detector), seconds=clock.seconds)
    result.facts["lap_src"] = stages.source_blur(picture.rgb, config.blur)
    clock.lap("blur")
    # A picture of one colour has no variance and goes even where the threshold is off.
    if result.facts["lap_src"] < max(config.blur.floor, np.nextafter(0.0, 1.0)):
        return replace(result, reason=Reason.BLUR)
    # Boxes of people, and of each the square and the crop, or the reason why there is none.
    boxes = find_boxes(image, picture, detector)
    clock.lap("boxes")
    candidates = stages.make_candidates(picture.rgb, boxes, config)
    clock.lap("crop")
    for c in candidates:
        if not c.reason:
            c.detail = judge(c)
            c.reason = Reason.NO_BODY if c.detail else ""
    clock.lap("body")
    if not candidates:
        return replace(result, reason=Reason.NO_PERSON)
    result.candidates = [candidate_row(image, c, boxes) for c in candidates]
    # What is stored of those that are left: pixels, and fingerprints to find copies by.
    kept = [c for c in candidates if not c.reason and c.crop is not None]
    result.pngs = [encode_crop(c.crop) for c in kept if c.crop is not None]
    clock.lap("encode")
    if kept:
        result.fingerprints = fingerprint_rows(image, picture.rgb, result.facts, kept)
        result.facts["phash"] = f"{result.fingerprints[0]['phash']:016x}"
    clock.lap("fingerprint")
    return result


def picture_facts(
    picture: decode.DecodedPicture, image: SourceImage, detector: detect.Detector
) -> Row:
    """Values of the columns that the decoded picture fills."""
    height, width = picture.rgb.shape[:2]
    return {
        "file_sha256": picture.file_sha256,
        "pixel_sha256": pixels_digest(picture.rgb),
        "w": width,
        "h": height,
        "orientation": picture.orientation,
        "image_flags": list(picture.flags),
        "detector": detector.name if image.policy == "detect" else None,
    }


def find_boxes(
    image: SourceImage, picture: decode.DecodedPicture, detector: detect.Detector
) -> tuple[Box, ...]:
    """Boxes by the image's policy: from labels, from the detector, or one around everything."""
    if image.policy == "detect":
        return detector(picture.rgb, image)
    return (detect.whole(picture.rgb),) if image.policy == "whole_image" else picture.boxes


def candidate_row(image: SourceImage, candidate: Candidate, boxes: tuple[Box, ...]) -> Row:
    """Values of the columns that one candidate fills; `boxes` are all of the image."""
    c, (x0, y0, x1, y1) = candidate, candidate.box.xyxy
    row: Row = {
        "box_index": c.box_index,
        **{"box_x0": x0, "box_y0": y0, "box_x1": x1, "box_y1": y1},
        "raw_label": c.box.raw_label,
        "box_flags": list(c.box.flags),
        "box_score": c.box.score,
        "lap_crop": c.lap_crop,
        "reason": c.reason,
        "detail": c.detail,
    }
    # A box that was dropped for itself has no square.
    if c.x0 is not None and c.y0 is not None and c.s is not None:
        row |= {"x0": c.x0, "y0": c.y0, "s": c.s, "scale_factor": CROP_SIDE / c.s}
        row["crop_id"] = crop_id(image.image_id, c, RESIZE_RULE)
        # A box around the whole picture says nothing about how many people are in it.
        if WHOLE_PICTURE not in c.box.flags:
            row["persons"] = count_persons(boxes, c.x0, c.y0, c.s, c.aspect)
    return row


def count_persons(boxes: Iterable[Box], x0: int, y0: int, s: int, aspect: int = 1) -> int:
    """How many persons the crop of a square shows, for the report's mean (the paper's is 3.4154).

    A person counts if half of the box is inside, and if it is 24 pixels long on the finished crop.
    """
    return sum(_shows(box, x0, y0, s, aspect) for box in boxes if box.kind == "person")


def _shows(box: Box, x0: int, y0: int, s: int, aspect: int) -> bool:
    """Whether a square's crop shows the person in a box."""
    left, top, right, bottom = box.xyxy
    width = max(0.0, min(right, x0 + s) - max(left, x0))
    height = max(0.0, min(bottom, y0 + s * aspect) - max(top, y0))
    area = (right - left) * (bottom - top)
    return (
        width * height >= 0.5 * area > 0 and max(right - left, bottom - top) * CROP_SIDE / s >= 24
    )


def encode_crop(rgb: Pixels) -> bytes:
    """A crop as PNG."""
    return cv2.imencode(".png", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), PNG)[1].tobytes()


def decode_crop(data: bytes) -> Pixels:
    """The pixels of a PNG by `encode_crop`. Raises ValueError if it is damaged."""
    bgr = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    if bgr is None:
        raise ValueError("a stored crop is no picture")
    return cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)


def index_file(ledger: ShardLedger, shard: str) -> Path:
    """The file with the index of a crop shard. Raises LedgerError where there is none."""
    source, number = source_and_number(shard)
    return ledger.output("index", source, f"{number}.parquet")


def source_and_number(shard: str) -> tuple[str, str]:
    """The two parts of a crop shard's name, `SOURCE-00000`."""
    source, number = shard.rsplit("-", 1)
    return source, number


def file_name_digest(path: Path) -> str:
    """The digest of a committed file's content, which is a part of the file's name."""
    return path.name.removesuffix(f"-{path.name.rsplit('-', 1)[1]}").rsplit("-", 1)[1]
