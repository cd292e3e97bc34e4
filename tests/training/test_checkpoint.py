"""Checkpoints on disk: which are kept, what comes back, what a full disk and damage do."""

import errno
import math
import shutil
import time
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from damage import raising
from flax import nnx
from orbax.checkpoint._src.checkpointers import async_checkpointer
from refusals import one_line

from osdhuman_jax.training.checkpoint import (
    CheckpointError,
    Checkpoints,
    SaveError,
    read_config,
    steps_saved,
)
from osdhuman_jax.training.train_step import TrainState

NAN, INF = math.nan, math.inf
Usage = namedtuple("Usage", "total used free")


def state(step: int) -> TrainState:
    values = jnp.asarray(np.random.default_rng(step).normal(size=(40, 50)), jnp.float32)
    params, ema = nnx.State({"w": values}), nnx.State({"w": 2 * values})
    return TrainState(jnp.int32(step), params, (), ema=ema)


def save(workdir: Path, metrics: list[float | None], best: str = "val_psnr_y") -> Checkpoints:
    checkpoints = Checkpoints(workdir, 2, best)
    for step, value in enumerate(metrics, start=1):
        measured = None if value is None else {best: value, "other": 100.0 * step}
        checkpoints.save(step, state(step), {"position": 10 * step}, measured)
    return checkpoints


@pytest.mark.parametrize(
    ("best", "metrics", "kept"),
    [
        ("val_psnr_y", [20.0, 25.0, None, 22.0, 21.0], [2, 4, 5]),
        ("val_lpips", [0.3, 0.5, None, 0.4, 0.45], [1, 4, 5]),
        ("val_psnr_y", [None, None, None, None], [3, 4]),
        ("val_psnr_y", [NAN, 25.0, 24.0, 23.0, 22.0], [2, 4, 5]),
        ("val_psnr_y", [25.0, NAN, 24.0, 23.0, 22.0], [1, 4, 5]),
        ("val_psnr_y", [20.0, 25.0, NAN, 23.0, 22.0], [2, 4, 5]),
        ("val_psnr_y", [25.0, 24.0, 23.0, 22.0, NAN], [1, 4, 5]),
        ("val_psnr_y", [25.0, INF, None, 23.0, 22.0], [1, 4, 5]),
        ("val_psnr_y", [NAN, NAN, INF, NAN], [3, 4]),
        ("val_lpips", [NAN, 0.1, 0.2, 0.3, 0.4], [2, 4, 5]),
        ("val_lpips", [0.1, -INF, 0.3, 0.4, 0.5], [1, 4, 5]),
    ],
)
def test_newest_and_best_are_kept(tmp_path, best, metrics, kept):
    save(tmp_path, metrics, best).close()
    assert steps_saved(tmp_path) == kept


def test_a_best_one_is_known_again_by_the_next_run(tmp_path):
    save(tmp_path, [20.0, 25.0, NAN]).close()
    stored = tmp_path / "checkpoints" / "3" / "metrics" / "metrics"
    assert "NaN" not in stored.read_text()
    # As a version before this one left it.
    stored.write_text('{"val_psnr_y": NaN}')
    checkpoints = Checkpoints(tmp_path, 2)
    for step, value in ((4, 24.0), (5, NAN), (6, None)):
        measured = None if value is None else {"val_psnr_y": value}
        checkpoints.save(step, state(step), {"position": 0}, measured)
    assert checkpoints.latest() == 6
    checkpoints.close()
    assert steps_saved(tmp_path) == [2, 5, 6]


