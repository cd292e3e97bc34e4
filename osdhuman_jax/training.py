"""One jitted, donated training step for three kinds of run, and what surrounds it.

    vae        autoencoder on HQ pictures                      trains the VAE
    diffusion  eps-prediction on HQ latents, HFIE(HQ) prompt   trains U-Net, Swin and HFIE
    restorer   the paper's generator (section 3.2)             trains LoRA and HFIE

The first two make a small base model where none can be had; the third is OSDHuman. All train the
`Restorer`: `trainable` says which of its parameters, `OBJECTIVES` by which loss.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array
from jax.sharding import Mesh

from osdhuman_jax import losses
from osdhuman_jax.config import Config, ConfigError, LossConfig, ModelConfig, OptimConfig, to_dict
from osdhuman_jax.metrics import psnr_y, ssim_y
from osdhuman_jax.restorer import Restorer
from osdhuman_jax.schedule import Schedule
from osdhuman_jax.sharding import batch_sharding, replicated, weight_sharding
from osdhuman_jax.types import Image
from osdhuman_jax.weights import (
    add_lora,
    is_generator,
    load_base,
    random_restorer,
    save_model,
)

Batch = Mapping[str, Array]
Scalars = dict[str, Array]
Objective = Callable[[Restorer, Batch, Array], tuple[Array, Scalars]]


@jax.tree_util.register_dataclass
@dataclass
class TrainState:
    """What a step changes and a checkpoint holds."""

    step: Any  # int32 scalar array: updates done; Any, since shapes pass here too
    params: nnx.State  # the trainable part of the restorer, float32
    opt_state: optax.OptState


def check(config: Config) -> None:
    """Raise ConfigError where a value contradicts another or asks for what is not there."""
    choices = {
        "run.kind": (config.run.kind, tuple(OBJECTIVES)),
        "run.precision": (config.run.precision, ("fp32", "bf16")),
        "run.latent": (config.run.latent, ("sample", "mode")),
        "optim.schedule": (config.optim.schedule, ("constant", "cosine")),
    }
    for name, (value, allowed) in choices.items():
        if value not in allowed:
            raise ConfigError(f"{name}: {value!r} is none of {', '.join(allowed)}")
    if config.run.kind == "restorer" and (config.loss.lpips or config.loss.vsd):
        raise ConfigError(
            "loss.lpips and loss.vsd: this version trains the generator with the MSE term only; "
            "set both to 0"
        )
    if config.data.batch_size < 1 or config.data.batch_size % jax.device_count():
        size, devices = config.data.batch_size, jax.device_count()
        raise ConfigError(f"data.batch_size: {size} does not divide among {devices} device(s)")
    if not config.data.sources:
        raise ConfigError("data.sources: name at least one folder of pictures or ArrayRecord file")
    if config.run.kind == "restorer" and not config.data.degrade:
        raise ConfigError("data.degrade: the restorer trains on degraded pictures, set it to True")


def trainable(config: Config) -> nnx.filterlib.Filter:
    """Which parameters a run trains."""
    return {
        "vae": nnx.PathContains("vae"),
        "diffusion": nnx.Any(nnx.PathContains("unet"), nnx.PathContains("prompter")),
        "restorer": partial(is_generator, config.lora),
    }[config.run.kind]


def base_folder(config: Config, workdir: Path) -> Path:
    """The model folder a run starts from: `run.init`, else WORKDIR/init with random weights."""
    if config.run.init:
        return Path(config.run.init)
    folder = workdir / "init"
    if not (folder / "config.json").exists():
        random = random_restorer(config.model, config.run.seed)
        save_model(folder, config.model, random, provenance={"random_seed": config.run.seed})
    return folder


def prepare(config: Config, folder: Path) -> tuple[Restorer, ModelConfig]:
    """The base model of a folder, with LoRA injected where the restorer is trained.

    An architecture is a property of weights: `config.model` must equal the folder's, but for the
    latent's scaling factor (measured after the autoencoder's training) and the timestep.
    """
    restorer, found, _ = load_base(folder, precision=config.run.precision)
    found.timestep = restorer.timestep = config.model.timestep
    ours, theirs = to_dict(config.model), to_dict(found)
    ours["vae"]["scaling_factor"] = found.vae.scaling_factor
    if ours != theirs:
        names = [k for k in ours if ours[k] != theirs[k]]
        raise ConfigError(f"model.{', model.'.join(names)}: differ from those of {folder}")
    if config.run.kind == "restorer":
        add_lora(restorer, config.lora, np.random.default_rng(config.run.seed))
    return restorer, found


# Objectives: (restorer, batch of images in [-1, 1], key) -> (loss, scalars to log).


def vae_objective(config: LossConfig, model: Restorer, batch: Batch, key: Array):
    """Squared error of the reconstruction from a posterior sample, in RGB and colour, and KL."""
    mean, logvar = model.vae.encode(batch["hq"])
    latent = mean + jnp.exp(0.5 * logvar) * jax.random.normal(key, mean.shape)
    image = model.vae.decode(latent)
    parts = {
        "mse": losses.mse(image, batch["hq"]),
        "chroma": losses.chroma(image, batch["hq"]),
        "kl": losses.kl(mean, logvar),
    }
    loss = config.mse * parts["mse"] + config.chroma * parts["chroma"] + config.kl * parts["kl"]
    return loss, parts


def diffusion_objective(config: LossConfig, model: Restorer, batch: Batch, key: Array):
    """Eps-prediction on latents of HQ pictures, all timesteps alike, prompted by the pictures."""
    del config
    k_latent, k_t, k_noise = jax.random.split(key, 3)
    z0 = jax.lax.stop_gradient(model.encode(batch["hq"], k_latent))
    t = jax.random.randint(k_t, z0.shape[:1], 0, Schedule.num_train_timesteps)
    noise = jax.random.normal(k_noise, z0.shape)
    eps = model.unet(Schedule().add_noise(z0, noise, t), t, model.prompter(batch["hq"]))
    loss = losses.mse(eps, noise)
    return loss, {"diffusion": loss}


def generator_objective(
    config: LossConfig, sample_latent: bool, model: Restorer, batch: Batch, key: Array
):
    """Eq. 3 so far as it needs no other network: the data term.

    The perceptual term takes `image`, the VSD term (Eq. 6) `latent`; both add to the sum here. The
    regularizer's own loss (Eq. 7) is a second update in the step, on `latent` detached.
    """
    lq, hq = batch["lq"], batch["hq"]
    latent = model.denoise(model.encode(lq, key if sample_latent else None), model.prompter(lq))
    image = model.vae.decode(latent / model.vae.scaling_factor)
    clipped = jnp.clip(image, -1.0, 1.0)
    parts = {"mse": losses.mse(clipped, hq), "clamp_rate": jnp.mean(jnp.abs(image) > 1.0)}
    loss = config.mse * parts["mse"]
    if config.structure:
        parts["structure"] = losses.structure(clipped, hq)
        loss = loss + config.structure * parts["structure"]
    return loss, parts


OBJECTIVES: dict[str, Callable[..., Any]] = {
    "vae": vae_objective,
    "diffusion": diffusion_objective,
    "restorer": generator_objective,
}


def make_objective(config: Config) -> Objective:
    """The objective of `run.kind`, with its options bound."""
    objective = partial(OBJECTIVES[config.run.kind], config.loss)
    if config.run.kind == "restorer":
        objective = partial(objective, config.run.latent == "sample")
    return objective


def learning_rate(config: OptimConfig, steps: int) -> optax.Schedule:
    """Linear warm-up, then constant or cosine decay to zero at the last step."""
    after = max(steps - config.warmup_steps, 1)
    peak = config.learning_rate
    main = (
        optax.constant_schedule(peak)
        if config.schedule == "constant"
        else optax.cosine_decay_schedule(peak, after)
    )
    warmup = optax.linear_schedule(0.0, peak, max(config.warmup_steps, 1))
    return optax.join_schedules([warmup, main], [config.warmup_steps])


def make_optimizer(config: OptimConfig, steps: int) -> optax.GradientTransformation:
    """AdamW with decoupled decay after clipping by the global norm (section 4.1)."""
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(
            learning_rate(config, steps),
            b1=config.b1,
            b2=config.b2,
            eps=config.eps,
            weight_decay=config.weight_decay,
        ),
    )


def to_images(batch: Mapping[str, Array | np.ndarray]) -> dict[str, Image]:
    """uint8 pictures of a batch as float32 in [-1, 1]."""
    pictures = {k: jnp.asarray(batch[k], jnp.float32) for k in ("hq", "lq") if k in batch}
    return {k: picture / 127.5 - 1.0 for k, picture in pictures.items()}


def init_state(params: nnx.State, tx: optax.GradientTransformation) -> TrainState:
    """The state before the first step."""
    return TrainState(jnp.zeros((), jnp.int32), params, tx.init(params))


def make_train_step(
    graphdef: nnx.GraphDef, tx: optax.GradientTransformation, objective: Objective, seed: int
) -> Callable[[TrainState, nnx.State, Batch], tuple[TrainState, Scalars]]:
    """(state, frozen, batch of uint8 pictures) -> (state, scalars); jit it, state donated.

    `frozen` is an argument: closing over it would bake its values into the program. Randomness is
    a function of (seed, step) alone.
    """

    def step(state: TrainState, frozen: nnx.State, batch: Batch) -> tuple[TrainState, Scalars]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)

        def loss_of(params: nnx.State):
            return objective(nnx.merge(graphdef, params, frozen), to_images(batch), key)

        (loss, scalars), grads = jax.value_and_grad(loss_of, has_aux=True)(state.params)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        norms = {"grad_norm": optax.tree.norm(grads), "update_norm": optax.tree.norm(updates)}
        new_state = TrainState(state.step + 1, params, opt_state)  # type: ignore[arg-type]
        return new_state, {"loss": loss, **scalars, **norms}

    return step


def make_eval_step(graphdef: nnx.GraphDef, kind: str, seed: int) -> Callable[..., Image]:
    """(params, frozen, batch) -> reconstruction, one-step estimate from t = 500, or restored."""

    def diffused(model: Restorer, hq: Image) -> Image:
        z0 = model.encode(hq)
        t = jnp.full(z0.shape[:1], Schedule.num_train_timesteps // 2, jnp.int32)
        z = Schedule().add_noise(z0, jax.random.normal(jax.random.key(seed), z0.shape), t)
        return model.decode(Schedule().eps_to_x0(z, model.unet(z, t, model.prompter(hq)), t))

    def step(params: nnx.State, frozen: nnx.State, batch: Batch) -> Image:
        model, images = nnx.merge(graphdef, params, frozen), to_images(batch)
        if kind == "vae":
            return model.decode(model.encode(images["hq"]))
        return diffused(model, images["hq"]) if kind == "diffusion" else model(images["lq"])

    return step


def evaluate(
    images: np.ndarray, batch: Mapping[str, np.ndarray]
) -> tuple[dict[str, float], np.ndarray]:
    """Mean PSNR-Y and SSIM-Y against the HQ of uint8 pictures, and a grid: a row each picture.

    Columns: LQ (where there is one), output, HQ.
    """
    columns = [*([batch["lq"]] if "lq" in batch else []), images, batch["hq"]]
    grid = np.concatenate([np.concatenate(list(c), axis=0) for c in columns], axis=1)
    pairs = list(zip(images, batch["hq"], strict=True))
    means = {
        "val_psnr_y": float(np.mean([psnr_y(a, b) for a, b in pairs])),
        "val_ssim_y": float(np.mean([ssim_y(a, b) for a, b in pairs])),
    }
    return means, grid


def latent_std(model: Restorer, hq: Image) -> float:
    """Standard deviation of the unscaled posterior's mean; its inverse is the scaling factor."""
    return float(jnp.std(model.vae.encode(hq)[0]))


def place(mesh: Mesh, state: TrainState, frozen: nnx.State) -> tuple[TrainState, nnx.State]:
    """Trainable state on every device, frozen weights split by shape."""
    split = jax.tree.map(lambda x: weight_sharding(mesh, x.shape), frozen)
    return jax.device_put(state, replicated(mesh)), jax.device_put(frozen, split)


def place_batch(mesh: Mesh, batch: Mapping[str, np.ndarray]) -> dict[str, Array]:
    """This process's share of the global batch, on its devices."""
    pictures = {k: batch[k] for k in ("hq", "lq") if k in batch}
    return {
        k: jax.make_array_from_process_local_data(batch_sharding(mesh), v)
        for k, v in pictures.items()
    }
