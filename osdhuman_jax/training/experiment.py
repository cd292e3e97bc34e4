"""An experiment before its first step: its config checked, its base model loaded.

Whatever a person can get wrong in a configuration is said here in one line, before anything is made
or compiled. Then the base model of `run.init` becomes the model that is trained: with LoRA where
the restorer learns (section 4.1 of the paper), and with its frozen weights in the precision in
which they compute.
"""

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from osdhuman_jax.config import (
    Config,
    ConfigError,
    DataConfig,
    Json,
    ModelConfig,
    check_types,
    to_dict,
)
from osdhuman_jax.data.captions import open_captions
from osdhuman_jax.data.part_maps import open_part_maps
from osdhuman_jax.data.sources import DataError, open_sources
from osdhuman_jax.data.structures import open_structures
from osdhuman_jax.disk import file_digest, staged_folder
from osdhuman_jax.methods.cleaner import CleanerNetwork
from osdhuman_jax.methods.objectives import OBJECTIVES
from osdhuman_jax.methods.osdhuman import OneStepRestorer
from osdhuman_jax.methods.schedule import Schedule
from osdhuman_jax.networks import remat
from osdhuman_jax.networks.performer import FixedParam
from osdhuman_jax.training import diffbody
from osdhuman_jax.weights import (
    CLEANER,
    WeightsError,
    add_lora,
    copy_parts,
    is_generator,
    load_base,
    load_cleaner,
    random_restorer,
    save_model,
)
from osdhuman_jax.weights.choices import PROMPTS
from osdhuman_jax.weights.cleaners import abstract_network, random_cleaner, save_cleaner
from osdhuman_jax.weights.model_folder import CONFIG, DTYPES, RESTORER, read_configs, read_meta

# Settings that may not be 0.
POSITIVE = (
    *("lora.rank", "loss.reg_updates", "data.batch_size", "data.crop"),
    *("optim.learning_rate", "optim.eps", "optim.clip_norm"),
    *("optim.accumulate", "optim.max_nonfinite"),
    *("run.steps", "run.log_every", "run.checkpoint_every", "run.keep"),
    *("run.eval_images", "run.eval_crop", "run.eval_steps"),
)
# Settings below 1, and settings that are 1 at most.
METRICS = ("val_psnr_y", "val_ssim_y", "val_lpips")  # of restored pictures
DECAYS = ("optim.b1", "optim.b2", "optim.ema")
SHARES = (
    *("data.labelled_share", "data.teacher_share", "data.gray", "use.blend"),
    *(f"control.drop_{name}" for name in ("joints", "pose", "attention", "text")),
)


def check(config: Config) -> None:
    """Raise ConfigError where a value contradicts another or asks for what is not there."""
    # A flag's text that is no tuple is read as a tuple of words.
    check_types(config)
    # Settings that are one of a few words.
    choices = {
        "run.kind": (config.run.kind, tuple(OBJECTIVES)),
        "run.train": (config.run.train, ("lora", "all")),
        "run.precision": (config.run.precision, tuple(DTYPES)),
        "run.latent": (config.run.latent, ("sample", "mode")),
        "run.remat": (config.run.remat, tuple(remat.POLICIES)),
        "run.best": (config.run.best, (*METRICS, diffbody.MEASURED)),
        "prompt.kind": (config.prompt.kind, PROMPTS),
        "prompt.source": (config.prompt.source, ("lq", "hq")),
        "loss.reg_lora_scope": (config.loss.reg_lora_scope, ("all", "mid")),
        "optim.schedule": (config.optim.schedule, ("constant", "cosine")),
    }
    for name, (value, allowed) in choices.items():
        if value not in allowed:
            raise ConfigError(f"{name}: {value!r} is none of {', '.join(allowed)}")
    _check_numbers(config)
    # Settings that go together, or do not.
    if not config.data.sources:
        raise ConfigError("data.sources: name at least one folder of pictures or ArrayRecord file")
    if config.run.kind in ("restorer", "dpg", "cleaner", "control") and not config.data.degrade:
        raise ConfigError("data.degrade: the restorer trains on degraded pictures, set it to True")
    _check_dual(config)
    _check_cleaner(config)
    diffbody.check(config)
    if config.run.kind == "restorer" and config.run.train == "all" and config.loss.vsd:
        raise ConfigError(
            "loss.vsd: a run that trains all weights leaves no frozen U-Net: set it to 0"
        )
    if config.run.kind in ("vae", "diffusion") and config.prompt.kind != "hfie":
        raise ConfigError(f"prompt.kind: a run of kind {config.run.kind!r} has HFIE prompts only")


