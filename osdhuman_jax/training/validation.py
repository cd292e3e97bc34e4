"""Validation while a run trains: a few fixed pictures, restored one at a time, and measured."""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from osdhuman_jax.config import Config
from osdhuman_jax.data.loader import make_sample
from osdhuman_jax.data.sources import open_sources
from osdhuman_jax.interruption import apart
from osdhuman_jax.training import train_step
from osdhuman_jax.training.monitor import Monitor
from osdhuman_jax.training.sharding import replicated


def validation_batch(config: Config) -> tuple[list[str], dict[str, np.ndarray]]:
    """Names and the first `eval_images` pictures of the validation sources, degraded by a seed."""
    source = open_sources(config.run.eval_sources or config.data.sources)
    count = min(config.run.eval_images, len(source))
    plain = {"kinds": (1.0,), "gray": 0.0, "flip": False}
    data = dataclasses.replace(config.data, crop=config.run.eval_crop, **plain)
    samples = [make_sample(source, data, 0, index) for index in range(count)]
    read = [(s["index"] + len(s["failures"])) % len(source) for s in samples]
    pictures = {k: np.stack([s[k] for s in samples]) for k in ("hq", "lq") if k in samples[0]}
    return [source.name(index) for index in read], pictures


class Validator:
    """The compiled programs of validation, one picture at a time."""

    def __init__(
        self,
        trainer: train_step.Trainer,
        mesh: Mesh,
        frozen: train_step.Frozen,
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        """`stopped`: whether a signal has come, which the first picture's compiling heeds."""
        everywhere = replicated(mesh)
        self._frozen, self._stopped = frozen, stopped
        self._images = jax.jit(trainer.images, out_shardings=everywhere)
        self._lpips = (
            jax.jit(trainer.distances, out_shardings=everywhere) if trainer.lpips else None
        )
        self.compiled = False

    def __call__(self, params: nnx.State, val: Mapping[str, np.ndarray]) -> tuple[Any, Any]:
        """Pictures in [-1, 1], and their LPIPS or an empty list.

        Raises interruption.Stopped where a signal was noted while the programs were compiled.
        """
        pictures, distances = [], []
        for i in range(len(val["hq"])):
            image, distance = self._run(params, {k: v[i : i + 1] for k, v in val.items()})
            distances += [] if distance is None else [distance]
            pictures.append(image)
        return np.concatenate(pictures), distances

    def _run(
        self, params: nnx.State, one: Mapping[str, np.ndarray]
    ) -> tuple[np.ndarray, float | None]:
        """One picture, and its LPIPS if there is one; in a thread of its own the first time."""

        def work() -> tuple[np.ndarray, float | None]:
            image = self._images(params, self._frozen, one)
            distance = float(self._lpips(self._frozen, image, one)[0]) if self._lpips else None
            return np.asarray(image), distance

        # Of several processes none may leave the others in the middle of it.
        if self.compiled or jax.process_count() > 1:
            return work()
        made = apart(work, self._stopped)
        self.compiled = True
        return made


def validation(
    validator: Validator,
    names: Sequence[str],
    val: Mapping[str, np.ndarray],
    monitor: Monitor | None,
    step: int,
    params: nnx.State,
) -> dict[str, float]:
    """Metrics and a sample grid on the fixed validation set, whose pictures have `names`.

    A metric is NaN where one picture's is, and the pictures are named on the terminal. Raises
    interruption.Stopped as the validator does.
    """
    new, start = monitor is not None and not validator.compiled, time.monotonic()
    if monitor and new:
        height, width = val["hq"].shape[1:3]
        monitor.say(f"compiling the validation for {width} x {height} ...")
    images, distances = validator(params, val)
    if monitor and new:
        monitor.say(f"compiled, and validated, in {time.monotonic() - start:.1f} s")
    found, grid = train_step.evaluate(images, val, distances)
    means = {name: float(np.mean(values)) for name, values in found.items()}
    if monitor:
        if line := not_finite(names, found):
            monitor.say(f"train.py: validation at step {step}: {line}")
        monitor.scalars(step, means)
        monitor.grid(step, grid)
    return means


def not_finite(names: Sequence[str], found: Mapping[str, Sequence[float]]) -> str:
    """Which metrics are not finite, and of which pictures; empty where all are."""
    bad = {k: np.flatnonzero(~np.isfinite(values)) for k, values in found.items()}
    pictures = [names[i] for i in sorted({int(i) for where in bad.values() for i in where})]
    if not pictures:
        return ""
    metrics = ", ".join(k for k, where in bad.items() if len(where))
    more = f" and {len(pictures) - 3} more" if pictures[3:] else ""
    return f"not finite: {metrics} of {', '.join(pictures[:3])}{more}; this step is no best one"
