"""From scores to the set: Eq. 1, the top third, thresholds, reviews, copies, splits, manifest.

This is the one global step. It reads numbers only (never a picture), so another threshold costs
seconds. Crops are taken in the order of their names, so neither shards nor their number matter.
The file is longer than others because the decisions build on each other in one order.
"""

import csv
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

from curate.config import CurateConfig
from curate.cropping.fingerprints import Fingerprint
from curate.cropping.job import CODE, LIBRARIES
from curate.engine.ledger import ShardLedger, digest
from curate.engine.parquet import Row, read_rows, read_table, write_rows, write_table
from curate.engine.worker import ItemRunner
from curate.quality import scores, statistics
from curate.readers.text_files import open_text
from curate.schema import MANIFEST_VERSION, RANKED, Column, Reason, sorted_counts
from curate.selection.manifest import join_decisions, manifest_schema
from curate.selection.pool import Pool, SelectError, read_pool
from curate.selection.split import (
    Member,
    RankedCrop,
    assign,
    group_images,
    sample_strata,
    seeded_key,
)
from osdhuman_jax.disk import file_digest


@dataclass
class Decisions:
    """What is to become of the pool: reasons ("" = kept) and what they rest on."""

    reasons: list[str]
    z: Column
    rank: list[int | None]
    groups: list[str | None]
    splits: list[str]
    statistics: dict[str, Any] = field(default_factory=dict)


def thresholds_of(config: CurateConfig, names: Iterable[str]) -> dict[str, float]:
    """Thresholds of those metrics that have one; none for metrics without weights."""
    select = config.select
    known = {
        "clipiqa": select.clipiqa_min,
        "maniqa": select.maniqa_min,
        "musiq": select.musiq_min,
        "niqe": select.niqe_max,
    }
    learned = config.score.iqa != "classic"
    return {n: known[n] for n in names if n in known} if select.thresholds and learned else {}


def rank_pool(pool: Pool, config: CurateConfig, frozen: dict[str, Any] | None = None) -> Decisions:
    """Everything up to the thresholds.

    A pool that Eq. 1 cannot be computed over (of one crop, or with a metric that is the same for
    all) is dropped as a whole, and the statistics say why, as "unranked".

    Args:
        frozen: statistics of another pool (a test set is measured by the training pool's).
    """
    directions = scores.directions(config.score)
    # Crops that cannot be ranked: by licence, by a blurred source, or without all scores.
    blur_min = pool.blur_min() if config.blur.auto else 0.0
    reasons = unfit(pool, config, blur_min)
    used = np.array([pool.values[name] for name in directions]).T
    for at in np.flatnonzero(~np.isfinite(used).all(axis=1)):
        reasons[at] = reasons[at] or pool.errors[at] or Reason.NAN_SCORE
    candidates = np.array([at for at, reason in enumerate(reasons) if not reason], np.int64)
    values = {name: pool.values[name][candidates] for name in directions}
    # mu and sigma over all others; a pool that has none is dropped as a whole.
    z = np.full(len(reasons), np.nan)
    rank: list[int | None] = [None] * len(reasons)
    result = Decisions(reasons, z, rank, [None] * len(reasons), [""] * len(reasons))
    result.statistics = {"blur_min": blur_min} if config.blur.auto else {}
    try:
        stats = (
            statistics.PoolStatistics.from_dict(frozen)
            if frozen
            else statistics.fit_statistics(values)
        )
    except statistics.StatisticsError as error:
        for at in candidates:
            reasons[at] = Reason.UNRANKED
        result.statistics |= {"pool": None, "thresholds": {}, "unranked": str(error)}
        return result
    # Eq. 1 and the ranks, which the top share and the thresholds are taken of.
    z[candidates] = statistics.z_scores(values, stats, directions)
    places = statistics.ranks(z[candidates], [pool.crop_ids[at] for at in candidates])
    for at, place in zip(candidates, places, strict=True):
        rank[at] = int(place)
    thresholds = apply_thresholds(pool, config, result, candidates, directions)
    if config.select.source_most:
        cap_sources(pool, config.select.source_most, result)
    result.statistics |= {"pool": stats.to_dict(), "thresholds": thresholds}
    return result