def _check_dual(config: Config) -> None:
    """Raise ConfigError where HAODiff's two prompts, its stage 1 or its critic do not fit."""
    dual, kind, weights = config.model.dual, config.run.kind, config.loss
    if (config.prompt.kind == "dual") != (dual is not None):
        raise ConfigError("prompt.kind: it is 'dual' for models with model.dual, and for no other")
    if weights.gan and (weights.adversarial or weights.features):
        raise ConfigError("loss.gan: a run has one critic, of latents or of pictures: set one to 0")
    if weights.gan and config.run.train == "all":
        raise ConfigError("loss.gan: a run that trains all weights leaves no frozen U-Net for it")
    if kind != "dpg":
        return
    # The first stage sees pictures at the extractor's own size, and learns what moved in them.
    if dual is None or not dual.upsamplers:
        raise ConfigError("run.kind: 'dpg' trains a model whose model.dual has upsamplers")
    for name, side, height in (
        ("data.crop", config.data.crop, config.data.crop_height),
        ("run.eval_crop", config.run.eval_crop, config.run.eval_height),
    ):
        if {side, height or side} != {dual.image_size}:
            raise ConfigError(f"{name}: {side} is not model.dual.image_size, {dual.image_size}")
    if not config.data.mask:
        raise ConfigError("data.mask: a run of kind 'dpg' learns what moved, set it to True")


def _check_cleaner(config: Config) -> None:
    """Raise ConfigError where a cleaner's sizes make no network that a run can train."""
    given = [sizes for sizes in (config.cleaner.swinir, config.cleaner.rrdbnet) if sizes]
    if len(given) != (config.run.kind == "cleaner"):
        raise ConfigError("cleaner: a run of kind 'cleaner' has swinir or rrdbnet, no other has")
    for sizes in given:
        try:
            abstract_network(sizes, "cleaner")
        except WeightsError as error:
            raise ConfigError(str(error)) from error
        # The degraded pictures of training are as large as the originals.
        if sizes.scale != 1:
            raise ConfigError(f"cleaner: enlarges {sizes.scale} times; one that keeps the size")


def _check_numbers(config: Config) -> None:
    """Every number finite and, but for the mesh's -1, not negative; then what each is bound by."""
    for name, value in _numbers(to_dict(config)):
        if not math.isfinite(value):
            raise ConfigError(f"{name}: {value} is no finite number")
        if value < 0 and not name.startswith("mesh."):
            raise ConfigError(f"{name}: {value} is negative")
        if value == 0 and name in POSITIVE:
            least = "at least 1" if isinstance(value, int) else "above 0"
            raise ConfigError(f"{name}: {value} must be {least}")
        if value >= 1 and name in DECAYS:
            raise ConfigError(f"{name}: {value} is not in [0, 1)")
        if value > 1 and (name in SHARES or name.endswith("_prob")):
            raise ConfigError(f"{name}: {value} is more than 1")
    # Every device gets as many pictures of every part of a batch as the others.
    ways = jax.device_count() * config.optim.accumulate
    if config.data.batch_size % ways:
        text = f"{jax.device_count()} device(s) x {config.optim.accumulate} part(s)"
        raise ConfigError(f"data.batch_size: {config.data.batch_size} does not divide among {text}")
    # Timesteps of the two ranges of Eqs. 6 and 7 must be in the schedule.
    for name in ("vsd_timesteps", "reg_timesteps"):
        bounds = getattr(config.loss, name)
        if not 0 <= bounds[0] < bounds[1] <= Schedule.num_train_timesteps:
            raise ConfigError(f"loss.{name}: {bounds} is no range within (0, 1000)")


