"""The report: numbers from the manifest, recomputed by hand; figures the same every time."""

import json
import shutil
import statistics
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from curation_runs import curate, manifest
from PIL import Image

from curate.config import ReviewConfig
from curate.cropping.job import count_persons
from curate.engine.ledger import ShardLedger
from curate.publish import figures
from curate.publish.categories import by_category, categories
from curate.publish.figures import tile_pictures
from curate.publish.report import most_unlike, review_rows
from curate.publish.report_tables import persons
from curate.publish.review import write_page
from curate.schema import Box
from curate.selection.manifest import Crops

METRICS = ("person_sharpness", "calm_noise", "jpeg_blocks", "clipped", "entropy")


def report(output: Path) -> dict:
    return json.loads((output / "report" / "report.json").read_text())


@pytest.mark.parametrize("metric", METRICS)
def test_table_1_is_the_plain_mean(made, metric):
    table = report(made)["table_1"]
    for name in ("coco", "person", "kept"):
        pool = [r for r in manifest(made) if r["z"] is not None]
        pool = [r for r in pool if r["kept"]] if name == "kept" else pool
        values = [r[metric] for r in pool if name in (r["dataset"], "kept")]
        assert table[name][metric]["n"] == len(values)
        assert table[name][metric]["mean"] == pytest.approx(statistics.mean(values))
        assert table[name][metric]["std"] == pytest.approx(statistics.stdev(values))


def test_funnel_adds_up_from_the_manifest(made):
    for name, funnel in report(made)["funnel"].items():
        own = [row for row in manifest(made) if row["dataset"] == name]
        assert funnel["images"] == len({row["image_id"] for row in own})
        assert funnel["kept"] == sum(row["kept"] for row in own)
        assert funnel["candidates"] == sum(row["box_index"] is not None for row in own)


def test_text_says_what_it_rests_on(made):
    text = (made / "report" / "report.md").read_text()
    assert "**Classic metrics.**" in text and "16 images, 12 person boxes, 9 crops kept" in text
    assert "PERSONA (paper)" not in text  # other metrics: not to be compared


def test_every_page_with_classic_scores_says_what_they_are(made, tmp_path):
    notice = "they see neither content nor beauty"
    for page in ("report.md", "review.html"):
        text = (made / "report" / page).read_text()
        assert notice in text and "Classic metrics." in text
    ledger = ShardLedger(made)
    chosen = review_rows(ledger, METRICS, ReviewConfig())
    write_page(tmp_path, chosen, Crops(ledger))  # as with the paper's metrics
    assert "Classic" not in (tmp_path / "review.html").read_text()


def test_figures_are_there_and_repeat(made, tmp_path):
    names = ["figure_1.png", "figure_6.png", "histograms.png", "review.html", "report.md"]
    again = Path(shutil.copytree(made, tmp_path / "set"))
    shutil.rmtree(again / "report")
    assert curate(again, "report") == 0
    for name in names:
        data = (made / "report" / name).read_bytes()
        assert data and data == (again / "report" / name).read_bytes()
    assert Image.open(made / "report" / "figure_6.png").size == (8 * 256, 2 * 274)


def test_tags_are_counted_on_kept_crops(made, tmp_path, capsys):
    output = Path(shutil.copytree(made, tmp_path / "set"))
    kept = [row["crop_id"] for row in manifest(made) if row["kept"]]
    tags = tmp_path / "tags.parquet"
    table = {"crop_id": [kept[0], kept[1], "stranger"], "tags": [["dog", "b"], ["dog"], ["c"]]}
    pq.write_table(pa.table(table), tags)
    assert curate(output, "report", f"--tags={tags}") == 0
    found = report(output)["tags"]
    assert (found["images"], found["occurrences"], found["tags"]) == (2, 3, {"b": 1, "dog": 2})
    assert found["categories"]["Animals"] == {"occurrences": 2, "tags": 1}
    assert (output / "report" / "figure_7.png").stat().st_size > 1000
    none = pa.array([[]], pa.list_(pa.string()))
    pq.write_table(pa.table({"crop_id": kept[:1], "tags": none}), tags)
    assert curate(output, "report") == 0 and report(output)["tags"]["occurrences"] == 0
    assert not (output / "report" / "figure_7.png").exists()
    pq.write_table(pa.table({"crop_id": ["stranger"], "tags": [["c"]]}), tags)
    assert curate(output, "report") == 2
    assert "none of the kept crops" in capsys.readouterr().err


def test_tags_have_one_category_each():
    found = by_category({"Man": 5, "woman": 2, "pizza": 7, "quark": 1})
    assert list(found) == ["Food", "People", "Other"]  # the last two: 7, 7 by name, 1
    assert found["People"] == {"occurrences": 7, "tags": 2} and found["Other"]["tags"] == 1
    lines = Path(figures.__file__).with_name("tag_categories.csv").read_text().splitlines()
    tags = [tag for line in lines[1:] for tag in line.split(",")[1].split(";")]
    assert len(tags) == len(set(tags)) == len(categories())


def test_persons_are_counted_by_hand():
    boxes = [
        Box((0, 0, 100, 300)),  # inside
        Box((90, 0, 190, 300)),  # inside by a tenth
        Box((20, 20, 120, 120)),  # inside by 64 %
        Box((0, 0, 4, 4)),  # too small to be seen
        Box((0, 0, 90, 200), "ignore"),
    ]
    assert count_persons(boxes, 0, 0, 100) == 1  # the third; the first is 300 high
    assert count_persons(boxes, 0, 0, 300) == 3
    counts = pa.table({"persons": [1, 1, 2, 4, 7, None]})
    facts = persons(counts, "persons")
    assert (facts["mean"], facts["median"]) == (3.0, 2.0)
    shares = [facts[name] for name in ("one", "two", "three_to_five", "more")]
    assert shares == [0.4, 0.2, 0.2, 0.2]


def test_spread_takes_the_most_different():
    hashes = [0, 1, 2**64 - 1, 3, 2**32 - 1]
    assert most_unlike(hashes, 3) == [0, 2, 4]
    assert sorted(most_unlike(hashes, 99)) == [0, 1, 2, 3, 4]
    assert most_unlike([], 3) == []


def test_sheet_places_tiles_in_reading_order():
    tiles = [(np.full((512, 512, 3), 10 * i, np.uint8), str(i)) for i in range(9)]
    page = tile_pictures(tiles)
    assert page.shape == (2 * 274, 8 * 256, 3)
    assert page[10, 300, 0] == 10 and page[284, 10, 0] == 80
