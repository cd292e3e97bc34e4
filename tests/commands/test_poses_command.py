"""Poses and captions of a folder: what is there stays, what fails is named, odd flags."""

import json
from pathlib import Path

import numpy as np
import pytest
from picture_files import black_folder
from refusals import status

from osdhuman_jax.commands import captions, poses
from osdhuman_jax.data.structures import read_attention, read_poses
from osdhuman_jax.inference import poses as blazepose
from osdhuman_jax.inference import poses_onnx, segmentation

SIZE = (40, 50)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return black_folder(tmp_path / "photos", SIZE)


@pytest.fixture
def asked(monkeypatch) -> list:
    """One person, the same in all pictures, stands for BlazePose; what it was asked for."""
    points = np.stack([np.arange(17.0), 2 * np.arange(17.0)], axis=-1)
    pose = blazepose.Pose(points, np.full(17, 0.75), np.full(SIZE, 0.5, np.float32))
    found: list = []

    def load(file: Path | None):
        found.append(file)
        return lambda rgb: found.append(rgb.shape) or [pose]

    monkeypatch.setattr(blazepose, "load_blazepose", load)
    return found


def find(photos: Path, out: Path, source: str = "blazepose", *more: str | Path) -> int:
    return status(poses.main, "--pictures", photos, "--output", out, "--from", source, *more)


def test_poses_and_maps_and_what_is_there_stays(photos, tmp_path, asked, capsys):
    out = tmp_path / "poses"
    assert find(photos, out, "blazepose:some.whl") == 0
    assert asked == [Path("some.whl"), (*SIZE, 3), (*SIZE, 3)]
    assert capsys.readouterr().out == f"poses of 2 pictures made, 0 were in {out}\n"
    table, whole = read_poses(out / "poses.jsonl"), (out / "poses.jsonl").read_bytes()
    assert list(table) == ["a", "b/c"]
    assert table["a"][0, 4].tolist() == [10, 20, 0.75]
    np.testing.assert_allclose(read_attention(out / "b" / "c.png", SIZE), 0.5, atol=0.003)
    # All there: no network is opened. Then one is missing, and its map is a person's own.
    assert find(photos, out) == 0 and len(asked) == 3
    (out / "poses.jsonl").write_bytes(whole[:-9])
    (out / "b" / "c.png").write_bytes(b"mine")
    assert find(photos, out) == 0 and asked[3:] == [None, (*SIZE, 3)]
    assert (out / "poses.jsonl").read_bytes() == whole
    assert (out / "b" / "c.png").read_bytes() == b"mine"


def test_pictures_that_fail_are_named(photos, tmp_path, asked, capsys):
    (photos / "d.png").write_bytes(b"no picture")
    assert find(photos, tmp_path / "poses") == 1
    assert f"poses: {photos / 'd.png'}: " in capsys.readouterr().err
    for name in ("a.jpg", "b/c.png"):
        (photos / name).unlink()
    assert find(photos, tmp_path / "none") == 2


@pytest.mark.parametrize("attention", [False, True])
def test_poses_by_networks_have_maps_where_another_gives_them(
    photos, tmp_path, monkeypatch, attention
):
    given = []
    monkeypatch.setattr(
        poses_onnx,
        "OnnxPoses",
        lambda *files: given.append(files) or (lambda rgb: np.ones((1, 18, 3), np.float32)),
    )
    monkeypatch.setattr(
        segmentation,
        "Segmenter",
        lambda *files: given.append(files) or (lambda rgb: np.full(SIZE, 5, np.uint8)),
    )
    more = ["--attention", "s.onnx", "--classes", "m.json"] if attention else []
    out = tmp_path / "poses"
    assert find(photos, out, "onnx:p.onnx,d.onnx", *more) == 0
    assert given[0] == (Path("p.onnx"), Path("d.onnx"))
    assert (read_poses(out / "poses.jsonl")["a"] == 1).all()
    assert (out / "a.png").exists() == attention
    if attention:
        assert given[1] == (Path("s.onnx"), Path("m.json"))
        assert (read_attention(out / "a.png", SIZE) == 1).all()


def test_captions_are_added_to_those_that_are_there(photos, tmp_path, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(
        captions,
        "load_tags",
        lambda folder, size: (
            lambda pictures: [asked.append((folder, size)) or ["man", "hat"] for _ in pictures],
            "ram",
        ),
    )
    out, words = tmp_path / "c.jsonl", ["--pictures", photos, "--ram", "model", "--output"]
    mine = {"file": "a.jpg", "text": "mine"}
    out.write_text(json.dumps(mine))
    assert status(captions.main, *words, out) == 0 and asked == [(Path("model"), 1)]
    assert [json.loads(line) for line in out.read_text().splitlines()] == [
        mine,
        {"file": "b/c.png", "text": "man, hat", "tags": ["man", "hat"], "by": "ram"},
    ]
    assert capsys.readouterr().out == f"1 captions made, 1 were in {out}\n"
    assert status(captions.main, *words, out) == 0 and len(asked) == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["pose"], "--from pose: give blazepose, blazepose:FILE"),
        (["blazepose:"], "--from blazepose:: give"),
        (["blazepose:a,b"], "--from blazepose:a,b: give"),
        (["onnx"], "--from onnx: give"),
        (["onnx:a,,b"], "--from onnx:a,,b: give"),
        (["onnx:a,b,c"], "--from onnx:a,b,c: give"),
        (["onnx:a", "--attention", "b"], "go together, with --from onnx:"),
        (["blazepose", "--attention", "b", "--classes", "c"], "go together, with --from onnx:"),
        (["blazepose:none.whl"], "none.whl: no wheel of mediapipe and no folder"),
        (["onnx:none.onnx"], "none.onnx: no such file"),
    ],
)
def test_sources_that_cannot_be_used_are_one_line(photos, tmp_path, capsys, words, said):
    assert find(photos, tmp_path / "out", *words) == 2
    text = capsys.readouterr().err
    assert text.startswith("poses: ") and said in text and text.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_files_that_are_not_lines_and_models_without_tags_are_one_line(photos, tmp_path, capsys):
    out, nano = tmp_path / "c.jsonl", Path(__file__).parents[2] / "models" / "nano"
    words = ["--pictures", photos, "--ram", nano, "--output"]
    assert status(captions.main, *words, out) == 2 and not out.exists()
    assert "nano: for tags it lacks tagger, tags/ram_tag_list.txt, " in capsys.readouterr().err
    out.write_text("text\n{}\n")
    assert status(captions.main, *words, out) == 2
    assert "c.jsonl, line 1: " in capsys.readouterr().err
