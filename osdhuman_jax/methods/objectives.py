"""What each kind of run minimises, and which network is asked for it.

    vae        autoencoder on HQ pictures                      trains the VAE
    diffusion  eps-prediction on HQ latents, HFIE(HQ) prompt   trains U-Net, Swin and HFIE
    restorer   the paper's generator (section 3.2, Eqs. 2-7)   trains LoRA, HFIE and a regularizer

An objective is a pure function (model, networks of the regularizer, part of a batch) -> `Loss`. All
randomness is in the batch, drawn by `draw`: it does not depend on how a batch is cut into parts.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from osdhuman_jax.config import Config, LoRAConfig, LossConfig
from osdhuman_jax.methods import lora, losses
from osdhuman_jax.methods.osdhuman import OneStepRestorer
from osdhuman_jax.methods.schedule import Schedule
from osdhuman_jax.networks.critic import Critic
from osdhuman_jax.networks.types import Image, Latent, Scalar, Timestep, Tokens
from osdhuman_jax.networks.unet import UNet2DConditionModel

Part = Mapping[str, Array]  # images in [-1, 1], prompts, draws
Scalars = dict[str, Scalar]


@jax.tree_util.register_dataclass
@dataclass
class Frozen:
    """What no step changes. The compiled step takes it as an argument, and holds it once."""

    restorer: nnx.State  # everything of the restorer that is not trained
    unet: dict[str, Any] = field(default_factory=dict)  # base values of what the generator trains
    lpips: Any = None  # nnx.State of VGG16
    negative: Any = None  # Tokens (1, N, D) that the frozen regularizer is guided away from


@jax.tree_util.register_dataclass
@dataclass
class Loss:
    """An objective's value, what to log, and what regularizer and critic are updated on."""

    value: Scalar
    scalars: Scalars
    latent: Any = None
    prompt: Any = None
    image: Any = None


def leaves_by_name(state: nnx.State) -> dict[str, Any]:
    """Variables of a state by dotted path, adapters' `base` left out of it."""
    flat = nnx.to_flat_state(state)
    return {".".join(str(part) for part in path if part != "base"): v for path, v in flat}


class Regularizer:
    """Both regularizers over the generator's frozen U-Net: nothing of it is held twice.

    A U-Net's graph is kept with and without adapters. Called, its weights are those of the frozen
    tree, whose paths differ by what is wrapped in adapters, so they go by name.
    """

    def __init__(self, plain: UNet2DConditionModel, adapted: UNet2DConditionModel) -> None:
        """Two U-Nets of the same sizes; their base weights are not looked at."""
        self._plain, self._plain_slots = nnx.split(plain)
        self._adapted, self.params, self._adapted_slots = nnx.split(adapted, lora.LoRAParam, ...)

    @staticmethod
    def _base(frozen: Frozen, slots: nnx.State) -> nnx.State:
        base = {**leaves_by_name(frozen.restorer["unet"]), **frozen.unet}
        names = {path: name for name, path in paths_by_name(slots).items()}
        return nnx.from_flat_state([(path, base[name]) for path, name in names.items()])

    def frozen(self, frozen: Frozen) -> UNet2DConditionModel:
        """phi: the diffusion prior as it is."""
        return nnx.merge(self._plain, self._base(frozen, self._plain_slots))

    def finetuned(self, frozen: Frozen, params: nnx.State) -> UNet2DConditionModel:
        """phi': the prior adapted to what the generator makes."""
        return nnx.merge(self._adapted, params, self._base(frozen, self._adapted_slots))


def paths_by_name(state: nnx.State) -> dict[str, tuple[Any, ...]]:
    """Paths of a state by what `leaves_by_name` calls them."""
    flat = nnx.to_flat_state(state)
    return {".".join(str(part) for part in path if part != "base"): path for path, _ in flat}


def regularizer_targets(unet: UNet2DConditionModel, scope: str) -> list[lora.Path]:
    """Layers of the finetuned regularizer that get adapters: all, or the middle block's."""
    return [p for p in lora.unet_targets(unet) if scope == "all" or p[0] == "mid_block"]


def inject_regularizer(
    unet: UNet2DConditionModel, config: LoRAConfig, scope: str, rng: Any
) -> None:
    """Adapters of the generator's rank, in place."""
    targets = regularizer_targets(unet, scope)
    lora.inject(unet, targets, rank=config.rank, alpha=config.alpha, rng=rng)


# Draws: every random number of a step, for the whole batch.