def _numbers(value: object, name: str = "") -> Iterator[tuple[str, float]]:
    """Every number of a config's plain dict with the name of its setting, as "optim.b1"."""
    # True and False are numbers to Python, and none to a person.
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _numbers(inner, f"{name}.{key}" if name else key)
    elif isinstance(value, list):
        for inner in value:
            yield from _numbers(inner, name)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield name, value


def check_sources(config: Config) -> None:
    """Raise ConfigError where the data or the base model's folder are missing."""
    # Opening lists the files, and reads none of the pictures.
    for name, paths in (
        ("data.sources", config.data.sources),
        ("run.eval_sources", config.run.eval_sources),
    ):
        try:
            if paths:
                open_sources(paths)
        except (DataError, OSError) as error:
            raise ConfigError(f"{name}: {error}") from error
    try:
        source = open_sources(config.data.sources)
        for open_ in (open_part_maps, open_structures, open_captions):
            open_(config.data, source)
        if config.run.eval_sources:
            validated, source = eval_data(config), open_sources(config.run.eval_sources)
            for open_ in (open_structures, open_captions):
                open_(validated, source)
    except (DataError, OSError) as error:
        raise ConfigError(f"data: {error}") from error
    if config.run.kind in diffbody.KINDS:
        diffbody.check_folders(config)
    elif config.run.init:
        read_meta(Path(config.run.init), CLEANER if config.run.kind == "cleaner" else RESTORER)


def eval_data(config: Config) -> DataConfig:
    """Where the pictures of the validation come from, and what is known of them."""
    run, data = config.run, config.data
    if not run.eval_sources:
        return data
    known = {"poses": run.eval_poses, "captions": run.eval_captions, "parts": ()}
    return replace(data, sources=run.eval_sources, **known)


def trainable(config: Config) -> nnx.filterlib.Filter:
    """Which parameters of a restorer a run trains: a filter for `nnx.split` and `nnx.state`."""
    if config.run.kind == "restorer" and config.run.train == "all":
        # HAODiff's extractor is the first stage's, and random projections stay as they were drawn.
        fixed = nnx.Any(nnx.PathContains("feature_extractor"), FixedParam)
        return nnx.All(nnx.Param, nnx.Not(fixed)) if config.model.dual else nnx.Param
    return {
        "cleaner": nnx.Param,
        "parts": nnx.Param,
        "control": nnx.PathContains("control"),
        "vae": nnx.PathContains("vae"),
        "dpg": nnx.PathContains("feature_extractor"),
        "diffusion": nnx.Any(nnx.PathContains("unet"), nnx.PathContains("prompter")),
        "restorer": partial(is_generator, config.lora),
    }[config.run.kind]


def base_folder(config: Config, workdir: Path) -> Path:
    """The model folder a run starts from: `run.init`, else WORKDIR/init, which is made here.

    WORKDIR/init has random weights; where `run.init` is a model of one prompt and the config's has
    two, or the other way round, it has that model's VAE and U-Net; in a control run it is
    `run.init` with what that lacks. Raises ConfigError where these are of other sizes than the
    config's, WeightsError where `run.init` is no base model.
    """
    given = Path(config.run.init) if config.run.init else None
    control = config.run.kind == "control"
    if given and not (other_prompts(config, given) or (control and not diffbody.is_whole(config))):
        return given
    # One process makes it; the others wait in the loop.
    folder = workdir / "init"
    if not (folder / "config.json").exists() and jax.process_index() == 0:
        sizes = config.cleaner.sizes
        provenance: Json = {"random_seed": config.run.seed}
        with staged_folder(folder, replace=True) as made:
            if control:
                diffbody.make_whole(config, made)
            elif sizes:
                network = random_cleaner(sizes, config.run.seed)
                save_cleaner(made, sizes, network, provenance=provenance)
            else:
                model, restorer = config.model, random_restorer(config.model, config.run.seed)
                if given:
                    model = _take_networks(config, given, restorer)
                    provenance["vae_and_unet"] = file_digest(given / CONFIG)
                save_model(made, model, restorer, provenance=provenance)
                if given:
                    copy_parts(given, made)
    return folder


