"""A run on disk: Orbax checkpoints of state and data position, beside the run's configuration.

    WORKDIR/config.json     the configuration, written before the first step
    WORKDIR/init.json       the base model's folder and digest (WORKDIR/init/ if it was random)
    WORKDIR/checkpoints/N/  after step N: trainable parameters, adapters of the regularizer, both
                            optimizers, average, step, data position, and what validation measured

Randomness is a function of (seed, step), so that the step is all of its state. A checkpoint is
written under another name and renamed when it is whole: whatever ends the process, the checkpoints
that are there can be loaded. Training saves and resumes here; `infer.py --checkpoint` and `weights
export` read a run through `load_run` and `load_generator`. This is the only module that knows
Orbax, and long because what is written and how it is read back stand side by side.
"""

import dataclasses
import errno
import hashlib
import json
import logging
import math
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import nnx
from jaxtyping import PyTree
from orbax.checkpoint.checkpoint_managers import preservation_policy

from osdhuman_jax.config import Config, ConfigError, Json, SampleConfig, from_dict, to_dict
from osdhuman_jax.disk import file_digest, write_json
from osdhuman_jax.methods import lora
from osdhuman_jax.methods.prompts import FixedPrompter, TagPrompter
from osdhuman_jax.training.experiment import trainable
from osdhuman_jax.training.train_step import TrainState
from osdhuman_jax.weights import (
    DiffBodyModel,
    Model,
    WeightsError,
    add_lora,
    is_generator,
    load_base,
    load_diffbody,
    load_prompter,
)
from osdhuman_jax.weights.generators import Generator
from osdhuman_jax.weights.model_folder import (
    abstract_restorer,
    parameters,
    read_configs,
    read_meta,
)
from osdhuman_jax.weights.torch_files import Tensor

# What may differ between the run that wrote a checkpoint and the one that goes on from it: none of
# it changes what is learnt.
FREE = {
    "run": {
        "log_every",
        "checkpoint_every",
        "keep",
        "best",
        "remat",
        "sample_every",
        "eval_sources",
        "eval_images",
        "eval_crop",
        "eval_height",
        "eval_poses",
        "eval_captions",
        "eval_steps",
    },
    "data": {"workers"},
    "mesh": {"data", "fsdp"},
    "optim": {"accumulate", "max_nonfinite"},
    "use": {"color_fix", "blend", "work_side", "sides", "sample", "strength_of", "keep_faces"},
}

# Orbax's own suffix of a folder that it is still writing.
UNFINISHED = "*.orbax-checkpoint-tmp"
# What Orbax and TensorStore raise where a file cannot be written.
WRITING = (OSError, ValueError, RuntimeError)
_log = logging.getLogger(__name__)


class CheckpointError(ValueError):
    """A workdir that cannot be resumed or restored, in one line."""


class SaveError(Exception):
    """A checkpoint that could not be written, in one line that names the last good one."""


def contradictions(old: Config, new: Config) -> list[str]:
    """`section.field: old -> new` of every difference that would change the run."""
    before, after = to_dict(old), to_dict(new)
    return [
        f"{section}.{name}: {value} -> {after[section][name]}"
        for section, fields in before.items()
        for name, value in fields.items()
        if after[section][name] != value and name not in FREE.get(section, set())
    ]


def check_config(workdir: Path, config: Config) -> None:
    """Raises ConfigError where the run was begun with another configuration."""
    if (workdir / "config.json").exists():
        if found := contradictions(read_config(workdir), config):
            raise ConfigError(f"{workdir} was begun with another config: {'; '.join(found)}")


def read_config(workdir: Path) -> Config:
    """The configuration of a run. Raises CheckpointError if the folder holds no run."""
    path = workdir / "config.json"
    if not path.is_file():
        raise CheckpointError(f"{workdir}: not a training run (no config.json)")
    # A ConfigError is a ValueError too, as is what is no JSON.
    try:
        return from_dict(Config, json.loads(path.read_bytes()))
    except ValueError as error:
        raise CheckpointError(f"{path}: not the configuration of a run ({error})") from error


def record_run(workdir: Path, config: Config, folder: Path, *, write: bool = True) -> None:
    """Note a run's configuration and the base model that it starts from (one process does).

    The model's path is relative if inside the workdir. Raises WeightsError if it was another.
    """
    # A workdir that holds its own base model can be moved or renamed as a whole.
    inside = folder.resolve().is_relative_to(workdir.resolve())
    name = folder.resolve().relative_to(workdir.resolve()) if inside else folder.resolve()
    digest = file_digest(folder / "config.json")
    path = workdir / "init.json"
    if path.exists() and json.loads(path.read_text())["digest"] != digest:
        raise WeightsError(f"{folder}: not the base model that {workdir} was begun with")
    if write:
        write_json(path, {"folder": str(name), "digest": digest})
        write_json(workdir / "config.json", to_dict(config))


