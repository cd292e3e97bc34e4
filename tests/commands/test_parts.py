"""Part maps of a folder: by COCO's files, BlazePose, a network; what is there stays."""

import json
from pathlib import Path

import numpy as np
import pytest
from picture_files import black_folder
from PIL import Image
from refusals import status

from osdhuman_jax.commands import parts
from osdhuman_jax.data.part_maps import read_part_map
from osdhuman_jax.inference import poses, segmentation

SIZE = (40, 50)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return black_folder(tmp_path / "photos", SIZE)


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    """A person with keypoints in a.jpg, nobody in c.png."""
    images = [
        {"id": i, "file_name": name, "height": SIZE[0], "width": SIZE[1]}
        for i, name in enumerate(("a.jpg", "c.png"))
    ]
    joints = np.zeros((17, 3))
    joints[[5, 7, 9]] = (10, 10, 2), (20, 10, 2), (30, 10, 1)
    square = [2, 2, 45, 2, 45, 35, 2, 35]
    person = {"image_id": 0, "category_id": 1, "segmentation": [square]}
    person["keypoints"] = joints.ravel().tolist()
    table = {"images": images, "annotations": [person]}
    path = tmp_path / "person_keypoints.json"
    path.write_text(json.dumps({**table, "categories": [{"id": 1, "name": "person"}]}))
    return path


def run(photos: Path, output: Path, source: str, *flags: str) -> int:
    places = ("--pictures", photos, "--output", output)
    return status(parts.main, *places, "--from", source, *flags)


def labels(output: Path, name: str) -> np.ndarray:
    return read_part_map(output / name, SIZE)


def test_maps_of_a_coco_file(photos, coco, tmp_path, capsys):
    out = tmp_path / "parts"
    assert run(photos, out, f"coco:{coco}") == 0
    made = labels(out, "a.png")
    assert made[10, 20] == 2 and made[30, 20] == 6 and made[0, 0] == 0
    assert not labels(out, "b/c.png").any()
    assert capsys.readouterr().out == f"2 part maps made, 0 were in {out}\n"
    assert run(photos, tmp_path / "bodies", f"instances:{coco}") == 0
    assert set(np.unique(labels(tmp_path / "bodies", "a.png"))) == {0, 6}


def test_what_is_there_stays_and_needs_no_source(photos, coco, tmp_path, capsys):
    out = tmp_path / "parts"
    assert run(photos, out, f"coco:{coco}") == 0
    (out / "b" / "c.png").unlink()
    (out / "a.png").write_bytes(b"mine")
    assert run(photos, out, f"coco:{coco}") == 0
    assert (out / "a.png").read_bytes() == b"mine" and (out / "b" / "c.png").is_file()
    coco.unlink()
    assert run(photos, out, f"coco:{coco}") == 0


def test_pictures_that_fail_or_are_not_listed(photos, coco, tmp_path, capsys):
    (photos / "d.png").write_bytes(b"no picture")
    Image.fromarray(np.zeros((50, 40, 3), np.uint8)).save(photos / "a.jpg")
    table = json.loads(coco.read_text())
    table["images"][1]["file_name"] = "other.png"
    coco.write_text(json.dumps(table))
    assert run(photos, tmp_path / "none", f"coco:{coco}") == 2
    table["images"].append({"id": 2, "file_name": "e.png", "height": 40, "width": 50})
    coco.write_text(json.dumps(table))
    Image.fromarray(np.zeros((*SIZE, 3), np.uint8)).save(photos / "e.png")
    capsys.readouterr()
    assert run(photos, tmp_path / "some", f"coco:{coco}") == 1
    said = capsys.readouterr()
    assert f"{photos / 'a.jpg'}: has 40 x 50 pixels" in said.err
    assert f"{photos / 'd.png'}: " in said.err
    assert said.out.startswith("1 part maps made") and "1 pictures are not in" in said.out


def test_maps_by_blazepose(photos, tmp_path, monkeypatch):
    """One person, whose skeleton is that of the COCO file, stands for the networks."""
    points, seen = np.zeros((17, 2)), np.zeros(17, bool)
    points[[5, 7, 9]], seen[[5, 7, 9]] = ((10, 10), (20, 10), (30, 10)), True
    pose, asked = poses.Pose(points, seen, np.ones(SIZE, bool)), []

    def load(file: Path | None):
        asked.append(file)
        return lambda _: [pose]

    monkeypatch.setattr(poses, "load_blazepose", load)
    assert run(photos, tmp_path / "parts", "blazepose:some.whl") == 0
    assert labels(tmp_path / "parts", "a.png")[10, 20] == 2
    assert run(photos, tmp_path / "other", "blazepose") == 0
    assert asked == [Path("some.whl"), None]


def test_maps_by_a_network(photos, tmp_path, monkeypatch):
    class Network:
        def __init__(self, *files: Path) -> None:
            self.files = files

        def __call__(self, rgb: np.ndarray) -> np.ndarray:
            assert self.files == (Path("net.onnx"), Path("map.json"))
            return np.full(rgb.shape[:2], 5, np.uint8)

    monkeypatch.setattr(segmentation, "Segmenter", Network)
    assert run(photos, tmp_path / "parts", "onnx:net.onnx", "--classes", "map.json") == 0
    assert (labels(tmp_path / "parts", "b/c.png") == 5).all()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["pose"], "--from pose: give coco:FILE, instances:FILE, blazepose"),
        (["coco"], "--from coco: give"),
        (["coco:"], "--from coco:: give"),
        (["onnx:a.onnx"], "--classes MAP.json belongs to --from onnx:FILE, which needs it"),
        (["blazepose", "--classes", "a.json"], "--classes MAP.json belongs to --from onnx"),
        (["coco:none.json"], "none.json: No such file"),
        (["blazepose:none.whl"], "none.whl: no wheel of mediapipe and no folder"),
    ],
)
def test_sources_that_cannot_be_used_are_one_line(photos, tmp_path, capsys, words, said):
    assert run(photos, tmp_path / "out", *words) == 2
    text = capsys.readouterr().err
    assert text.startswith("parts: ") and said in text and text.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_places_that_do_not_go_together_are_refused(photos, coco, tmp_path, capsys):
    assert run(photos, photos / "parts", f"coco:{coco}") == 2
    assert "lies in --pictures" in capsys.readouterr().err
    (photos / "a.png").write_bytes((photos / "b" / "c.png").read_bytes())
    assert run(photos, tmp_path / "out", f"coco:{coco}") == 2
    assert "a.jpg and a.png would both have the map" in capsys.readouterr().err
