"""What a source is called, which pictures it has, and which boxes are theirs."""

import json
from pathlib import Path

import cv2
import label_files
import pytest
from curation_runs import curate

from curate import demo
from curate.cropping.detect import read_boxes
from curate.engine.ledger import ShardLedger
from curate.engine.parquet import read_rows
from curate.selection.barred import pictures
from curate.selection.reviews import read_review


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
    rows = read_rows(ShardLedger(output).output("crop", "coco-00000", "rows.parquet"))
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
    ledger = ShardLedger(output)
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
        read_rows(ShardLedger(tmp_path / "set").output("crop", f"{n}-00000", "rows.parquet"))
        for n in "ab"
    ]
    found = {row["image_id"]: row["box_x0"] for row in [*rows[0], *rows[1]]}
    assert found == {"a/all/1.jpg": None, "b/all/1.jpg": 9, "b/all/2.jpg": 9}
    for row, message in (("1.jpg,1,2,3,4,", "is in a and b"), ("3.jpg,1,2,3,4,", "1 paths are no")):
        boxes.write_text(f"path,x0,y0,x1,y1,source\n{row}\n")
        assert curate(tmp_path / "set", "crop") == 2
        assert message in capsys.readouterr().err


def labelled(root: Path, names: list[str], files: list[str], ids: list | None = None) -> str:
    """A source whose labels name pictures, of which some are there."""
    (path, images) = label_files.write_labels("coco", root, names)
    for name in files:
        demo.write_jpeg(images / name, demo.photograph("coffee"))
    if ids:
        data = json.loads(path.read_text())
        for entry, image_id in zip(data["images"], ids, strict=True):
            entry["id"] = image_id
        path.write_text(json.dumps(data))
    return f"coco={path},{images}"


def test_index_says_what_it_found_and_what_not(tmp_path, capsys):
    names = ["0.jpg", "1.jpg", "a/2.jpg", "3.jpg", "4.jpg", "5.jpg"]
    source = labelled(tmp_path, names, ["0.jpg", "b/1.jpg", "c/1.jpg"])
    line = (
        "coco: 1 pictures found, 5 missing ({0}/1.jpg, {0}/a/2.jpg, {0}/3.jpg ...), 6 people; "
        "not used or not understood: 1 names that fit several pictures alike\n"
    ).format(tmp_path / "images")
    for _ in range(2):
        assert curate(tmp_path / "set", "index", sources=[source]) == 0
        assert capsys.readouterr().out == line


@pytest.mark.parametrize(
    ("names", "ids", "words"),
    [
        (["a/1.jpg", "2.jpg"], None, "all 2 pictures are missing, such as "),
        (["0.jpg", "1.jpg"], [0, "0"], "two images are named 0, the second is 1.jpg"),
        (["0.jpg", "1.jpg"], [0, "01"], 'not in "images", such as image_id 1: '),
        (["0.jpg", "\ud800.jpg"], None, "the name is no text"),
        ([], None, "its labels list no pictures"),
    ],
)
def test_labels_that_do_not_fit_end_the_run_in_one_line(tmp_path, capsys, names, ids, words):
    source = labelled(tmp_path, names, ["0.jpg", "z/3.jpg"], ids)
    assert curate(tmp_path / "set", "index", sources=[source]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and message.startswith("curate: ") and words in message
    assert not (tmp_path / "set" / "done").exists()


def test_a_picture_behind_a_dead_link_is_missing_and_no_more(tmp_path, capsys):
    demo.write_jpeg(tmp_path / "images" / "1.jpg", demo.photograph("coffee"))
    (tmp_path / "images" / "2.jpg").symlink_to(tmp_path / "gone.jpg")
    source = f"person={tmp_path}/images"
    assert curate(tmp_path / "set", "index", sources=[source]) == 0
    assert "person: 1 pictures found, 1 missing" in capsys.readouterr().out
    assert curate(tmp_path / "set", "crop") == 0
    rows = read_rows(ShardLedger(tmp_path / "set").output("crop", "person-00000", "rows.parquet"))
    assert [row["reason"] for row in rows if row["image_id"].endswith("2.jpg")] == ["missing_file"]


def test_barred_pictures_lie_behind_links_too(tmp_path):
    demo.write_jpeg(tmp_path / "disk" / "1.jpg", demo.photograph("coffee"))
    (tmp_path / "barred").mkdir()
    (tmp_path / "barred" / "linked").symlink_to(tmp_path / "disk")
    assert pictures(f"{tmp_path}/barred") == [tmp_path / "barred" / "linked" / "1.jpg"]


def test_tables_that_people_give_may_begin_with_a_mark(tmp_path):
    table, review = tmp_path / "boxes.csv", tmp_path / "review.csv"
    for encoding in ("utf-8-sig", "utf-16"):
        table.write_text("path,x0,y0,x1,y1\r\n1.jpg,1,2,3,4\r\n", encoding=encoding)
        assert read_boxes(table)["", "1.jpg"][0].xyxy == (1, 2, 3, 4)
        review.write_text("crop_id,keep\r\na,1\r\n", encoding=encoding)
        assert read_review(review) == {"a": True}


def test_lines_of_one_name_end_the_run(tmp_path, capsys):
    paths = label_files.write_labels("crowdhuman", tmp_path, ["1", "1"])
    label_files.touch(tmp_path / "images", "1.jpg")
    source = f"crowdhuman={','.join(map(str, paths))}"
    assert curate(tmp_path / "set", "index", sources=[source]) == 2
    assert "two images are named crowdhuman/a/1: " in capsys.readouterr().err