@runtime_checkable
class Measured(Protocol):
    """What a policy of Orbax is told of a checkpoint, as far as `Best` reads it."""

    metrics: Json | None


class Best:
    """Orbax's preservation policy that keeps the checkpoint of the best finite metric.

    Orbax's own `BestN` sorts by the metric as it is, and a NaN among them leaves any order.
    """

    def __init__(self, name: str) -> None:
        """`name` is the metric that tells the best one: highest, of LPIPS and losses lowest."""
        self._name, self._sign = name, -1.0 if name in ("val_lpips", "val_loss") else 1.0

    def value(self, metrics: Json | None) -> float:
        """What ranks a checkpoint; without a finite metric it is below all others."""
        value = (metrics or {}).get(self._name)
        return self._sign * value if value is not None and math.isfinite(value) else -math.inf

    def should_preserve(
        self,
        checkpoints: Sequence[Measured],
        *,
        context: preservation_policy.PreservationContext,
    ) -> Sequence[bool]:
        """For each checkpoint, whether it is the best one; of equally good ones the newest is.

        Where no checkpoint has a metric, none is the best.
        """
        values = [self.value(checkpoint.metrics) for checkpoint in checkpoints]
        best = max(range(len(values)), key=lambda i: (values[i], i), default=-1)
        return [i == best and value > -math.inf for i, value in enumerate(values)]


class Checkpoints:
    """The checkpoints of one run, newest and best; saving goes on in the background."""

    def __init__(self, workdir: Path, keep: int, best: str = "val_psnr_y"):
        """`keep` newest ones stay; `best` is the metric that tells the best one (see `Best`)."""
        self._folder = (workdir / "checkpoints").resolve()
        # A process that was killed while it saved has left a part, which Orbax would keep.
        if jax.process_index() == 0:
            for rest in self._folder.glob(UNFINISHED):
                shutil.rmtree(rest)
                _log.warning("dropped a checkpoint that was not finished: %s", rest.name)
        # Kept are the newest ones, to go on from, and the best one, to use.
        best_one = Best(best)
        newest = preservation_policy.LatestN(keep)
        policy = preservation_policy.AnyPreservationPolicy([newest, best_one])
        self._manager = ocp.CheckpointManager(
            self._folder,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policy,
                best_fn=best_one.value,
            ),
        )
        self._failure: SaveError | None = None

    def latest(self) -> int | None:
        """The last step that was saved, after waiting for the save that is under way.

        Where that one fails, the last step is the one before it, and the next call of another
        method raises its SaveError.
        """
        self._settle()
        return self._manager.latest_step()

    def save(
        self,
        step: int,
        state: PyTree,
        position: dict[str, int],
        metrics: dict[str, float] | None = None,
    ) -> None:
        """Save a state pytree and the data loader's position; returns before all is on disk.

        Metrics that are not finite are left out. Raises SaveError where this or the save before it
        fails, as on a full disk; every checkpoint that was there is still there then.
        """
        self._settle()
        self._tell()
        # The last step of a run may have been saved because it was time for it already.
        if step == self._manager.latest_step():
            return
        # State and data position are saved together: one without the other is of no use.
        self._need(sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state)))
        items = {"state": ocp.args.StandardSave(state), "data": ocp.args.JsonSave(position)}
        # Orbax keeps metrics as JSON, which has no NaN.
        finite = {k: v for k, v in (metrics or {}).items() if math.isfinite(v)}
        try:
            self._manager.save(
                step, args=ocp.args.Composite(**items), metrics=finite or None, force=True
            )
        except WRITING as error:
            raise self._failed(error) from error

    def _need(self, size: int) -> None:
        """Raises SaveError where there is no room for `size` bytes, before half is written."""
        free = shutil.disk_usage(self._folder).free
        if free < size:
            reason = f"{size / 1e6:.1f} MB needed, {free / 1e6:.1f} MB free"
            raise self._failed(OSError(errno.ENOSPC, reason))

    def check(self) -> None:
        """Raises SaveError if the save in the background has failed by now."""
        # Not the manager's check_for_errors: that takes the error away from the manager's own
        # thread, which then deletes old checkpoints as if the new one were there.
        if not self._manager.is_saving_in_progress():
            self._settle()
        self._tell()

    def _settle(self) -> None:
        """Wait for the save that is under way; keeps its failure for `_tell`."""
        try:
            self._manager.wait_until_finished()
        except WRITING as error:
            self._failure = self._failed(error)
            self._failure.__cause__ = error

    def _tell(self) -> None:
        """Raises the failure of a save in the background, if it was not raised yet."""
        failure, self._failure = self._failure, None
        if failure:
            raise failure

    def _failed(self, error: Exception) -> SaveError:
        """The SaveError of what Orbax raised; first, half a checkpoint is dropped from the disk."""
        for rest in self._folder.glob(UNFINISHED):
            shutil.rmtree(rest, ignore_errors=True)
        # The manager forgets what the new checkpoint was to replace before that one is written.
        self._manager.reload()
        steps = steps_saved(self._folder.parent)
        good = f"step {steps[-1]} in {self._folder}" if steps else "none, nothing was saved yet"
        reason = re.sub(r"\s+", " ", str(error)).strip()
        return SaveError(f"cannot write a checkpoint; last good state: {good} ({reason:.300})")

    def restore(self, step: int, like: TrainState) -> tuple[TrainState, dict[str, int]]:
        """State (placed and shaped as `like`) and data position of a step.

        Parts of `like` that hold no array are not looked for: a checkpoint that was written before
        the state had such a part is as good. Raises CheckpointError where the files are damaged or
        hold another state.
        """
        # None among the parts: this run has no such part, or the state had none in older versions.
        parts = {f.name: getattr(like, f.name) for f in dataclasses.fields(like)}
        wanted = {name: part for name, part in parts.items() if jax.tree.leaves(part)}
        try:
            found = _restored(self._folder / str(step), wanted)
            position = self._manager.restore(
                step, args=ocp.args.Composite(data=ocp.args.JsonRestore())
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            reason = re.sub(r"\s+", " ", str(error)).strip()
            advice = "damaged; without this folder the run goes on from the checkpoint before"
            raise CheckpointError(
                f"{self._folder / str(step)}: {advice} ({reason:.300})"
            ) from error
        return dataclasses.replace(like, **found), position["data"]

    def close(self) -> None:
        """Wait for the save that is under way. Raises SaveError if it fails."""
        self._settle()
        try:
            self._manager.close()
        except WRITING as error:
            raise self._failed(error) from error
        self._tell()


def _restored(folder: Path, wanted: dict[str, PyTree]) -> dict[str, PyTree]:
    """The parts of a checkpoint's state that are `wanted`, each placed and shaped as given."""
    # Shapes with their sharding: arrays come back on the devices of this run, not of that one. What
    # is not wanted is not read: of a checkpoint's arrays the parameters are a third or less.
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, wanted)
    restore = ocp.args.PyTreeRestore(
        abstract,
        restore_args=ocp.checkpoint_utils.construct_restore_args(abstract),
        partial_restore=True,
    )
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        return checkpointer.restore((folder / "state").resolve(), args=restore)