def unfit(pool: Pool, config: CurateConfig, blur_min: float) -> list[str]:
    """Reasons of the crops that are not to be ranked at all, "" for the others."""
    allowed = set(config.select.license_allow)
    barred = [bool(allowed) and (name or "unknown") not in allowed for name in pool.licenses]
    blurred = pool.source_blur < blur_min
    pairs = zip(barred, blurred, strict=True)
    return [Reason.LICENSE if bad else Reason.BLUR if soft else "" for bad, soft in pairs]


def apply_thresholds(
    pool: Pool, config: CurateConfig, result: Decisions, candidates: np.ndarray, directions: dict
) -> dict[str, float]:
    """Drop what is not in the top share or fails a threshold; returns the thresholds."""
    # The epsilon undoes the rounding of products such as 3 * (1 / 3).
    most = int(np.floor(len(candidates) * config.select.top + 1e-9))
    top = [int(at) for at in candidates if (result.rank[at] or 0) <= most]
    for at in set(map(int, candidates)) - set(top):
        result.reasons[at] = Reason.NOT_TOP_THIRD
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
    """Drop what a source has beyond its `most` best; a global rank favours some of them."""
    left: dict[str, int] = defaultdict(lambda: most)
    kept = [at for at, reason in enumerate(result.reasons) if not reason]
    for at in sorted(kept, key=lambda at: result.rank[at] or 0):
        source = pool.image_ids[at].split("/", 1)[0]
        if left[source] == 0:
            result.reasons[at] = Reason.SOURCE_CAP
        else:
            left[source] -= 1


def read_statistics(path: Path) -> dict[str, Any]:
    """Statistics of another run's pool, from its stats.json. Raises SelectError."""
    try:
        with open_text(path) as file:
            pool = json.load(file)["pool"]
    except (ValueError, KeyError, TypeError):
        raise SelectError(f"{path}: not the stats.json of a run") from None
    if pool is None:
        raise SelectError(f"{path}: of a run that could not rank its crops")
    return pool


def read_review(path: Path) -> dict[str, bool]:
    """Decisions by crop: the review page's csv with columns crop_id and keep (1 or 0).

    Raises SelectError, naming the line.
    """
    with open_text(path, errors="replace") as file:
        reader = csv.DictReader(file)
        if not {"crop_id", "keep"} <= set(reader.fieldnames or ()):
            raise SelectError(f"{path}: needs columns crop_id and keep")
        decisions = {}
        for number, row in enumerate(reader, 2):
            # A second header comes from files that were put together.
            if row["keep"] == "keep":
                continue
            if row["keep"] not in ("0", "1"):
                raise SelectError(f"{path}, line {number}: keep is {row['keep']!r}, not 0 or 1")
            decisions[row["crop_id"]] = row["keep"] == "1"
    return decisions


def apply_review(
    pool: Pool, result: Decisions, decisions: dict[str, bool], forgotten: bool = False
) -> None:
    """A person's word goes above rank and thresholds. Raises SelectError on unknown crops.

    Once images were `forgotten` nobody can tell their crops from unknown ones: these are counted.
    """
    places = {name: at for at, name in enumerate(pool.crop_ids)}
    unknown = sorted(set(decisions) - set(places))
    if unknown and not forgotten:
        raise SelectError(f"review: {len(unknown)} unknown crops, such as {unknown[0]}")
    result.statistics |= {"review_unknown": len(unknown)} if unknown else {}
    for name, keep in decisions.items():
        if (at := places.get(name)) is None:
            continue
        if not keep:
            result.reasons[at] = result.reasons[at] or Reason.REVIEW
        elif result.reasons[at].startswith(RANKED):
            result.reasons[at] = ""


def fails(pool: Pool, config: CurateConfig, at: int) -> int:
    """How many of the training set's thresholds a crop fails."""
    directions = scores.directions(config.score)
    values = {name: pool.values[name][[at]] for name in directions}
    limits = thresholds_of(config, directions)
    tests = ({name: limit} for name, limit in limits.items())
    return sum(statistics.first_failing(values, test, directions)[0] != "" for test in tests)


