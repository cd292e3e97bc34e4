"""What each kind of run minimises, and which network is asked for it.

    vae        autoencoder on HQ pictures                      trains the VAE
    diffusion  eps-prediction on HQ latents, HFIE(HQ) prompt   trains U-Net, Swin and HFIE
    dpg        HAODiff's dual-prompt generator (stage 1)       trains its extractor
    cleaner    DiffBody's first stage (its Eq. 2)              trains SwinIR or RRDBNet
    control    DiffBody itself (its Eq. 4)                     trains its ControlNet
    parts      the parser that DiffBody may be guided by       trains PartParser
    restorer   the paper's generator (section 3.2, Eqs. 2-7)   trains LoRA, HFIE and a regularizer

The paper's generator G minimises (Eq. 4, with its weights 1, 2 and 1)

    L_G = MSE(G(I_L), I_H) + LPIPS(G(I_L), I_H) + VSD(z_H)

where z_H is the latent of Eq. 2. VSD compares two regularizers' estimates of the noise in a
re-noised z_H: the diffusion prior phi as it is, and a copy phi' that learns what the generator
makes (Eq. 6; `vsd_terms`). That copy minimises its own diffusion loss on the generator's detached
latents (Eq. 7; `diffusion_loss`), after each update of the generator. HAODiff's terms, which stand
in LPIPS' and VSD's place, are in haodiff_training.py.

An objective is a pure function (model, context, microbatch) -> `Loss`. All randomness is in the
microbatch, drawn by `draw` for the whole batch: it does not depend on how a batch is split.

The module is long because the objectives share their draws, their context and their result.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import PyTree

from osdhuman_jax.config import Config, LoRAConfig, LossConfig
from osdhuman_jax.methods import lora, losses
from osdhuman_jax.methods.cleaner import CleanerNetwork, cleaner_loss
from osdhuman_jax.methods.diffbody import DiffBody
from osdhuman_jax.methods.diffbody_training import control_terms, draw_control, parts_terms
from osdhuman_jax.methods.dual_prompts import DualPrompter
from osdhuman_jax.methods.haodiff_training import (
    draw_gan,
    dual_prompt_terms,
    edge_aware,
    generator_gan,
)
from osdhuman_jax.methods.osdhuman import OneStepRestorer
from osdhuman_jax.methods.schedule import Schedule
from osdhuman_jax.networks.critic import Critic
from osdhuman_jax.networks.dists import DISTS
from osdhuman_jax.networks.judge import Judge
from osdhuman_jax.networks.lpips import LPIPS
from osdhuman_jax.networks.part_parser import PartParser
from osdhuman_jax.networks.types import Image, Latent, Scalar, Timestep, Tokens
from osdhuman_jax.networks.unet import UNet2DConditionModel
from osdhuman_jax.networks.vae import posterior_sample

Microbatch = Mapping[str, Array]  # images in [-1, 1], prompts, draws
Scalars = dict[str, Scalar]
TrainedNetwork = OneStepRestorer | CleanerNetwork | DiffBody | PartParser


@jax.tree_util.register_dataclass
@dataclass
class Frozen:
    """What no step changes; the compiled step takes it as an argument, so that it is held once."""

    restorer: nnx.State  # everything of the restorer that is not trained
    # Base values of what the generator trains of the U-Net, by name: the regularizers' own.
    unet: dict[str, nnx.Variable] = field(default_factory=dict)
    lpips: nnx.State | None = None
    dists: nnx.State | None = None
    # Tokens (1, N, D) that the frozen regularizer is guided away from. JAX also builds this class
    # around shapes and placeholders, so that no class of arrays can stand here.
    negative: PyTree = None
    # Tokens (1, N, D) of an empty text, for captions that are left out.
    blank: PyTree = None


@jax.tree_util.register_dataclass
@dataclass
class Loss:
    """An objective's value, what to log, and what regularizer and critic are updated on."""

    value: Scalar
    scalars: Scalars
    latent: Latent | None = None
    prompt: Tokens | None = None
    image: Image | None = None
    real: Latent | None = None  # of the HQ, for a critic of latents


