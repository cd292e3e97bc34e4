"""The select job: every score in, the manifest and what is kept out.

This is the one global step: ranking, test sets, reviews, copies and splits build on each other in
this order (section 3.1 of the paper, and its splits of PERSONA). It reads numbers only, never a
picture, so that another threshold costs seconds. Crops are taken in the order of their names: how
they were dealt to shards does not matter.
"""

import json
import mmap
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curate.config import CurateConfig
from curate.cropping.fingerprints import THUMB_SIDE, Fingerprint
from curate.cropping.job import CODE, LIBRARIES
from curate.engine.ledger import ShardLedger, digest
from curate.engine.parquet import read_rows, read_table, write_table
from curate.engine.worker import ItemRunner
from curate.quality import scores
from curate.schema import MANIFEST_VERSION, Facts, Json, sorted_counts
from curate.selection.decisions import STATS_FILE, Decisions, SelectionFacts, read_statistics
from curate.selection.manifest import join_decisions, manifest_schema
from curate.selection.pool import Pool, read_pool
from curate.selection.ranking import rank_pool
from curate.selection.reviews import apply_review, read_review
from curate.selection.sampling import keep_fit, sample_test
from curate.selection.split import Member, RankedCrop, assign, group_images, seeded_key
from osdhuman_jax.disk import file_digest

# What is read of fingerprints besides the thumbnails: the fields of a Member, two hashes.
FACTS = ("image_id", "file_sha256", "pixel_sha256", "flickr_id", "pixels")


def read_members(
    paths: Iterable[Path], spool: BinaryIO, wanted: set[str] | None = None
) -> list[Member]:
    """Fingerprints of the wanted images, the whole of each before its crops.

    Thumbnails are most of it, 4 kB each, and few are ever compared: they are written to `spool`
    and mapped into memory from there.

    Args:
        paths: files of FINGERPRINT_SCHEMA.
        spool: an empty file, which may be closed afterwards.
        wanted: names of images; None = all.
    """
    found = []
    for path in paths:
        for row in read_rows(path):
            if wanted is None or row["image_id"] in wanted:
                spool.write(row["thumb"])
                found.append(tuple(row[name] for name in (*FACTS, "phash", "mirrored")))
    # An empty file cannot be mapped.
    if not found:
        return []
    spool.flush()
    thumbs = memoryview(mmap.mmap(spool.fileno(), 0, access=mmap.ACCESS_READ))
    size = THUMB_SIDE * THUMB_SIDE
    members = []
    for at, (*facts, phash, mirrored) in enumerate(found):
        marks = Fingerprint(phash, mirrored, thumbs[at * size : (at + 1) * size])
        members.append(Member(**dict(zip(FACTS, facts, strict=True)), fingerprint=marks))
    return members