def _params(workdir: Path, step: int, like: nnx.State, averaged: bool) -> nnx.State:
    """The trainable parameters alone of a checkpoint, or their average."""
    # Where a run keeps an average, that is what it validated, and what is used.
    name = "ema" if averaged else "params"
    return _restored(workdir / "checkpoints" / str(step), {name: like})[name]


def steps_saved(workdir: Path) -> list[int]:
    """Finished checkpoints of a run, in order."""
    # Those that are being written have another name, with letters in it.
    folder = workdir / "checkpoints"
    return sorted(int(p.name) for p in folder.glob("*") if p.name.isdigit())


def load_run(workdir: Path | str, step: int | None = None, *, precision: str = "fp32") -> Model:
    """The restorer of a training run at a step (default: the last), LoRA merged.

    Raises CheckpointError where the folder is no run of kind `restorer` or lacks the step, and
    WeightsError where its base model is gone or changed.
    """
    workdir = Path(workdir)
    config, step = _restorer_run(workdir, step)
    folder = _base_folder(workdir)
    # The base model as the run had it before its first step, adapters and all; then what is learnt.
    restorer, model, adapters = load_base(folder, precision=precision, generator=True)
    restorer.timestep = model.timestep = config.model.timestep
    if not adapters and config.run.train == "lora":
        add_lora(restorer, config.lora, np.random.default_rng(0))
    params = nnx.state(restorer, trainable(config))
    nnx.update(restorer, _params(workdir, step, params, config.optim.ema > 0))
    lora.merge(restorer)
    name = f"{workdir.resolve().name}@{step}"
    return Model(restorer, model, _digest(workdir, step), name, config.use)


