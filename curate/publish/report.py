"""The report on a set: tables, figures, contact sheet, review page, from the manifest alone.

    OUT/report/report.md, report.json     Table 1, funnel, persons, tags
    OUT/report/*.png                      Figures 1, 6 and 7, histograms
    OUT/report/review.html                for a look by hand (see `curate.publish.review`)

`write_report` reads the manifest, computes everything that is said (see `report_tables`), and
writes it as text, figures and JSON. Scores of metrics without weights are marked as such wherever
they are shown.
"""

import json
from collections import Counter
from collections.abc import Sequence
from heapq import nsmallest
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curate.config import ReviewConfig
from curate.cropping import detect
from curate.cropping.job import decode_crop
from curate.engine.ledger import ShardLedger
from curate.engine.parquet import read_table
from curate.publish import figures, review
from curate.publish.report_tables import (
    NOTICE,
    ReportFacts,
    float_column,
    persons,
    report_markdown,
    table_one,
    tag_counts,
)
from curate.publish.tags import Tags
from curate.quality.scores import PERSONS
from curate.selection.decisions import SelectionFacts, read_facts
from curate.selection.manifest import Crops, check_funnels, manifest_parts, read_funnels
from curate.selection.split import seeded_key
from osdhuman_jax.disk import staged_folder

# What figures of metrics without weights carry across them.
WATERMARK = "classic metrics"
# Crops of the contact sheet, four lines of eight, and those among which they are searched: the time
# of the search grows with the product of both.
SHEET_CROPS, SHEET_POOL = 32, 20_000


# Columns that the report needs of all crops of the pool, besides the metrics.
POOL_COLUMNS = ("crop_id", "dataset", "license", "persons", "scale_factor", "s", "z", "kept")
SHEET_COLUMNS = ("crop_id", "phash", "crop_shard", "crop_row")


def read_scored(
    ledger: ShardLedger, columns: Sequence[str], names: Sequence[str] | None = None
) -> pa.Table:
    """Some columns of the manifest's rows with a z, which are the pool that was selected from.

    The manifest is read part by part: it has ten times as many rows, and columns, as are held.

    Args:
        names: the crops that are wanted, in this order; None = all, in the order of the manifest.
    """
    wanted = None if names is None else pc.field("crop_id").isin(pa.array(names, pa.string()))
    parts = []
    for path in manifest_parts(ledger):
        table = read_table(path, list(dict.fromkeys(("crop_id", "z", *columns))))
        table = table.filter(table["z"].is_valid())
        if wanted is not None:
            table = table.filter(wanted)
        # Without a copy each small part would hold on to the buffers of the large one.
        parts.append(table.select(list(columns)).combine_chunks())
    pool = pa.concat_tables(parts)
    if names is None:
        return pool
    places = {name: at for at, name in enumerate(pool["crop_id"].to_pylist())}
    return pool.take(pa.array([places[name] for name in names], pa.int64()))


def read_detectors(ledger: ShardLedger) -> list[str]:
    """Names of the detectors whose boxes are in the manifest."""
    parts = (read_table(path, ["detector"])["detector"] for path in manifest_parts(ledger))
    return sorted({name for part in parts for name in part.unique().to_pylist() if name})


def most_unlike(hashes: list[int], count: int) -> list[int]:
    """Places of up to `count` hashes, each as far from the ones before it as can be, in bits."""
    if not hashes:
        return []
    values = np.array(hashes, np.uint64)
    chosen, nearest = [0], np.bitwise_count(values ^ values[0]).astype(int)
    while len(chosen) < min(count, len(values)):
        nearest[chosen] = -1
        best = int(np.argmax(nearest))
        chosen.append(best)
        nearest = np.minimum(nearest, np.bitwise_count(values ^ values[best]).astype(int))
    return chosen


