"""The training loop: an experiment built, its steps done, its result written; resumed if begun.

A step is dispatched before the one before it is looked at, so that the device never waits for the
host. Whatever ends the loop, the last whole step is saved.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from osdhuman_jax.cli import check_folder
from osdhuman_jax.config import Config
from osdhuman_jax.data.loader import Loader, make_loader
from osdhuman_jax.disk import staged_folder
from osdhuman_jax.images.listing import real
from osdhuman_jax.interruption import Stopped, apart
from osdhuman_jax.training import experiment, flops, hosts, train_step
from osdhuman_jax.training.checkpoint import (
    Checkpoints,
    SaveError,
    check_config,
    record,
    steps_saved,
)
from osdhuman_jax.training.monitor import Monitor
from osdhuman_jax.training.sharding import make_mesh, replicated
from osdhuman_jax.training.validation import Validator, validation, validation_batch
from osdhuman_jax.weights import copy_prompter, save_model

# Exit statuses of a run: 75 is EX_TEMPFAIL, after which batch systems run a job again.
DONE, BAD, NOT_FINITE, NOT_SAVED, STOPPED = 0, 2, 3, 4, 75
WARM_UP = 2  # steps before a trace: the first ones compile


def export(config: Config, workdir: Path, base: Path, params: nnx.State, batch: Any) -> None:
    """Write WORKDIR/model/, the run's result as a model folder, frozen weights as they came."""
    restorer, model = experiment.prepare(config, base, "fp32")
    nnx.update(restorer, params)
    if config.run.kind == "vae":
        std = train_step.latent_std(restorer, train_step.to_images(batch)["hq"])
        model.vae.scaling_factor = round(1.0 / std, 5)
    adapted = config.run.kind == "restorer" and config.run.train == "lora"
    generator = config.lora if adapted else None
    provenance = {"kind": config.run.kind, "steps": config.run.steps, "seed": config.run.seed}
    with staged_folder(workdir / "model", replace=True) as folder:
        made = {"generator": generator, "provenance": provenance, "use": config.use}
        save_model(folder, model, restorer, **made)
        if config.prompt.kind != "hfie":
            copy_prompter(base, folder, config.prompt.kind)


def train(config: Config, workdir: Path, profile: int) -> int:
    """Run, or go on with, one experiment. Returns the exit status."""
    experiment.check(config)
    check_folder("workdir", workdir)
    config.run.init = str(real(Path(config.run.init))) if config.run.init else ""
    check_config(workdir, config)
    mesh = make_mesh(config.mesh.data, config.mesh.fsdp)
    # What may be missing is opened before anything is made.
    experiment.check_sources(config)
    names, val = validation_batch(config)
    base = experiment.base_folder(config, workdir)
    hosts.wait("base model")
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        trainer, _, state, frozen = train_step.build(config, base)
    state, frozen = train_step.place(mesh, state, frozen)
    prompts = train_step.Prompts(config, base)
    val |= prompts.in_use(val)
    workdir.mkdir(parents=True, exist_ok=True)
    checkpoints = Checkpoints(workdir, config.run.keep, config.run.best)

    with (
        files_needed(workdir),
        hosts.Signals() as signals,
        training_loader(config) as loader,
        ExitStack() as stack,
    ):
        record(workdir, config, base, write=hosts.is_first())
        if (latest := checkpoints.latest()) is not None:
            state, position = checkpoints.restore(latest, state)
            loader.set_state(position)
        monitor = Monitor(workdir, latest or 0, config.run.steps) if hosts.is_first() else None
        if monitor:
            stack.callback(monitor.close)
        validator = Validator(trainer, mesh, frozen, lambda: signals.received is not None)
        validate = partial(validation, validator, names, val, monitor)
        run = Loop(
            config, mesh, trainer, frozen, prompts, loader, checkpoints, monitor, validate, signals
        )
        status, state = run(state, latest or 0, Profile(workdir, latest or 0, profile))
        checkpoints.close()
    if status == DONE and hosts.is_first():
        params = jax.device_get(state.params if state.ema is None else state.ema)
        cpu = jax.local_devices(backend="cpu")[0]
        with files_needed(workdir), jax.default_device(cpu):
            export(config, workdir, base, params, val)
    hosts.wait("end")
    return status


