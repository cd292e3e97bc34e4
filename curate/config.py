"""Settings of the pipeline, typed; `configs/curate.py` holds the profiles as values.

Numbers marked [P] are the OSDHuman paper's. It publishes no thresholds, so all others are this
project's choice, to be stated with every result.
"""

import os
from dataclasses import dataclass, field
from typing import Any

from curate.schema import InputError

BLUR_FLOOR = 50.0  # least threshold of `blur.auto`


class ConfigError(InputError):
    """A setting of an unknown name, a wrong type or an impossible value."""


@dataclass
class DecodeConfig:
    """Which files count as photographs."""

    max_pixels: int = 64_000_000  # more: too_large
    blocked: tuple[str, ...] = ()  # sha256 of files that stand for photos that are gone: corrupt


@dataclass
class BlurConfig:
    """Variance of the Laplacian."""

    source_min: float = 100.0  # of the source; 0 = off
    auto: bool = False  # instead of it the 20th percentile of all sources, or BLUR_FLOOR
    at: str = "short512"  # measured after scaling the shorter side to 512, or "native"
    crop_min: float = 100.0  # of the finished crop; 0 = off

    @property
    def floor(self) -> float:
        """Below this a source is dropped at once; `auto` drops more once all are measured."""
        return BLUR_FLOOR if self.auto else self.source_min


@dataclass
class BoxConfig:
    """Which person boxes are worth a crop."""

    long_min: float = 256.0  # pixels of the longer side
    short_min: float = 96.0  # pixels of the shorter side
    area_min: float = 0.02  # share of the image
    aspect_max: float = 5.0


@dataclass
class SquareConfig:
    """The square around a box."""

    margin: float = 0.0  # share of the longer side added all round
    side_min: int = 384  # pixels; smaller squares would be enlarged too much: crop_small
    border_loss: float = 0.25  # share of the box that may be lost where the image is too narrow


@dataclass
class DenseConfig:
    """What is too crowded."""

    overlap_iou: float = 0.3
    overlap_count: int = 3  # boxes overlapping this one by `overlap_iou`
    inside_most: int = 10  # persons at least half inside the square
    ignore_share: float = 0.3  # of the square under one ignore box
    median_side: float = 0.125  # of the square's side: smaller people inside


@dataclass
class NmsConfig:
    """Squares of one image, those nearest its centre first [P]."""

    iou: float = 0.5
    most: int = 4  # crops an image


@dataclass
class DetectConfig:
    """Person detector for sources without labels."""

    kind: str = "none"  # none | yolo | hog | whole-image | boxes
    weights: str = ""  # yolo: .onnx or .pt; boxes: a csv file
    conf: float = 0.35
    iou: float = 0.6
    size: int = 640  # letterbox, pixels
    tile: int = 2560  # yolo: pictures longer than this are looked at in tiles too; 0 = never
    most: int = 300


@dataclass
class ScoreConfig:
    """Quality metrics of the crops."""

    iqa: str = "classic"  # classic (no weights) | pyiqa (the paper's four, the user's weights)
    weights: str = ""  # folder of the metrics' weight files
    niqe_params: str = ""  # .mat or .npz; classic: adds niqe
    report_only: tuple[str, ...] = ("brisque",)  # not in Eq. 1 [P]; or classic
    persons: str = ""  # YOLO weights that count the people on each crop, for the report
    device: str = "cpu"
    batch: int = 8


@dataclass
class SelectConfig:
    """Eq. 1, the top share, the thresholds."""

    top: float = 1 / 3  # [P]
    clipiqa_min: float = 0.65
    maniqa_min: float = 0.66
    musiq_min: float = 70.0
    niqe_max: float = 4.0
    thresholds: bool = True
    source_most: int = 0  # crops of one source, best first; 0 = all that the global rank leaves
    calibrate: float = 0.0  # share of the top third that thresholds are to keep; 0.744 from [P]
    license_allow: tuple[str, ...] = ()  # as sources name them, or "unknown"; empty = all


@dataclass
class SplitConfig:
    """Train, validation, test."""

    seed: int = 123
    val: int = 4216  # crops [P]
    max_per_group: int = 4  # crops of one photograph
    test: int = 0  # > 0: this run makes a test set of so many crops (3,000 [P]) and nothing else


