"""People of COCO's files: outlines as polygons and run lengths, joints, names, refusals."""

import json
from pathlib import Path

import numpy as np
from refusals import one_line

from osdhuman_jax.data.coco_people import CocoPeople, outlined, run_lengths
from osdhuman_jax.data.sources import DataError

ONE = np.ones(2)
SQUARE = [2, 1, 6, 1, 6, 4, 2, 4]


def content(**person) -> dict:
    """Two pictures; one has a person, a crowd and a dog."""
    entry = {"image_id": 7, "category_id": 1, "segmentation": [SQUARE], "iscrowd": 0}
    entry |= {"keypoints": [4, 2, 2] + 16 * [0, 0, 0], **person}
    crowd = {**entry, "iscrowd": 1}
    dog = {"image_id": 7, "category_id": 18, "segmentation": [[0, 0, 9, 0, 9, 9]]}
    return {
        "images": [
            {"id": 7, "file_name": "train\\a.jpg", "height": 8, "width": 10},
            {"id": 8, "file_name": "b.jpg", "height": 8, "width": 10},
        ],
        "annotations": [entry, crowd, dog],
        "categories": [{"id": 1, "name": "person"}, {"id": 18, "name": "dog"}],
    }


def people(tmp_path: Path, table: dict | None = None, joints: bool = True) -> CocoPeople:
    path = tmp_path / "coco.json"
    # With a byte order mark, as editors on Windows leave one.
    path.write_text(json.dumps(table or content()), encoding="utf-8-sig")
    return CocoPeople(path, joints)


def test_a_person_has_outline_and_joints(tmp_path):
    (person,) = people(tmp_path).read(Path("train/a.png"), (8, 10))
    rows, columns = np.nonzero(person.outline)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (1, 4, 2, 6)
    assert person.points[0].tolist() == [4, 2] and person.seen.tolist() == [True] + 16 * [False]
    assert people(tmp_path, joints=False).read(Path("a.jpg"), (8, 10))[0].points is None


def test_pictures_are_found_by_path_or_by_a_name_that_is_one_picture_s(tmp_path):
    known = people(tmp_path)
    assert len(known.read(Path("a.png"), (8, 10))) == 1
    assert known.read(Path("other/b.jpg"), (8, 10)) == []
    assert known.read(Path("c.jpg"), (8, 10)) is None
    table = content()
    table["images"].append({"id": 9, "file_name": "val/a.jpg", "height": 8, "width": 10})
    known = people(tmp_path, table)
    assert known.read(Path("a.jpg"), (8, 10)) is None
    assert known.read(Path("val/a.jpg"), (8, 10)) == []


def test_scaled_pictures_have_scaled_people(tmp_path):
    (person,) = people(tmp_path).read(Path("a.jpg"), (16, 20))
    assert person.points[0].tolist() == [8, 4] and person.outline[8, 12] and person.outline.any()


def test_run_lengths_are_read_as_pycocotools_writes_them():
    """As its maskApi.c writes them: differences from the one two before, five bits a letter."""
    counts = [12, 3, 7, 3, 100, 1, 2, 60]

    def written(numbers: list[int]) -> str:
        text = ""
        for i, number in enumerate(numbers):
            x, more = number - (numbers[i - 2] if i > 2 else 0), True
            while more:
                bits, x = x & 31, x >> 5
                more = x != -1 if bits & 16 else x != 0
                text += chr((bits | 32 * more) + 48)
        return text

    assert run_lengths(written(counts)) == counts


def test_outlines_by_run_lengths_go_down_the_columns():
    mask = np.zeros((4, 5), bool)
    mask[1:3, 2] = True
    rle = {"size": [4, 5], "counts": [9, 2, 9]}
    np.testing.assert_array_equal(outlined(rle, (4, 5), ONE), mask)
    np.testing.assert_array_equal(outlined({**rle, "counts": "929"}, (4, 5), ONE), mask)


def test_files_that_cannot_be_used_are_one_line(tmp_path):
    (tmp_path / "bad.json").write_text("{")
    for name, said in {"none.json": "No such file", "bad.json": "not a COCO json"}.items():
        with one_line(DataError, f"{name}: {said}"):
            CocoPeople(tmp_path / name, True)
    table = content()
    table["categories"] = [{"id": 1, "name": "cat"}]
    with one_line(DataError, "no category is named person"):
        people(tmp_path, table)
    table = content()
    for entry in table["annotations"]:
        entry.pop("keypoints", None)
    with one_line(DataError, "nobody in it has keypoints; --from instances:FILE"):
        people(tmp_path, table)
    with one_line(DataError, "has 8 x 10 pixels, .*coco.json says 10 x 8"):
        people(tmp_path).read(Path("a.jpg"), (10, 8))
    with one_line(DataError, "its people in .*coco.json: "):
        people(tmp_path, content(keypoints=[1, 2])).read(Path("a.jpg"), (8, 10))
