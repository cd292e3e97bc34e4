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
from pathlib import Path

import numpy as np
import pyarrow as pa

from curate.cropping.job import decode_crop
from curate.engine.ledger import ShardLedger
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
from curate.quality.scores import PERSONS
from curate.selection.decisions import SelectionFacts, read_facts
from curate.selection.manifest import Crops, check_counts, funnels, read_manifest
from curate.selection.split import seeded_key
from osdhuman_jax.disk import staged_folder

# What figures of metrics without weights carry across them.
WATERMARK = "classic metrics"
# Crops of the contact sheet, four lines of eight, and those among which they are searched: the time
# of the search grows with the product of both.
SHEET_CROPS, SHEET_POOL = 32, 20_000


def scored_rows(table: pa.Table) -> pa.Table:
    """The manifest's rows with a z: the pool that was selected from."""
    return table.filter(table["z"].is_valid())


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


def contact_sheet(kept: pa.Table, crops: Crops, seed: int) -> np.ndarray | None:
    """Figure 6: kept crops that are as unlike each other as can be; None if nothing is kept."""
    columns = ["crop_id", "phash", "crop_shard", "crop_row"]
    rows = kept.select(columns).to_pylist()
    rows.sort(key=lambda row: seeded_key(seed, row["crop_id"]))
    rows = rows[:SHEET_POOL]
    hashes = [int(row["phash"], 16) for row in rows]
    chosen = [rows[at] for at in most_unlike(hashes, SHEET_CROPS)]
    tiles = [(decode_crop(crops.png(row)), row["crop_id"][:12]) for row in chosen]
    return figures.tile_pictures(tiles) if tiles else None


def write_report(ledger: ShardLedger, tags: str = "") -> None:
    """Write OUT/report anew.

    Args:
        tags: path of the crops' tags (see `tag_counts`); "" = none.

    Raises LedgerError before a selection, ManifestError if the manifest's counts do not add up, and
    ReportError on tags that do not fit.
    """
    stats = read_facts(ledger)
    manifest = read_manifest(ledger)
    check_counts(manifest)
    pool = scored_rows(manifest)
    kept = pool.filter(pool["kept"])
    # All that the report says, as report.json holds it too.
    parts, seed = funnels(manifest), stats["settings"]["split"]["seed"]
    facts: ReportFacts = {
        "profile": stats["profile"],
        "iqa": stats["iqa"],
        "table_1": table_one(pool, [m for m in stats["metrics"] if m != PERSONS], seed),
        "funnel": {name: vars(part) for name, part in parts.items()},
        "persons": persons(kept, "persons"),
        "detected_persons": persons(kept, PERSONS) if PERSONS in kept.column_names else {"n": 0},
        "thresholds": stats["thresholds"],
        "licenses": dict(Counter(name or "unknown" for name in kept["license"].to_pylist())),
        "detectors": sorted({d for d in manifest["detector"].unique().to_pylist() if d}),
    }
    if tags:
        facts["tags"] = tag_counts(Path(tags), set(kept["crop_id"].to_pylist()))
    # The folder appears as a whole; an old report stays until then.
    with staged_folder(ledger.root / "report", replace=True) as folder:
        crops = Crops(ledger)
        draw_figures(folder, stats, facts, pool, kept, crops, seed)
        review.write_page(folder, pool, crops, seed, NOTICE if stats["iqa"] == "classic" else "")
        text = json.dumps(facts, indent=1, sort_keys=True)
        (folder / "report.json").write_text(text + "\n")
        (folder / "report.md").write_text(report_markdown(facts, parts))


def draw_figures(
    folder: Path,
    stats: SelectionFacts,
    facts: ReportFacts,
    pool: pa.Table,
    kept: pa.Table,
    crops: Crops,
    seed: int,
) -> None:
    """Draw all figures into the report's folder."""
    mark = WATERMARK if stats["iqa"] == "classic" else ""
    figures.bars(folder / "figure_1.png", facts["table_1"], stats["directions"], mark)
    names = [*stats["metrics"], "z", "scale_factor", "s", "persons"]
    data = {name: (float_column(pool, name), float_column(kept, name)) for name in names}
    figures.histograms(folder / "histograms.png", data, mark)
    sheet = contact_sheet(kept, crops, seed)
    if sheet is not None:
        figures.save(folder / "figure_6.png", sheet)
    if "tags" in facts:
        figures.tags(folder / "figure_7.png", facts["tags"]["tags"], facts["tags"]["categories"])