def choose_test(pool: Pool, config: CurateConfig, result: Decisions) -> list[int]:
    """Crops fit for a test set, which is to be of lower quality than the training set.

    With the paper's metrics: at least two thresholds failed, CLIPIQA in [0.25, 0.65] and MUSIQ in
    [35, 70]; with metrics that need no weights, all (the report says so).
    """
    candidates = [at for at, reason in enumerate(result.reasons) if _scored(reason)]
    if config.score.iqa == "classic":
        return candidates
    clipiqa, musiq = pool.values["clipiqa"], pool.values["musiq"]
    return [
        at
        for at in candidates
        if 0.25 <= clipiqa[at] <= 0.65 and 35 <= musiq[at] <= 70 and fails(pool, config, at) >= 2
    ]


def _scored(reason: str) -> bool:
    return not reason or reason.startswith(RANKED)


def read_members(ledger: ShardLedger, shards: Iterable[str], wanted: set[str]) -> list[Member]:
    """Fingerprints of the wanted images, each followed by those of its crops."""
    return [
        _member(row)
        for shard in shards
        for row in read_rows(ledger.output("crop", shard, "prints.parquet"))
        if row["image_id"] in wanted
    ]


def _member(row: Row) -> Member:
    marks = Fingerprint(row["phash"], row["mirrored"], row["thumb"])
    names = ("image_id", "file_sha256", "pixel_sha256", "flickr_id", "pixels")
    return Member(**{name: row[name] for name in names}, fingerprint=marks)


def decide_splits(
    pool: Pool,
    config: CurateConfig,
    result: Decisions,
    members: Sequence[Member],
    barred: Sequence[Member],
) -> None:
    """Groups, copies and splits of the crops that are kept so far, in place.

    Args:
        members: fingerprints of the images with kept crops, the whole image before its crops.
        barred: images of sets that must have no photograph in common with this one.
    """
    kept = [at for at, reason in enumerate(result.reasons) if not reason]
    crops = [RankedCrop(pool.crop_ids[at], pool.image_ids[at], float(result.z[at])) for at in kept]
    # Barred images are grouped with ours, so that a group knows whether it has one.
    labels = group_images([*members, *barred])
    groups = dict(zip((m.image_id for m in members), labels, strict=False))
    # The first member of an image is the whole of it; those after it are its crops.
    images = {m.image_id: m for m in reversed(members)}
    test = config.split.test
    verdicts = assign(
        crops,
        images,
        groups,
        seed=config.split.seed,
        val=0 if test else config.split.val,
        max_per_group=config.split.max_per_group,
        excluded=labels[len(members) :],
    )
    # Verdicts are by crop name; results are by place in the pool.
    for at in kept:
        result.groups[at] = groups[pool.image_ids[at]]
        result.splits[at], result.reasons[at] = verdicts[pool.crop_ids[at]]
    if test:
        sample_test(pool, config, result)


def sample_test(pool: Pool, config: CurateConfig, result: Decisions) -> None:
    """Draw the test set from what is fit for it: equal shares of five quantiles of quality."""
    fit = [at for at, reason in enumerate(result.reasons) if not reason]
    metric = result.z if config.score.iqa == "classic" else pool.values["musiq"]
    names = [pool.crop_ids[at] for at in fit]
    seed = config.split.seed
    drawn = sample_strata([float(metric[at]) for at in fit], names, config.split.test, seed)
    for at in fit:
        if pool.crop_ids[at] in drawn:
            result.splits[at] = "test"
        else:
            result.splits[at], result.reasons[at] = "", Reason.NOT_SAMPLED


