"""Checkpoints on disk: which are kept, what comes back, what a full disk and damage do."""

import shutil
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from osdhuman_jax.checkpoint import CheckpointError, Checkpoints, SaveError, steps_saved
from osdhuman_jax.training import TrainState

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
    ],
)
def test_newest_and_best_are_kept(tmp_path, best, metrics, kept):
    save(tmp_path, metrics, best).close()
    assert steps_saved(tmp_path) == kept


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
    with pytest.raises(SaveError) as caught:
        checkpoints.save(2, state(2), {"position": 0})
    said = str(caught.value)
    assert "step 1 in" in said and "0.0 MB free" in said and "\n" not in said
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
