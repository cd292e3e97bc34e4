"""Poses, attention maps and captions beside the sources: cut as their picture is, or refused."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from photo_sources import config_of, picture, png, take

from osdhuman_jax.data.captions import open_captions
from osdhuman_jax.data.loader import make_loader
from osdhuman_jax.data.picture_lines import appended
from osdhuman_jax.data.records import encode_record
from osdhuman_jax.data.samples import make_sample
from osdhuman_jax.data.sources import DataError, LabelledSource, open_sources
from osdhuman_jax.data.structures import (
    COCO,
    MIRROR,
    Structure,
    cut_structure,
    open_structures,
    openpose,
    pose_line,
    read_attention,
    read_poses,
    write_attention,
)
from osdhuman_jax.images.codec import write_png
from osdhuman_jax.networks.skeleton import JOINTS

SIZE = (90, 120)


def lines(path: Path, *entries: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return path


def marked() -> tuple[np.ndarray, Structure]:
    """A smooth picture, and one person whose joints lie where its pixels say that they are.

    Red and green are twice a pixel's x and y; the attention is the red.
    """
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    rgb = np.stack([2 * x, 2 * y, 0 * x], axis=-1).astype(np.uint8)
    people = np.ones((1, 18, 3), np.float32)
    people[0, :, 0], people[0, :, 1] = np.linspace(4, 115, 18), np.linspace(80, 9, 18)
    return rgb, Structure(people, rgb[..., 0] / np.float32(255))


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path, Path]:
    """Three pictures, the poses and maps of two of them, the captions of two."""
    photos, poses = tmp_path / "photos", tmp_path / "poses"
    rgb, (people, attention) = marked()
    for name in ("a", "b/c", "d"):
        (photos / name).parent.mkdir(parents=True, exist_ok=True)
        write_png(photos / f"{name}.png", rgb)
    lines(poses / "poses.jsonl", pose_line("a.png", people), {"file": "b/c.jpg", "people": []})
    write_attention(poses / "a.png", attention)
    captions = [{"file": "a.png", "text": "man, hat", "by": "x", "k": 1}]
    captions += [{"file": "b/c.png", "text": "é"}]
    return photos, poses, lines(tmp_path / "captions.jsonl", *captions)


def config(folders: tuple[Path, Path, Path], **changes):
    poses, captions = ((str(path),) for path in folders[1:])
    return config_of(folders[0], poses=poses, captions=captions, **changes)


def test_mirror_and_coco_s_joints_are_those_of_the_names():
    swap = str.maketrans({"L": "right", "R": "left"})
    short = [name.replace("left", "L").replace("right", "R") for name in JOINTS]
    assert [JOINTS[i] for i in MIRROR] == [name.translate(swap) for name in short]
    points = np.stack([np.arange(17.0), -np.arange(17.0)], axis=-1)
    found = openpose(points, np.linspace(0.1, 0.9, 17))
    assert found.dtype == np.float32 and found[1].tolist() == pytest.approx([5.5, -5.5, 0.35])
    rest = [i for i in range(18) if i != 1]
    assert found[rest, 0].tolist() == [COCO[i] for i in rest]


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("size", [(32, 32), (64, 32), (80, 100)])
@pytest.mark.parametrize("short", [0, 100])
def test_joints_and_attention_stay_on_their_pixels(tmp_path, folders, size, short, mirrored):
    """What the crop shows at a joint is where the joint was; joints beyond it are hidden."""
    setting = config(folders, crop=size[1], crop_height=size[0], resize_short=short, flip=mirrored)
    source = open_sources(setting.sources)
    structures = open_structures(setting, source)
    rgb, (before, _) = marked()
    joints = turned = 0
    for epoch in range(12):
        sample = make_sample(source, setting, epoch, 0, structures=structures)
        hq, person = sample["hq"], sample["people"][0]
        assert hq.shape == (*size, 3) and sample["attention"].shape == (*size, 1)
        np.testing.assert_allclose(sample["attention"][..., 0], hq[..., 0] / 255, atol=0.02)
        flipped = hq[0, 0, 0] > hq[0, -1, 0]
        order = list(MIRROR) if flipped else list(range(18))
        inside = person[:, 2] > 0
        at = np.rint(person[inside, :2]).astype(int)
        there = hq[at[:, 1], at[:, 0], :2] / 2
        np.testing.assert_allclose(there, before[0, order][inside, :2], atol=1.5)
        joints, turned = joints + inside.sum(), turned + flipped
    assert joints and (0 < turned < 12 if mirrored else not turned)


def test_people_who_are_not_in_the_window_are_left_out():
    people = np.zeros((6, 18, 3), np.float32)
    people[:, 0] = [(5 + 10 * i, 50, 0.9) for i in range(6)]
    structure = Structure(people, np.zeros(SIZE, np.float32))
    found = cut_structure(structure, (slice(40, 60), slice(20, 40)), (20, 20), False)
    assert found.people[:, 0, 0].tolist() == [5, 15]
    whole = cut_structure(structure, (slice(0, 90), slice(0, 120)), SIZE, False)
    assert len(whole.people) == 4 and (whole.people == people[:4]).all()


def test_batches_hold_structure_and_captions_whatever_makes_them(folders, caplog):
    setting = config(folders, flip=False)
    with make_loader(setting, batch_size=3) as loader:
        batch = next(loader)
    spec = {key: (batch[key].shape, batch[key].dtype.kind) for key in batch}
    assert spec["people"] == ((3, 4, 18, 3), "f") and spec["attention"] == ((3, 32, 32, 1), "f")
    captions = dict(zip(batch["index"].tolist(), batch["caption"].tolist(), strict=True))
    assert captions == {0: "man, hat", 1: "é", 2: ""}
    alone = batch["index"] != 0
    assert not batch["people"][alone].any() and not batch["attention"][alone].any()
    said = [record.getMessage() for record in caplog.records]
    assert any(line.endswith("poses.jsonl: 1 pictures have no pose in it") for line in said)
    assert any(line.endswith("captions.jsonl: 1 pictures have no caption in it") for line in said)
    with make_loader(replace(setting, workers=1), batch_size=3) as loader:
        for key, value in next(loader).items():
            np.testing.assert_array_equal(value, batch[key])
    with make_loader(replace(setting, poses=(), captions=()), batch_size=3) as loader:
        plain = take(loader, 1)[0]
    assert plain.keys() == {"hq", "index", "skipped"}
    np.testing.assert_array_equal(plain["hq"], batch["hq"])


def test_labelled_samples_have_nobody_and_no_caption(folders, tmp_path):
    for kind in ("lq", "teacher"):
        (tmp_path / kind).mkdir()
        write_png(tmp_path / kind / "a.png", picture(0, 64, 64))
    setting = config(folders, degrade=True, labelled_share=1.0, crop_height=48)
    source = open_sources(setting.sources)
    beside = {"structures": open_structures(setting, source)}
    beside["captions"] = open_captions(setting, source)
    sample = make_sample(source, setting, 0, 0, LabelledSource([tmp_path]), **beside)
    assert sample["lq"].shape == (48, 32, 3) and sample["caption"] == ""
    assert not sample["people"].any() and sample["attention"].shape == (48, 32, 1)


def test_records_bring_their_captions_or_have_a_file_of_them(tmp_path):
    writer = ArrayRecordWriter(str(tmp_path / "a.arrayrecord"), "group_size:1,uncompressed")
    for name, text in (("x.1", {"text": "own"}), ("y", {})):
        header = {"crop_id": name, "w": 52, "h": 40, "codec": "png", **text}
        writer.write(encode_record(header, png(picture(0))))
    writer.close()
    file = lines(tmp_path / "c.jsonl", {"file": "x.1.png", "text": "given"})
    own = config_of(tmp_path, captions=("",))
    for setting, said in ((own, ["own", ""]), (replace(own, captions=(str(file),)), ["given", ""])):
        captions = open_captions(setting, open_sources(setting.sources))
        assert [captions.read(i) for i in (0, 1)] == said


POSE = {"file": "a.png", "people": []}
TEXT = {"file": "a.png", "text": ""}


@pytest.mark.parametrize(
    ("place", "entries", "said"),
    [
        ("poses", [POSE, POSE], "poses.jsonl, line 2: a.png is there twice"),
        ("poses", [POSE | {"file": "z.png"}], "poses.jsonl: z is no picture of"),
        ("poses", [{"file": "a.png"}], "line 1: no 'people'"),
        ("poses", [5], "poses.jsonl, line 1: not a table with file and people"),
        ("poses", [[]], "line 1: not a table with file and people"),
        ("poses", [None], "line 1: not a table with file and people"),
        ("poses", [POSE | {"people": 3}], "line 1: its people are no list"),
        ("poses", [POSE | {"people": {"a": 1}}], "line 1: its people are no list"),
        ("poses", [POSE | {"people": [[["1", 2, 1]] * 18]}], "joint with '1', which is no number"),
        ("poses", [POSE | {"people": [[[1, 2, True]] * 18]}], "joint with True, which is no num"),
        ("poses", [POSE | {"people": [[[1, 2, None]] * 18]}], "joint with None, which is no num"),
        ("poses", [POSE | {"people": [[[1, 2, 1.1]] * 18]}], "scores that are not between 0 and 1"),
        ("poses", [POSE | {"people": [[[1, 2, -0.1]] * 18]}], "scores that are not between 0 and"),
        ("poses", [POSE | {"people": [[[1e300, 2, 1]] * 18]}], "joints more than 1000000 pixels"),
        ("poses", [POSE | {"people": [[[1, 2, 3]]]}], "line 1: its people do not have 18 joints"),
        ("poses", [POSE | {"people": [[[1, 2, float("nan")]] * 18]}], "no finite numbers"),
        ("poses", [POSE | {"people": [[[10**400, 2, 3]] * 18]}], "line 1: int too large"),
        ("captions", [TEXT | {"text": "a \ud800"}], "line 1: 'utf-8' codec can't encode"),
        ("captions", [TEXT, TEXT | {"file": "a.jpg"}], "line 2: a.jpg is there twice"),
        ("captions", [TEXT | {"file": "b.png"}, TEXT | {"file": "e.png"}], r"b \(and 1 more\) is"),
        ("captions", [TEXT | {"file": "/a.png"}], "line 1: /a.png is no path below the folder"),
        ("captions", [TEXT | {"file": "../a.png"}], "is no path below"),
        ("captions", [TEXT | {"text": 3}], "line 1: its text is no text"),
        ("captions", [TEXT | {"file": 3}], "line 1: its file is no text"),
        ("captions", [[1]], "captions.jsonl, line 1: not a table with file and text"),
    ],
)
def test_files_that_cannot_be_meant_are_one_line(folders, place, entries, said):
    poses, captions = folders[1] / "poses.jsonl", folders[2]
    lines({"poses": poses, "captions": captions}[place], *entries)
    with pytest.raises(DataError, match=said) as error:
        make_loader(config(folders), batch_size=1)
    assert "\n" not in str(error.value)


def test_places_that_are_not_there_are_one_line(folders, tmp_path):
    setting = config(folders)
    cases = {
        "poses.jsonl: No such file": {"poses": (str(tmp_path),)},
        "none.jsonl: No such file": {"captions": (str(tmp_path / "none.jsonl"),)},
        "poses: 2 folders for 1 sources; name one for each": {"poses": ("", "")},
        "captions: 2 files for 1 sources; name one for each": {"captions": ("", "")},
    }
    for said, changes in cases.items():
        with pytest.raises(DataError, match=said):
            make_loader(replace(setting, **changes), batch_size=1)
    path = folders[1] / "a.png"
    with pytest.raises(DataError, match="an attention map of 120 x 90, its picture has 4 x 3"):
        read_attention(path, (3, 4))
    path.write_bytes(b"no picture")
    with pytest.raises(DataError, match="a.png: no attention map"):
        read_attention(path, SIZE)


def test_lines_are_added_after_whole_ones_by_one_process(tmp_path):
    path = lines(tmp_path / "poses.jsonl", POSE)
    whole = path.read_text()
    for text in (whole + '{"file": "b', whole.strip(), whole):
        path.write_text(text)
        assert list(read_poses(path, unfinished=True)) == ["a"]
        with appended(path) as add:
            add({"file": "é.png", "people": []})
            with pytest.raises(DataError, match="another run is writing to it"), appended(path):
                pass
        assert path.read_text() == whole + '{"file": "é.png", "people": []}\n'
    path.write_text(whole + '{"file": "b')
    with pytest.raises(DataError, match="poses.jsonl, line 2: "):
        read_poses(path)