def load_control_run(
    workdir: Path | str, step: int | None = None, *, precision: str = "fp32"
) -> DiffBodyModel:
    """The DiffBody of a control run at a step (default: the last): its base with that ControlNet.

    Raises CheckpointError where the folder is no run of kind `control` or lacks the step, and
    WeightsError where its base model is gone or changed.
    """
    workdir = Path(workdir)
    config = read_config(workdir)
    if config.run.kind != "control":
        raise CheckpointError(f"{workdir}: a run of kind {config.run.kind!r}, not 'control'")
    step = _saved_step(workdir, step)
    # The base is a whole DiffBody, whose ControlNet is the untrained one.
    made = load_diffbody(_base_folder(workdir), precision)
    params = nnx.state(made.restorer, trainable(config))
    nnx.update(made.restorer, _params(workdir, step, params, config.optim.ema > 0))
    return dataclasses.replace(
        made,
        digest=_digest(workdir, step),
        name=f"{workdir.resolve().name}@{step}",
        use=config.use,
        abilities=made.abilities._replace(sample=config.use.sample or SampleConfig()),
    )


def load_run_prompter(
    workdir: Path | str, precision: str = "fp32"
) -> FixedPrompter | TagPrompter | None:
    """The prompt extractor of a training run, None where it is HFIE. Raises as `load_run` does."""
    workdir = Path(workdir)
    kind = read_config(workdir).prompt.kind
    return load_prompter(_base_folder(workdir), kind, precision=precision)


def load_generator(workdir: Path | str, step: int | None = None) -> Generator:
    """What a run of kind `restorer` has learnt at a step (default: the last), without its base.

    Raises as `load_run` does.
    """
    workdir = Path(workdir)
    config, step = _restorer_run(workdir, step)
    # Nothing of the base model is left there that a generator could go with.
    if config.run.train == "all":
        raise CheckpointError(f"{workdir}: trained all weights; {workdir}/model is the whole model")
    folder = _base_folder(workdir)
    model, _ = read_configs(folder, read_meta(folder))
    model.timestep = config.model.timestep
    restorer, names = abstract_restorer(model, config.lora)
    params = nnx.state(restorer, lambda path, value: is_generator(config.lora, path, value))
    nnx.update(restorer, _params(workdir, step, params, config.optim.ema > 0))
    learnt = {n: np.asarray(v.get_value()) for n, v in parameters(restorer).items() if n in names}
    tensors = {name: Tensor.of(array) for name, array in learnt.items()}
    files = [workdir / "config.json", workdir / "init.json"]
    where, kind = f"{workdir} at step {step}", config.prompt.kind
    return Generator(config.lora, tensors, where, model, kind, files)


def _restorer_run(workdir: Path, step: int | None) -> tuple[Config, int]:
    """The run's configuration, and the step that is meant, which has a checkpoint."""
    config = read_config(workdir)
    if config.run.kind in ("cleaner", "control"):
        kind, model = config.run.kind, workdir / "model"
        raise CheckpointError(f"{workdir}: a run of kind {kind!r}; use {model} of it")
    if config.run.kind != "restorer":
        raise CheckpointError(f"{workdir}: a run of kind {config.run.kind!r} restores nothing")
    return config, _saved_step(workdir, step)


def _saved_step(workdir: Path, step: int | None) -> int:
    """The step that is meant, the last by default. Raises CheckpointError where it is not there."""
    steps = steps_saved(workdir)
    if not steps or (step is not None and step not in steps):
        have = ", ".join(map(str, steps)) or "none"
        wanted = "" if step is None else step
        raise CheckpointError(f"{workdir}: no checkpoint {wanted} (saved: {have})")
    return steps[-1] if step is None else step


def _base_folder(workdir: Path) -> Path:
    """The model folder that the run started from. Raises WeightsError if it is another one now."""
    # A folder that is gone is not told of here: whoever loads it names the file that is missing.
    recorded = json.loads((workdir / "init.json").read_text())
    folder = workdir / recorded["folder"]
    if (folder / "config.json").is_file():
        if recorded["digest"] != file_digest(folder / "config.json"):
            raise WeightsError(f"{folder}: not the base model that {workdir} was begun with")
    return folder


def _digest(workdir: Path, step: int) -> str:
    """Digest of all that the restorer's output depends on: the base model and the checkpoint."""
    # By it `infer.py` knows whether a picture was restored by this very model.
    base = json.loads((workdir / "init.json").read_text())["digest"]
    files = sorted(p for p in (workdir / "checkpoints" / str(step)).rglob("*") if p.is_file())
    parts = [base, *(file_digest(path) for path in files)]
    return hashlib.sha256("".join(parts).encode()).hexdigest()
