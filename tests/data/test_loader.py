"""The data pipeline: order, resume, workers, processes, broken files, geometry, sources."""

import json
import logging
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import grain
import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter

from osdhuman_jax.config import ConfigError, DataConfig
from osdhuman_jax.data import loader as data_loader
from osdhuman_jax.data import sources
from osdhuman_jax.data.crops import random_crop
from osdhuman_jax.data.loader import Loader, make_loader, make_sample
from osdhuman_jax.data.records import RecordError, encode_record
from osdhuman_jax.data.sources import (
    ChainSource,
    DataError,
    FolderSource,
    RecordSource,
    open_source,
    open_sources,
)
from osdhuman_jax.degrade.second_order import from_unit, to_unit, usm_sharpen

COUNT = 10


def _picture(seed: int, height: int = 40, width: int = 52) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def _png(image: np.ndarray) -> bytes:
    return cv2.imencode(".png", image[..., ::-1])[1].tobytes()


def _pack(path: Path, payloads: list[bytes]) -> Path:
    writer = ArrayRecordWriter(str(path), "group_size:1,uncompressed")
    for i, payload in enumerate(payloads):
        writer.write(encode_record({"crop_id": f"{i}", "w": 52, "h": 40, "codec": "png"}, payload))
    writer.close()
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten pictures in two folders, and files that are none."""
    root = tmp_path / "photos"
    (root / "b").mkdir(parents=True)
    (root / ".cache").mkdir()
    for i in range(COUNT):
        (root / (f"b/{i}.png" if i % 2 else f"{i}.PNG")).write_bytes(_png(_picture(i)))
    for other in ("notes.txt", "._0.png", ".cache/9.png"):
        (root / other).write_bytes(b"not a picture")
    return root


def _config(*sources: Path, **changes) -> DataConfig:
    values = {"crop": 32, "degrade": False, "workers": 0, "seed": 5, **changes}
    return DataConfig(sources=tuple(map(str, sources)), **values)


def _take(loader: Loader, count: int) -> list[dict[str, np.ndarray]]:
    return [next(loader) for _ in range(count)]


def _indices(batches: list[dict[str, np.ndarray]]) -> list[int]:
    return np.concatenate([batch["index"] for batch in batches]).tolist()


def _assert_equal(ours: list[dict[str, np.ndarray]], theirs: list[dict[str, np.ndarray]]) -> None:
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            np.testing.assert_array_equal(a[key], b[key], err_msg=key)


# Order -------------------------------------------------------------------------------------------


def test_batch_contract(folder):
    with make_loader(_config(folder, degrade=True), batch_size=3) as loader:
        batch = next(loader)
        assert loader.images == COUNT
    spec = {key: (value.shape, value.dtype) for key, value in batch.items()}
    assert spec == {
        "hq": ((3, 32, 32, 3), np.uint8),
        "lq": ((3, 32, 32, 3), np.uint8),
        "index": ((3,), np.int64),
        "skipped": ((3,), np.int64),
    }
    assert all(type(value) is np.ndarray for value in batch.values())
    assert (batch["hq"] != batch["lq"]).any()


def test_each_picture_once_an_epoch_and_another_order_in_the_next(folder):
    with make_loader(_config(folder), batch_size=4) as loader:  # 4 does not divide 10
        order = _indices(_take(loader, 10))
    epochs = [order[i : i + COUNT] for i in range(0, 40, COUNT)]
    assert all(sorted(epoch) == list(range(COUNT)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_order_follows_the_seed(folder):
    orders = []
    for seed in (5, 5, 6):
        with make_loader(_config(folder, seed=seed), batch_size=5) as loader:
            orders.append(_indices(_take(loader, 2)))
    assert orders[0] == orders[1] != orders[2]


def test_without_repeat_full_batches_of_one_epoch(folder):
    with make_loader(_config(folder), batch_size=4, repeat=False) as loader:
        batches = list(loader)
        assert list(loader) == []  # and it stays finished
        assert loader.get_state()["position"] == 8
    assert len(batches) == 2 and len(set(_indices(batches))) == 8
    with pytest.raises(DataError, match="10 pictures do not fill one batch of 12"):
        make_loader(_config(folder), batch_size=12, repeat=False)


def test_make_sample_makes_any_sample_again(folder):
    config = _config(folder, degrade=True)
    with make_loader(config, batch_size=5) as loader:
        batches = _take(loader, 4)
    source = open_sources(config.sources)
    for position, index in enumerate(_indices(batches)):
        batch, row = batches[position // 5], position % 5
        sample = make_sample(source, config, position // COUNT, index)
        np.testing.assert_array_equal(sample["hq"], batch["hq"][row])
        np.testing.assert_array_equal(sample["lq"], batch["lq"][row])
    with pytest.raises(IndexError, match="index 10 of 10"):
        make_sample(source, config, 0, COUNT)


def test_samples_differ_between_epochs(folder):
    source, config = open_source(folder), _config(folder)
    first, second = (make_sample(source, config, epoch, 3)["hq"] for epoch in (0, 1))
    assert (first != second).any()


# Resume, workers, processes ----------------------------------------------------------------------


@pytest.mark.parametrize("done", [0, 1, 2, 3])  # 2 batches of 5 are an epoch
def test_resume_is_as_if_never_stopped(folder, done):
    config = _config(folder, degrade=True)
    with make_loader(config, batch_size=5) as loader:
        _take(loader, done)
        state = json.loads(json.dumps(loader.get_state()))
        expected = _take(loader, 4)
        loader.set_state(state)  # back, in the same loader
        _assert_equal(_take(loader, 4), expected)
    with make_loader(config, batch_size=5) as other:
        other.set_state(state)
        assert other.get_state() == state
        _assert_equal(_take(other, 4), expected)


def test_resume_refuses_other_data(folder):
    with make_loader(_config(folder), batch_size=5) as loader:
        state = loader.get_state()
        with pytest.raises(DataError, match="images was 11 and is 10 now"):
            loader.set_state({**state, "images": 11})
        with pytest.raises(DataError, match="seed was 6 and is 5 now"):
            loader.set_state({**state, "seed": 6})


def test_workers_change_nothing(folder, caplog):
    (folder / "4.PNG").write_bytes(b"broken")
    config = _config(folder, degrade=True)
    caplog.set_level(logging.WARNING, "osdhuman_jax")
    runs, states, warnings = [], [], []
    for workers in (0, 1, 2):
        caplog.clear()
        with make_loader(replace(config, workers=workers), batch_size=4) as loader:
            runs.append(_take(loader, 5))
            states.append(loader.get_state())
        warnings.append([record.getMessage() for record in caplog.records])
    _assert_equal(runs[1], runs[0])
    _assert_equal(runs[2], runs[0])
    assert states[0] == states[1] == states[2]
    assert warnings[0] == warnings[1] == warnings[2] and len(warnings[0]) == 1
    with make_loader(replace(config, workers=2), batch_size=4) as loader:
        loader.set_state({**states[0], "position": 8})  # as left by another number of workers
        _assert_equal(_take(loader, 3), runs[0][2:])


def test_more_workers_than_batches_end_cleanly(folder):
    with make_loader(_config(folder, workers=2), batch_size=8, repeat=False) as loader:
        assert len(list(loader)) == 1


def test_an_error_in_a_worker_is_raised_here(tmp_path):
    (tmp_path / "a.png").write_bytes(b"broken")
    with make_loader(_config(tmp_path, workers=1), batch_size=1) as loader:
        with pytest.raises(DataError, match="a.png"):
            next(loader)


def test_killed_workers_are_started_again(folder, caplog):
    """What they had read ahead is read again: not a sample is lost or seen twice."""
    with make_loader(_config(folder, workers=2), batch_size=5) as loader:
        expected = _take(loader, 6)
    with make_loader(_config(folder, workers=2), batch_size=5) as loader:
        got = _take(loader, 2)
        for child in multiprocessing.active_children():
            os.kill(child.pid, signal.SIGKILL)
        _assert_equal(got + _take(loader, 4), expected)
    assert "exit code -9" in caplog.text and "started again" in caplog.text


def test_workers_that_are_always_killed_end_the_run_in_one_line(folder, monkeypatch):
    class Killed(grain.DatasetIterator):
        def __init__(self) -> None:
            pass

        def __next__(self) -> dict:
            raise RuntimeError("Worker process was terminated unexpectedly with exit code -9")

        def close(self) -> None:
            pass

        def get_state(self) -> dict:
            return {}

        set_state = None

    with make_loader(_config(folder), batch_size=5) as loader:
        monkeypatch.setattr(loader, "_start", Killed)
        with pytest.raises(DataError, match="killed again and again.*data.workers"):
            next(loader)


def test_after_an_error_no_batch_is_passed_over(folder, monkeypatch):
    expected, failing = [], [True]

    def fail_once(*arguments):
        if failing and arguments[2:4] == (0, expected[1]["index"][0]):
            raise MemoryError(failing.pop())
        return make_sample(*arguments)

    with make_loader(_config(folder), batch_size=5) as loader:
        expected += _take(loader, 3)
        # Later epochs may be read already.
        monkeypatch.setattr(data_loader, "make_sample", fail_once)
        loader.set_state({**loader.get_state(), "position": 0})
        got = [next(loader)]
        with pytest.raises(MemoryError):
            next(loader)
        _assert_equal(got + _take(loader, 2), expected)


@pytest.mark.parametrize("left_open", [False, True])
def test_workers_leave_in_silence(folder, tmp_path, left_open):
    script = tmp_path / "main.py"
    script.write_text(f"""
