"""The pool that is selected from: every scored crop, and how sharp every source was.

It is read from the files of the crop job and of the score jobs, and sorted by the crops' names. The
ranking takes all that it needs from here.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curate.config import BLUR_FLOOR
from curate.engine.ledger import ShardLedger
from curate.engine.parquet import ERROR, Row, read_table, score_columns
from curate.schema import Column, InputError

# What is read of the crop job's rows, which have many columns more.
POOL_COLUMNS = ("crop_id", "image_id", "license", "reason", "lap_src")
# Percentile of the sources' sharpness below which `blur.auto` drops.
BLURRED = 20


class SelectError(InputError):
    """A pool that nothing can be selected from, or decisions on crops that are not there."""


@dataclass(frozen=True)
class Pool:
    """All scored crops of all sources, sorted by name.

    Everything has a value for each crop, in one order, except `measured`.
    """

    crop_ids: list[str]
    image_ids: list[str]
    licenses: list[str]
    # Variance of the Laplacian of each crop's source.
    source_blur: Column
    # Scores by metric.
    values: dict[str, Column]
    # Variance of the Laplacian of every decoded source image, with crops or without.
    measured: Column
    # Why a crop has no scores; "" where it has them.
    errors: list[str]

    def blur_min(self) -> float:
        """The threshold that the pool itself suggests; never below BLUR_FLOOR."""
        if not len(self.measured):
            return BLUR_FLOOR
        return max(BLUR_FLOOR, float(np.percentile(self.measured, BLURRED)))


def read_pool(ledger: ShardLedger, shards: Iterable[str], groups: Sequence[str]) -> Pool:
    """The candidates that are left in these shards, with their scores by these groups of metrics.

    Raises LedgerError where a shard is not scored, and SelectError if two crops have one name.
    """
    rows: list[Row] = []
    sources: dict[str, float] = {}
    # The files' columns name the metrics, since there may be no crop at all.
    metrics: dict[str, None] = {}
    # Each shard's candidates are joined with their scores of every group.
    for shard in shards:
        table = read_table(ledger.output("crop", shard, "rows.parquet"), POOL_COLUMNS)
        sources |= measured(table)
        candidates = table.filter(pc.field("reason") == "").to_pylist()
        by_name: dict[str, Row] = {row["crop_id"]: row for row in candidates}
        for group in groups:
            scored = read_table(ledger.output(f"score-{group}", shard, "scores.parquet"))
            metrics |= dict.fromkeys(score_columns(scored))
            for row in scored.to_pylist():
                crop = by_name[row["crop_id"]]
                # The first group that failed gives the reason.
                error = crop.get(ERROR) or row.get(ERROR) or ""
                crop |= {**row, ERROR: error}
        rows += candidates
    # Sorted by name, so that the number of shards changes nothing.
    rows.sort(key=lambda row: row["crop_id"])
    refuse_crop_twins(rows)
    return Pool(
        crop_ids=[row["crop_id"] for row in rows],
        image_ids=[row["image_id"] for row in rows],
        licenses=[row["license"] for row in rows],
        source_blur=score_column(rows, "lap_src"),
        values={name: score_column(rows, name) for name in metrics},
        measured=np.array(list(sources.values()), np.float64),
        errors=[row[ERROR] for row in rows],
    )


def measured(table: pa.Table) -> dict[str, float]:
    """Sharpness of each image that was decoded, by its name."""
    pairs = zip(table["image_id"].to_pylist(), table["lap_src"].to_pylist(), strict=True)
    return {name: value for name, value in pairs if value is not None}


def refuse_crop_twins(rows: Sequence[Row]) -> None:
    """Raises SelectError if two rows, sorted by name, are of one crop."""
    for a, b in zip(rows, rows[1:], strict=False):
        if a["crop_id"] == b["crop_id"]:
            raise SelectError(f"image {a['image_id']} came from two sources: name them apart")


def score_column(rows: Sequence[Row], name: str) -> Column:
    """A column of the rows as float64; what is missing is NaN."""
    return np.array([row[name] for row in rows], np.float64)
