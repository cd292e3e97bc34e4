"""The training loop: an experiment built, its steps done, its result written; resumed if begun.

`train` reads from top to bottom: what is checked, what is loaded, where the run stands, its steps,
its result. It takes a configuration and a workdir, and leaves in the workdir what `checkpoint.py`
and `monitor.py` list, and at the end a model folder. What the paper says of training (its sections
3.2 and 4.1) stands in `methods/objectives.py` and in the configuration's defaults.

A step is dispatched before the one before it is looked at, so that the device never waits for the
host. Whatever ends the loop, the last whole step is saved.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

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
from osdhuman_jax.methods.objectives import Frozen, Scalars
from osdhuman_jax.networks.target import compiler_options
from osdhuman_jax.training import diffbody, experiment, flops, hosts, train_step
from osdhuman_jax.training.checkpoint import (
    Checkpoints,
    SaveError,
    check_config,
    record_run,
    steps_saved,
)
from osdhuman_jax.training.monitor import Monitor
from osdhuman_jax.training.prompting import Prompts
from osdhuman_jax.training.sharding import (
    make_mesh,
    put_batch,
    put_everywhere,
    put_weights,
    replicated,
)
from osdhuman_jax.training.speed import ProfilerTrace, Rates
from osdhuman_jax.training.startup import startup_lines
from osdhuman_jax.training.status import DONE, NOT_FINITE, STOPPED
from osdhuman_jax.training.validation import Validator, validation, validation_batch
from osdhuman_jax.weights import copy_parts, copy_prompter, save_model
from osdhuman_jax.weights.cleaners import save_cleaner


def train(config: Config, workdir: Path, profile: int) -> int:
    """Run, or go on with, one experiment. Returns the exit status.

    `profile` is how many steps are traced for the profiler. Raises ConfigError, DataError,
    WeightsError or CheckpointError before the first step, SaveError where a file cannot be written.
    """
    # What may be wrong or missing is looked at before anything is made.
    experiment.check(config)
    check_folder("workdir", workdir)
    config.run.init = str(real(Path(config.run.init))) if config.run.init else ""
    config.run.cleaner = str(real(Path(config.run.cleaner))) if config.run.cleaner else ""
    check_config(workdir, config)
    mesh = make_mesh(config.mesh.data, config.mesh.fsdp)
    experiment.check_sources(config)
    names, val = validation_batch(config)

    # The base model gives the programs and their first arguments.
    base = experiment.base_folder(config, workdir)
    hosts.wait("base model")
    trainer, state, frozen = _begin(config, base, mesh)
    prompts = Prompts(config, base)
    val |= prompts.in_use(val)
    workdir.mkdir(parents=True, exist_ok=True)
    checkpoints = Checkpoints(workdir, config.run.keep, config.run.best)

    with (
        files_needed(workdir),
        hosts.Signals() as signals,
        training_loader(config) as loader,
        ExitStack() as stack,
    ):
        # Where the run stands: at its newest checkpoint, or at its beginning.
        record_run(workdir, config, base, write=hosts.is_first())
        if (latest := checkpoints.latest()) is not None:
            state, position = checkpoints.restore(latest, state)
            loader.set_state(position)
        first = latest or 0
        # One process writes, and says what is about to happen.
        monitor = Monitor(workdir, first, config.run.steps) if hosts.is_first() else None
        if monitor:
            stack.callback(monitor.close)
            for line in startup_lines(config, mesh, state, frozen, workdir=workdir, base=base):
                monitor.say(line)

        # The steps.
        validator = Validator(trainer, mesh, frozen, lambda: signals.received is not None)
        validate = partial(validation, validator, names, val, monitor)
        run = Loop(
            config, mesh, trainer, frozen, prompts, loader, checkpoints, monitor, validate, signals
        )
        status, state = run(state, first, ProfilerTrace(workdir, first, profile))
        checkpoints.close()

    # The result, by one process, while the others wait for it.
    if status == DONE and hosts.is_first():
        with files_needed(workdir), jax.default_device(jax.local_devices(backend="cpu")[0]):
            write_model(config, workdir, base, jax.device_get(state.learnt), val)
    hosts.wait("end")
    return status


def _begin(
    config: Config, base: Path, mesh: Mesh
) -> tuple[train_step.Trainer, train_step.TrainState, Frozen]:
    """The programs, the state before the first step and what stays, each where it is used."""
    # Weights are loaded on the host: a device gets its share of them, and never all.
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        trainer, _, state, frozen = train_step.build(config, base, mesh)
    # The trained part is small and goes to every device, the frozen one in shares.
    return trainer, put_everywhere(mesh, state), put_weights(mesh, frozen)


def write_model(
    config: Config,
    workdir: Path,
    base: Path,
    params: nnx.State,
    val: Mapping[str, np.ndarray],
) -> None:
    """Write WORKDIR/model/, the run's result as a model folder, frozen weights as they came."""
    # The base model once more, in full precision, with what was learnt in its place.
    provenance = {"kind": config.run.kind, "steps": config.run.steps, "seed": config.run.seed}
    if config.cleaner.sizes:
        network = experiment.prepare_cleaner(config, base, "fp32")
        nnx.update(network, params)
        with staged_folder(workdir / "model", replace=True) as folder:
            made = {"provenance": provenance, "use": config.use}
            save_cleaner(folder, config.cleaner.sizes, network, **made)
        return
    if config.run.kind in diffbody.KINDS:
        with staged_folder(workdir / "model", replace=True) as folder:
            diffbody.write_result(config, base, folder, params)
        return
    restorer, model = experiment.prepare(config, base, "fp32")
    nnx.update(restorer, params)
    if config.run.kind == "vae":
        # Stable Diffusion's rule: latents of unit variance, here measured on the validation set.
        std = train_step.latent_std(restorer, train_step.to_images(val)["hq"])
        model.vae.scaling_factor = round(1.0 / std, 5)
    # Adapters go into a file of their own; a run without them writes whole weights.
    adapted = config.run.kind == "restorer" and config.run.train == "lora"
    generator = config.lora if adapted else None
    with staged_folder(workdir / "model", replace=True) as folder:
        made = {"generator": generator, "provenance": provenance, "use": config.use}
        save_model(folder, model, restorer, **made)
        # What a later stage is trained by goes along; who restores does not need it.
        if config.run.kind != "restorer":
            copy_parts(base, folder)
        if config.prompt.kind != "hfie":
            copy_prompter(base, folder, config.prompt.kind)


