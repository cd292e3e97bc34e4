"""The loader: order, resume, workers, processes, broken files."""

import json
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import grain
import numpy as np
import pytest
from photo_sources import COUNT, assert_equal, config_of, indices, picture, png, take

from osdhuman_jax.data import loader as data_loader
from osdhuman_jax.data import sources
from osdhuman_jax.data.loader import make_loader, make_sample
from osdhuman_jax.data.sources import DataError, FolderSource, open_sources


def test_batch_contract(folder):
    with make_loader(config_of(folder, degrade=True), batch_size=3) as loader:
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
    with make_loader(config_of(folder), batch_size=4) as loader:  # 4 does not divide 10
        order = indices(take(loader, 10))
    epochs = [order[i : i + COUNT] for i in range(0, 40, COUNT)]
    assert all(sorted(epoch) == list(range(COUNT)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_order_follows_the_seed(folder):
    orders = []
    for seed in (5, 5, 6):
        with make_loader(config_of(folder, seed=seed), batch_size=5) as loader:
            orders.append(indices(take(loader, 2)))
    assert orders[0] == orders[1] != orders[2]


def test_without_repeat_full_batches_of_one_epoch(folder):
    with make_loader(config_of(folder), batch_size=4, repeat=False) as loader:
        batches = list(loader)
        assert list(loader) == []  # and it stays finished
        assert loader.get_state()["position"] == 8
    assert len(batches) == 2 and len(set(indices(batches))) == 8
    with pytest.raises(DataError, match="10 pictures do not fill one batch of 12"):
        make_loader(config_of(folder), batch_size=12, repeat=False)


def test_make_sample_makes_any_sample_again(folder):
    config = config_of(folder, degrade=True)
    with make_loader(config, batch_size=5) as loader:
        batches = take(loader, 4)
    source = open_sources(config.sources)
    for position, index in enumerate(indices(batches)):
        batch, row = batches[position // 5], position % 5
        sample = make_sample(source, config, position // COUNT, index)
        np.testing.assert_array_equal(sample["hq"], batch["hq"][row])
        np.testing.assert_array_equal(sample["lq"], batch["lq"][row])
    with pytest.raises(IndexError, match="index 10 of 10"):
        make_sample(source, config, 0, COUNT)


@pytest.mark.parametrize("done", [0, 1, 2, 3])  # 2 batches of 5 are an epoch
def test_resume_is_as_if_never_stopped(folder, done):
    config = config_of(folder, degrade=True)
    with make_loader(config, batch_size=5) as loader:
        take(loader, done)
        state = json.loads(json.dumps(loader.get_state()))
        expected = take(loader, 4)
        loader.set_state(state)  # back, in the same loader
        assert_equal(take(loader, 4), expected)
    with make_loader(config, batch_size=5) as other:
        other.set_state(state)
        assert other.get_state() == state
        assert_equal(take(other, 4), expected)


def test_resume_refuses_other_data(folder):
    with make_loader(config_of(folder), batch_size=5) as loader:
        state = loader.get_state()
        with pytest.raises(DataError, match="images was 11 and is 10 now"):
            loader.set_state({**state, "images": 11})
        with pytest.raises(DataError, match="seed was 6 and is 5 now"):
            loader.set_state({**state, "seed": 6})


def test_workers_change_nothing(folder, caplog):
    (folder / "4.PNG").write_bytes(b"broken")
    config = config_of(folder, degrade=True)
    caplog.set_level(logging.WARNING, "osdhuman_jax")
    runs, states, warnings = [], [], []
    for workers in (0, 2):
        caplog.clear()
        with make_loader(replace(config, workers=workers), batch_size=4) as loader:
            runs.append(take(loader, 5))
            states.append(loader.get_state())
        warnings.append([record.getMessage() for record in caplog.records])
    assert_equal(runs[1], runs[0])
    assert states[0] == states[1]
    assert warnings[0] == warnings[1] and len(warnings[0]) == 1
    with make_loader(replace(config, workers=1), batch_size=4) as loader:
        loader.set_state({**states[0], "position": 8})  # as left by another number of workers
        assert_equal(take(loader, 3), runs[0][2:])


def test_more_workers_than_batches_end_cleanly(folder):
    with make_loader(config_of(folder, workers=2), batch_size=8, repeat=False) as loader:
        assert len(list(loader)) == 1


def test_an_error_in_a_worker_is_raised_here(tmp_path):
    (tmp_path / "a.png").write_bytes(b"broken")
    with make_loader(config_of(tmp_path, workers=1), batch_size=1) as loader:
        with pytest.raises(DataError, match="a.png"):
            next(loader)


def test_killed_workers_are_started_again(folder, caplog):
    """What they had read ahead is read again: not a sample is lost or seen twice."""
    with make_loader(config_of(folder), batch_size=5) as loader:
        expected = take(loader, 16)
    with make_loader(config_of(folder, workers=2), batch_size=5) as loader:
        got = take(loader, 2)
        for child in multiprocessing.active_children():
            os.kill(child.pid, signal.SIGKILL)
        # More than the dead had read ahead on an idle machine: four batches may be that much.
        assert_equal(got + take(loader, 14), expected)
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

    with make_loader(config_of(folder), batch_size=5) as loader:
        monkeypatch.setattr(loader, "_start", Killed)
        with pytest.raises(DataError, match="killed again and again.*data.workers"):
            next(loader)


def test_after_an_error_no_batch_is_passed_over(folder, monkeypatch):
    expected, failing = [], [True]

    def fail_once(*arguments, **others):
        if failing and arguments[2:4] == (0, expected[1]["index"][0]):
            raise MemoryError(failing.pop())
        return make_sample(*arguments, **others)

    with make_loader(config_of(folder), batch_size=5) as loader:
        expected += take(loader, 3)
        # Later epochs may be read already.
        monkeypatch.setattr(data_loader, "make_sample", fail_once)
        loader.set_state({**loader.get_state(), "position": 0})
        got = [next(loader)]
        with pytest.raises(MemoryError):
            next(loader)
        assert_equal(got + take(loader, 2), expected)


@pytest.mark.parametrize("left_open", [False, True])
def test_workers_leave_in_silence(folder, tmp_path, left_open):
    script = tmp_path / "main.py"
    script.write_text(f"""
from osdhuman_jax.config import DataConfig
from osdhuman_jax.data.loader import Loader, make_loader

if __name__ == "__main__":
    config = DataConfig(sources=({str(folder)!r},), crop=64, degrade=False, workers={1 + left_open})
    loader = make_loader(config, batch_size=4)
    next(loader)
    {left_open} or loader.close()
""")
    words, env = [sys.executable, str(script)], {"PYTHONPATH": str(Path(__file__).parents[2])}
    run = subprocess.run(words, capture_output=True, text=True, timeout=60, env=env)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


def test_processes_share_the_same_global_batches(folder):
    config = config_of(folder, degrade=True)
    with make_loader(config, batch_size=6) as whole:
        expected = take(whole, 4)
    shards = []
    for k in (0, 1):
        with make_loader(config, batch_size=3, shard_index=k, shard_count=2) as shard:
            shards.append(take(shard, 4))
            assert shard.get_state()["position"] == 24
    pairs = zip(*shards, strict=True)
    assert_equal([{k: np.concatenate([a[k], b[k]]) for k in a} for a, b in pairs], expected)


def test_a_broken_picture_is_skipped_counted_and_named_once(folder, caplog):
    (folder / "2.PNG").write_bytes(png(picture(2))[:100])
    (folder / "4.PNG").write_bytes(b"")
    source = FolderSource(folder)
    with make_loader(config_of(folder), batch_size=10) as loader, caplog.at_level(logging.WARNING):
        batches = take(loader, 3)
    for batch in batches:
        skipped = dict(zip(batch["index"].tolist(), batch["skipped"].tolist(), strict=True))
        assert skipped == {i: {1: 2, 2: 1}.get(i, 0) for i in range(COUNT)}
    messages = sorted(record.getMessage() for record in caplog.records)
    assert len(messages) == 2
    assert all(source.name(i) in message for i, message in zip((1, 2), messages, strict=True))


def test_the_replacement_is_the_next_readable_picture_cyclic(folder):
    source, config = FolderSource(folder), config_of(folder, crop=40, flip=False)
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
        make_sample(source, config_of(tmp_path), 0, 3)
    monkeypatch.setattr(sources, "MAX_TRIES", 2)
    with pytest.raises(DataError, match="2 pictures in a row"):
        make_sample(source, config_of(tmp_path), 0, 3)