class Regularizer:
    """Both regularizers, phi and phi', over the generator's frozen U-Net, which is held once.

    Kept are two graphs of the U-Net, with and without adapters. Its weights are put in when one of
    them is asked for: by name, since an adapter around a layer changes the layer's path.
    """

    def __init__(self, plain: UNet2DConditionModel, adapted: UNet2DConditionModel) -> None:
        """Two U-Nets of the same sizes; their base weights are not looked at."""
        self._plain, self._plain_slots = nnx.split(plain)
        self._adapted, self.params, self._adapted_slots = nnx.split(adapted, lora.LoRAParam, ...)

    def frozen(self, frozen: Frozen) -> UNet2DConditionModel:
        """phi: the diffusion prior as it is."""
        return nnx.merge(self._plain, lora.state_of_names(self._plain_slots, frozen_unet(frozen)))

    def finetuned(self, frozen: Frozen, params: nnx.State) -> UNet2DConditionModel:
        """phi': the prior adapted to what the generator makes."""
        return nnx.merge(
            self._adapted, params, lora.state_of_names(self._adapted_slots, frozen_unet(frozen))
        )


def frozen_unet(frozen: Frozen) -> dict[str, nnx.Variable]:
    """Weights of the U-Net that no step changes, by their names on disk."""
    # What the generator trains of the U-Net is kept beside it as it was before.
    return {**lora.leaves_by_name(frozen.restorer["unet"]), **frozen.unet}


def regularizer_targets(unet: UNet2DConditionModel, scope: str) -> list[lora.Path]:
    """Layers of the finetuned regularizer that get adapters: all, or the middle block's."""
    return [p for p in lora.unet_targets(unet) if scope == "all" or p[0] == "mid_block"]


def inject_regularizer(
    unet: UNet2DConditionModel, config: LoRAConfig, scope: str, rng: np.random.Generator
) -> None:
    """Put adapters of the generator's rank into a U-Net, in place."""
    targets = regularizer_targets(unet, scope)
    lora.inject(unet, targets, rank=config.rank, alpha=config.alpha, rng=rng)


# Draws: every random number of a step, for the whole batch.


