"""Validation while a run trains: a few fixed pictures, restored one at a time, and measured.

The pictures are the first ones of `run.eval_sources`, degraded by the run's seed, so that every
validation of a run sees the same. What comes out is the mean of each metric, which decides the best
checkpoint, and a grid to look at. One picture at a time needs no memory beside the training's.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Float32, UInt8

from osdhuman_jax.config import Config
from osdhuman_jax.data.captions import open_captions
from osdhuman_jax.data.samples import Sample, make_sample
from osdhuman_jax.data.sources import open_sources
from osdhuman_jax.data.structures import nobody, open_structures, padded
from osdhuman_jax.evaluation.metrics import psnr_y, ssim_y
from osdhuman_jax.images.codec import to_uint8
from osdhuman_jax.interruption import apart
from osdhuman_jax.methods.objectives import Frozen
from osdhuman_jax.networks.target import compiler_options
from osdhuman_jax.training.diffbody import KINDS
from osdhuman_jax.training.experiment import eval_data
from osdhuman_jax.training.monitor import Monitor
from osdhuman_jax.training.sharding import put_everywhere, replicated
from osdhuman_jax.training.train_step import Trainer

Images = Float32[np.ndarray, "b h w 3"]
Grid = UInt8[np.ndarray, "rows columns 3"]
Measured = Mapping[str, Sequence[float]]  # a number for each picture, by the metric's name

# Colour of an output that is none, in the sample grid: no photograph has it all over.
NOT_FINITE = (255, 0, 255)


def validation_batch(config: Config) -> tuple[list[str], dict[str, np.ndarray]]:
    """Names and pictures of the validation, the latter uint8 arrays "hq" and, if degraded, "lq".

    They are the first `eval_images` of the validation's sources, or else of the training's. Kinds
    that look at people have "people", "attention" and "caption" beside them, of nobody where
    nothing is known. Raises DataError where the sources hold nothing that can be read.
    """
    given = eval_data(config)
    source = open_sources(given.sources)
    images = min(config.run.eval_images, len(source))
    # The paper's degradation alone, whatever mixture a run trains on: its values compare.
    still = dataclasses.replace(config.data.degradation, first_order=(0.0, 0.0, 1.0))
    plain = {"kinds": (1.0,), "gray": 0.0, "flip": False, "mask": False, "degradation": still}
    size = {"crop": config.run.eval_crop, "crop_height": config.run.eval_height}
    data = dataclasses.replace(given, **size, **plain)
    wanted = config.run.kind in KINDS
    known = {
        "structures": open_structures(data, source) if wanted else None,
        "captions": open_captions(data, source) if wanted else None,
    }
    samples = [make_sample(source, data, 0, index, **known) for index in range(images)]
    # A picture that cannot be read has given its place to the next one that can.
    read = [(s["index"] + len(s["failures"])) % len(source) for s in samples]
    pictures = {"hq": np.stack([s["hq"] for s in samples])}
    if degraded := [s["lq"] for s in samples if "lq" in s]:
        pictures["lq"] = np.stack(degraded)
    if wanted:
        pictures |= _described(samples, data.size)
    return [source.name(index) for index in read], pictures


def _described(samples: Sequence[Sample], size: tuple[int, int]) -> dict[str, np.ndarray]:
    """What is known of the people of samples whose pictures are of `size`."""
    people, attention = nobody(size)
    plain = {"people": padded(people), "attention": attention[..., None], "caption": ""}
    return {k: np.stack([s.get(k, v) for s in samples]) for k, v in plain.items()}


class Validator:
    """The compiled programs of validation, one picture at a time."""

    restores = True  # whether its pictures are restored ones, which HQ is compared with

    def __init__(
        self,
        trainer: Trainer,
        mesh: Mesh,
        frozen: Frozen,
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        """`stopped`: whether a signal has come, which the first picture's compiling heeds."""
        self._mesh, self._frozen, self._stopped = mesh, frozen, stopped
        compiling = {"out_shardings": replicated(mesh), "compiler_options": compiler_options()}
        self._images = jax.jit(trainer.images, **compiling)
        measured = trainer.lpips is not None or trainer.has_loss
        self._measures = jax.jit(trainer.measures, **compiling) if measured else None
        self.restores = trainer.restores
        self.compiled = False

    def __call__(self, params: nnx.State, val: Mapping[str, np.ndarray]) -> tuple[Images, Measured]:
        """What is made of `val` with `params`, in [-1, 1], and what the trainer measures of each.

        Raises interruption.Stopped where a signal was noted while the programs were compiled.
        """
        # One at a time: so it needs no memory that the training leaves free.
        pictures, measured = [], {}
        # Captions are tokens by now, and no device holds a text.
        held = {name: values for name, values in val.items() if name != "caption"}
        for i in range(len(val["hq"])):
            image, found = self._run(params, {k: v[i : i + 1] for k, v in held.items()})
            for name, value in found.items():
                measured.setdefault(name, []).extend(value.tolist())
            pictures.append(image)
        return np.concatenate(pictures), measured

    def _run(
        self, params: nnx.State, one: Mapping[str, np.ndarray]
    ) -> tuple[Images, dict[str, np.ndarray]]:
        """One picture, and what is measured of it; in a thread of its own the first time."""

        def work() -> tuple[Images, dict[str, np.ndarray]]:
            # A picture is too little to be split: every device computes the same.
            batch = put_everywhere(self._mesh, dict(one))
            image = self._images(params, self._frozen, batch)
            measures = self._measures
            found = measures(params, self._frozen, image, batch) if measures else {}
            return jax.device_get((image, found))

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
    # The first one compiles, which takes minutes in which nothing else is seen.
    new, start = monitor is not None and not validator.compiled, time.monotonic()
    if monitor and new:
        height, width = val["hq"].shape[1:3]
        monitor.say(f"compiling the validation for {width} x {height} ...")
    images, measured = validator(params, val)
    if monitor and new:
        monitor.say(f"compiled, and validated, in {time.monotonic() - start:.1f} s")
    # Every process measures, since every one of them tells its checkpoints which is the best.
    found = picture_metrics(images, val["hq"], measured) if validator.restores else measured
    means = {name: float(np.mean(values)) for name, values in found.items()}
    if monitor:
        if line := not_finite(names, found):
            monitor.say(f"train.py: validation at step {step}: {line}")
        monitor.scalars(step, means)
        monitor.grid(step, sample_grid(images, val))
    return means


