"""What a source is called, which pictures it has, and which boxes are theirs."""

import json
from pathlib import Path

import cv2
from conftest import curate

from curate import demo
from curate.ledger import Ledger
from curate.tables import read_rows


def test_pictures_that_were_added_are_found_after_two_markers_are_gone(tmp_path):
    """As the documentation tells; they lie in a folder that the labels do not name."""
    output, source = tmp_path / "set", demo.write_coco(tmp_path / "coco")
    assert curate(output, "index", sources=[source]) == curate(output, "crop") == 0
    demo.write_jpeg(
        tmp_path / "coco" / "train2017" / "patch1" / "000000000009.jpg",
        cv2.resize(demo.photograph("coffee"), (640, 480)),
    )
    (output / "done" / "index" / "coco.json").unlink()
    for path in (output / "done" / "crop").glob("coco-*.json"):
        path.unlink()
    assert curate(output, "index") == curate(output, "crop") == 0
    rows = read_rows(Ledger(output).output("crop", "coco-00000", "rows.parquet"))
    (row,) = (row for row in rows if row["image_id"] == "coco/train2017/9")
    assert row["w"] == 640 and "patch1" in row["path"]


def test_named_sources_may_come_in_any_order(tmp_path):
    for name in ("coffee", "rocket"):
        demo.write_jpeg(tmp_path / name / "1.jpg", demo.photograph(name))
    output = tmp_path / "set"
    sources = [f"drink:person={tmp_path}/coffee", f"person={tmp_path}/rocket"]
    names = ["drink/all/1.jpg", "person2/all/1.jpg"]
    assert curate(output, "index", sources=sources) == 0
    assert [row["image_id"] for row in index(output)] == names
    sources = [f"fire:person={tmp_path}/rocket", sources[0]]
    assert curate(output, "index", sources=sources) == 0
    assert [row["path"].split("/")[-2] for row in index(output)] == ["coffee", "rocket"]
    assert [row["image_id"] for row in index(output)] == [names[0], "fire/all/1.jpg"]


def index(output: Path) -> list[dict]:
    """Rows of the sources that were indexed last, by source."""
    ledger = Ledger(output)
    plan = json.loads((output / "plan.json").read_text())
    names = sorted(source["name"] for source in plan["sources"])
    return [row for n in names for row in read_rows(ledger.output("index", n, "00000.parquet"))]


def test_boxes_of_a_csv_belong_to_one_source(tmp_path, capsys):
    for name in ("a", "b"):
        demo.write_jpeg(tmp_path / name / "1.jpg", demo.photograph("coffee"))
    demo.write_jpeg(tmp_path / "b" / "2.jpg", demo.photograph("rocket"))
    boxes = tmp_path / "boxes.csv"
    sources = [f"{name}:folder={tmp_path}/{name}" for name in "ab"]
    flags = ["--detector=boxes", f"--detector_weights={boxes}"]
    boxes.write_text("path,x0,y0,x1,y1,source\n1.jpg,9,9,399,399,b\n2.jpg,9,9,399,399,\n")
    assert curate(tmp_path / "set", "index", *flags, sources=sources) == 0
    assert curate(tmp_path / "set", "crop") == 0
    rows = [
        read_rows(Ledger(tmp_path / "set").output("crop", f"{n}-00000", "rows.parquet"))
        for n in "ab"
    ]
    found = {row["image_id"]: row["box_x0"] for row in [*rows[0], *rows[1]]}
    assert found == {"a/all/1.jpg": None, "b/all/1.jpg": 9, "b/all/2.jpg": 9}
    for row, message in (("1.jpg,1,2,3,4,", "is in a and b"), ("3.jpg,1,2,3,4,", "1 paths are no")):
        boxes.write_text(f"path,x0,y0,x1,y1,source\n{row}\n")
        assert curate(tmp_path / "set", "crop") == 2
        assert message in capsys.readouterr().err