@dataclass
class PackConfig:
    """The packed set."""

    to: str = "arrayrecord"  # arrayrecord | folder | parquet | webdataset
    codec: str = "webp"  # lossless; or png, or jpeg (quality 95, 4:4:4)
    per_file: int = 2048  # crops at most, about; at least half as many


@dataclass
class CurateConfig:
    """All of it."""

    profile: str = "default"
    decode: DecodeConfig = field(default_factory=DecodeConfig)
    blur: BlurConfig = field(default_factory=BlurConfig)
    box: BoxConfig = field(default_factory=BoxConfig)
    square: SquareConfig = field(default_factory=SquareConfig)
    dense: DenseConfig = field(default_factory=DenseConfig)
    nms: NmsConfig = field(default_factory=NmsConfig)
    detect: DetectConfig = field(default_factory=DetectConfig)
    score: ScoreConfig = field(default_factory=ScoreConfig)
    select: SelectConfig = field(default_factory=SelectConfig)
    split: SplitConfig = field(default_factory=SplitConfig)
    pack: PackConfig = field(default_factory=PackConfig)
    shard_images: int = 1000  # source images a shard; small sources get smaller ones
    limit: float = 60.0  # seconds an image may take


def put(config: Any, name: str, text: str) -> None:
    """Set `config.a.b` by its dotted name from text, in the type that is there.

    Raises ConfigError for an unknown name or a text that is no such value.
    """
    *parents, leaf = name.split(".")
    for parent in parents:
        config = getattr(config, parent, None)
    if config is None or not hasattr(config, leaf):
        raise ConfigError(f"no setting {name!r}")
    old = getattr(config, leaf)
    try:
        setattr(config, leaf, _parse(old, text))
    except (ValueError, KeyError):
        raise ConfigError(f"{name}={text}: not a {type(old).__name__}") from None


def _parse(old: Any, text: str) -> Any:
    if isinstance(old, bool):
        return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
    if isinstance(old, tuple):
        return tuple(part for part in text.split(",") if part)
    return type(old)(text)


def from_dict(values: dict[str, Any]) -> CurateConfig:
    """Inverse of dataclasses.asdict, of JSON values. Raises ConfigError on unknown names."""
    config = CurateConfig()
    for name, value in values.items():
        old = getattr(config, name, None)
        if isinstance(value, dict) and old is not None:
            unknown = set(value) - set(vars(old))
            if unknown:
                raise ConfigError(f"no setting {name}.{sorted(unknown)[0]}")
            vars(old).update({k: tuple(v) if isinstance(v, list) else v for k, v in value.items()})
        elif old is None:
            raise ConfigError(f"no setting {name!r}")
        else:
            setattr(config, name, value)
    return config


def make_absolute(config: CurateConfig) -> None:
    """Have the paths in it name the same files for a process in any folder."""
    detector, metrics = config.detect, config.score
    detector.weights = absolute(detector.weights)
    metrics.weights = absolute(metrics.weights)
    metrics.niqe_params = absolute(metrics.niqe_params)
    metrics.persons = absolute(metrics.persons)


def absolute(path: str) -> str:
    """The path from the root; "" where there is none."""
    return os.path.abspath(path) if path else ""


def check(config: CurateConfig) -> None:
    """Values that cannot be meant. Raises ConfigError."""
    wrong = [
        (config.blur.at not in ("short512", "native"), "blur.at is short512 or native"),
        (config.score.iqa not in ("classic", "pyiqa"), "score.iqa is classic or pyiqa"),
        (not 0 < config.select.top <= 1, "select.top is a share in (0, 1]"),
        (not 0 <= config.select.calibrate <= 1, "select.calibrate is a share in [0, 1]"),
        (config.select.source_most < 0, "select.source_most is not negative"),
        (config.square.side_min < 1, "square.side_min is 1 at least"),
        (0 < config.detect.tile < 64, "detect.tile is 64 pixels at least, or 0"),
        (min(config.split.val, config.split.test) < 0, "split.val and split.test are not negative"),
        (config.split.max_per_group < 1, "split.max_per_group is 1 at least"),
        (min(config.pack.per_file, config.shard_images) < 1, "files and shards hold 1 at least"),
        (config.score.batch < 1, "score.batch is 1 at least"),
    ]
    if lines := [line for bad, line in wrong if bad]:
        raise ConfigError("; ".join(lines))