@contextmanager
def files_needed(workdir: Path) -> Iterator[None]:
    """A SaveError, in one line, in the place of what the system says of a file (OSError)."""
    try:
        yield
    except OSError as error:
        reason = " ".join(str(error).split())
        where = resume_point(workdir)
        raise SaveError(f"{reason}; the same command goes on from {where}") from error


def resume_point(workdir: Path) -> str:
    """Where the same command would go on."""
    saved = steps_saved(workdir)
    return f"step {saved[-1]} in {workdir / 'checkpoints'}" if saved else "the beginning"


def training_loader(config: Config) -> Loader:
    """This process's share of every global batch."""
    count = jax.process_count()
    share = config.data.batch_size // count
    return make_loader(
        config.data, batch_size=share, shard_index=jax.process_index(), shard_count=count
    )


class Profile:
    """A trace of some steps, taken when the program is compiled."""

    def __init__(self, workdir: Path, first: int, steps: int) -> None:
        self._folder, self._first, self._last = workdir / "profile", first + WARM_UP, steps
        self._last += self._first
        self._on = False

    def at(self, step: int, done: Any) -> None:
        """Start before a step's work, stop when the work of the last one is done."""
        if self._first < self._last and step == self._first + 1:
            jax.profiler.start_trace(str(self._folder))
            self._on = True
        if self._on and step == self._last + 1:
            self.close(done)

    def close(self, done: Any) -> None:
        """Write the trace, if one is being taken."""
        if self._on:
            jax.block_until_ready(done)
            jax.profiler.stop_trace()
            self._on = False


class Meter:
    """Rates since the last log line."""

    def __init__(self, batch_size: int, work: float | None) -> None:
        """`work`: share of the devices' peak that one step a second would be, if known."""
        self._size, self._work = batch_size, work
        self.skipped = 0  # steps that were not finite, in this process's life
        self.unreadable = 0  # pictures of its batches that were passed over, likewise
        self.restart()

    def restart(self) -> None:
        self._since, self._waited, self._steps = time.monotonic(), 0.0, 0

    def wait(self, loader: Loader) -> dict[str, np.ndarray]:
        """The next batch, its time counted."""
        before = time.monotonic()
        batch = next(loader)
        self._waited += time.monotonic() - before
        self._steps += 1
        return batch

    def read(self) -> dict[str, float]:
        seconds = time.monotonic() - self._since
        rate = self._steps / seconds
        values = {"images_s": rate * self._size, "data_wait": self._waited / seconds}
        values |= {"skipped_steps": float(self.skipped), "skipped": float(self.unreadable)}
        if self._work:
            values["mfu"] = rate * self._work
        self.restart()
        return values


def consumed(state: train_step.TrainState) -> bool:
    """Whether a step has taken its arrays, and failed."""
    return any(x.is_deleted() for x in jax.tree.leaves(state))


