"""Take source images out of everything that was made of them, without doing the rest again.

This is for images whose people or authors ask to be left out. The result is, byte for byte, that of
a run which never saw them: what was published is taken back, rows are filtered out of the shards
that hold them, and the global steps run anew. The plan has their names before anything is touched,
so that the same command goes on wherever it was stopped. The source's own file is not touched.
"""

import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

from curate.config import ConfigError
from curate.cropping.index import IndexJob, deal
from curate.cropping.job import CropJob, index_file, source_and_number
from curate.engine.engine import Engine
from curate.engine.ledger import LedgerError, ShardLedger
from curate.engine.parquet import (
    CANDIDATE_SCHEMA,
    FINGERPRINT_SCHEMA,
    CropFile,
    Row,
    crop_writer,
    read_rows,
    read_table,
    score_columns,
    write_rows,
    write_scores,
)
from curate.engine.worker import ShardJob
from curate.plan import CurationPlan
from curate.publish.tags import forget_tags
from curate.quality.score_job import ScoreJob
from curate.schema import Facts

# What others may see of a set, below OUT.
PUBLISHED = ("packed", "report")
# No job has this key, so a shard under it is redone when its job runs next.
STALE_KEY = "stale"


def find(ledger: ShardLedger, image_id: str) -> str | None:
    """The crop shard that an image is dealt to, whether the image is there or not.

    None where its source is not indexed.
    """
    source = source_of(image_id)
    count = len(ledger.outputs("index", source))
    return f"{source}-{deal(image_id) % count:05d}" if count else None


def source_of(image_id: str) -> str:
    """The name of the source that an image is of."""
    return image_id.split("/", 1)[0]


def check_known(ledger: ShardLedger, forgotten: Iterable[str], image_ids: Iterable[str]) -> None:
    """Raises ConfigError unless each image is in the index, or was and is `forgotten` already."""
    for image_id in set(image_ids) - set(forgotten):
        shard = find(ledger, image_id)
        if shard is None or image_id not in (row["image_id"] for row in indexed(ledger, shard)):
            raise ConfigError(f"forget: no image {image_id!r} in the index")


def indexed(ledger: ShardLedger, shard: str) -> list[Row]:
    """The rows of a crop shard's index; none where there is no index."""
    try:
        return read_rows(index_file(ledger, shard))
    except LedgerError:
        return []


def forget(engine: Engine, plan: CurationPlan, image_ids: Iterable[str]) -> None:
    """Take images out of all that is published and out of every shard.

    The plan must hold them as forgotten, and must be written.
    """
    ledger, gone = ShardLedger(engine.root), set(image_ids)
    # What others can see goes first.
    withdraw(ledger, gone)
    # What each shard holds and whether it is up to date must be known before the index changes.
    shards = holders(ledger, gone)
    forget_tags(ledger.root, crop_digests(ledger, shards, gone))
    before = {shard: indexed(ledger, shard) for shard in shards}
    current = {shard: is_current(ledger, CropJob(plan.config), shard) for shard in shards}
    reindex(engine, plan, {source_of(name) for name in gone})
    # Every shard without the images: a current one stays current, under its new key.
    for shard in shards:
        left = [row for row in before[shard] if row["image_id"] not in gone]
        # Keys are asked for before the crops change, since those of scores depend on them.
        same = current[shard] and indexed(ledger, shard) == left
        scored = [ScoreJob(group, plan.config.score) for group in score_groups(ledger)]
        scored = [(job, is_current(ledger, job, shard)) for job in scored]
        drop_crops(ledger, CropJob(plan.config), shard, gone, same)
        for job, fresh in scored:
            if ledger.marker(job.name, shard):
                drop_scores(ledger, job, shard, fresh)
    # Files of killed runs may hold crops of the images too.
    ledger.collect_garbage(older_than=0)


