"""The quality metrics of crops, in groups that are computed, and computed again, one by one.

With `iqa` "pyiqa" they are the paper's four (CLIPIQA, MANIQA, MUSIQ, NIQE) and, for the report,
BRISQUE, by the user's weights. With "classic", the default, they need no weights, and what they
select is sharp and clean but not the paper's notion of quality; every report says so. A group's
name and the settings go in, a `MetricGroup` comes out, which the score job calls with batches.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np

from curate.config import ConfigError, DetectConfig, ScoreConfig
from curate.cropping import detect
from curate.cropping.stages import Region
from curate.engine.ledger import digest
from curate.quality import classic, learned
from curate.schema import Column, CropBatch, Facts, Pixels, SourceImage
from osdhuman_jax.disk import known_digest
from osdhuman_jax.evaluation import niqe

# A crop is no picture of a source; a detector by pixels does not look at this.
NOWHERE = SourceImage("", "", "")

# The metrics of Eq. 1 with their signs: of NIQE lower values are better.
PAPER_DIRECTIONS = {"clipiqa": 1, "maniqa": 1, "musiq": 1, "niqe": -1}
# Pixels of the side that NIQE needs for two blocks each way, and so for a covariance.
NIQE_SIDE = 2 * niqe.BLOCK
# Raised when NIQE of the person's region changes.
PERSON_NIQE_VERSION = 1
# The column of the group "persons", which holds a count and no metric of quality.
PERSONS = "detected_persons"


@dataclass(frozen=True)
class MetricGroup:
    """A group of metrics with its weights loaded.

    Crops of equal size go in, with the regions of their persons, a column for each of its names
    comes out.
    """

    names: tuple[str, ...]
    score: Callable[[CropBatch, Sequence[Region]], dict[str, Column]]

    def __call__(
        self, batch: CropBatch, regions: Sequence[Region] | None = None
    ) -> dict[str, Column]:
        """Columns of a batch's values by metric, NaN where a metric has none.

        Args:
            regions: where on each crop its person is; None = all of every crop.
        """
        height, width = batch.shape[1:3]
        return self.score(batch, regions or [(0, 0, width, height)] * len(batch))


def groups(config: ScoreConfig) -> tuple[str, ...]:
    """Names of the groups that the settings ask for. Raises ConfigError on unknown metrics."""
    # The classic metrics are one group, since they are quick; learned ones are a group each.
    persons = ("persons",) if config.persons else ()
    if config.iqa == "classic":
        return ("classic", *(("niqe",) if config.niqe_params else ()), *persons)
    if unknown := set(config.report_only) - {*PAPER_DIRECTIONS, *learned.PYIQA_METRICS, "classic"}:
        raise ConfigError(f"score.report_only: no metric {', '.join(sorted(unknown))}")
    return (
        *PAPER_DIRECTIONS,
        *(name for name in config.report_only if name not in PAPER_DIRECTIONS),
        *persons,
    )


def directions(config: ScoreConfig) -> dict[str, int]:
    """The metrics of Eq. 1 with their signs: 1 where higher is better, -1 where lower is."""
    # NIQE's name depends on its parameters: fitted to the user's pictures it is another metric.
    niqe = {names("niqe", config)[-1]: -1} if "niqe" in groups(config) else {}
    if config.iqa == "classic":
        return classic.DIRECTIONS | niqe
    return {name: sign for name, sign in PAPER_DIRECTIONS.items() if name != "niqe"} | niqe


def sees_region(group: str, config: ScoreConfig) -> bool:
    """Whether a group measures the person's region and not only the crop."""
    return group == "classic" or (group == "niqe" and config.iqa == "classic")


def has_network(group: str) -> bool:
    """Whether a group's metrics are computed by a network, whose weights take a while to load."""
    return group not in ("classic", "niqe")


def describe(group: str, config: ScoreConfig) -> Facts:
    """All that a group's scores depend on except the crops. Raises ConfigError."""
    if group == "classic":
        return {"metrics": list(classic.CLASSIC_METRICS), "version": classic.CLASSIC_VERSION}
    if group == "niqe":
        path = _niqe_file(config)
        facts: Facts = {"version": niqe.VERSION, "weights": {path.name: known_digest(path)}}
        return facts | ({"person": PERSON_NIQE_VERSION} if sees_region(group, config) else {})
    if group == "persons":
        return detect.describe(_counter(config))
    return learned.describe(group, config.weights, config.device)


def check(config: ScoreConfig) -> None:
    """Raises ConfigError that names all that the groups lack."""
    lines = []
    for group in groups(config):
        try:
            describe(group, config)
        except ConfigError as error:
            lines.append(str(error))
    if lines:
        raise ConfigError("; ".join(dict.fromkeys(lines)))
    # This reads NIQE's parameters, so a damaged file is found now.
    directions(config)