def picture_metrics(
    images: Images, hq: np.ndarray, measured: Measured | None = None
) -> dict[str, list[float]]:
    """PSNR-Y and SSIM-Y of each output in [-1, 1] against its uint8 HQ, picture by picture.

    `measured` is what else is known of each. An output that is not finite has NaN in every metric.
    """
    # Measured as a person would see it, in 8 bits.
    finite = np.isfinite(images).all(axis=(1, 2, 3))  # [B]
    pairs = list(zip(_shown(images), hq, strict=True))
    found = {
        "val_psnr_y": [psnr_y(a, b) for a, b in pairs],
        "val_ssim_y": [ssim_y(a, b) for a, b in pairs],
        **(measured or {}),
    }
    return {k: np.where(finite, values, math.nan).tolist() for k, values in found.items()}


def sample_grid(images: Images, batch: Mapping[str, np.ndarray]) -> Grid:
    """A row for each picture: its LQ (where there is one), the output in [-1, 1], its HQ.

    An output that is not finite is magenta.
    """
    # Pictures of a column one below the other, then the columns side by side.
    columns = [*([batch["lq"]] if "lq" in batch else []), _shown(images), batch["hq"]]
    return np.concatenate([np.concatenate(list(c), axis=0) for c in columns], axis=1)


def _shown(images: Images) -> UInt8[np.ndarray, "b h w 3"]:
    """Outputs in 8 bits; one that is not finite has no pixels, and is magenta."""
    finite = np.isfinite(images).all(axis=(1, 2, 3))
    shown = np.empty(images.shape, np.uint8)
    shown[finite], shown[~finite] = to_uint8(images[finite]), NOT_FINITE
    return shown


def not_finite(names: Sequence[str], found: Mapping[str, Sequence[float]]) -> str:
    """Which metrics are not finite, and of which pictures; empty where all are."""
    bad = {k: np.flatnonzero(~np.isfinite(values)) for k, values in found.items()}
    pictures = [names[i] for i in sorted({int(i) for where in bad.values() for i in where})]
    if not pictures:
        return ""
    metrics = ", ".join(k for k, where in bad.items() if len(where))
    more = f" and {len(pictures) - 3} more" if pictures[3:] else ""
    return f"not finite: {metrics} of {', '.join(pictures[:3])}{more}; this step is no best one"