from osdhuman_jax.config import DataConfig
from osdhuman_jax.data.loader import Loader, make_loader

if __name__ == "__main__":
    config = DataConfig(sources=({str(folder)!r},), crop=64, degrade=False, workers=2)
    loader = make_loader(config, batch_size=4)
    next(loader)
    {left_open} or loader.close()
""")
    root = Path(__file__).parents[2]
    command = [sys.executable, str(script)]
    run = subprocess.run(
        command, capture_output=True, text=True, timeout=60, env={"PYTHONPATH": str(root)}
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


def test_processes_share_the_same_global_batches(folder):
    config = _config(folder, degrade=True)
    with make_loader(config, batch_size=6) as whole:
        expected = _take(whole, 4)
    shards = []
    for k in (0, 1):
        with make_loader(config, batch_size=3, shard_index=k, shard_count=2) as shard:
            shards.append(_take(shard, 4))
            assert shard.get_state()["position"] == 24
    pairs = zip(*shards, strict=True)
    _assert_equal([{k: np.concatenate([a[k], b[k]]) for k in a} for a, b in pairs], expected)


# Broken pictures ---------------------------------------------------------------------------------


def test_a_broken_picture_is_skipped_counted_and_named_once(folder, caplog):
    (folder / "2.PNG").write_bytes(_png(_picture(2))[:100])
    (folder / "4.PNG").write_bytes(b"")
    source = FolderSource(folder)
    with make_loader(_config(folder), batch_size=10) as loader, caplog.at_level(logging.WARNING):
        batches = _take(loader, 3)
    for batch in batches:
        skipped = dict(zip(batch["index"].tolist(), batch["skipped"].tolist(), strict=True))
        assert skipped == {i: {1: 2, 2: 1}.get(i, 0) for i in range(COUNT)}
    messages = sorted(record.getMessage() for record in caplog.records)
    assert len(messages) == 2
    assert all(source.name(i) in message for i, message in zip((1, 2), messages, strict=True))


def test_the_replacement_is_the_next_readable_picture_cyclic(folder):
    source, config = FolderSource(folder), _config(folder, crop=40, flip=False)
    (folder / source.files[9]).write_bytes(b"broken")
    (folder / source.files[0]).unlink()  # gone since the folder was listed
    sample = make_sample(source, config, 0, 9)
    assert len(sample["failures"]) == 2
    original = cv2.imread(source.name(1))[..., ::-1]
    assert any((original[:, x : x + 40] == sample["hq"]).all() for x in range(13))


def test_nothing_readable_is_one_error(tmp_path, monkeypatch):
    for i in range(5):
        (tmp_path / f"{i}.png").write_bytes(b"broken")
    source = FolderSource(tmp_path)
    with pytest.raises(DataError, match="5 pictures in a row are unreadable.*3.png"):
        make_sample(source, _config(tmp_path), 0, 3)
    monkeypatch.setattr(sources, "MAX_TRIES", 2)
    with pytest.raises(DataError, match="2 pictures in a row"):
        make_sample(source, _config(tmp_path), 0, 3)


# Geometry ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (8, 12), (15, 16), (16, 16), (17, 400)])
@pytest.mark.parametrize("resize_short", [0, 10, 16, 24])
def test_any_picture_gives_a_full_crop(size, resize_short):
    crop = random_crop(_picture(0, *size), np.random.default_rng(0), 16, resize_short)
    assert crop.shape == (16, 16, 3) and crop.dtype == np.uint8


def test_without_resize_a_crop_is_a_window_and_every_place_occurs():
    image, rng, seen = _picture(0, 5, 6), np.random.default_rng(0), set()
    for _ in range(200):
        crop = random_crop(image, rng, 4, 0)
        places = [(y, x) for y in (0, 1) for x in (0, 1, 2)]
        seen |= {(y, x) for y, x in places if (image[y : y + 4, x : x + 4] == crop).all()}
    assert len(seen) == 6


def test_resize_short_is_the_area_mean():
    image = _picture(0, 32, 32)
    crop = random_crop(image, np.random.default_rng(0), 16, 16)
    mean = image.reshape(16, 2, 16, 2, 3).mean((1, 3))
    assert np.abs(crop - mean).max() <= 0.5


def test_flip_mirrors_half_and_moves_nothing_else(folder):
    source, config = FolderSource(folder), _config(folder)
    flipped = 0
    for epoch in range(60):
        plain = make_sample(source, replace(config, flip=False), epoch, 0)["hq"]
        hq = make_sample(source, config, epoch, 0)["hq"]
        mirrored = (hq == plain[:, ::-1]).all()
        assert mirrored or (hq == plain).all()
        flipped += mirrored
    assert 18 <= flipped <= 42  # 30 +- 3 sigma


# Sources -----------------------------------------------------------------------------------------


def test_usm_sharpens_the_target_and_what_is_degraded(folder):
    config = _config(folder, degrade=True)
    plain = make_sample(open_source(folder), config, 0, 1)
    sharp = replace(config, degradation=replace(config.degradation, usm=True))
    sample = make_sample(open_source(folder), sharp, 0, 1)
    want = from_unit(usm_sharpen(to_unit(plain["hq"])))
    np.testing.assert_array_equal(sample["hq"], want)
    assert (sample["hq"] != plain["hq"]).any() and (sample["lq"] != plain["lq"]).any()


def test_folder_order_and_pickle(folder):
    source = FolderSource(folder)
    assert source.files == [f"{i}.PNG" for i in range(0, 10, 2)] + [
        f"b/{i}.png" for i in range(1, 10, 2)
    ]
    again = pickle.loads(pickle.dumps(source))
    assert again.read(7) == source.read(7) == (folder / "b/5.png").read_bytes()
    assert again.name(7) == str(folder / "b/5.png")


def test_records_give_the_pixels_of_the_folder(folder, tmp_path):
    pictures = FolderSource(folder)
    payloads = [pictures.read(i) for i in range(COUNT)]
    (tmp_path / "packed").mkdir()
    _pack(tmp_path / "packed/a.arrayrecord", payloads[:6])
    _pack(tmp_path / "packed/b.array_record", payloads[6:])
    runs = []
    for path in (folder, tmp_path / "packed"):
        with make_loader(_config(path), batch_size=5) as loader:
            runs.append(_take(loader, 3))
    _assert_equal(runs[1], runs[0])


def test_record_source_pickles_and_names(tmp_path):
    path = _pack(tmp_path / "a.arrayrecord", [b"one", b"two"])
    source = pickle.loads(pickle.dumps(open_source(path)))
    assert isinstance(source, RecordSource) and len(source) == 2
    assert (source.read(1), source.name(1)) == (b"two", f"{path}[1]")


def test_a_damaged_record_is_skipped(tmp_path):
    payloads = [_png(_picture(i, 60, 60)) for i in range(12)]
    path = _pack(tmp_path / "a.arrayrecord", payloads)
    raw = bytearray(path.read_bytes())
    at = raw.find(payloads[5][1000:1100])
    raw[at : at + 20] = bytes(20)
    path.write_bytes(raw)
    source = open_source(path)
    with pytest.raises(RecordError):
        source.read(5)
    sample = make_sample(source, _config(path, crop=60, flip=False), 0, 5)
    assert len(sample["failures"]) == 1 and f"{path}[5]" in sample["failures"][0]
    np.testing.assert_array_equal(sample["hq"], _picture(6, 60, 60))


def test_sources_are_concatenated(folder, tmp_path):
    path = _pack(tmp_path / "a.arrayrecord", [b"one", b"two"])
    source = open_sources([path, folder, path])
    assert isinstance(source, ChainSource) and len(source) == 14
    assert [source.read(i) for i in (0, 1, 12, 13)] == [b"one", b"two"] * 2
    assert source.name(2) == str(folder / "0.PNG") and source.name(11) == str(folder / "b/9.png")


def test_missing_and_empty_sources_are_named(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "list.txt").write_text("a.png")
    (tmp_path / "junk.arrayrecord").write_bytes(b"junk")
    cases = {
        "nowhere": "neither a folder",
        "empty": "no pictures",
        "list.txt": "neither a folder nor a file",
        "nowhere.arrayrecord": "neither a folder",
        "junk.arrayrecord": "no whole ArrayRecord file",
        _pack(tmp_path / "none.arrayrecord", []).name: "no records",
    }
    for name, message in cases.items():
        with pytest.raises(DataError, match=f"{name}: {message}") as error:
            make_loader(_config(tmp_path / name), batch_size=1)
        assert "\n" not in str(error.value)
    with pytest.raises(DataError, match="no data sources"):
        make_loader(_config(), batch_size=1)


def test_numbers_out_of_range_are_refused(folder):
    for changes in ({"crop": 0}, {"workers": -1}, {"seed": -1}, {"resize_short": -1}):
        with pytest.raises(ConfigError):
            make_loader(_config(folder, **changes), batch_size=1)
    for numbers in ({"batch_size": 0}, {"batch_size": 1, "shard_index": 1}):
        with pytest.raises(ConfigError):
            make_loader(_config(folder), **numbers)


# Degradations of every strength, and labels.


def labelled_folder(root: Path, count: int = 3, side: int = 48) -> Path:
    for kind in ("lq", "teacher"):
        (root / kind).mkdir(parents=True)
        for i in range(count):
            image = _picture(100 * i + len(kind), side, side)
            (root / kind / f"{i}.png").write_bytes(_png(image))
    return root


def _labelled_config(*folders: Path, **changes) -> DataConfig:
    return _config(*folders, **{"degrade": True, **changes})


def test_labelled_samples_are_windows_of_one_pair(folder, tmp_path):
    root = labelled_folder(tmp_path / "labelled")
    config = _labelled_config(labelled=(str(root),), labelled_share=1.0, teacher_share=0.5)
    labelled, source = sources.LabelledSource([root]), FolderSource(folder)
    pairs = [labelled.read(i) for i in range(3)]
    sample = make_sample(source, config, 0, 4, labelled)
    assert sample["index"] == 4 and sample["lq"].shape == (32, 32, 3)
    found = [
        (lq, label)
        for lq, label in pairs
        for mirrored in (slice(None), slice(None, None, -1))
        for top in range(17)
        for left in range(17)
        if np.array_equal(lq[top : top + 32, left : left + 32][:, mirrored], sample["lq"])
        and np.abs(
            (lq / 2 + label / 2)[top : top + 32, left : left + 32][:, mirrored] - sample["hq"]
        ).max()
        <= 0.5
    ]
    assert len(found) == 1
    again = make_sample(source, config, 0, 4, labelled)
    assert np.array_equal(again["lq"], sample["lq"]) and np.array_equal(again["hq"], sample["hq"])


def test_share_of_labelled_samples(folder, tmp_path):
    root = labelled_folder(tmp_path / "labelled")
    labelled, source = sources.LabelledSource([root]), FolderSource(folder)
    config = _labelled_config(kinds=(0.0, 0.0, 0.0, 0.0, 1.0), labelled_share=0.5)
    samples = [make_sample(source, config, epoch, 0, labelled) for epoch in range(40)]
    clean = sum(np.array_equal(s["hq"], s["lq"]) for s in samples)
    assert 10 <= clean <= 30


def test_loader_reads_labelled_folders(folder, tmp_path):
    root = labelled_folder(tmp_path / "labelled")
    config = _labelled_config(folder, labelled=(str(root),), labelled_share=1.0)
    with make_loader(config, batch_size=2) as loader:
        batch = next(loader)
    labelled = sources.LabelledSource([root])
    want = make_sample(FolderSource(folder), config, 0, int(batch["index"][0]), labelled)
    assert np.array_equal(batch["lq"][0], want["lq"])


def test_label_without_its_picture_is_named(tmp_path):
    root = labelled_folder(tmp_path / "labelled")
    (root / "lq" / "1.png").unlink()
    with pytest.raises(DataError, match="lq/1.png: missing, though it has a label"):
        sources.LabelledSource([root])


def test_labels_of_another_size_are_named(tmp_path):
    root = labelled_folder(tmp_path / "labelled")
    (root / "teacher" / "0.png").write_bytes(_png(_picture(0, 40, 40)))
    with pytest.raises(DataError, match="0.png: of another size than its label"):
        sources.LabelledSource([root]).read(0)


def test_gray_pictures_are_degraded_gray(folder):
    config = _labelled_config(gray=1.0, kinds=(0.0, 0.0, 0.0, 0.0, 1.0))
    sample = make_sample(FolderSource(folder), config, 0, 0)
    assert np.ptp(sample["hq"], axis=-1).max() == 0
    assert np.array_equal(sample["hq"], sample["lq"])
