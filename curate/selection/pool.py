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
from curate.engine.parquet import ERROR, read_table, score_columns
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
    tables: list[pa.Table] = []
    sharpness = [np.empty(0)]
    # The files' columns name the metrics, since there may be no crop at all.
    metrics: dict[str, None] = {}
    # Each shard's candidates are joined with their scores of every group. Columns are held rather
    # than rows, of which Python takes ten times the memory.
    for shard in shards:
        table = read_table(ledger.output("crop", shard, "rows.parquet"), POOL_COLUMNS)
        sharpness.append(measured(table))
        crops = table.filter(pc.field("reason") == "").drop_columns(["reason"])
        errors = [""] * len(crops)
        for group in groups:
            scored = read_table(ledger.output(f"score-{group}", shard, "scores.parquet"))
            metrics |= dict.fromkeys(score_columns(scored))
            crops, errors = join_scores(shard, crops, scored, errors)
        tables.append(crops.append_column(ERROR, pa.array(errors, pa.string())))
    # Sorted by name, so that the number of shards changes nothing.
    pool = pa.concat_tables(tables).sort_by("crop_id")
    names, images = pool["crop_id"].to_pylist(), pool["image_id"].to_pylist()
    refuse_crop_twins(names, images)
    return Pool(
        crop_ids=names,
        image_ids=images,
        licenses=pool["license"].to_pylist(),
        source_blur=score_column(pool, "lap_src"),
        values={name: score_column(pool, name) for name in metrics},
        measured=np.concatenate(sharpness),
        errors=pool[ERROR].to_pylist(),
    )


def join_scores(
    shard: str, crops: pa.Table, scored: pa.Table, errors: list[str]
) -> tuple[pa.Table, list[str]]:
    """The crops with one more group's scores, and why they have none; "" where they have.

    Raises SelectError where the crops are not those that were scored.
    """
    places = {name: at for at, name in enumerate(scored["crop_id"].to_pylist())}
    names = crops["crop_id"].to_pylist()
    if places.keys() != set(names):
        raise SelectError(f"{shard}: its scores are of other crops: run `score` again")
    scored = scored.take(pa.array([places[name] for name in names], pa.int64()))
    for name in score_columns(scored):
        crops = crops.append_column(name, scored[name])
    if ERROR in scored.column_names:
        # The first group that failed gives the reason.
        later = scored[ERROR].to_pylist()
        errors = [first or second or "" for first, second in zip(errors, later, strict=True)]
    return crops, errors


def measured(table: pa.Table) -> Column:
    """Sharpness of each image that was decoded. All rows of an image are in one table."""
    table = table.filter(table["lap_src"].is_valid())
    found = table.group_by("image_id", use_threads=False).aggregate([("lap_src", "first")])
    return found["lap_src_first"].to_numpy()


def refuse_crop_twins(names: Sequence[str], images: Sequence[str]) -> None:
    """Raises SelectError if two crops, sorted by name, are of one name."""
    for a, b, image in zip(names, names[1:], images, strict=False):
        if a == b:
            raise SelectError(f"image {image} came from two sources: name them apart")


def score_column(table: pa.Table, name: str) -> Column:
    """A column as float64; what is missing is NaN."""
    return table[name].cast(pa.float64()).to_numpy(zero_copy_only=False)
