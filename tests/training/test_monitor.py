"""What a run leaves to be looked at: JSON lines, TensorBoard events, pictures."""

import io
import json
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from osdhuman_jax.training.monitor import Monitor


def lines(workdir: Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def log(workdir: Path, first: int, last: int, loss: float) -> None:
    """A run from after step `first` to step `last`."""
    monitor = Monitor(workdir, first, last)
    for step in range(first + 1, last + 1):
        monitor.advance()
        monitor.scalars(step, {"loss": loss, "grad_norm": 0.5 * step})
    monitor.close()


@pytest.fixture
def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (7, 12, 3), np.uint8)


def test_what_is_not_finite_is_null(tmp_path, capfd):
    monitor = Monitor(tmp_path, 0, 2)
    monitor.scalars(1, {"loss": float("nan"), "grad_norm": float("inf"), "val_psnr_y": 20.0})
    assert lines(tmp_path)  # before the end
    monitor.say("train.py: not finite")
    monitor.close()
    line = (tmp_path / "metrics.jsonl").read_text()
    assert line == '{"step": 1, "loss": null, "grad_norm": null, "val_psnr_y": 20.0}\n'
    assert "train.py: not finite\n" in capfd.readouterr().err


def test_resumed_run_drops_what_it_does_again(tmp_path):
    log(tmp_path, 0, 5, 1.0)
    log(tmp_path, 3, 6, 2.0)
    found = [(line["step"], line["loss"]) for line in lines(tmp_path)]
    assert found == [(1, 1.0), (2, 1.0), (3, 1.0), (4, 2.0), (5, 2.0), (6, 2.0)]
    log(tmp_path, 0, 1, 3.0)
    assert [(line["step"], line["loss"]) for line in lines(tmp_path)] == [(1, 3.0)]


@pytest.mark.parametrize("rest", ['{"step": 3, "lo', '{"step": 2, "loss": 9.0}', "{"])
def test_resumed_run_drops_a_half_written_line(tmp_path, rest):
    log(tmp_path, 0, 2, 1.0)
    with (tmp_path / "metrics.jsonl").open("a") as f:
        f.write(rest)
    log(tmp_path, 2, 3, 2.0)
    assert [(line["step"], line["loss"]) for line in lines(tmp_path)] == [
        (1, 1.0),
        (2, 1.0),
        (3, 2.0),
    ]


def test_grid_is_saved_as_it_is(tmp_path, picture):
    monitor = Monitor(tmp_path, 0, 50)
    monitor.grid(50, picture)
    monitor.close()
    with Image.open(tmp_path / "samples" / "0000050.png") as image:
        assert image.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(image), picture)


def test_tensorboard_reads_the_events(tmp_path, picture):
    monitor = Monitor(tmp_path, 0, 2)
    monitor.scalars(1, {"loss": 0.75, "images_s": 3.0})
    monitor.scalars(2, {"loss": 0.5})
    monitor.grid(2, picture)
    monitor.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert sorted(events.Tags()["scalars"]) == ["images_s", "loss"]
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(1, 0.75), (2, 0.5)]
    (image,) = events.Images("samples")
    assert (image.step, image.height, image.width) == (2, 7, 12)
    with Image.open(io.BytesIO(image.encoded_image_string)) as decoded:
        np.testing.assert_array_equal(np.asarray(decoded), picture)


def test_bar_shows_the_loss_and_where_a_run_went_on(tmp_path, capfd):
    log(tmp_path, 40, 42, 0.125)
    shown = capfd.readouterr().err
    assert "42/42" in shown and "loss=0.125" in shown and "grad_norm" not in shown


@pytest.mark.parametrize(("first", "last", "said"), [(40, 200, True), (180, 200, False)])
def test_a_run_says_how_long_it_will_take(tmp_path, capfd, monkeypatch, first, last, said):
    """After 20 steps, from the 18 that compiled nothing: here two seconds each. Told once."""
    monitor = Monitor(tmp_path, first, last)
    for done in range(1, min(23, last - first) + 1):
        monkeypatch.setattr(time, "monotonic", lambda done=done: 1000.0 * (done > 1) + 2.0 * done)
        monitor.advance()
    monitor.close()
    shown = capfd.readouterr().err
    assert shown.count("2 s a step: the 140 steps that are left take 0.078 h\n") == said