@pytest.mark.parametrize("told", ["check", "save", "close"])
def test_a_save_that_fails_in_the_background_costs_no_earlier_one(tmp_path, monkeypatch, told):
    """Neither on the disk nor in the manager's list, whoever asks first; later saves go on."""
    checkpoints = Checkpoints(tmp_path, 1)
    for step, value in ((1, 25.0), (2, 20.0)):
        checkpoints.save(step, state(step), {"position": step}, {"val_psnr_y": value})
    assert checkpoints.latest() == 2
    with monkeypatch.context() as patch:
        fail_to_commit(patch)
        # Were it written, it would push out both the newest and the best.
        checkpoints.save(3, state(3), {"position": 3}, {"val_psnr_y": 30.0})
        assert checkpoints.latest() == 2
    with pytest.raises(SaveError, match=r"step 2 in .*no room"):
        if told == "save":
            checkpoints.save(4, state(4), {"position": 4})
        else:
            getattr(checkpoints, told)()
    assert steps_saved(tmp_path) == [1, 2]
    if told == "close":
        checkpoints = Checkpoints(tmp_path, 1)
    for step in (1, 2):
        assert checkpoints.restore(step, state(0))[1] == {"position": step}
    checkpoints.save(5, state(5), {"position": 5}, {"val_psnr_y": 24.0})
    checkpoints.close()
    assert steps_saved(tmp_path) == [1, 5]


def test_watching_a_save_that_fails_costs_no_earlier_one(tmp_path, monkeypatch):
    """`check` is asked after every step, while the save's own thread is at work."""
    checkpoints = Checkpoints(tmp_path, 1)
    checkpoints.save(1, state(1), {"position": 1})
    assert checkpoints.latest() == 1
    fail_to_commit(monkeypatch)
    checkpoints.save(2, state(2), {"position": 2})
    with pytest.raises(SaveError, match="step 1 in"):
        for _ in range(10_000):
            checkpoints.check()
            time.sleep(0.001)
    checkpoints.check()
    assert checkpoints.latest() == 1 and steps_saved(tmp_path) == [1]
    checkpoints.close()


def fail_to_commit(patch: pytest.MonkeyPatch) -> None:
    """The arrays are on the disk, but the checkpoint cannot be given its name."""
    full = raising(OSError(errno.ENOSPC, "no room"))
    patch.setattr(async_checkpointer, "_on_commit_callback", full)


def test_what_was_saved_comes_back(tmp_path):
    save(tmp_path, [None, 1.0]).close()
    checkpoints = Checkpoints(tmp_path, 2)
    found, position = checkpoints.restore(checkpoints.latest(), state(0))
    assert int(found.step) == 2 and position == {"position": 20}
    np.testing.assert_array_equal(found.params["w"], state(2).params["w"])
    np.testing.assert_array_equal(found.ema["w"], 2 * state(2).params["w"])
    assert found.reg is None
    checkpoints.close()


def test_a_step_is_saved_once(tmp_path):
    checkpoints = save(tmp_path, [None])
    checkpoints.save(1, replace(state(9), step=jnp.int32(1)), {"position": 0})
    checkpoints.close()
    found, _ = Checkpoints(tmp_path, 2).restore(1, state(0))
    np.testing.assert_array_equal(found.params["w"], state(1).params["w"])


def test_full_disk_is_one_line_that_names_the_last_good_step(tmp_path, monkeypatch):
    checkpoints = save(tmp_path, [None])
    checkpoints.close()
    checkpoints = Checkpoints(tmp_path, 2)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10, 10, 15_000))
    with one_line(SaveError, "0.0 MB free.*step 1 in|step 1 in.*0.0 MB free"):
        checkpoints.save(2, state(2), {"position": 0})
    assert steps_saved(tmp_path) == [1]


def test_an_unfinished_checkpoint_is_dropped_and_named(tmp_path, caplog):
    save(tmp_path, [None]).close()
    rest = tmp_path / "checkpoints" / "2.orbax-checkpoint-tmp"
    shutil.copytree(tmp_path / "checkpoints" / "1", rest)
    with caplog.at_level("WARNING", "osdhuman_jax"):
        checkpoints = Checkpoints(tmp_path, 2)
    assert checkpoints.latest() == 1 and not rest.exists()
    assert "2.orbax-checkpoint-tmp" in caplog.text


def test_a_damaged_checkpoint_is_named(tmp_path):
    save(tmp_path, [None]).close()
    for file in (tmp_path / "checkpoints" / "1" / "state").rglob("*"):
        if file.is_file() and file.parent.name == "d":
            file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(CheckpointError, match="checkpoints/1: damaged"):
        Checkpoints(tmp_path, 2).restore(1, state(0))


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"run": 3}'])
def test_a_damaged_configuration_is_named(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match="config.json: not the configuration"):
        read_config(tmp_path)