def contact_sheet(ledger: ShardLedger, kept: Sequence[str], seed: int) -> np.ndarray | None:
    """Figure 6: kept crops that are as unlike each other as can be; None if nothing is kept."""
    drawn = nsmallest(SHEET_POOL, kept, key=lambda name: seeded_key(seed, name))
    if not drawn:
        return None
    rows, crops = read_scored(ledger, SHEET_COLUMNS, drawn), Crops(ledger)
    hashes = [int(text, 16) for text in rows["phash"].to_pylist()]
    chosen = rows.take(pa.array(most_unlike(hashes, SHEET_CROPS))).to_pylist()
    tiles = [(decode_crop(crops.png(row)), row["crop_id"][:12]) for row in chosen]
    return figures.tile_pictures(tiles)


def write_report(
    ledger: ShardLedger, review_config: ReviewConfig, tags: tuple[Tags, str] | None = None
) -> None:
    """Write OUT/report anew.

    Args:
        review_config: what the review page shows.
        tags: those of the crops, and whose they are; None = there are none, and no Figure 7.

    Raises LedgerError before a selection, ManifestError if the manifest's counts do not add up, and
    TagError on tags that do not fit.
    """
    stats = read_facts(ledger)
    parts, seed = read_funnels(ledger), stats["settings"]["split"]["seed"]
    check_funnels(parts)
    pool = read_scored(ledger, [*POOL_COLUMNS, *stats["metrics"]])
    kept = pool.filter(pool["kept"])
    # All that the report says, as report.json holds it too.
    facts: ReportFacts = {
        "profile": stats["profile"],
        "iqa": stats["iqa"],
        "table_1": table_one(pool, [m for m in stats["metrics"] if m != PERSONS], seed),
        "funnel": {name: vars(part) for name, part in parts.items()},
        "persons": persons(kept, "persons"),
        "detected_persons": persons(kept, PERSONS) if PERSONS in kept.column_names else {"n": 0},
        "persons_detector": detect.counter_kind(stats["settings"]["score"].get("persons", "")),
        "thresholds": stats["thresholds"],
        "licenses": dict(Counter(name or "unknown" for name in kept["license"].to_pylist())),
        "detectors": read_detectors(ledger),
    }
    if tags:
        facts["tags"] = tag_counts(*tags, set(kept["crop_id"].to_pylist()))
    # The folder appears as a whole; an old report stays until then.
    with staged_folder(ledger.root / "report", replace=True) as folder:
        draw_figures(folder, stats, facts, pool, kept)
        sheet = contact_sheet(ledger, kept["crop_id"].to_pylist(), seed)
        if sheet is not None:
            figures.save(folder / "figure_6.png", sheet)
        chosen = review_rows(ledger, stats["metrics"], review_config)
        notice = NOTICE if stats["iqa"] == "classic" else ""
        review.write_page(folder, chosen, Crops(ledger), notice)
        text = json.dumps(facts, indent=1, sort_keys=True)
        (folder / "report.json").write_text(text + "\n")
        (folder / "report.md").write_text(report_markdown(facts, parts))


def review_rows(ledger: ShardLedger, metrics: Sequence[str], config: ReviewConfig) -> pa.Table:
    """The rows that the review page shows, in its order."""
    names = review.choose_crops(read_scored(ledger, review.CHOICE_COLUMNS), config)
    rows, crops = read_scored(ledger, [*review.REVIEW_COLUMNS, *metrics], names), Crops(ledger)
    # Dropped crops may have been pruned; a kept one without its picture is an error later.
    shown = [row["kept"] or crops.stored(row) for row in review.iter_rows(rows)]
    return rows.filter(pa.array(shown, pa.bool_()))


def draw_figures(
    folder: Path, stats: SelectionFacts, facts: ReportFacts, pool: pa.Table, kept: pa.Table
) -> None:
    """Draw the figures of numbers into the report's folder."""
    mark = WATERMARK if stats["iqa"] == "classic" else ""
    figures.bars(folder / "figure_1.png", facts["table_1"], stats["directions"], mark)
    names = [*stats["metrics"], "z", "scale_factor", "s", "persons"]
    data = {name: (float_column(pool, name), float_column(kept, name)) for name in names}
    figures.histograms(folder / "histograms.png", data, mark)
    # A pie of nothing cannot be drawn.
    if "tags" in facts and facts["tags"]["occurrences"]:
        figures.tags(folder / "figure_7.png", facts["tags"]["tags"], facts["tags"]["categories"])
