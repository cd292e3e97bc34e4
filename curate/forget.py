"""Take source images out of everything that was made of them, without doing the rest again.

The result is, byte for byte, that of a run which never saw them: rows are filtered out of the
shards that hold them, and the global steps run anew. The source's own file is not touched.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from curate import scores
from curate.config import ConfigError
from curate.crop import Crop
from curate.engine import Engine, Job
from curate.jobs import Index, Score, Source, deal
from curate.ledger import Ledger
from curate.tables import (
    PRINTS,
    ROWS,
    CropFile,
    crop_writer,
    read_rows,
    read_table,
    scores_schema,
    write_rows,
)

if TYPE_CHECKING:
    from curate.run import Plan

Facts = dict[str, Any]


def forget(engine: Engine, plan: "Plan", image_ids: Sequence[str]) -> list[str]:
    """Drop images from index, crops and scores; returns their names.

    Raises ConfigError if an image is unknown (nothing is changed then), LedgerError if the sources
    were never indexed.
    """
    ledger = Ledger(engine.root)
    shards = {name: shard_of(ledger, plan.sources, name) for name in image_ids}
    if not shards:
        raise ConfigError("forget: name the images (see image_id in the manifest)")
    gone = set(shards)
    index = Index(
        tuple(plan.sources),
        plan.config.shard_images,
        tuple(sorted({*plan.forgotten, *gone})),
    )
    engine.here().run(index, [source.name for source in plan.sources])
    for shard in sorted(set(shards.values())):
        if ledger.marker("crop", shard):
            drop_crops(ledger, Crop(plan.config), shard, gone)
        for group in scores.groups(plan.config.score):
            job = Score(group, plan.config.score)
            if ledger.marker(job.name, shard):
                drop_scores(ledger, job, shard)
    return sorted(gone)


def shard_of(ledger: Ledger, sources: Sequence[Source], image_id: str) -> str:
    """The crop shard that holds an image. Raises ConfigError if no source has it."""
    for source in sources:
        count = len(ledger.outputs_key("index", source.name))
        number = deal(image_id) % count
        file = ledger.output("index", source.name, f"{number:05d}.parquet")
        if any(row["image_id"] == image_id for row in read_rows(file, ["image_id"])):
            return f"{source.name}-{number:05d}"
    raise ConfigError(f"forget: no image {image_id!r} in the index")


def rewrite(ledger: Ledger, job: Job, shard: str, write: Callable[[Any], Facts]) -> None:
    """Put other outputs in the place of a shard's, under the key that they now have."""
    ledger.begin(job.name, shard)
    with ledger.workspace() as folder:
        facts = write(folder)
        ledger.commit(job.name, shard, job.key(ledger, shard), folder, facts)


def drop_crops(ledger: Ledger, job: Crop, shard: str, gone: set[str]) -> None:
    """Filter a crop shard; crops keep their order and are numbered anew."""
    rows = read_rows(ledger.output("crop", shard, "rows.parquet"))
    prints = read_rows(ledger.output("crop", shard, "prints.parquet"))
    crops = CropFile(ledger.output("crop", shard, "crops.parquet"))
    left = [row for row in rows if row["image_id"] not in gone]

    def write(folder: Any) -> Facts:
        with crop_writer(folder / "crops.parquet") as pictures:
            for row in left:
                if row["crop_row"] is not None:
                    png = crops.png(row["crop_row"])
                    row["crop_row"] = pictures.count
                    pictures.add({"crop_id": row["crop_id"], "png": png})
        write_rows(folder / "rows.parquet", ROWS, left)
        kept = (row for row in prints if row["image_id"] not in gone)
        write_rows(folder / "prints.parquet", PRINTS, kept)
        return {"images": len({row["image_id"] for row in left}), "crops": pictures.count}

    rewrite(ledger, job, shard, write)


def drop_scores(ledger: Ledger, job: Score, shard: str) -> None:
    """Keep the scores of those crops that are still there."""
    left = {name for name, _ in CropFile(ledger.output("crop", shard, "crops.parquet")).items()}
    scored = read_table(ledger.output(job.name, shard, "scores.parquet"))

    def write(folder: Any) -> Facts:
        metrics = [name for name in scored.column_names if name != "crop_id"]
        kept = [row for row in scored.to_pylist() if row["crop_id"] in left]
        write_rows(folder / "scores.parquet", scores_schema(metrics), kept)
        return {"crops": len(kept)}

    rewrite(ledger, job, shard, write)
