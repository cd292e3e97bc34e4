"""The ranking: Eq. 1 over a pool, the top third, thresholds of single metrics, a cap on sources.

A `Pool` goes in, `Decisions` come out in which each crop has its z, its rank and, if it is not
kept, its reason. In section 3.1 of the paper a crop must be in the top third and pass every
threshold. The formulas are in `curate.quality.statistics`.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping

import numpy as np
from jaxtyping import Int64

from curate.config import CurateConfig
from curate.quality import scores, statistics
from curate.schema import Facts, Reason
from curate.selection.decisions import Decisions
from curate.selection.pool import Pool, SelectError

# Places of crops in a pool.
Places = Int64[np.ndarray, " m"]


def thresholds_of(config: CurateConfig, names: Iterable[str]) -> dict[str, float]:
    """The settings' thresholds of those metrics that have one.

    There are none for metrics without weights: what the settings say is meant for the paper's.
    """
    select = config.select
    known = {
        "clipiqa": select.clipiqa_min,
        "maniqa": select.maniqa_min,
        "musiq": select.musiq_min,
        "niqe": select.niqe_max,
    }
    learned = config.score.iqa != "classic"
    return {n: known[n] for n in names if n in known} if select.thresholds and learned else {}


def rank_pool(pool: Pool, config: CurateConfig, frozen: Facts | None = None) -> Decisions:
    """Decide everything up to the thresholds.

    A pool that Eq. 1 cannot be computed over (of one crop, or with a metric that is the same for
    all) is dropped as a whole, and the statistics say why, as "unranked".

    Args:
        frozen: statistics of another pool (a test set is measured by the training pool's). Raises
            SelectError if that was scored by other metrics.
    """
    directions = scores.directions(config.score)
    if lacking := set(directions) - set(frozen["mean"] if frozen else directions):
        raise SelectError(f"--stats: of a pool without {', '.join(sorted(lacking))}: score it anew")
    # Crops that cannot be ranked: by licence, by a blurred source, or without all scores.
    blur_min = pool.blur_min() if config.blur.auto else 0.0
    reasons = unfit(pool, config, blur_min)
    used = np.array([pool.values[name] for name in directions]).T  # [crops, metrics]
    for at in np.flatnonzero(~np.isfinite(used).all(axis=1)):
        reasons[at] = reasons[at] or pool.errors[at] or Reason.NAN_SCORE
    candidates = np.array([at for at, reason in enumerate(reasons) if not reason], np.int64)
    values = {name: pool.values[name][candidates] for name in directions}
    # mu and sigma over all others; a pool that has none is dropped as a whole.
    z = np.full(len(reasons), np.nan)
    rank: list[int | None] = [None] * len(reasons)
    result = Decisions(reasons, z, rank, [None] * len(reasons), [""] * len(reasons))
    if config.blur.auto:
        result.statistics["blur_min"] = blur_min
    try:
        stats = (
            statistics.PoolStatistics.from_dict(frozen)
            if frozen
            else statistics.fit_statistics(values)
        )
    except statistics.StatisticsError as error:
        for at in candidates:
            reasons[at] = Reason.UNRANKED
        result.statistics["unranked"] = str(error)
        return result
    # Eq. 1 and the ranks, which the top share and the thresholds are taken of.
    z[candidates] = statistics.z_scores(values, stats, directions)
    places = statistics.ranks(z[candidates], [pool.crop_ids[at] for at in candidates])
    for at, place in zip(candidates, places, strict=True):
        rank[at] = int(place)
    result.statistics["pool"] = stats.to_dict()
    result.statistics["thresholds"] = apply_thresholds(pool, config, result, candidates, directions)
    if config.select.source_most:
        cap_sources(pool, config.select.source_most, result)
    return result


def unfit(pool: Pool, config: CurateConfig, blur_min: float) -> list[str]:
    """Reasons of the crops that are not to be ranked at all, "" for the others."""
    allowed = set(config.select.license_allow)
    barred = [bool(allowed) and (name or "unknown") not in allowed for name in pool.licenses]
    blurred = pool.source_blur < blur_min
    pairs = zip(barred, blurred, strict=True)
    return [Reason.LICENSE if bad else Reason.BLUR if soft else "" for bad, soft in pairs]


def apply_thresholds(
    pool: Pool,
    config: CurateConfig,
    result: Decisions,
    candidates: Places,
    directions: Mapping[str, int],
) -> dict[str, float]:
    """Drop the candidates outside the top share or below a threshold; returns the thresholds."""
    # The epsilon undoes the rounding of products such as 3 * (1 / 3).
    most = int(np.floor(len(candidates) * config.select.top + 1e-9))
    top = [int(at) for at in candidates if (result.rank[at] or 0) <= most]
    for at in set(map(int, candidates)) - set(top):
        result.reasons[at] = Reason.NOT_TOP_THIRD
    # Thresholds are the settings', or those at which the wanted share of the top is left.
    values = {name: pool.values[name][top] for name in directions}
    thresholds = thresholds_of(config, directions)
    if config.select.calibrate and top:
        thresholds = statistics.calibrate(values, directions, config.select.calibrate)
    for at, failing in zip(
        top, statistics.first_failing(values, thresholds, directions), strict=True
    ):
        result.reasons[at] = f"{Reason.BELOW_THRESHOLD}:{failing}" if failing else ""
    return thresholds


def cap_sources(pool: Pool, most: int, result: Decisions) -> None:
    """Drop what a source has beyond its `most` best; one rank over all favours some sources."""
    left: dict[str, int] = defaultdict(lambda: most)
    kept = [at for at, reason in enumerate(result.reasons) if not reason]
    for at in sorted(kept, key=lambda at: result.rank[at] or 0):
        source = pool.image_ids[at].split("/", 1)[0]
        if left[source] == 0:
            result.reasons[at] = Reason.SOURCE_CAP
        else:
            left[source] -= 1