def decide_splits(
    pool: Pool,
    config: CurateConfig,
    result: Decisions,
    members: Sequence[Member],
    barred: Sequence[Member],
) -> None:
    """Give the crops that are kept so far their group and their split, and drop copies.

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


@dataclass(frozen=True)
class SelectJob:
    """The select job. It has one shard, "all".

    Outputs a part of the manifest for each crop shard, selected.parquet (what is kept, in the order
    in which it is packed) and stats.json.

    Attributes:
        shards: names of the crop job's shards.
        review: path of a csv of decisions, "" = none.
        statistics: path of another run's stats.json, whose pool measures this one, "" = none.
        barred: fingerprint files of sets to be kept apart (see `curate.selection.barred`).
        forgotten: whether any image was forgotten; a review may still name its crops.
    """

    config: CurateConfig
    shards: tuple[str, ...]
    review: str = ""
    statistics: str = ""
    barred: tuple[str, ...] = ()
    forgotten: bool = False
    name: str = "select"
    gpus: float = 0.0
    network: bool = False

    def key(self, ledger: ShardLedger, shard: str) -> str:
        jobs = ["crop", *(f"score-{group}" for group in scores.groups(self.config.score))]
        inputs = [ledger.outputs_key(job, shard) for job in jobs for shard in self.shards]
        # Files are known by their content; which of them there are has to be said besides.
        files = [file_digest(Path(p)) for p in (self.review, self.statistics, *self.barred) if p]
        which = [bool(self.review), bool(self.statistics), len(self.barred), self.forgotten]
        config = self.config
        settings = [asdict(s) for s in (config.score, config.select, config.split)]
        return digest(CODE, settings, config.blur.auto, inputs, files, which)

    def work(self, ledger: ShardLedger, shard: str, folder: Path, run: ItemRunner) -> Facts:
        pool = read_pool(ledger, self.shards, scores.groups(self.config.score))
        result = self.decide(ledger, pool, folder)
        facts = self.facts(pool, result)
        tally = self.write_manifest(ledger, folder, pool, result, facts)
        (folder / STATS_FILE).write_text(json.dumps(facts, indent=1, sort_keys=True) + "\n")
        return tally

    def decide(self, ledger: ShardLedger, pool: Pool, folder: Path) -> Decisions:
        """All decisions on the pool's crops. `folder` is one for files without names."""
        # By rank and thresholds, or by what is fit for a test set.
        frozen = read_statistics(Path(self.statistics)) if self.statistics else None
        result = rank_pool(pool, self.config, frozen)
        if self.config.split.test:
            keep_fit(pool, self.config, result)
        if self.review:
            apply_review(pool, result, read_review(Path(self.review)), self.forgotten)
        # Copies and splits are decided among what is left, so that no dropped crop takes a place.
        kept = {i for i, r in zip(pool.image_ids, result.reasons, strict=True) if not r}
        prints = (ledger.output("crop", shard, "prints.parquet") for shard in self.shards)
        with TemporaryFile(dir=folder) as ours, TemporaryFile(dir=folder) as theirs:
            members = read_members(prints, ours, kept)
            barred = read_members(map(Path, self.barred), theirs)
        decide_splits(pool, self.config, result, members, barred)
        return result

    def facts(self, pool: Pool, result: Decisions) -> SelectionFacts:
        """The content of stats.json."""
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
        self,
        ledger: ShardLedger,
        folder: Path,
        pool: Pool,
        result: Decisions,
        facts: SelectionFacts,
    ) -> Facts:
        """Write a part for each shard and the list of what is kept; returns counts."""
        # What the numbers were made by travels with the files.
        metrics, places = list(pool.values), {n: at for at, n in enumerate(pool.crop_ids)}
        meta = {k: facts[k] for k in ("manifest_version", "code", "profile", "iqa")}
        schema = manifest_schema(metrics, {"curate": json.dumps(meta)})
        # A part has the crop job's rows of a shard, with the decisions on those that are left.
        selected = [schema.empty_table()]
        for name in self.shards:
            rows = read_table(ledger.output("crop", name, "rows.parquet"))
            left = rows.filter(pc.field("reason") == "")["crop_id"].to_pylist()
            columns = decision_columns(pool, result, [places[crop] for crop in left])
            table = join_decisions(rows, schema, columns)
            selected.append(table.filter(table["kept"]))
            write_table(folder / f"part-{name}.parquet", table)
        # In a seeded order, so that a trainer that reads from the start sees a fair sample.
        seed = self.config.split.seed
        kept = pa.concat_tables(selected)
        names, splits = kept["crop_id"].to_pylist(), kept["split"].to_pylist()
        order = [(split, seeded_key(seed, n), n) for n, split in zip(names, splits, strict=True)]
        places = sorted(range(len(order)), key=order.__getitem__)
        write_table(folder / "selected.parquet", kept.take(pa.array(places, pa.int64())))
        return {"kept": sorted_counts(splits)}


def decision_columns(pool: Pool, result: Decisions, places: list[int]) -> dict[str, list[Json]]:
    """Values of the manifest's columns that the selection adds, of crops at these places."""
    # A z that is not there is null: readers of Parquet treat NaN in different ways.
    z = [float(result.z[at]) if np.isfinite(result.z[at]) else None for at in places]
    return {
        **{name: column[places].tolist() for name, column in pool.values.items()},
        "z": z,
        "rank": [result.rank[at] for at in places],
        "group_id": [result.groups[at] for at in places],
        "split": [result.splits[at] or None for at in places],
        "reason": [result.reasons[at] for at in places],
    }
