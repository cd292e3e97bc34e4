"""python train.py --config configs/base.py --workdir runs/base [--config.optim.learning_rate=1e-4]

The same command goes on where an interrupted run stopped. At the end, WORKDIR/model/ is a model
folder: what `infer.py --model` takes, and what a further stage's `run.init` starts from.
"""

import dataclasses
import sys
import time
from functools import partial
from pathlib import Path

import cv2
import jax
import numpy as np
from absl import app, flags, logging
from flax import nnx
from ml_collections import config_flags

from osdhuman_jax import training
from osdhuman_jax.checkpoint import (
    CheckpointError,
    Checkpoints,
    record_base,
    write_config,
)
from osdhuman_jax.config import Config, ConfigError, ModelConfig
from osdhuman_jax.data import DataError, Loader, make_loader, make_sample, open_sources
from osdhuman_jax.images import to_uint8
from osdhuman_jax.monitor import Monitor
from osdhuman_jax.restorer import Restorer
from osdhuman_jax.sharding import make_mesh
from osdhuman_jax.weights import WeightsError, save_model

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Experiment, for instance configs/base.py."
)
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; made if need be, else resumed.")
BAD_INPUT = (ConfigError, CheckpointError, DataError, WeightsError)


def validation_batch(config: Config) -> dict[str, np.ndarray]:
    """The first `eval_images` pictures of the validation sources, degraded by a fixed seed."""
    source = open_sources(config.run.eval_sources or config.data.sources)
    count = min(config.run.eval_images, len(source))
    data = dataclasses.replace(config.data, crop=config.run.eval_crop, flip=False)
    samples = [make_sample(source, data, 0, index) for index in range(count)]
    return {k: np.stack([s[k] for s in samples]) for k in ("hq", "lq") if k in samples[0]}


def export(config: Config, workdir: Path, model: ModelConfig, restorer: Restorer, batch) -> None:
    """Write WORKDIR/model/, the run's result as a model folder."""
    if config.run.kind == "vae":
        std = training.latent_std(restorer, training.to_images(batch)["hq"])
        model.vae.scaling_factor = round(1.0 / std, 5)
    generator = config.lora if config.run.kind == "restorer" else None
    provenance = {"kind": config.run.kind, "steps": config.run.steps, "seed": config.run.seed}
    save_model(workdir / "model", model, restorer, generator=generator, provenance=provenance)


def train(config: Config, workdir: Path) -> None:
    """Run, or go on with, one experiment."""
    training.check(config)
    workdir.mkdir(parents=True, exist_ok=True)
    config.run.init = str(Path(config.run.init).resolve()) if config.run.init else ""
    write_config(workdir, config)
    mesh = make_mesh(config.mesh.data, config.mesh.fsdp)
    base = training.base_folder(config, workdir)
    restorer, model = training.prepare(config, base)
    record_base(workdir, base)

    graphdef, params, frozen = nnx.split(restorer, training.trainable(config), ...)
    tx = training.make_optimizer(config.optim, config.run.steps)
    state, frozen = training.place(mesh, training.init_state(params, tx), frozen)
    objective = training.make_objective(config)
    step_fn = training.make_train_step(graphdef, tx, objective, config.run.seed)
    step_fn = jax.jit(step_fn, donate_argnums=0)
    eval_fn = jax.jit(training.make_eval_step(graphdef, config.run.kind, config.run.seed))
    checkpoints = Checkpoints(workdir, config.run.keep)
    val = validation_batch(config)

    with training_loader(config) as loader:
        if (latest := checkpoints.latest()) is not None:
            state, position = checkpoints.restore(latest, state)
            loader.set_state(position)
        first = latest or 0
        monitor = Monitor(workdir, first, config.run.steps)
        validate = partial(validation, eval_fn, frozen, val, monitor)
        state = loop(
            config, mesh, step_fn, state, frozen, loader, checkpoints, monitor, validate, first
        )
    checkpoints.close()
    monitor.close()
    nnx.update(restorer, state.params, frozen)
    export(config, workdir, model, restorer, val)


def training_loader(config: Config) -> Loader:
    """This process's share of every global batch."""
    count = jax.process_count()
    share = config.data.batch_size // count
    return make_loader(
        config.data, batch_size=share, shard_index=jax.process_index(), shard_count=count
    )


def validation(eval_fn, frozen, val, monitor: Monitor, step: int, params) -> None:
    """Metrics and a sample grid on the fixed validation set."""
    images = np.concatenate(
        [
            np.asarray(eval_fn(params, frozen, {k: v[i : i + 1] for k, v in val.items()}))
            for i in range(len(val["hq"]))
        ]
    )
    means, grid = training.evaluate(to_uint8(images), val)
    monitor.scalars(step, means)
    monitor.grid(step, grid)


def loop(
    config, mesh, step_fn, state, frozen, loader: Loader, checkpoints, monitor, validate, first
):
    """Steps `first`..`run.steps`, with logs, validation and checkpoints at their times."""
    run, since, waited = config.run, time.monotonic(), 0.0
    for step in range(first + 1, run.steps + 1):
        before = time.monotonic()
        batch = next(loader)
        waited += time.monotonic() - before
        state, scalars = step_fn(state, frozen, training.place_batch(mesh, batch))
        monitor.advance()
        if step % run.log_every == 0 or step == run.steps:
            values = {k: float(v) for k, v in scalars.items()}
            seconds, done = (
                time.monotonic() - since,
                (step - first) % run.log_every or run.log_every,
            )
            values["images_s"] = done * config.data.batch_size / seconds
            values["data_wait"] = waited / seconds
            values["skipped"] = float(batch["skipped"].sum())
            monitor.scalars(step, values)
            since, waited = time.monotonic(), 0.0
        if step % run.checkpoint_every == 0 or step == run.steps:
            checkpoints.save(step, state, loader.get_state())
        if run.sample_every and (step % run.sample_every == 0 or step == run.steps):
            validate(step, state.params)
            since = time.monotonic()
    return state


def parse_flags(argv: list[str]) -> list[str]:
    """absl's parser, but a bad flag or config file is one line and status 2."""
    try:
        return flags.FLAGS(argv)
    except (flags.Error, KeyError, OSError) as error:
        reason = error.args[0] if isinstance(error, KeyError) else error
        print(f"train.py: {' '.join(str(reason).split())}", file=sys.stderr)
        sys.exit(2)


def main(_) -> None:
    """Parse flags, train, turn a bad input into one line and status 2."""
    logging.set_verbosity(logging.WARNING)
    cv2.setNumThreads(1)
    try:
        train(CONFIG.value, Path(WORKDIR.value or ""))
    except BAD_INPUT as error:
        print(f"train.py: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main, flags_parser=parse_flags)
