"""DiffBody's runs before their first step and after their last: kinds "control" and "parts".

Both add a network to a model folder, `run.init`: a ControlNet that is trained among frozen networks
(its cleaner among them), or the parser of parts of the body, which is trained alone. Both go on
with the part of that name if the folder has one. The result is a copy of the folder with the
trained part in its place.

A control run begins from a folder that has all its networks. Where `run.init` lacks its ControlNet,
or `run.cleaner` names another cleaner, such a folder is made: WORKDIR/init.
"""

import math
from pathlib import Path

import numpy as np
from flax import nnx

from osdhuman_jax.config import Config, ConfigError, ModelConfig, to_dict
from osdhuman_jax.disk import write_json
from osdhuman_jax.methods.body_parts import PARTS
from osdhuman_jax.methods.diffbody import DiffBody
from osdhuman_jax.networks.part_parser import STRIDE, PartParser
from osdhuman_jax.weights import CLEANER, load_base, load_part, save_part
from osdhuman_jax.weights.choices import CONDITIONS, FROM_UNET
from osdhuman_jax.weights.cleaners import cleaner_part, read_cleaner
from osdhuman_jax.weights.controls import local_control
from osdhuman_jax.weights.diffusion import Diffusion
from osdhuman_jax.weights.extractors import check_kind
from osdhuman_jax.weights.model_folder import (
    BASE,
    CONFIG,
    DTYPES,
    IMPOSSIBLE,
    abstract,
    copy_model,
    draw_parameters,
    read_configs,
    read_meta,
    verify,
)
from osdhuman_jax.weights.parts import part_config, put_parts
from osdhuman_jax.weights.torch_files import load

CONTROL, PARSER = "control", "parts"  # kinds of runs
KINDS = (CONTROL, PARSER)
MEASURED = "val_loss"  # what both validate, the less the better


# What may be wrong -------------------------------------------------------------------------------


def check(config: Config) -> None:
    """Raise ConfigError where settings do not fit a run of these kinds, or those of another."""
    kind, conditions = config.run.kind, config.control
    if config.prompt.kind == "text" and kind != CONTROL:
        raise ConfigError("prompt.kind: 'text' is of runs of kind 'control' alone")
    if (config.run.best == MEASURED) != (kind in KINDS) and kind != CONTROL:
        text = "is what it is measured by" if kind == PARSER else "is of kinds control and parts"
        raise ConfigError(f"run.best: {config.run.best!r} with kind {kind!r}: {MEASURED} {text}")
    if kind != CONTROL and config.run.cleaner:
        raise ConfigError("run.cleaner: only a run of kind 'control' has one beside it")
    if kind not in KINDS:
        return
    if not config.run.init:
        raise ConfigError(f"run.init: a run of kind {kind!r} adds to a model folder, name one")
    # What is seen of people must come from somewhere.
    told = conditions.pose or conditions.attention or config.loss.attention or kind == PARSER
    if told and not config.data.poses:
        raise ConfigError("data.poses: nothing is known of people: name the folder of their poses")
    if kind == PARSER and config.run.eval_sources and not config.run.eval_poses:
        raise ConfigError("run.eval_poses: labels are drawn around joints: name the folder of them")
    if kind == PARSER and config.parser.num_parts != len(PARTS):
        raise ConfigError(f"parser.num_parts: labels are of {len(PARTS)} parts, {', '.join(PARTS)}")
    if kind == PARSER:
        _check_multiple(config, STRIDE)
    if kind == CONTROL and config.prompt.kind not in ("hfie", "text"):
        raise ConfigError("prompt.kind: of a control run it is 'hfie' or 'text'")


def _check_multiple(config: Config, factor: int) -> None:
    """Raise ConfigError where a side of the pictures is no multiple of what a network needs."""
    run = config.run
    sizes = {"data.crop": config.data.size, "run.eval_crop": (run.eval_height, run.eval_crop)}
    for name, size in sizes.items():
        if any(side % factor for side in size):
            raise ConfigError(f"{name}: sides are to be multiples of {factor}")


def check_folders(config: Config) -> None:
    """Raise ConfigError or WeightsError where `run.init` or `run.cleaner` lack what is needed."""
    init = Path(config.run.init)
    meta = read_meta(init)
    if config.run.kind != CONTROL:
        return
    if (found := meta.get("prompt", "hfie")) != config.prompt.kind:
        raise ConfigError(f"prompt.kind: {config.prompt.kind!r}, that of {init} is {found!r}")
    check_kind(init, meta, config.prompt.kind)
    if config.run.cleaner:
        read_meta(Path(config.run.cleaner), CLEANER)
    elif "cleaner" not in meta.get("parts", {}):
        raise ConfigError(f"run.cleaner: {init} has no part 'cleaner': name the folder of one")
    if "control" in meta.get("parts", {}):
        _check_control(config, init)