def draw(
    config: Config, model: OneStepRestorer, count: int, side: tuple[int, int], key: Array
) -> Part:
    """Noise and timesteps for `count` pictures of (height, width) `side`."""
    f, channels = model.vae.downscale, model.vae.post_quant_conv.in_features
    keys = iter(jax.random.split(key, 3 + 2 * config.loss.reg_updates))
    normal = partial(jax.random.normal, shape=(count, side[0] // f, side[1] // f, channels))

    def timesteps(bounds: tuple[int, int]) -> Timestep:
        return jax.random.randint(next(keys), (count,), *bounds)

    drawn = {"posterior": normal(next(keys))}
    if config.run.kind == "diffusion":
        drawn |= {"t": timesteps((0, Schedule.num_train_timesteps)), "noise": normal(next(keys))}
    if config.run.kind == "restorer" and config.loss.vsd:
        drawn |= {"t": timesteps(config.loss.vsd_timesteps), "noise": normal(next(keys))}
        for n in range(config.loss.reg_updates):
            drawn[f"reg_t{n}"] = timesteps(config.loss.reg_timesteps)
            drawn[f"reg_noise{n}"] = normal(next(keys))
    if has_critic(config):
        pair = jax.random.split(jax.random.fold_in(key, 0))
        for name, own in zip(("hq", "image"), pair, strict=True):
            drawn[f"critic_{name}"] = jax.random.normal(own, (count, *side, 3))
    return drawn


def has_critic(config: Config) -> bool:
    """Whether a run trains a critic beside the generator."""
    return config.run.kind == "restorer" and bool(config.loss.adversarial or config.loss.features)


def posterior_sample(model: OneStepRestorer, image: Image, noise: Latent) -> Latent:
    """Scaled latent: the posterior's mean plus its standard deviation times `noise`."""
    mean, logvar = model.vae.encode(image)
    return model.vae.scaling_factor * (mean + jnp.exp(0.5 * logvar) * noise)


# Objectives.


def vae_objective(config: LossConfig, model: OneStepRestorer, part: Part) -> Loss:
    """Squared error of the reconstruction from a posterior sample, in RGB and colour, and KL."""
    mean, logvar = model.vae.encode(part["hq"])
    image = model.vae.decode(mean + jnp.exp(0.5 * logvar) * part["posterior"])
    parts = {
        "mse": losses.mse(image, part["hq"]),
        "chroma": losses.chroma(image, part["hq"]),
        "kl": losses.kl(mean, logvar),
    }
    loss = config.mse * parts["mse"] + config.chroma * parts["chroma"] + config.kl * parts["kl"]
    return Loss(loss, parts)


def diffusion_objective(config: LossConfig, model: OneStepRestorer, part: Part) -> Loss:
    """Eps-prediction on latents of HQ pictures, all timesteps alike, prompted by the pictures."""
    del config
    z0 = jax.lax.stop_gradient(posterior_sample(model, part["hq"], part["posterior"]))
    loss = diffusion_loss(model.unet, z0, part["t"], part["noise"], model.prompter(part["hq"]))
    return Loss(loss, {"diffusion": loss})


def diffusion_loss(
    unet: UNet2DConditionModel, latent: Latent, t: Timestep, noise: Latent, prompt: Tokens
) -> Scalar:
    """Eq. 7: squared error of the U-Net's estimate of the noise."""
    return losses.mse(unet(Schedule().add_noise(latent, noise, t), t, prompt), noise)


def scores(
    frozen_unet: UNet2DConditionModel,
    finetuned_unet: UNet2DConditionModel,
    config: LossConfig,
    latent: Latent,
    part: Part,
    prompt: Tokens,
    negative: Array | None,
) -> tuple[Latent, Latent]:
    """eps of the frozen (guided by `cfg_vsd`) and the finetuned regularizer, no gradients.

    With guidance the frozen one's two passes are one batch. The finetuned one's is its own: to join
    them, every adapter would have to be masked for half of a batch that fills a device as it is.
    """
    t, noisy = part["t"], Schedule().add_noise(latent, part["noise"], part["t"])
    if negative is None:
        eps = losses.guide(frozen_unet(noisy, t, prompt))
    else:
        both = jnp.concatenate([jnp.broadcast_to(negative, prompt.shape), prompt])
        twice, times = jnp.concatenate([noisy, noisy]), jnp.concatenate([t, t])
        base, prompted = jnp.split(frozen_unet(twice, times, both), 2)
        eps = losses.guide(prompted, base, config.cfg_vsd)
    return jax.lax.stop_gradient((eps, finetuned_unet(noisy, t, prompt)))


def vsd_terms(
    regularizer: Regularizer,
    config: LossConfig,
    frozen: Frozen,
    params: nnx.State,
    part: Part,
    latent: Latent,
    prompt: Tokens,
) -> Scalars:
    """Eq. 6 on the generator's latent, and what to watch: both regularizers are constants here."""
    fixed, tokens = jax.lax.stop_gradient((latent, prompt))
    unets = regularizer.frozen(frozen), regularizer.finetuned(frozen, params)
    eps, eps_finetuned = scores(*unets, config, fixed, part, tokens, frozen.negative)
    gradient = losses.vsd_gradient(part["noise"], eps, eps_finetuned)
    signal, sigma = Schedule().coefficients(part["t"])
    gap = sigma / signal * losses.score_error(part["noise"], eps)
    return {
        "vsd": losses.vsd(latent, gradient),
        "vsd_weight": jnp.mean(1.0 / gap),
        "x0_gap": jnp.mean(gap),
    }


def generator_objective(
    config: Config,
    regularizer: Regularizer | None,
    lpips: nnx.GraphDef | None,
    model: OneStepRestorer,
    frozen: Frozen,
    reg: Any,
    critic: Critic | None,
    part: Part,
) -> Loss:
    """Eq. 4: data term, LPIPS and VSD; `reg` are the finetuned regularizer's adapters.

    Small models have other terms in LPIPS' and VSD's place, a critic among them.
    """
    weights, sample = config.loss, config.run.latent == "sample"
    lq, hq = part["lq"], part["hq"]
    z = posterior_sample(model, lq, part["posterior"]) if sample else model.encode(lq)
    prompt = part["prompt"] if "prompt" in part else model.prompter(part[config.prompt.source])
    latent = model.denoise(z, prompt)
    decoded = model.vae.decode(latent / model.vae.scaling_factor)
    image = jnp.clip(decoded, -1.0, 1.0)
    scalars = {"mse": losses.mse(image, hq), "clamp_rate": jnp.mean(jnp.abs(decoded) > 1.0)}
    loss = weights.mse * scalars["mse"]
    if weights.structure:
        scalars["structure"] = losses.structure(image, hq)
        loss = loss + weights.structure * scalars["structure"]
    # The terms of small models see what is not clamped: beyond white a clamp has no gradient.
    for name, term, target in (
        ("l1", losses.l1, hq),
        ("gradient", losses.gradient, hq),
        ("colour", losses.colour, lq),
    ):
        if weight := getattr(weights, name):
            scalars[name] = term(decoded, target)
            loss = loss + weight * scalars[name]
    made: dict[str, Any] = {}
    if critic is not None:
        found = critic_terms(critic, decoded, hq, lq)
        loss += sum(getattr(weights, name) * value for name, value in found.items())
        scalars |= found
        made["image"] = jax.lax.stop_gradient(decoded)
    if lpips is not None:
        scalars["lpips"] = jnp.mean(nnx.merge(lpips, frozen.lpips)(image, hq))
        loss = loss + weights.lpips * scalars["lpips"]
    if regularizer is None:
        return Loss(loss, scalars, **made)
    scalars |= vsd_terms(regularizer, weights, frozen, reg, part, latent, prompt)
    made["latent"], made["prompt"] = jax.lax.stop_gradient((latent, prompt))
    return Loss(loss + weights.vsd * scalars["vsd"], scalars, **made)


def critic_terms(critic: Critic, image: Image, hq: Image, lq: Image) -> Scalars:
    """What a critic finds of the generator's image: how real, and how far from HQ by its features.

    Of the critic's own features none is normed: each layer's mean absolute error counts alike.
    """
    (real, wanted), (fake, found) = jax.lax.stop_gradient(critic(hq, lq)), critic(image, lq)
    errors = [jnp.mean(jnp.abs(a - b)) for a, b in zip(found, wanted, strict=True)]
    return {
        "adversarial": losses.relativistic(fake, real),
        "features": jnp.mean(jnp.stack(errors)),
    }


def critic_objective(config: LossConfig, critic: Critic, image: Image, part: Part) -> Loss:
    """The critic's own loss on the generator's detached image: tell it from HQ, and be steady."""
    hq, lq = part["hq"], part["lq"]
    beside = [config.critic_noise * part[f"critic_{name}"] for name in ("hq", "image")]
    four = jnp.concatenate([hq, image, hq + beside[0], image + beside[1]])  # [4B, H, W, 3]
    real, fake, *noisy = jnp.split(critic(four, jnp.tile(lq, (4, 1, 1, 1)))[0], 4)
    scalars = {
        "critic_loss": losses.relativistic(real, fake),
        "critic_penalty": losses.steadiness(real, noisy[0]) + losses.steadiness(fake, noisy[1]),
        "critic_right": jnp.mean(real > fake),
    }
    loss = scalars["critic_loss"] + config.critic_penalty * scalars["critic_penalty"]
    return Loss(loss, scalars)


OBJECTIVES: dict[str, Callable[..., Loss]] = {
    "vae": vae_objective,
    "diffusion": diffusion_objective,
    "restorer": generator_objective,
}
