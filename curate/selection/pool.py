"""The pool that is selected from: every scored crop, and how sharp every source was.

It is read from the files of the crop job and of the score jobs, and sorted by the crops' names.
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

POOL_COLUMNS = ("crop_id", "image_id", "license", "reason", "lap_src")
# Percentile of the sources' sharpness below which `blur.auto` drops.
BLURRED = 20


class SelectError(InputError):
    """A pool that nothing can be selected from, or decisions on crops that are not there."""


@dataclass(frozen=True)
class Pool:
    """All scored crops of all sources, by name; arrays of equal length but for `measured`."""

    crop_ids: list[str]
    image_ids: list[str]
    licenses: list[str]
    source_blur: Column  # Laplacian variance of each crop's source
    values: dict[str, Column]  # by metric
    measured: Column  # Laplacian variances of all decoded sources, with crops or without
    errors: list[str]  # why a crop has no scores, "" = it has

    def blur_min(self) -> float:
        """The threshold that the pool itself suggests; never below BLUR_FLOOR."""
        if not len(self.measured):
            return BLUR_FLOOR
        return max(BLUR_FLOOR, float(np.percentile(self.measured, BLURRED)))


def read_pool(ledger: ShardLedger, shards: Iterable[str], groups: Sequence[str]) -> Pool:
    """Candidates that are left, with their scores. Raises LedgerError, or SelectError on twins."""
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
    """Sharpness by image, of those that were decoded."""
    pairs = zip(table["image_id"].to_pylist(), table["lap_src"].to_pylist(), strict=True)
    return {name: value for name, value in pairs if value is not None}


def refuse_crop_twins(rows: Sequence[Row]) -> None:
    """Sorted rows of one crop twice. Raises SelectError."""
    for a, b in zip(rows, rows[1:], strict=False):
        if a["crop_id"] == b["crop_id"]:
            raise SelectError(f"image {a['image_id']} came from two sources: name them apart")


def score_column(rows: Sequence[Row], name: str) -> Column:
    """A column as float64."""
    return np.array([row[name] for row in rows], np.float64)