@contextmanager
def files_needed(workdir: Path) -> Iterator[None]:
    """Context in which an OSError becomes a SaveError of one line that says how to go on."""
    try:
        yield
    except OSError as error:
        reason = " ".join(str(error).split())
        where = resume_point(workdir)
        raise SaveError(f"{reason}; the same command goes on from {where}") from error


def resume_point(workdir: Path) -> str:
    """Where the same command would go on, in words."""
    saved = steps_saved(workdir)
    return f"step {saved[-1]} in {workdir / 'checkpoints'}" if saved else "the beginning"


def training_loader(config: Config) -> Loader:
    """This process's share of every global batch."""
    count = jax.process_count()
    share = config.data.batch_size // count
    return make_loader(
        config.data, batch_size=share, shard_index=jax.process_index(), shard_count=count
    )


def consumed(arrays: list[jax.Array]) -> bool:
    """Whether a step that failed has taken the state's arrays."""
    # They were donated to it, so that its result could be written in their place.
    return any(x.is_deleted() for x in arrays)


@dataclass
class Loop:
    """The steps of a run, with logs, validation and checkpoints when it is time for them."""

    config: Config
    mesh: Mesh
    trainer: train_step.Trainer
    frozen: Frozen
    prompts: Callable[[Mapping[str, np.ndarray], str], dict[str, np.ndarray]]
    loader: Loader
    checkpoints: Checkpoints
    monitor: Monitor | None
    validate: Callable[[int, nnx.State], dict[str, float]] | None  # needed by run.sample_every
    signals: hosts.Signals

    def __call__(
        self, state: train_step.TrainState, first: int, trace: ProfilerTrace
    ) -> tuple[int, train_step.TrainState]:
        """Do the steps after `first`. Returns the exit status and the last state.

        Whatever ends the loop, the last whole step is saved. One of several processes that fails
        alone cannot save: there the newest checkpoint counts.
        """
        flat, arrays, weights, whole = train_step.in_lists(self.trainer.step, state, self.frozen)
        step_fn = jax.jit(
            flat,
            donate_argnums=0,
            out_shardings=replicated(self.mesh),
            compiler_options=compiler_options(),
        )
        rates = Rates(self.config.data.batch_size, self._work(state))
        done, status, scalars = first, DONE, {}
        try:
            while done < self.config.run.steps and status == DONE:
                trace.at(done + 1, scalars)
                # What a step takes and gives is moved by name: a transfer that nobody wrote down
                # would make the device wait for the host, at every step and in silence.
                with jax.transfer_guard("disallow"):
                    batch = self._batch(rates)
                    before = scalars
                    step = partial(step_fn, arrays, weights, batch)
                    alone = done == first and jax.process_count() == 1
                    arrays, scalars = self._first_step(step) if alone else step()
                    done += 1
                    # Of the step before, which is finished: this one goes on meanwhile.
                    status = self._status(before, rates)
                    self._report(done, partial(whole, arrays), scalars, rates)
        except SaveError:
            # Nothing could be saved now either.
            raise
        except Exception:
            if jax.process_count() == 1 and not consumed(arrays):
                # If saving fails too, what went wrong first is what is told.
                with suppress(SaveError):
                    self._save(done, whole(arrays))
                    self.checkpoints.close()
            raise
        finally:
            trace.close(scalars)
        state = whole(arrays)
        # Steps that were not finite changed nothing: a checkpoint from before them holds the same.
        row = int(scalars["nonfinite"]) if status == NOT_FINITE else 0
        latest = self.checkpoints.latest()
        if not row or latest is None or latest < done - row:
            self._save(done, state)
        return (DONE if done == self.config.run.steps else status), state

    def _first_step(
        self, step: Callable[[], tuple[list[jax.Array], Scalars]]
    ) -> tuple[list[jax.Array], Scalars]:
        """A step that compiles first. Raises KeyboardInterrupt where a signal comes meanwhile."""

        def guarded() -> tuple[list[jax.Array], Scalars]:
            # In a thread of its own, which has the loop's guard no more than its other settings.
            with jax.transfer_guard("disallow"):
                return step()

        # It takes minutes, in which a person should know what is going on.
        height, width = self.config.data.size
        if self.monitor:
            self.monitor.say(f"compiling the training step for {width} x {height} ...")
        start = time.monotonic()
        made = apart(guarded, lambda: self.signals.received is not None)
        if self.monitor:
            self.monitor.say(f"compiled, and one step done, in {time.monotonic() - start:.1f} s")
        return made

    def _work(self, state: train_step.TrainState) -> float | None:
        """Share of the devices' peak that one step a second would be; None on unknown devices."""
        peak = flops.peak(jax.devices()[0].device_kind)
        if peak is None:
            return None
        work = flops.step_flops(self.trainer, state, self.frozen)
        return work / (peak * jax.device_count())

    def _batch(self, rates: Rates) -> train_step.Batch:
        """The next batch on the devices, with its prompts and whether a signal has come here."""
        # A signal travels in the batch: every process reads the largest of all their marks.
        batch = rates.next_batch(self.loader)
        rates.unreadable += int(batch["skipped"].sum())
        names = (*train_step.PICTURES, *train_step.BESIDE)
        pictures = {name: batch[name] for name in names if name in batch}
        prompt = self.prompts(batch, self.config.prompt.source)
        stop = np.full(len(batch["hq"]), self.signals.received is not None, np.int32)
        return put_batch(self.mesh, {**pictures, **prompt, "stop": stop})

    def _status(self, scalars: Scalars, rates: Rates) -> int:
        """What the scalars of a finished step, the same in every process, say about going on."""
        if not scalars:
            return DONE
        stop, row = jax.device_get((scalars["stop"], scalars["nonfinite"]))
        rates.skipped += int(row > 0)
        if row >= self.config.optim.max_nonfinite:
            return NOT_FINITE
        return STOPPED if stop else DONE

    def _report(
        self,
        step: int,
        state: Callable[[], train_step.TrainState],
        scalars: Scalars,
        rates: Rates,
    ) -> None:
        """Log, validate and save where it is time."""
        # A save in the background that failed ends the run now, not at its end.
        self.checkpoints.check()
        run, last = self.config.run, step == self.config.run.steps
        if self.monitor:
            self.monitor.advance()
        if step % run.log_every == 0 or last:
            known = jax.device_get(scalars)
            values = {k: float(v) for k, v in known.items() if k not in ("stop", "nonfinite")}
            values |= rates.read()
            if self.monitor:
                self.monitor.scalars(step, values)
        metrics = None
        if self.validate and run.sample_every and (step % run.sample_every == 0 or last):
            # Stopped before it was compiled: the next step is told of the signal.
            with suppress(Stopped):
                metrics = self.validate(step, state().learnt)
            rates.restart()
        # What was measured is saved with what it was measured of: the best one is one of these.
        if metrics or step % run.checkpoint_every == 0 or last:
            self._save(step, state(), metrics)

    def _save(
        self, step: int, state: train_step.TrainState, metrics: dict[str, float] | None = None
    ) -> None:
        """A checkpoint of a step. Orbax moves arrays in its own ways, so no guard is on here."""
        with jax.transfer_guard("allow"):
            self.checkpoints.save(step, state, self.loader.get_state(), metrics)