def prepare_cleaner(config: Config, folder: Path, precision: str | None = None) -> CleanerNetwork:
    """The cleaner of a folder, whose sizes must be those of `config.cleaner`."""
    found = load_cleaner(folder, precision=precision or config.run.precision)
    if found.config != config.cleaner.sizes:
        raise ConfigError(f"cleaner: its sizes differ from those of {folder}: {found.config}")
    return found.restorer


def other_prompts(config: Config, folder: Path) -> bool:
    """Whether a model folder has one prompt where the config's model has two, or two for one."""
    # A folder that is gone is told of where it is loaded; a cleaner has no prompts, and DiffBody's
    # runs take them as they are.
    alone = config.cleaner.sizes or config.run.kind in diffbody.KINDS
    if alone or not (folder / CONFIG).is_file():
        return False
    found, _ = read_configs(folder, read_meta(folder))
    return (found.dual is None) != (config.model.dual is None)


def _take_networks(config: Config, folder: Path, restorer: OneStepRestorer) -> ModelConfig:
    """Put a folder's VAE and U-Net into a restorer, in place; returns its sizes then."""
    theirs, found, _ = load_base(folder)
    # The latent's scaling factor is no size: it comes with the VAE's weights.
    vae = replace(config.model.vae, scaling_factor=found.vae.scaling_factor)
    model = replace(config.model, vae=vae)
    ours, other = to_dict(model), to_dict(found)
    if names := [name for name in ("vae", "unet") if ours[name] != other[name]]:
        raise ConfigError(f"model.{', model.'.join(names)}: differ from those of {folder}")
    restorer.vae, restorer.unet = theirs.vae, theirs.unet
    return model


def prepare(
    config: Config, folder: Path, precision: str | None = None
) -> tuple[OneStepRestorer, ModelConfig]:
    """The model of a folder, with LoRA injected where the restorer is trained.

    A folder that holds a generator goes on with its LoRA and HFIE. An architecture is a property of
    weights: `config.model` must equal the folder's, but for the latent's scaling factor (measured
    after the autoencoder's training) and the timestep.
    """
    # Adapters that the folder holds are gone on with: they must be what the config asks for.
    trains_lora = config.run.kind == "restorer" and config.run.train == "lora"
    restorer, found, adapters = load_base(
        folder, precision=precision or config.run.precision, generator=trains_lora
    )
    if adapters and adapters != config.lora:
        raise ConfigError(f"lora: {config.lora} differs from that of {folder}: {adapters}")
    if adapters and config.lora.train_conv_in and config.loss.vsd:
        text = f"{folder} holds a trained one, the frozen regularizer needs the base model's"
        raise ConfigError(
            f"lora.train_conv_in: {text}: start from the base model, or set loss.vsd=0"
        )
    # So must the networks' sizes, but for the two numbers that are no property of a weight's shape.
    found.timestep = restorer.timestep = config.model.timestep
    diffbody.check_sizes(config, found, folder)
    # Else new ones, drawn by the run's seed.
    if trains_lora and not adapters:
        add_lora(restorer, config.lora, np.random.default_rng(config.run.seed))
    return restorer, found


def store_as_computed(model: nnx.Module, trained: nnx.filterlib.Filter) -> None:
    """Keep frozen weights as they are computed with: in bfloat16, in layers that compute in it.

    Results do not change. Norms and the layers around the latent compute in float32, and what is
    trained adds up small updates; these stay as they are. The model is changed in place.
    """
    # An update of 1e-5 of a weight is lost in bfloat16, which has less than three digits.
    kept = {path for path, _ in nnx.to_flat_state(nnx.state(model, trained))}
    for path, layer in nnx.iter_modules(model):
        if isinstance(layer, (nnx.Linear, nnx.Conv)) and layer.dtype == jnp.bfloat16:
            for name in ("kernel", "bias"):
                variable = getattr(layer, name)
                if variable is not None and (*path, name) not in kept:
                    variable.set_value(variable[...].astype(jnp.bfloat16))