def withdraw(ledger: ShardLedger, gone: set[str]) -> None:
    """Empty what is published, which the last stages make anew, and drop packs with the images."""
    # The empty folders stay: they tell `curate.run` which stages to do again.
    for name in PUBLISHED:
        for path in (ledger.root / name).glob("*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    for shard in ledger.shards("pack"):
        headers = json.loads(ledger.output("pack", shard, "headers.json").read_text())
        # A pack holds a few thousand crops; most do not hold any of the images, and stay.
        if any(header["image_id"] in gone for header in headers):
            ledger.forget_shard("pack", shard)


def holders(ledger: ShardLedger, gone: set[str]) -> list[str]:
    """Crop shards that may hold any of the images, also those made with other settings."""
    # With other settings an image may have been dealt elsewhere, so that rows are looked into.
    dealt = {find(ledger, name) for name in gone}
    sources = {source_of(name) for name in gone}
    return [
        shard
        for shard in ledger.shards("crop")
        if shard in dealt or (source_and_number(shard)[0] in sources and holds(ledger, shard, gone))
    ]


def holds(ledger: ShardLedger, shard: str, gone: set[str]) -> bool:
    """Whether a crop shard has rows of any of the images."""
    rows = read_rows(ledger.output("crop", shard, "rows.parquet"), ["image_id"])
    return any(row["image_id"] in gone for row in rows)


def crop_digests(ledger: ShardLedger, shards: Iterable[str], gone: set[str]) -> set[str]:
    """The sha256 of the PNG of every crop of the images."""
    files = (ledger.output("crop", shard, "rows.parquet") for shard in shards)
    rows = (row for file in files for row in read_rows(file, ["image_id", "crop_sha256"]))
    return {row["crop_sha256"] for row in rows if row["image_id"] in gone}


def is_current(ledger: ShardLedger, job: ShardJob, shard: str) -> bool:
    """Whether a shard is done, and is what the job would make of its present inputs."""
    try:
        return ledger.is_done(job.name, shard, job.key(ledger, shard))
    except (LedgerError, ConfigError):
        # The shard is no more, or the weights that its key depends on are gone.
        return False


def score_groups(ledger: ShardLedger) -> list[str]:
    """Names of all groups of metrics that were ever computed, asked for by the settings or not."""
    names = (path.name for path in sorted((ledger.root / "done").glob("score-*")))
    return [name.removeprefix("score-") for name in names]


def reindex(engine: Engine, plan: CurationPlan, sources: set[str]) -> None:
    """Index these sources without the plan's forgotten images.

    Of a source that the plan does not name any more the index is dropped.
    """
    job = IndexJob(tuple(plan.sources), plan.config.shard_images, tuple(plan.forgotten))
    named = {source.name for source in plan.sources}
    engine.here().run(job, sorted(sources & named))
    for name in sources - named:
        ShardLedger(engine.root).forget_shard("index", name)


def rewrite(
    ledger: ShardLedger, job: ShardJob, shard: str, current: bool, write: Callable[[Path], Facts]
) -> None:
    """Put other outputs in the place of a shard's.

    Args:
        current: whether the outputs are to count as done; else the job does the shard again.
        write: writes the outputs into a folder, and returns the shard's facts.
    """
    ledger.begin(job.name, shard)
    with ledger.workspace() as folder:
        facts = write(folder)
        key = job.key(ledger, shard) if current else STALE_KEY
        ledger.commit(job.name, shard, key, folder, facts)


def drop_crops(
    ledger: ShardLedger, job: CropJob, shard: str, gone: set[str], current: bool
) -> None:
    """Take images out of a crop shard; crops keep their order and are numbered anew."""
    # Everything is read first, since `rewrite` removes the files.
    rows = read_rows(ledger.output("crop", shard, "rows.parquet"))
    fingerprints = read_rows(ledger.output("crop", shard, "prints.parquet"))
    crops = CropFile(ledger.output("crop", shard, "crops.parquet"))
    left = [row for row in rows if row["image_id"] not in gone]
    # How blur was measured stays true of what is left, whatever the settings say by now.
    marker = ledger.marker(job.name, shard)
    ways = {k: v for k, v in (marker["facts"] if marker else {}).items() if k == "blur_of"}

    def write(folder: Path) -> Facts:
        # PNGs are copied as they are: their digests stand in the rows.
        with crop_writer(folder / "crops.parquet") as pictures:
            for row in left:
                if row["crop_row"] is not None:
                    png = crops.find(row["crop_row"])
                    row["crop_row"] = pictures.count
                    pictures.add({"crop_id": row["crop_id"], "png": png})
        write_rows(folder / "rows.parquet", CANDIDATE_SCHEMA, left)
        kept = (row for row in fingerprints if row["image_id"] not in gone)
        write_rows(folder / "prints.parquet", FINGERPRINT_SCHEMA, kept)
        images = len({row["image_id"] for row in left})
        return {"images": images, "crops": pictures.count, **ways}

    rewrite(ledger, job, shard, current, write)


def drop_scores(ledger: ShardLedger, job: ScoreJob, shard: str, current: bool) -> None:
    """Take the scores of crops that are gone out of a score shard."""
    left = set(CropFile(ledger.output("crop", shard, "crops.parquet")).names())
    scored = read_table(ledger.output(job.name, shard, "scores.parquet"))

    def write(folder: Path) -> Facts:
        kept = [row for row in scored.to_pylist() if row["crop_id"] in left]
        write_scores(folder / "scores.parquet", score_columns(scored), kept)
        return {"crops": len(kept)}

    rewrite(ledger, job, shard, current, write)
