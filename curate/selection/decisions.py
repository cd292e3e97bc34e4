"""What becomes of the crops of a pool, and the file that says what the decisions rest on.

`Decisions` goes through the steps of the select job, each of which drops crops: the ranking, a
review by hand, the splits. OUT/select's stats.json holds the numbers that led to it. Reports and
packs read it, and other sets, whose crops are to be measured by the same pool.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import NotRequired, TypedDict

from curate.engine.ledger import ShardLedger
from curate.schema import RANKED, Column, Facts
from curate.selection.pool import SelectError

STATS_FILE = "stats.json"


class RankingFacts(TypedDict):
    """What a selection rests on."""

    # mu and sigma of Eq. 1 (see `PoolStatistics.to_dict`); None where nothing could be ranked.
    pool: Facts | None
    # The least or, for a metric whose lower values are better, the highest value by metric.
    thresholds: dict[str, float]
    # Only with blur.auto: the threshold of the sources' sharpness.
    blur_min: NotRequired[float]
    # Only where nothing could be ranked: the reason.
    unranked: NotRequired[str]
    # Only where there are any: how many crops of the review are not in the pool.
    review_unknown: NotRequired[int]


class SelectionFacts(RankingFacts):
    """The content of stats.json."""

    manifest_version: int
    code: int
    profile: str
    iqa: str
    metrics: list[str]
    directions: dict[str, int]
    # By group of metrics what its scores depend on, such as digests of weights.
    versions: dict[str, Facts]
    libraries: dict[str, str]
    # All settings of the run.
    settings: Facts


def no_facts() -> RankingFacts:
    """The facts of a selection that has not begun."""
    return {"pool": None, "thresholds": {}}


@dataclass
class Decisions:
    """What is to become of the crops of a pool, in the pool's order; the steps change it."""

    # Why a crop is dropped; "" = it is kept so far.
    reasons: list[str]
    z: Column
    rank: list[int | None]
    # The group of copies that a crop's photograph is in, if it is kept.
    groups: list[str | None]
    # "" = none (yet).
    splits: list[str]
    statistics: RankingFacts = field(default_factory=no_facts)


def is_ranked(reason: str) -> bool:
    """Whether a crop with this reason was ranked: it is kept, or dropped because of its rank."""
    return not reason or reason.startswith(RANKED)


def read_facts(ledger: ShardLedger) -> SelectionFacts:
    """The stats.json of the ledger's own selection. Raises LedgerError before there is one."""
    return json.loads(ledger.output("select", "all", STATS_FILE).read_text())


def read_statistics(path: Path) -> Facts:
    """Statistics of another run's pool, from its stats.json. Raises SelectError."""
    try:
        pool = json.loads(path.read_bytes())["pool"]
    except (ValueError, KeyError, TypeError):
        raise SelectError(f"{path}: not the stats.json of a run") from None
    if pool is None:
        raise SelectError(f"{path}: of a run that could not rank its crops")
    return pool
