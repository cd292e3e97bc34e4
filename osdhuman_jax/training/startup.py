"""What a run is about to do, in a few plain lines that a person reads before its first step.

Most runs that go wrong go wrong in their settings: the wrong base model, half the devices, a batch
that is not the one meant. The lines say what was found, not what was asked for: the devices that
JAX sees, the parameters that the trees hold, the step that a checkpoint resumed. Nothing is read
from disk or computed here.
"""

from pathlib import Path

import jax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import PyTree

from osdhuman_jax.config import Config, Json, to_dict
from osdhuman_jax.methods.objectives import Frozen
from osdhuman_jax.training.sharding import SLICE
from osdhuman_jax.training.train_step import TrainState


def startup_lines(
    config: Config, mesh: Mesh, state: TrainState, frozen: Frozen, *, workdir: Path, base: Path
) -> list[str]:
    """The lines of a run whose `state` and `frozen` weights are those of its next step.

    `base` is the model folder that the run began from. `state.step` is read from its device.
    """
    # Where the run stands, and what is trained beside the restorer.
    done, run, data = int(jax.device_get(state.step)), config.run, config.data
    beside = {"regularizer": state.reg, "critic": state.critic}
    # A network that is alone in its run has a name for its layers only.
    alone = {"cleaner": "cleaner", "parts": "parser"}.get(run.kind)
    trained = {alone: state.params} if alone else _networks(state.params)
    parts, slices = config.optim.accumulate, mesh.shape.get(SLICE, 1)
    where = f"step {done} in {workdir / 'checkpoints'}" if done else "the first step"
    # A base that was made here says of what.
    drawn = "" if base == Path(run.init) else f" (random weights of seed {run.seed})"
    if run.kind == "control" and drawn:
        drawn = f" ({run.init}, with the cleaner and the ControlNet that it lacked)"
    elif run.init and drawn:
        drawn = f" (VAE and U-Net of {run.init}, a random prompter of seed {run.seed})"
    # From what is general to what is this run's own.
    lines = [
        f"devices: {_devices()}, as a mesh of {_counts(dict(mesh.shape))}",
        f"trained: {_parameters({**trained, **beside})}",
        f"frozen: {_parameters({**_networks(frozen.restorer), 'lpips': frozen.lpips})}",
        f"batch: {data.batch_size} pictures of {data.size[1]} x {data.size[0]}"
        + (f", each of {slices} slices its share" if slices > 1 else "")
        + (f", in {parts} parts one after the other" if parts > 1 else "")
        + (", of each of which `dice` is taken" if config.loss.dice and parts * slices > 1 else ""),
        f"steps: {run.steps}, of which {run.steps - done} are to do, from {where}",
        f"base model: {base}{drawn}",
        f"written to: {workdir}",
    ]
    return lines + _changed_settings(config)


def _devices() -> str:
    """All devices of all processes, as in `8 x NVIDIA H100 80GB HBM3 in 2 processes`."""
    # The first one's name stands for all: JAX runs on devices of one kind.
    processes = jax.process_count()
    kind = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    return f"{kind} in {processes} process{'es' if processes > 1 else ''}"


def _counts(sizes: dict[str, int]) -> str:
    return " x ".join(f"{name} {size}" for name, size in sizes.items())


def _networks(state: nnx.State) -> dict[str, PyTree]:
    """The networks of a restorer's state by name."""
    return {str(name): state[name] for name in state}


def _parameters(trees: dict[str, PyTree]) -> str:
    """How many numbers the trees hold, as in `3.21 million parameters (unet 3.1, vae 0.11)`."""
    # Empty trees, as of a critic that a run does not have, are not named.
    sizes = {name: sum(x.size for x in jax.tree.leaves(tree)) for name, tree in trees.items()}
    named = ", ".join(f"{name} {size / 1e6:.3g}" for name, size in sizes.items() if size)
    return f"{sum(sizes.values()) / 1e6:.3g} million parameters ({named or 'none'})"


def _changed_settings(config: Config) -> list[str]:
    """A line for each section with settings unlike the defaults; the model's sizes come last."""
    ours, defaults = _flat(to_dict(config)), _flat(to_dict(Config()))
    sections: dict[str, list[str]] = {}
    for name, value in ours.items():
        # A table that is not there by default, two prompts or a cleaner, has no sizes there.
        if defaults.get(name) != value:
            section, _, setting = name.rpartition(".")
            sections.setdefault(section, []).append(f"{setting} {value!r}")
    if not sections:
        return ["settings: all as the paper has them"]
    # A small model differs in twenty sizes, which a person reads after what the run does.
    order = sorted(
        sections, key=lambda section: section.split(".")[0] in ("model", "cleaner", "parser")
    )
    lines = [f"  {section}: {', '.join(sections[section])}" for section in order]
    return ["settings that differ from the defaults:", *lines]


def _flat(values: Json, prefix: str = "") -> Json:
    """The settings of a config's plain dict by their whole names: {"optim.b1": 0.9, ...}."""
    found: Json = {}
    for name, value in values.items():
        inner = _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else None
        found |= {f"{prefix}{name}": value} if inner is None else inner
    return found
