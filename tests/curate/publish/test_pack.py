"""The packed set: every container holds the same records, the trainer reads them, bytes repeat."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from curation_runs import curate
from hypothesis import given
from hypothesis import strategies as st

from curate.cropping.job import decode_crop
from curate.engine.ledger import ShardLedger, tree_digest
from curate.engine.parquet import CropFile, read_rows
from curate.publish.pack import encode_picture, file_count, file_number, read_container
from curate.selection.manifest import selected_rows
from curate.unpack import main as unpack
from osdhuman_jax.commands.degrade import main as degrade
from osdhuman_jax.config import DataConfig
from osdhuman_jax.data.loader import make_loader
from osdhuman_jax.data.sources import open_source
from osdhuman_jax.disk import file_digest
from osdhuman_jax.images.codec import read_rgb_bytes


@pytest.fixture(scope="module")
def containers(made, tmp_path_factory) -> dict[str, Path]:
    """The training split in each container."""
    root, found = tmp_path_factory.mktemp("containers"), {}
    for kind in ("arrayrecord", "folder", "parquet", "webdataset"):
        shutil.copytree(made, root / kind)
        assert curate(root / kind, "pack", f"--to={kind}") == 0
        found[kind] = root / kind / "packed" / "train"
    return found


def test_containers_hold_the_same(containers):
    records = {kind: list(read_container(folder)) for kind, folder in containers.items()}
    assert len(records["arrayrecord"]) == 8
    assert all(found == records["arrayrecord"] for found in records.values())


@pytest.mark.parametrize("kind", ["arrayrecord", "folder", "parquet", "webdataset"])
def test_digests_are_the_files(containers, kind):
    for header, data in read_container(containers[kind]):
        assert header["sha256"] == hashlib.sha256(data).hexdigest()
    facts = json.loads((containers[kind] / "dataset.json").read_text())
    assert facts["crops"] == 8 and sum(facts["licenses"].values()) == 8
    for name, digest in facts["sha256"].items():
        assert file_digest(containers[kind] / name) == digest


def test_packed_pixels_are_the_crops(containers, made):
    ledger = ShardLedger(made)
    rows = {row["crop_id"]: row for row in selected_rows(ledger)["train"]}
    for header, data in read_container(containers["arrayrecord"]):
        row = rows.pop(header["crop_id"])
        crops = CropFile(ledger.output("crop", row["crop_shard"], "crops.parquet"))
        expected = decode_crop(crops.png(row["crop_row"]))
        np.testing.assert_array_equal(read_rgb_bytes(data), expected)
        assert (header["image_id"], header["s"]) == (row["image_id"], row["s"])
    assert not rows


def test_the_trainer_reads_records_and_folders_alike(containers):
    packed, folder = (open_source(containers[kind]) for kind in ("arrayrecord", "folder"))
    assert len(packed) == len(folder) == 8
    assert {packed.read(i) for i in range(8)} == {folder.read(i) for i in range(8)}


def test_index_finds_each_record(containers):
    for row in read_rows(containers["parquet"] / "index.parquet"):
        found = list(read_container(containers["parquet"] / row["file"]))[row["row"]]
        assert found[0] == json.loads(row["header"]) and found[0]["crop_id"] == row["crop_id"]


def batches(sources: Path, workers: int, state: dict | None, count: int) -> tuple[list, dict]:
    config = DataConfig(sources=(str(sources),), crop=64, degrade=False, workers=workers, seed=5)
    with make_loader(config, batch_size=2) as loader:
        if state:
            loader.set_state(state)
        found = [next(loader) for _ in range(count)]
        return found, loader.get_state()


def test_loading_goes_on_where_it_stopped_in_two_processes(containers):
    whole, _ = batches(containers["arrayrecord"], 0, None, 5)
    first, state = batches(containers["arrayrecord"], 0, None, 2)
    rest, _ = batches(containers["arrayrecord"], 2, json.loads(json.dumps(state)), 3)
    for a, b in zip(whole, first + rest, strict=True):
        np.testing.assert_array_equal(a["hq"], b["hq"])


def test_bytes_repeat(containers, made, tmp_path):
    shutil.copytree(made, tmp_path / "set")
    shutil.rmtree(tmp_path / "set" / "done" / "pack")
    assert curate(tmp_path / "set", "pack") == 0
    for path in containers["arrayrecord"].iterdir():
        assert path.read_bytes() == (tmp_path / "set" / "packed" / "train" / path.name).read_bytes()


def test_damaged_crop_is_named_not_packed(made, tmp_path, capsys):
    output = Path(shutil.copytree(made, tmp_path / "set"))
    ledger = ShardLedger(output)
    row = selected_rows(ledger)["train"][0]
    path = ledger.output("crop", row["crop_shard"], "crops.parquet")
    png = CropFile(path).png(row["crop_row"])
    data = path.read_bytes()
    at = data.index(png) + len(png) // 2
    path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    shutil.rmtree(output / "done" / "pack")
    assert curate(output, "pack") == 1
    assert "shards failed: pack train-00000" in capsys.readouterr().err
    assert curate(output, "--verify") == 0  # makes the crop again


@pytest.mark.parametrize("kind", ["arrayrecord", "folder", "parquet", "webdataset"])
def test_any_pack_unpacks_to_its_pictures(containers, kind, tmp_path):
    for _ in range(2):  # again over the same: as after a kill
        assert unpack([str(containers[kind]), f"--output={tmp_path / 'files'}"]) == 0
    found = {path.stem: path.read_bytes() for path in (tmp_path / "files").iterdir()}
    assert found == {h["crop_id"]: data for h, data in read_container(containers["arrayrecord"])}


def test_the_validation_pairs_are_made_beside_the_packs(made, tmp_path):
    before = tree_digest(made)
    assert unpack([str(made / "packed" / "val"), f"--output={tmp_path / 'val'}"]) == 0
    flags = ["--seed=0", "--profile=persona-val", f"--output={tmp_path / 'pairs'}"]
    assert degrade([f"--input={tmp_path / 'val'}", *flags]) == 0
    assert tree_digest(made) == before
    (name,) = (path.stem for path in (tmp_path / "val").iterdir())
    sides = {part: (tmp_path / "pairs" / part / f"{name}.png") for part in ("hq", "lq", "lq_small")}
    shapes = {part: read_rgb_bytes(path.read_bytes()).shape[0] for part, path in sides.items()}
    assert shapes == {"hq": 512, "lq": 512, "lq_small": 128}


def test_what_cannot_be_unpacked_is_said(containers, tmp_path, capsys):
    assert unpack([str(tmp_path), f"--output={tmp_path / 'a'}"]) == 2
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "other.png").touch()
    assert unpack([str(containers["folder"]), f"--output={tmp_path / 'a'}"]) == 2
    damaged = Path(shutil.copytree(containers["folder"], tmp_path / "damaged"))
    next(damaged.glob("*.webp")).write_bytes(b"RIFF")
    assert unpack([str(damaged), f"--output={tmp_path / 'b'}"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [words in line for words, line in zip(SAID, lines, strict=True)] == [True] * 3


SAID = ("no packed split", "other.png is none of its pictures", "is damaged; pack again")


@pytest.mark.parametrize("codec", ["webp", "png", "jpeg"])
def test_codecs(codec):
    rgb = np.random.default_rng(0).integers(0, 256, (512, 512, 3), np.uint8)
    rgb = np.ascontiguousarray(np.repeat(np.repeat(rgb[:64, :64], 8, 0), 8, 1))
    back = read_rgb_bytes(encode_picture(rgb, codec))
    assert encode_picture(rgb, codec) == encode_picture(rgb, codec)
    if codec == "jpeg":
        assert np.abs(back.astype(int) - rgb).mean() < 4
    else:
        np.testing.assert_array_equal(back, rgb)


@given(st.integers(1, 200_000), st.integers(1, 4096))
def test_files_are_half_full_at_least_and_a_crop_less_moves_few(crops, per_file):
    files = file_count(crops, per_file)
    assert files & (files - 1) == 0
    assert files == 1 or crops > per_file * files // 2
    assert crops <= per_file * files


@given(st.text(), st.integers(0, 9), st.integers(0, 12))
def test_files_are_stretches_of_one_order(crop, seed, power):
    whole, half = file_number(seed, crop, 2 << power), file_number(seed, crop, 1 << power)
    assert whole // 2 == half and 0 <= whole < 2 << power
