"""Eq. 1 of the paper: z = mean over metrics of (M - mu) / sigma, and what is selected by it.

mu and sigma (of the population: ddof 0) are those of the whole scored pool, all sources together,
in float64. A metric whose lower values are better, such as NIQE, is negated first. Then come the
ranks, the thresholds of single metrics, and the search for thresholds that keep a wanted share.
All functions are pure: columns of numbers go in, numbers come out. Section 3.1 of the paper.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from jaxtyping import Int64

from curate.schema import Column, Facts, InputError

# Values of all crops by metric.
Columns = Mapping[str, Column]
# By metric 1 where higher values are better, -1 where lower ones are.
Directions = Mapping[str, int]


class StatisticsError(InputError):
    """A pool that cannot be standardised."""


@dataclass(frozen=True)
class PoolStatistics:
    """mu and sigma of each metric over a pool."""

    count: int
    mean: dict[str, float]
    std: dict[str, float]

    def to_dict(self) -> Facts:
        """The statistics as JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Facts) -> "PoolStatistics":
        """The statistics that `to_dict` made JSON values of."""
        return cls(values["count"], dict(values["mean"]), dict(values["std"]))


def fit_statistics(values: Columns) -> PoolStatistics:
    """mu and sigma of each metric. Raises StatisticsError if one is constant or not finite."""
    # Every metric must have a value of every crop, or z would mix means over different crops.
    sizes = {len(column) for column in values.values()}
    if len(sizes) != 1 or min(sizes) < 2:
        raise StatisticsError(
            f"Eq. 1 needs two scored crops at least; there are {min(sizes, default=0)}"
        )
    moments = {name: mean_and_std(column) for name, column in values.items()}
    for name, (_, std) in moments.items():
        if not math.isfinite(std) or std <= 0:
            raise StatisticsError(f"metric {name}: standard deviation is zero or not finite")
    return PoolStatistics(
        sizes.pop(),
        {name: mean for name, (mean, _) in moments.items()},
        {name: std for name, (_, std) in moments.items()},
    )


def mean_and_std(values: Column) -> tuple[float, float]:
    """Mean and population standard deviation of at least one number.

    The sums are exactly rounded, so that the order of the values does not matter.
    """
    mean = math.fsum(values) / len(values)
    # Infinite values give NaN here, which `fit_statistics` refuses.
    with np.errstate(invalid="ignore"):
        return mean, math.sqrt(math.fsum((values - mean) ** 2) / len(values))


def z_scores(values: Columns, stats: PoolStatistics, directions: Directions) -> Column:
    """The z of Eq. 1 of each crop."""
    terms = [
        sign * (values[name] - stats.mean[name]) / stats.std[name]
        for name, sign in directions.items()
    ]
    return np.mean(np.stack(terms), axis=0)


def ranks(z: Column, names: Sequence[str]) -> Int64[np.ndarray, " n"]:
    """Rank of each crop, 1 for the highest z."""
    # Crops with equal z are ordered by name: the order of rows must not matter.
    order = sorted(range(len(names)), key=lambda i: (-z[i], names[i]))
    places = np.empty(len(names), np.int64)
    places[order] = np.arange(1, len(names) + 1)
    return places


def first_failing(
    values: Columns, thresholds: Mapping[str, float], directions: Directions
) -> list[str]:
    """Of each crop the first metric whose threshold it fails, "" where it passes all.

    A value equal to its threshold passes.
    """
    count = len(next(iter(values.values()), ()))
    failing = [""] * count
    for name, limit in thresholds.items():
        # The sign makes an upper limit of a metric whose lower values are better.
        short = directions[name] * (values[name] - limit) < 0
        for at in np.flatnonzero(short):
            failing[at] = failing[at] or name
    return failing


def calibrate(values: Columns, directions: Directions, share: float) -> dict[str, float]:
    """Thresholds at one common quantile of each metric that together keep `share` of the crops.

    One metric's threshold after the other moves up by one crop, so that, ties apart, the share
    kept is the smallest possible that is not below what was asked for.

    Args:
        values: of the crops of the top third alone.
    """
    # Step s leaves s values below the thresholds, spread evenly over the metrics.
    count = len(next(iter(values.values())))
    signed = {name: np.sort(sign * values[name]) for name, sign in directions.items()}

    def thresholds(step: int) -> dict[str, float]:
        places = ((step + at) // len(signed) for at in range(len(signed)))
        return {
            name: float(directions[name] * column[place])
            for place, (name, column) in zip(places, signed.items(), strict=True)
        }

    # Bisection: at `low` enough crops pass, above `high` too few.
    low, high = 0, (count - 1) * len(signed)
    while low < high:
        middle = (low + high + 1) // 2
        kept = first_failing(values, thresholds(middle), directions).count("")
        low, high = (middle, high) if kept >= share * count else (low, middle - 1)
    return thresholds(low)