@dataclass
class Loop:
    """Steps up to `run.steps`, with logs, validation and checkpoints at their times."""

    config: Config
    mesh: Mesh
    trainer: train_step.Trainer
    frozen: train_step.Frozen
    prompts: train_step.Prompts
    loader: Loader
    checkpoints: Checkpoints
    monitor: Monitor | None
    validate: Any
    signals: hosts.Signals

    def __call__(self, state: train_step.TrainState, first: int, profile: Profile):
        """(exit status, last state); whatever ends the loop, the last whole step is saved.

        One of several processes that fails alone cannot save: there the newest checkpoint counts.
        """
        step_fn = jax.jit(self.trainer.step, donate_argnums=0, out_shardings=replicated(self.mesh))
        meter = Meter(self.config.data.batch_size, self._work(state))
        done, status, scalars = first, DONE, {}
        try:
            while done < self.config.run.steps and status == DONE:
                profile.at(done + 1, scalars)
                batch = self._batch(meter)
                before = scalars
                if done == first and jax.process_count() == 1:
                    state, scalars = self._first_step(partial(step_fn, state, self.frozen, batch))
                else:
                    state, scalars = step_fn(state, self.frozen, batch)
                done += 1
                status = self._status(before, meter)  # of the step before: that one is finished
                self._report(done, state, scalars, meter)
        except SaveError:
            raise
        except Exception:
            if jax.process_count() == 1 and not consumed(state):
                with suppress(SaveError):  # what went wrong first is what is told
                    self.checkpoints.save(done, state, self.loader.get_state())
                    self.checkpoints.close()
            raise
        finally:
            profile.close(scalars)
        row = int(scalars["nonfinite"]) if status == NOT_FINITE else 0
        latest = self.checkpoints.latest()
        if not row or latest is None or latest < done - row:  # else its parameters are these
            self.checkpoints.save(done, state, self.loader.get_state())
        return (DONE if done == self.config.run.steps else status), state

    def _first_step(self, step: Callable[[], Any]) -> Any:
        """A step that compiles first. Raises KeyboardInterrupt where a signal comes meanwhile."""
        side = self.config.data.crop
        if self.monitor:
            self.monitor.say(f"compiling the training step for {side} x {side} ...")
        start = time.monotonic()
        made = apart(step, lambda: self.signals.received is not None)
        if self.monitor:
            self.monitor.say(f"compiled, and one step done, in {time.monotonic() - start:.1f} s")
        return made

    def _work(self, state: train_step.TrainState) -> float | None:
        """Share of the devices' peak that one step a second would be; None on unknown devices."""
        peak = flops.peak(jax.devices()[0].device_kind)
        if peak is None:
            return None
        work = train_step.step_flops(self.trainer, state, self.frozen)
        return work / (peak * jax.device_count())

    def _batch(self, meter: Meter) -> dict[str, jax.Array]:
        batch = meter.wait(self.loader)
        meter.unreadable += int(batch["skipped"].sum())
        stop = np.full(len(batch["hq"]), self.signals.received is not None, np.int32)
        prompt = self.prompts(batch, self.config.prompt.source)
        return train_step.place_batch(self.mesh, {**batch, **prompt, "stop": stop})

    def _status(self, scalars: Mapping[str, Any], meter: Meter) -> int:
        """What the scalars of a finished step, the same in every process, say about going on."""
        if not scalars:
            return DONE
        stop, row = jax.device_get((scalars["stop"], scalars["nonfinite"]))
        meter.skipped += row > 0
        if row >= self.config.optim.max_nonfinite:
            return NOT_FINITE
        return STOPPED if stop else DONE

    def _report(self, step: int, state: train_step.TrainState, scalars: Any, meter: Meter) -> None:
        """Log, validate and save where it is time."""
        self.checkpoints.check()
        run, last = self.config.run, step == self.config.run.steps
        if self.monitor:
            self.monitor.advance()
        if step % run.log_every == 0 or last:
            values = {k: float(v) for k, v in scalars.items() if k not in ("stop", "nonfinite")}
            values |= meter.read()
            if self.monitor:
                self.monitor.scalars(step, values)
        metrics = None
        if run.sample_every and (step % run.sample_every == 0 or last):
            with suppress(Stopped):  # before it was compiled: the next step is told of the signal
                metrics = self.validate(step, state.params if state.ema is None else state.ema)
            meter.restart()
        if metrics or step % run.checkpoint_every == 0 or last:
            self.checkpoints.save(step, state, self.loader.get_state(), metrics)