def _check_control(config: Config, folder: Path) -> None:
    """Raise ConfigError where a folder's ControlNet has other conditions than the config's."""
    have, want = part_config(folder, read_meta(folder), "control"), config.control
    if (have.pose, have.attention) != (want.pose, want.attention):  # type: ignore[union-attr]
        raise ConfigError(f"control: pose or attention differ from those of {folder}: {have}")


def check_sizes(
    config: Config, found: ModelConfig, folder: Path, names: tuple[str, ...] = ()
) -> None:
    """Raise ConfigError where `config.model` differs from a folder's, in `names` or at all.

    The latent's scaling factor is measured after the autoencoder's training, and may.
    """
    ours, theirs = to_dict(config.model), to_dict(found)
    ours["vae"]["scaling_factor"] = found.vae.scaling_factor
    if differ := [name for name in names or ours if ours[name] != theirs[name]]:
        raise ConfigError(f"model.{', model.'.join(differ)}: differ from those of {folder}")


# Before the first step ---------------------------------------------------------------------------


def is_whole(config: Config) -> bool:
    """Whether `run.init` has all that a control run begins with."""
    parts = read_meta(Path(config.run.init)).get("parts", {})
    return {"control", "cleaner"} <= set(parts) and not config.run.cleaner


def make_whole(config: Config, target: Path) -> None:
    """Copy `run.init` with the cleaner of `run.cleaner` and, if it has none, a ControlNet.

    A ControlNet begins as the U-Net's encoder, with zeros for what that does not have.
    """
    source = Path(config.run.init)
    meta, parts = read_meta(source), {}
    if config.run.cleaner:
        parts["cleaner"] = cleaner_part(read_cleaner(config.run.cleaner))
    if "control" not in meta.get("parts", {}):
        verify(source, meta, BASE)
        without = [name for name in CONDITIONS if not getattr(config.control, name)]
        model, _ = read_configs(source, meta)
        diffusion = Diffusion(model.vae, model.unet, load(source / BASE), [])
        parts["control"] = local_control(FROM_UNET, without)(diffusion)
    copy_model(source, target, without=[f"{name}.safetensors" for name in parts])
    put_parts(target, parts)


def prepare_control(config: Config, folder: Path) -> DiffBody:
    """All networks of a folder, whose sizes must be those of `config.model`."""
    precision = config.run.precision
    restorer, found, _ = load_base(folder, precision=precision)
    # A model that is told texts has no prompter, whose sizes then say nothing.
    own = () if found.text else ("swin", "hfie")
    check_sizes(config, found, folder, ("vae", "unet", "text", "dual", *own))
    _check_control(config, folder)
    control = load_part(folder, "control", precision=precision)
    cleaner = load_part(folder, "cleaner", precision=precision)
    model = DiffBody(restorer.vae, restorer.unet, control, cleaner, restorer.prompter)
    _check_multiple(config, math.lcm(restorer.vae.downscale, cleaner.scale))
    return model


def prepare_parser(config: Config, folder: Path, precision: str | None = None) -> PartParser:
    """The parser of a folder, or a random one of the run's seed where it has none."""
    precision = precision or config.run.precision
    meta = read_meta(folder)
    if "parser" in meta.get("parts", {}):
        if (found := part_config(folder, meta, "parser")) != config.parser:
            raise ConfigError(f"parser: its sizes differ from those of {folder}: {found}")
        return load_part(folder, "parser", precision=precision)
    try:
        make = DTYPES[precision]
        parser = abstract(lambda rngs: PartParser(config.parser, dtype=make, rngs=rngs))
    except IMPOSSIBLE as error:
        raise ConfigError(f"parser: sizes that make no network: {error!s:.200}") from error
    draw_parameters(parser, np.random.default_rng(config.run.seed))
    return parser


# After the last step -----------------------------------------------------------------------------


def write_result(config: Config, base: Path, folder: Path, params: nnx.State) -> None:
    """Write a copy of the model folder `base` with what was learnt as its part."""
    run = config.run
    if run.kind == CONTROL:
        name, network = "control", load_part(base, "control")
        sizes = part_config(base, read_meta(base), "control")
        nnx.update(network, params["control"])
    else:
        name, network, sizes = "parser", prepare_parser(config, base, "fp32"), config.parser
        nnx.update(network, params)
    copy_model(base, folder, without=[f"{name}.safetensors"])
    save_part(folder, name, sizes, network)
    # Where it comes from, and how a whole DiffBody is best used: a parser says nothing of that.
    meta = read_meta(folder)
    learnt = {name: {"kind": run.kind, "steps": run.steps, "seed": run.seed}}
    meta["provenance"] = meta.get("provenance", {}) | learnt
    if run.kind == CONTROL:
        meta["use"] = to_dict(config.use)
    write_json(folder / CONFIG, meta)