@dataclass(frozen=True)
class SelectJob:
    """One shard, "all"; outputs: a manifest part for each crop shard, selected.parquet, stats.json.

    Attributes:
        shards: the crop job's.
        review: csv of decisions, "" = none.
        statistics: stats.json of another run whose pool measures this one, "" = own.
        barred: fingerprint files of sets to be kept apart (see `curate.selection.barred`).
        forgotten: whether images were, whose crops a review may still name.
    """

    config: CurateConfig
    shards: tuple[str, ...]
    review: str = ""
    statistics: str = ""
    barred: tuple[str, ...] = ()
    forgotten: bool = False
    name: str = "select"
    gpus: float = 0.0

    def key(self, ledger: ShardLedger, shard: str) -> str:
        jobs = ["crop", *(f"score-{group}" for group in scores.groups(self.config.score))]
        inputs = [ledger.outputs_key(job, shard) for job in jobs for shard in self.shards]
        files = [file_digest(Path(p)) for p in (self.review, self.statistics, *self.barred) if p]
        which = [bool(self.review), bool(self.statistics), len(self.barred), self.forgotten]
        config = self.config
        settings = [asdict(s) for s in (config.score, config.select, config.split)]
        return digest(CODE, settings, config.blur.auto, inputs, files, which)

    def work(
        self, ledger: ShardLedger, shard: str, folder: Path, run: ItemRunner
    ) -> dict[str, Any]:
        pool = read_pool(ledger, self.shards, scores.groups(self.config.score))
        result = self.decide(ledger, pool)
        facts = self.facts(pool, result)
        tally = self.write_manifest(ledger, folder, pool, result, facts)
        (folder / "stats.json").write_text(json.dumps(facts, indent=1, sort_keys=True) + "\n")
        return tally

    def decide(self, ledger: ShardLedger, pool: Pool) -> Decisions:
        """All decisions, in the order of the pool."""
        frozen = read_statistics(Path(self.statistics)) if self.statistics else None
        result = rank_pool(pool, self.config, frozen)
        if self.config.split.test:
            fit = set(choose_test(pool, self.config, result))
            for at, reason in enumerate(result.reasons):
                if _scored(reason):
                    result.reasons[at] = "" if at in fit else reason or Reason.NOT_SAMPLED
        if self.review:
            apply_review(pool, result, read_review(Path(self.review)), self.forgotten)
        kept = {i for i, r in zip(pool.image_ids, result.reasons, strict=True) if not r}
        members = read_members(ledger, self.shards, kept)
        barred = [_member(row) for path in self.barred for row in read_rows(Path(path))]
        decide_splits(pool, self.config, result, members, barred)
        return result

    def facts(self, pool: Pool, result: Decisions) -> dict[str, Any]:
        """stats.json: what Eq. 1 and the thresholds were, for reports and for other sets."""
        config = self.config
        return {
            **result.statistics,
            "manifest_version": MANIFEST_VERSION,
            "code": CODE,
            "profile": config.profile,
            "iqa": config.score.iqa,
            "metrics": list(pool.values),
            "directions": scores.directions(config.score),
            "versions": {g: scores.describe(g, config.score) for g in scores.groups(config.score)},
            "libraries": LIBRARIES,
            "settings": asdict(config),
        }

    def write_manifest(
        self, ledger: ShardLedger, folder: Path, pool: Pool, result: Decisions, facts: dict
    ) -> dict[str, Any]:
        """A part for each shard and the list of what is kept; returns counts."""
        metrics, places = list(pool.values), {n: at for at, n in enumerate(pool.crop_ids)}
        meta = {k: facts[k] for k in ("manifest_version", "code", "profile", "iqa")}
        schema = manifest_schema(metrics, {"curate": json.dumps(meta)})
        selected: list[Row] = []
        for name in self.shards:
            rows = read_table(ledger.output("crop", name, "rows.parquet"))
            left = rows.filter(pc.field("reason") == "")["crop_id"].to_pylist()
            columns = decision_columns(pool, result, [places[crop] for crop in left])
            table = join_decisions(rows, schema, columns)
            selected += table.filter(table["kept"]).to_pylist()
            write_table(folder / f"part-{name}.parquet", table)
        seed = self.config.split.seed
        selected.sort(
            key=lambda row: (row["split"], seeded_key(seed, row["crop_id"]), row["crop_id"])
        )
        write_rows(folder / "selected.parquet", schema, selected)
        return {"kept": sorted_counts(row["split"] for row in selected)}


def decision_columns(pool: Pool, result: Decisions, places: list[int]) -> dict[str, list]:
    """What the selection adds to the candidates at these places of the pool."""
    z = [float(result.z[at]) if np.isfinite(result.z[at]) else None for at in places]
    return {
        **{name: column[places].tolist() for name, column in pool.values.items()},
        "z": z,
        "rank": [result.rank[at] for at in places],
        "group_id": [result.groups[at] for at in places],
        "split": [result.splits[at] or None for at in places],
        "reason": [result.reasons[at] for at in places],
    }