def draw(
    config: Config,
    model: TrainedNetwork,
    count: int,
    side: tuple[int, int],
    key: Array,
    people: int = 0,
) -> Microbatch:
    """Noise and timesteps for `count` pictures of (height, width) `side`.

    `people` is how many have joints in each, of whom some are left out in a control run.
    """
    if config.run.kind == "dpg" or not isinstance(model, OneStepRestorer | DiffBody):
        return {}  # nothing in HAODiff's first stage, or in a cleaner's or parser's, is random
    f, channels = model.vae.downscale, model.vae.post_quant_conv.in_features
    if isinstance(model, DiffBody):
        latent = (count, side[0] // f, side[1] // f, channels)
        return draw_control(config.control, latent, people, key)
    # One key for each draw in a fixed order, so that a seed means the same steps in every version.
    keys = iter(jax.random.split(key, 3 + 2 * config.loss.reg_updates))
    normal = partial(jax.random.normal, shape=(count, side[0] // f, side[1] // f, channels))

    def timesteps(bounds: tuple[int, int]) -> Timestep:
        return jax.random.randint(next(keys), (count,), *bounds)

    # Each kind of run draws what its objective reads.
    drawn = {"posterior": normal(next(keys))}
    if config.run.kind == "diffusion":
        drawn |= {"t": timesteps((0, Schedule.num_train_timesteps)), "noise": normal(next(keys))}
    if config.run.kind == "restorer" and config.loss.vsd:
        drawn |= {"t": timesteps(config.loss.vsd_timesteps), "noise": normal(next(keys))}
        for n in range(config.loss.reg_updates):
            drawn[f"reg_t{n}"] = timesteps(config.loss.reg_timesteps)
            drawn[f"reg_noise{n}"] = normal(next(keys))
    # The critic's noise has keys beside these: a run without a critic draws as it always did.
    if has_critic(config):
        pair = jax.random.split(jax.random.fold_in(key, 0))
        for name, own in zip(("hq", "image"), pair, strict=True):
            drawn[f"critic_{name}"] = jax.random.normal(own, (count, *side, 3))
    if has_latent_critic(config):
        drawn |= draw_gan(drawn["posterior"].shape, jax.random.fold_in(key, 1))
    return drawn


def has_critic(config: Config) -> bool:
    """Whether a run trains a critic beside the generator."""
    return config.run.kind == "restorer" and bool(config.loss.adversarial or config.loss.features)


def has_latent_critic(config: Config) -> bool:
    """Whether a run trains HAODiff's critic of latents beside the generator."""
    return config.run.kind == "restorer" and bool(config.loss.gan)


# Objectives.


@dataclass(frozen=True)
class Context:
    """What an objective may need beside the model that it trains and the microbatch."""

    config: Config
    frozen: Frozen
    regularizer: Regularizer | None = None
    reg: nnx.State | None = None  # adapters of the finetuned regularizer
    lpips: LPIPS | None = None
    critic: Critic | None = None
    dists: DISTS | None = None
    judge: Judge | None = None


# A function of (model, context, microbatch); of cleaners the model is no one-step restorer.
Objective = Callable[..., Loss]


def vae_objective(model: OneStepRestorer, context: Context, microbatch: Microbatch) -> Loss:
    """Reconstruction from a posterior sample, in RGB and in colour differences, and KL.

    This is the first stage of latent diffusion (Rombach et al. 2022, section 3.1) without a critic.
    """
    weights, hq = context.config.loss, microbatch["hq"]
    mean, logvar = model.vae.encode(hq)
    image = model.vae.decode(posterior_sample(mean, logvar, microbatch["posterior"]))
    terms = {
        "mse": losses.mse(image, hq),
        "chroma": losses.chroma(image, hq),
        "kl": losses.kl(mean, logvar),
    }
    loss = weights.mse * terms["mse"] + weights.chroma * terms["chroma"] + weights.kl * terms["kl"]
    return Loss(loss, terms)


def diffusion_objective(model: OneStepRestorer, context: Context, microbatch: Microbatch) -> Loss:
    """Prediction of the noise in latents of HQ pictures (Ho et al. 2020, Eq. 14).

    All timesteps are equally likely, and the pictures themselves are the prompts.
    """
    # Its one term has no weight. The autoencoder is finished by then, and gets no gradient.
    del context
    hq, t, noise = (microbatch[name] for name in ("hq", "t", "noise"))
    z0 = jax.lax.stop_gradient(model.encode(hq, microbatch["posterior"]))
    loss = diffusion_loss(model.unet, z0, t, noise, model.tokens(hq))
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
    microbatch: Microbatch,
    prompt: Tokens,
    negative: Array | None,
) -> tuple[Latent, Latent]:
    """eps of the frozen (guided by `cfg_vsd`) and the finetuned regularizer, no gradients.

    With guidance the frozen one's two passes are one batch. The finetuned one's is its own: to join
    them, every adapter would have to be masked for half of a batch that fills a device as it is.
    """
    # Both see the same noisy latents, at timesteps of their own draw (Eq. 6: t in [20, 980)).
    t = microbatch["t"]
    noisy = Schedule().add_noise(latent, microbatch["noise"], t)
    if negative is None:
        eps = losses.guide(frozen_unet(noisy, t, prompt))
    else:
        both = jnp.concatenate([jnp.broadcast_to(negative, prompt.shape), prompt])  # [2B, N, D]
        twice, times = jnp.concatenate([noisy, noisy]), jnp.concatenate([t, t])
        base, prompted = jnp.split(frozen_unet(twice, times, both), 2)
        eps = losses.guide(prompted, base, config.cfg_vsd)
    return jax.lax.stop_gradient((eps, finetuned_unet(noisy, t, prompt)))


def vsd_terms(context: Context, microbatch: Microbatch, latent: Latent, prompt: Tokens) -> Scalars:
    """Eq. 6 on the generator's latent, and two numbers to watch; no regularizer gets a gradient.

    Raises ValueError where the run has no regularizers.
    """
    regularizer, frozen, reg = context.regularizer, context.frozen, context.reg
    if regularizer is None or reg is None:
        raise ValueError("the VSD term needs both regularizers")
    # The gradient reaches the latent through `losses.vsd` alone, not through the networks.
    fixed, tokens = jax.lax.stop_gradient((latent, prompt))
    unets = regularizer.frozen(frozen), regularizer.finetuned(frozen, reg)
    weights, noise = context.config.loss, microbatch["noise"]
    eps, eps_finetuned = scores(*unets, weights, fixed, microbatch, tokens, frozen.negative)
    gradient = losses.vsd_gradient(noise, eps, eps_finetuned)

    # What the paper divides by, in units of the latent: it shows how hard the timesteps were.
    signal, sigma = Schedule().coefficients(microbatch["t"])
    gap = sigma / signal * losses.score_error(noise, eps)  # [B, 1, 1, 1]
    return {
        "vsd": losses.vsd(latent, gradient),
        "vsd_weight": jnp.mean(1.0 / gap),
        "x0_gap": jnp.mean(gap),
    }


def dpg_objective(model: OneStepRestorer, context: Context, microbatch: Microbatch) -> Loss:
    """HAODiff's stage 1, see haodiff_training.py. Raises ValueError for another prompter."""
    if not isinstance(model.prompter, DualPrompter):
        raise ValueError("a run of kind 'dpg' trains a model of two prompts (model.dual)")
    weights = context.config.loss
    pictures = (microbatch[name] for name in ("lq", "hq", "mask"))
    terms = dual_prompt_terms(model.prompter, *pictures)
    loss = terms["restored"] + terms["residual"] + weights.dice * terms["dice"]
    return Loss(loss, terms)


def cleaner_objective(model: CleanerNetwork, context: Context, microbatch: Microbatch) -> Loss:
    """Eq. 2 of DiffBody, see cleaner.py."""
    mse = cleaner_loss(model, microbatch["lq"], microbatch["hq"])
    return Loss(context.config.loss.mse * mse, {"mse": mse})


def control_objective(model: DiffBody, context: Context, microbatch: Microbatch) -> Loss:
    """Eq. 4 of DiffBody, see diffbody_training.py."""
    terms = control_terms(model, context.config, microbatch, context.frozen.blank)
    return Loss(terms["diffusion"], terms)


def parts_objective(model: PartParser, context: Context, microbatch: Microbatch) -> Loss:
    """The labels of parts of the body, see body_parts.py."""
    del context
    terms = parts_terms(model, microbatch)
    return Loss(terms["parts"], terms)


def generator_objective(model: OneStepRestorer, context: Context, microbatch: Microbatch) -> Loss:
    """Eq. 4: data term, LPIPS and VSD.

    Small models have other terms in LPIPS' and VSD's place, a critic among them.
    """
    config, weights = context.config, context.config.loss
    lq, hq = microbatch["lq"], microbatch["hq"]

    # The generator: encode, prompt, one step, decode.
    z = model.encode(lq, microbatch["posterior"] if config.run.latent == "sample" else None)
    given = microbatch.get("prompt")
    prompt = model.tokens(microbatch[config.prompt.source]) if given is None else given
    latent = model.denoise(z, prompt)
    decoded = model.vae.decode(latent / model.vae.scaling_factor)  # [B, H, W, 3]
    image = jnp.clip(decoded, -1.0, 1.0)

    # Each term is logged by its name, and weighed by the setting of that name.
    terms = {"mse": losses.mse(image, hq)}
    if weights.structure:
        terms["structure"] = losses.ssim_loss(image, hq)
    terms |= small_model_terms(weights, decoded, hq, lq)
    made: dict[str, Array] = {}
    if context.critic is not None:
        terms |= critic_terms(context.critic, decoded, hq, lq)
        made["image"] = jax.lax.stop_gradient(decoded)
    if context.lpips is not None and weights.lpips:
        terms["lpips"] = jnp.mean(context.lpips(image, hq))
    if context.lpips is not None and context.dists is not None:
        terms["ea"] = edge_aware(context.dists, context.lpips, image, hq)
    shown = model.described(prompt)
    if context.judge is not None:
        terms["gan"] = generator_gan(context.judge, latent, shown, microbatch)
        made["real"] = jax.lax.stop_gradient(model.encode(hq, microbatch["gan_posterior"]))
    watched = {"clamp_rate": jnp.mean(jnp.abs(decoded) > 1.0)}
    if context.regularizer is not None:
        found = vsd_terms(context, microbatch, latent, shown)
        terms["vsd"] = found.pop("vsd")
        watched |= found
    if context.regularizer is not None or context.judge is not None:
        # On these the regularizer's own update is made (Eq. 7), and that of a critic of latents.
        made["latent"], made["prompt"] = jax.lax.stop_gradient((latent, shown))
    loss = sum((getattr(weights, n) * term for n, term in terms.items()), jnp.zeros(()))
    return Loss(loss, terms | watched, **made)


def small_model_terms(weights: LossConfig, decoded: Image, hq: Image, lq: Image) -> Scalars:
    """Those terms of small models that have a weight."""
    # Of the picture before its clamp: beyond white a clamp has no gradient.
    terms: Scalars = {}
    if weights.l1:
        terms["l1"] = losses.l1(decoded, hq)
    if weights.gradient:
        terms["gradient"] = losses.gradient(decoded, hq)
    if weights.colour:
        terms["colour"] = losses.colour(decoded, lq)
    return terms


def critic_terms(critic: Critic, image: Image, hq: Image, lq: Image) -> Scalars:
    """What a critic says of the generator's image: how real it is, and how unlike HQ it finds it.

    The second is the mean absolute error of the critic's features, of which each layer's counts
    alike (feature matching, Salimans et al. 2016, section 3.1).
    """
    # The answers to HQ are targets, which no gradient changes.
    (real, wanted), (fake, found) = jax.lax.stop_gradient(critic(hq, lq)), critic(image, lq)
    errors = [jnp.mean(jnp.abs(a - b)) for a, b in zip(found, wanted, strict=True)]
    return {
        "adversarial": losses.relativistic(fake, real),
        "features": jnp.mean(jnp.stack(errors)),
    }


def critic_objective(
    config: LossConfig, critic: Critic, image: Image, microbatch: Microbatch
) -> Loss:
    """The critic's own loss on the generator's detached image.

    A critic must tell the image from HQ, and its answers must not change by faint noise.
    """
    hq, lq = microbatch["hq"], microbatch["lq"]
    beside = [config.critic_noise * microbatch[f"critic_{name}"] for name in ("hq", "image")]
    # One pass over four pictures of each sample: HQ and ours, as they are and with faint noise.
    four = jnp.concatenate([hq, image, hq + beside[0], image + beside[1]])  # [4B, H, W, 3]
    real, fake, *noisy = jnp.split(critic(four, jnp.tile(lq, (4, 1, 1, 1)))[0], 4)
    scalars = {
        "critic_loss": losses.relativistic(real, fake),
        "critic_penalty": losses.steadiness(real, noisy[0]) + losses.steadiness(fake, noisy[1]),
        "critic_right": jnp.mean(real > fake),
    }
    loss = scalars["critic_loss"] + config.critic_penalty * scalars["critic_penalty"]
    return Loss(loss, scalars)


OBJECTIVES: dict[str, Objective] = {
    "vae": vae_objective,
    "diffusion": diffusion_objective,
    "dpg": dpg_objective,
    "restorer": generator_objective,
    "cleaner": cleaner_objective,
    "control": control_objective,
    "parts": parts_objective,
}