def names(group: str, config: ScoreConfig) -> tuple[str, ...]:
    """Names of the metrics of a group. Raises ConfigError."""
    if group == "classic":
        return tuple(classic.CLASSIC_METRICS)
    if group == "niqe":
        # The last is that of Eq. 1: without learned metrics NIQE too looks at the person.
        whole = _niqe(config).name
        return (whole, f"person-{whole}") if sees_region(group, config) else (whole,)
    return (PERSONS,) if group == "persons" else (group,)


def make_scorer(group: str, config: ScoreConfig) -> MetricGroup:
    """A group with its weights, which stay loaded for the next shard. Raises ConfigError."""
    # The digest is a key of the cache: another file under the same name is loaded anew.
    return _make_scorer(group, astuple(config), digest(describe(group, config)))


@functools.lru_cache(maxsize=1)
def _make_scorer(group: str, values: tuple, identity: str) -> MetricGroup:
    config = ScoreConfig(*values)
    return MetricGroup(names(group, config), _score_of(group, config))


def _score_of(
    group: str, config: ScoreConfig
) -> Callable[[CropBatch, Sequence[Region]], dict[str, Column]]:
    """The function on batches that computes a group's metrics."""
    if group == "classic":
        return _each(lambda rgb, region: classic.score(rgb, region))
    if group == "niqe":
        model, named = _niqe(config), names(group, config)
        looks = (lambda rgb, _: rgb, _niqe_window)[: len(named)]
        return _each(
            lambda rgb, region: {
                name: model(look(rgb, region)) for name, look in zip(named, looks, strict=True)
            }
        )
    if group == "persons":
        find = detect.make_detector(_counter(config))
        return _each(lambda rgb, _: {PERSONS: float(len(find(rgb, NOWHERE)))})
    metric = learned.make_metric(group, config.weights, config.device)
    return lambda batch, _: {group: metric(batch)}


def _each(
    score: Callable[[Pixels, Region], dict[str, float]],
) -> Callable[[CropBatch, Sequence[Region]], dict[str, Column]]:
    """Turns a function on single crops into one on batches."""

    def columns(batch: CropBatch, regions: Sequence[Region]) -> dict[str, Column]:
        rows = [score(rgb, region) for rgb, region in zip(batch, regions, strict=True)]
        return {name: np.array([row[name] for row in rows]) for name in rows[0]} if rows else {}

    return columns


def _niqe_window(rgb: Pixels, region: Region) -> Pixels:
    """The part of a crop around a person's region, widened to NIQE_SIDE where it is smaller."""
    (height, width), (x0, y0, x1, y1) = rgb.shape[:2], region
    across, down = _widened(x0, x1, width), _widened(y0, y1, height)
    return np.ascontiguousarray(rgb[down, across])


def _widened(low: int, high: int, size: int) -> slice:
    """An interval in [0, size) of NIQE_SIDE at least, if there is so much."""
    missing = max(0, NIQE_SIDE - (high - low))
    start = max(0, min(low - missing // 2, size - (high - low) - missing))
    return slice(start, min(size, start + high - low + missing))


# What files of detectors end in.
COUNTERS = (".onnx", ".pt", ".tgz", ".tflite")


def _counter(config: ScoreConfig) -> DetectConfig:
    """The detector that counts people, at its usual settings. Raises ConfigError.

    A crop is 512 pixels wide, so that it is never looked at in tiles.
    """
    if not Path(config.persons).is_file():
        raise ConfigError(f"--persons_weights {config.persons}: no such file")
    if not config.persons.endswith(COUNTERS):
        kinds = "YOLO's .onnx or .pt, or the package of ssd, .tgz"
        raise ConfigError(f"--persons_weights {config.persons}: no detector; give {kinds}")
    counter = DetectConfig(detect.counter_kind(config.persons), config.persons)
    detect.check(counter, needed=True)
    return counter


def _niqe(config: ScoreConfig) -> niqe.Niqe:
    """NIQE with the parameters that the settings name. Raises ConfigError."""
    path = _niqe_file(config)
    return _read_niqe(path, known_digest(path))


@functools.lru_cache(maxsize=8)
def _read_niqe(path: Path, digest: str) -> niqe.Niqe:
    try:
        return niqe.read_parameters(path)
    except niqe.NiqeError as error:
        raise ConfigError(str(error)) from None


def _niqe_file(config: ScoreConfig) -> Path:
    """The file of --niqe_params, or the authors' file among the weights. Raises ConfigError."""
    if not config.niqe_params:
        found = niqe.find_parameters(Path(config.weights)) if config.weights else None
        # Where there is none, the search for it says so.
        return found or learned.weight_file(config.weights, niqe.FILES[0])[0]
    path = Path(config.niqe_params)
    if not path.is_file():
        raise ConfigError(f"--niqe_params {path}: no such file")
    return path
