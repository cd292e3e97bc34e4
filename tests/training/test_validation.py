"""Validation while a run trains: what is compiled and given up, what is named."""

import threading
import time
from typing import Any

import numpy as np
import pytest
from flax import nnx

from osdhuman_jax import interruption
from osdhuman_jax.evaluation.metrics import psnr_y, ssim_y
from osdhuman_jax.images.codec import to_float
from osdhuman_jax.interruption import Stopped
from osdhuman_jax.methods.objectives import Frozen
from osdhuman_jax.training.monitor import Monitor
from osdhuman_jax.training.sharding import make_mesh
from osdhuman_jax.training.train_step import Trainer
from osdhuman_jax.training.validation import (
    NOT_FINITE,
    Validator,
    picture_metrics,
    sample_grid,
    validation,
)


class Doubling(Trainer):
    """Its pictures are twice its input."""

    def __init__(self) -> None:
        self.lpips = None

    def images(self, params: Any, frozen: Any, batch: Any) -> Any:
        return 2 * batch["hq"]


def test_a_signal_is_heard_while_it_compiles(monkeypatch):
    monkeypatch.setattr(interruption, "_threads", [])
    stopped, over, val = [False], threading.Event(), {"hq": np.ones((3, 2, 2, 3), np.float32)}
    made = Validator(Doubling(), make_mesh(1, 1), Frozen(nnx.State({})), lambda: stopped[0])
    compiled = made._images
    made._images = lambda *_: over.wait(60)  # type: ignore[assignment]
    threading.Timer(0.3, lambda: stopped.__setitem__(0, True)).start()
    before = time.monotonic()
    with pytest.raises(Stopped):
        made(nnx.State({}), val)
    over.set()
    assert time.monotonic() - before < 5 and not made.compiled
    stopped[0], made._images = False, compiled
    images, measured = made(nnx.State({}), val)
    assert made.compiled and (images == 2).all() and images.shape == (3, 2, 2, 3)
    assert measured == {}


def test_validation_names_what_is_not_finite(tmp_path):
    """Black against black would be the best there is; the run goes on, its metric unknown."""
    said: list[str] = []
    grids: list[np.ndarray] = []

    class Log(Monitor):
        say = said.append

        def __init__(self) -> None:
            pass

        def scalars(self, step: int, values: dict) -> None:
            assert sorted(values) == ["val_lpips", "val_psnr_y", "val_ssim_y"]
            assert all(np.isnan(value) for value in values.values())

        def grid(self, step: int, picture: np.ndarray) -> None:
            grids.append(picture)

    images = np.full((3, 12, 12, 3), -1, np.float32)
    images[1] = np.nan
    val = {"hq": np.zeros((3, 12, 12, 3), np.uint8)}

    class Made(Validator):
        def __init__(self) -> None:
            self.compiled = True

        def __call__(self, params: nnx.State, val: Any) -> Any:
            return images, {"val_lpips": [0.1, np.nan, 0.2]}

    made = Made()
    log = Log()
    means = validation(made, ["a.png", "b.png", "c.png"], val, log, 40, nnx.State({}))
    (line,) = said
    assert "step 40" in line and "val_psnr_y, val_ssim_y, val_lpips of b.png;" in line
    assert np.isnan(means["val_psnr_y"]) and len(grids) == 1


def test_grid_shows_rows_of_lq_output_hq():
    rng = np.random.default_rng(0)
    lq, out, hq = rng.integers(0, 256, (3, 4, 12, 14, 3), np.uint8)
    found = picture_metrics(to_float(out), hq, {"val_lpips": [0.1, 0.2, 0.3, 0.4]})
    grid = sample_grid(to_float(out), {"lq": lq, "hq": hq})
    assert grid.shape == (4 * 12, 3 * 14, 3) and grid.dtype == np.uint8
    for row in range(4):
        expected = np.concatenate([lq[row], out[row], hq[row]], axis=1)
        np.testing.assert_array_equal(grid[12 * row : 12 * row + 12], expected)
    assert found == {
        "val_psnr_y": pytest.approx([psnr_y(a, b) for a, b in zip(out, hq, strict=True)]),
        "val_ssim_y": pytest.approx([ssim_y(a, b) for a, b in zip(out, hq, strict=True)]),
        "val_lpips": [0.1, 0.2, 0.3, 0.4],
    }


def test_grid_without_lq_has_two_columns():
    hq = np.random.default_rng(0).integers(0, 256, (2, 12, 14, 3), np.uint8)
    found, grid = picture_metrics(to_float(hq), hq), sample_grid(to_float(hq), {"hq": hq})
    assert grid.shape == (24, 28, 3)
    assert found == {"val_psnr_y": pytest.approx([80, 80]), "val_ssim_y": pytest.approx([1, 1])}


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_an_output_that_is_not_finite_has_no_metrics(value):
    """Black against black would be the best there is."""
    images = np.full((2, 12, 14, 3), -1, np.float32)
    images[1, 3, 4, 0] = value
    hq = np.zeros((2, 12, 14, 3), np.uint8)
    found = picture_metrics(images, hq, {"val_lpips": [0.0, 0.0]})
    grid = sample_grid(images, {"hq": hq})
    assert [len(values) for values in found.values()] == [2, 2, 2]
    assert all(np.isfinite(a) and np.isnan(b) for a, b in found.values())
    assert (grid[:12, :14] == 0).all() and (grid[12:, :14] == NOT_FINITE).all()
