"""One training step for every kind of run, to be compiled, and what it begins with.

`build` makes a run's programs and their first arguments from a base model's folder; `Trainer.step`
takes the state, the frozen weights and a batch of uint8 pictures, and gives the next state and
scalars for the log. What is minimised stands in `objectives.py` (OSDHuman's section 3.2). A step
updates the generator (or the autoencoder, or the small prior), then the finetuned regularizer on
the same, detached latents, and the critic where there is one. A step that is not finite changes
nothing but the counters.

The module is long because a step, what it starts from and what it shows of a batch are one object.
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
from jaxtyping import PyTree

from osdhuman_jax.config import Config, ConfigError, ModelConfig
from osdhuman_jax.methods import lora
from osdhuman_jax.methods.diffbody_training import (
    control_loss,
    parts_shown,
    parts_terms,
    sampled,
)
from osdhuman_jax.methods.dual_prompts import DualPrompter
from osdhuman_jax.methods.objectives import (
    OBJECTIVES,
    Context,
    Frozen,
    Loss,
    Microbatch,
    Regularizer,
    Scalars,
    TrainedNetwork,
    diffusion_loss,
    draw,
    inject_regularizer,
)
from osdhuman_jax.methods.osdhuman import OneStepRestorer
from osdhuman_jax.methods.schedule import Schedule
from osdhuman_jax.networks import remat
from osdhuman_jax.networks.types import Image
from osdhuman_jax.networks.unet import UNet2DConditionModel
from osdhuman_jax.training.critics import Critics
from osdhuman_jax.training.diffbody import KINDS, prepare_control, prepare_parser
from osdhuman_jax.training.experiment import (
    prepare,
    prepare_cleaner,
    store_as_computed,
    trainable,
)
from osdhuman_jax.training.optimizer import (
    accumulate,
    all_finite,
    ema_update,
    group_norms,
    make_optimizer,
    split_microbatches,
    tree_where,
    updated,
)
from osdhuman_jax.training.sharding import over_slices
from osdhuman_jax.weights import encode_text, load_part
from osdhuman_jax.weights.model_folder import (
    DTYPES,
    OWN_PROMPTS,
    abstract,
    read_meta,
)

Arrays = list[Any]  # jax.Array, or shapes
Batch = Mapping[str, Array]
# What of a batch is pictures; beside them are prompts and whether a signal has come.
PICTURES = ("hq", "lq")
# What else of a batch of the loader's goes to the devices.
BESIDE = ("mask", "people", "attention")


@jax.tree_util.register_dataclass
@dataclass
class TrainState:
    """What a step changes and a checkpoint holds; None where a run has no such part."""

    # JAX and Orbax also build this class around shapes and placeholders, so that no narrower type
    # can stand where a field is one array, or none.
    step: PyTree  # int32 scalar: steps done
    params: nnx.State  # the trainable part of the restorer, float32
    opt_state: optax.OptState
    reg: PyTree = None  # nnx.State: adapters of the finetuned regularizer, float32
    reg_opt: PyTree = None
    critic: PyTree = None  # nnx.State: parameters of the critic, float32
    critic_opt: PyTree = None
    ema: PyTree = None  # nnx.State: averaged copy of `params`
    nonfinite: PyTree = None  # int32 scalar: steps in a row, up to now, that were skipped

    @property
    def learnt(self) -> nnx.State:
        """What is validated and exported: the average where there is one, else `params`."""
        return self.params if self.ema is None else self.ema


class Trainer:
    """The programs of a run: pure functions of state, frozen weights and batch."""

    # Whether what a validation makes is restored pictures, and whether it measures the loss.
    restores, has_loss = True, False

    def __init__(
        self,
        config: Config,
        model: ModelConfig,
        restorer: TrainedNetwork,
        mesh: Mesh | None = None,
    ) -> None:
        """`restorer` has LoRA where the run trains LoRA; only its graph is kept, no array.

        The `mesh` is asked for its slices: without one there are none.
        """
        self.config, self.model, self.mesh = config, model, mesh
        self.restores, self.has_loss = config.run.kind != "parts", config.run.kind in KINDS
        self.tx = make_optimizer(config.optim, config.run.steps)
        # The regularizer may be updated more often than once a step: its schedule counts that.
        self.reg_tx = make_optimizer(config.optim, config.run.steps, config.loss.reg_updates)
        remat.set_policy(restorer, config.run.remat)
        self.graphdef = nnx.graphdef(restorer)
        self.regularizer = _regularizer(config, model)
        self.critics = Critics(config, model)
        self.lpips: nnx.GraphDef | None = None
        self.dists: nnx.GraphDef | None = None

    def start(
        self,
        restorer: TrainedNetwork,
        lpips: nnx.Module | None = None,
        dists: nnx.Module | None = None,
    ) -> tuple[TrainState, Frozen]:
        """The state before the first step, and the weights that no step changes."""
        wanted = trainable(self.config)
        _, params, rest = nnx.split(restorer, wanted, ...)
        frozen = Frozen(rest)
        # Where the generator trains weights of the base model, the frozen regularizer keeps them.
        if self.config.lora.train_conv_in and self.regularizer:
            trained = lora.leaves_by_name(params["unet"]) if "unet" in params else {}
            kept = {n: v for n, v in trained.items() if ".lora_" not in n}
            frozen.unet = jax.tree.map(jnp.copy, kept)
        if lpips is not None:
            self.lpips, frozen.lpips = nnx.split(lpips)
        if dists is not None:
            self.dists, frozen.dists = nnx.split(dists)
        # Copies, since a step donates its state: nothing in it may be held twice.
        state = TrainState(jnp.zeros((), jnp.int32), params, self.tx.init(params))
        state.nonfinite = jnp.zeros((), jnp.int32)
        # What is trained beside the generator, each with an optimizer of its own.
        if self.regularizer:
            reg = jax.tree.map(jnp.copy, self.regularizer.params)
            state.reg, state.reg_opt = reg, self.reg_tx.init(reg)
        if self.critics.start is not None:
            critic = jax.tree.map(jnp.copy, self.critics.start)
            state.critic, state.critic_opt = critic, self.tx.init(critic)
        if self.config.optim.ema:
            state.ema = jax.tree.map(jnp.copy, params)
        return state, frozen

    def step(self, state: TrainState, frozen: Frozen, batch: Batch) -> tuple[TrainState, Scalars]:
        """One step on a batch of uint8 pictures; jit it, with the state donated.

        Randomness is a function of (seed, step) alone. A step whose losses or gradients are not
        all finite leaves everything as it was, and counts in `nonfinite`.
        """
        # The generator: gradients of Eq. 4, and an update of its parameters.
        microbatches = self._microbatches(state, frozen, batch)
        grads, scalars, made = self._gradients(state, frozen, microbatches)
        params, opt_state, updates = updated(self.tx, grads, state.opt_state, state.params)
        # What is logged, and of it what tells whether the step may count.
        scalars |= group_norms(grads, "grad_norm") | group_norms(updates, "update_norm")
        watched = [scalars["loss"], scalars["grad_norm"]]
        new = TrainState(state.step + 1, params, opt_state)
        # Regularizer and critic learn from what the generator made before this update.
        new.reg, new.reg_opt, reg_scalars = self._regularize(state, frozen, microbatches, made)
        new.critic, new.critic_opt, critic_scalars = self._criticise(
            state, frozen, microbatches, made
        )
        reg_scalars |= critic_scalars
        others = ("reg_loss", "reg_grad_norm", "critic_loss", "critic_grad_norm")
        watched += [reg_scalars[k] for k in others if k in reg_scalars]
        if state.ema is not None:
            new.ema = ema_update(state.ema, params, state.step, self.config.optim.ema)
        # One number that is not finite, and all of it is as before; only the counters go on.
        finite = all_finite(*watched)
        new.nonfinite = state.nonfinite
        new = tree_where(finite, new, state)
        new.step = state.step + 1
        new.nonfinite = jnp.where(finite, 0, state.nonfinite + 1)
        # What the loop looks at: the same number in every process.
        counters = {"nonfinite": new.nonfinite.astype(jnp.float32)}
        if "stop" in batch:
            counters["stop"] = jnp.max(batch["stop"]).astype(jnp.float32)
        return new, {**scalars, **reg_scalars, **counters}

    def _microbatches(self, state: TrainState, frozen: Frozen, batch: Batch) -> Microbatch:
        """Images, prompts and draws of the batch, split into `optim.accumulate` microbatches."""
        # Drawn for the whole batch before it is split, so that a split changes nothing.
        key = jax.random.fold_in(jax.random.key(self.config.run.seed), state.step)
        images = to_images(batch)
        model = nnx.merge(self.graphdef, state.params, frozen.restorer)
        count, height, width, _ = images["hq"].shape
        people = batch["people"].shape[1] if "people" in batch else 0
        drawn = draw(self.config, model, count, (height, width), key, people)
        given = {name: batch[name] for name in ("prompt", *BESIDE) if name in batch}
        return split_microbatches({**images, **given, **drawn}, self.config.optim.accumulate)

    def _objective(
        self, params: nnx.State, state: TrainState, frozen: Frozen, microbatch: Microbatch
    ) -> Loss:
        """The run's objective on a microbatch, of which only `params` is to be differentiated."""
        model = nnx.merge(self.graphdef, params, frozen.restorer)
        # LPIPS may be there as a metric of the validation alone; DISTS needs its VGG.
        weights = self.config.loss
        perceptual = self.lpips if weights.lpips or weights.ea else None
        context = Context(
            self.config,
            frozen,
            regularizer=self.regularizer,
            reg=state.reg,
            lpips=perceptual and nnx.merge(perceptual, frozen.lpips),
            critic=self.critics.of_pictures(state.critic),
            dists=self.dists and nnx.merge(self.dists, frozen.dists),
            judge=self.critics.of_latents(state.critic, frozen),
        )
        return OBJECTIVES[self.config.run.kind](model, context, microbatch)

    def _gradients(
        self, state: TrainState, frozen: Frozen, microbatches: Microbatch
    ) -> tuple[nnx.State, Scalars, dict[str, Array | None]]:
        """Gradients and scalars, means over microbatches and slices; what each made for others."""

        def of(held: tuple[TrainState, Frozen], microbatch: Microbatch) -> tuple[PyTree, PyTree]:
            state, frozen = held

            def loss(params: nnx.State):
                found = self._objective(params, state, frozen, microbatch)
                return found.value, found

            # Averaged are gradients and scalars; latents, prompts and images are stacked.
            grads, found = jax.grad(loss, has_aux=True)(state.params)
            return (grads, {"loss": found.value, **found.scalars}), {
                "latent": found.latent,
                "prompt": found.prompt,
                "image": found.image,
                "real": found.real,
            }

        held = state, frozen
        (grads, scalars), made = over_slices(self.mesh, partial(accumulate, of), held, microbatches)
        return grads, scalars, made

    def _regularize(
        self,
        state: TrainState,
        frozen: Frozen,
        microbatches: Microbatch,
        made: dict[str, Array | None],
    ) -> tuple[nnx.State | None, optax.OptState | None, Scalars]:
        """Eq. 7, `reg_updates` times, on the generator's latents and prompts.

        Returns the adapters, their optimizer's state, and scalars of the last update.
        """
        reg, opt = state.reg, state.reg_opt
        if self.regularizer is None:
            return reg, opt, {}
        scalars: Scalars = {}
        # Each update has noise and timesteps of its own; the latents are the same.
        for n in range(self.config.loss.reg_updates):
            drawn = microbatches[f"reg_t{n}"], microbatches[f"reg_noise{n}"]
            grads, loss = self._reg_gradients(reg, frozen, (made, drawn))
            reg, opt, updates = updated(self.reg_tx, grads, opt, reg)
            norms = {"reg_grad_norm": optax.tree.norm(grads)}
            scalars = {"reg_loss": loss, **norms, "reg_update_norm": optax.tree.norm(updates)}
        return reg, opt, scalars

    def _reg_gradients(
        self, reg: nnx.State | None, frozen: Frozen, parts: PyTree
    ) -> tuple[nnx.State, Array]:
        """Gradients of Eq. 7 by the adapters, and its value; means over microbatches and slices."""

        def of(held: tuple[nnx.State | None, Frozen], part: PyTree) -> tuple[PyTree, PyTree]:
            reg, frozen = held
            made, (t, noise) = part

            def loss(reg: nnx.State):
                unet = self.regularizer.finetuned(frozen, reg)  # type: ignore[union-attr]
                return diffusion_loss(unet, made["latent"], t, noise, made["prompt"])

            value, grads = jax.value_and_grad(loss)(reg)
            return (grads, value), ()

        return over_slices(self.mesh, partial(accumulate, of), (reg, frozen), parts)[0]

    def _criticise(
        self,
        state: TrainState,
        frozen: Frozen,
        microbatches: Microbatch,
        made: dict[str, Array | None],
    ) -> tuple[nnx.State | None, optax.OptState | None, Scalars]:
        """The update of either critic, on the generator's images or latents.

        Returns its parameters, its optimizer's state, and scalars.
        """
        if self.critics.start is None:
            return state.critic, state.critic_opt, {}
        grads, scalars = self.critics.gradients(
            state.critic, frozen, (made, microbatches), self.mesh
        )
        critic, opt, _ = updated(self.tx, grads, state.critic_opt, state.critic)
        return critic, opt, {**scalars, "critic_grad_norm": optax.tree.norm(grads)}

    def images(self, params: nnx.State, frozen: Frozen, batch: Batch) -> Image:
        """Reconstruction (vae), one-step estimate from t = 500 (diffusion), or restored picture.

        Of a dual-prompt generator (dpg) it is what its first branch takes the original to be, of a
        parser the parts that it sees in the original.
        """
        model = nnx.merge(self.graphdef, params, frozen.restorer)
        images, kind = to_images(batch), self.config.run.kind
        if kind == "vae":
            return model.decode(model.encode(images["hq"]))
        if kind == "diffusion":
            return _estimate(model, images["hq"], self.config.run.seed)
        if kind == "cleaner":
            return model(images["lq"])
        if kind == "control":
            return sampled(model, self.config, {**batch, **images}, frozen.blank)
        if kind == "parts":
            return parts_shown(model, images["hq"])
        if isinstance(model.prompter, DualPrompter) and kind == "dpg":
            restored = model.prompter.feature_extractor.reconstruct(images["lq"]).restored
            return jnp.clip(restored, -1.0, 1.0)
        return model(images["lq"], prompt=batch.get("prompt"))

    def measures(
        self, params: nnx.State, frozen: Frozen, images: Image, batch: Batch
    ) -> dict[str, Array]:
        """What is known of a batch of one picture beside `images`, what is made of it; (1,) each.

        LPIPS (VGG) of it from the HQ where the run has LPIPS, and the loss where that is validated.
        """
        found: dict[str, Array] = {}
        if self.lpips is not None:
            hq = to_images(batch)["hq"]
            found["val_lpips"] = nnx.merge(self.lpips, frozen.lpips)(images, hq)
        if self.has_loss:
            model = nnx.merge(self.graphdef, params, frozen.restorer)
            given = {**batch, **to_images(batch)}
            if self.restores:
                found["val_loss"] = control_loss(model, self.config, given, frozen.blank)[None]
            else:
                terms = parts_terms(model, given)
                found |= {"val_loss": terms["parts"][None], "val_right": terms["right"][None]}
        return found


def _estimate(model: OneStepRestorer, hq: Image, seed: int) -> Image:
    """What a small prior makes in one step of HQ pictures with noise of half the schedule."""
    z0 = model.encode(hq)
    t = jnp.full(z0.shape[:1], Schedule.num_train_timesteps // 2, jnp.int32)
    z = Schedule().add_noise(z0, jax.random.normal(jax.random.key(seed), z0.shape), t)
    return model.decode(Schedule().eps_to_x0(z, model.unet(z, t, model.tokens(hq)), t))


def _regularizer(config: Config, model: ModelConfig) -> Regularizer | None:
    """The regularizers' graphs, where a run has the VSD term; adapters drawn by the seed."""
    if config.run.kind != "restorer" or not config.loss.vsd:
        return None
    make = partial(UNet2DConditionModel, model.unet, dtype=DTYPES[config.run.precision])
    # Shapes are enough: the weights are those of the generator's frozen U-Net.
    plain = abstract(lambda rngs: make(rngs=rngs))
    adapted = nnx.clone(plain)
    # The second word tells what is drawn apart: 1 the regularizer's adapters, 2 the critic.
    rng = np.random.default_rng([config.run.seed, 1])
    inject_regularizer(adapted, config.lora, config.loss.reg_lora_scope, rng)
    remat.set_policy(adapted, config.run.remat)
    return Regularizer(plain, adapted)


def build(
    config: Config, folder: Path, mesh: Mesh | None = None
) -> tuple[Trainer, ModelConfig, TrainState, Frozen]:
    """A run's programs and their first arguments, from a base model's folder, for a mesh.

    Raises ConfigError or WeightsError where the folder is not what the config needs.
    """
    # A cleaner is alone, as a parser is: nothing is frozen, and no other network judges it.
    if config.run.kind in ("cleaner", "parts"):
        prepared = prepare_cleaner if config.run.kind == "cleaner" else prepare_parser
        network = prepared(config, folder)
        trainer = Trainer(config, config.model, network, mesh)
        return trainer, config.model, *trainer.start(network)
    if config.run.kind == "control":
        return _build_control(config, folder, mesh)
    # The restorer, and LPIPS where it is a loss or a metric of the validation, or DISTS' VGG.
    restorer, model = prepare(config, folder)
    lpips = dists = None
    measured = "lpips" in read_meta(folder).get("parts", {})
    weights = config.loss
    if config.run.kind == "restorer" and (weights.lpips or weights.ea or measured):
        lpips = load_part(folder, "lpips", precision=config.run.precision)
        store_as_computed(lpips, False)
    if config.run.kind == "restorer" and weights.ea:
        dists = load_part(folder, "dists")
    store_as_computed(restorer, trainable(config))
    # The programs and their arguments; guidance needs the negative prompt's tokens too.
    trainer = Trainer(config, model, restorer, mesh)
    state, frozen = trainer.start(restorer, lpips, dists)
    if trainer.regularizer and config.loss.cfg_vsd != 1.0:
        frozen.negative = encode_text(folder, config.loss.negative_prompt)
        _check_lengths(config, model, frozen.negative.shape[1])
    return trainer, model, state, frozen


def _build_control(
    config: Config, folder: Path, mesh: Mesh | None
) -> tuple[Trainer, ModelConfig, TrainState, Frozen]:
    """DiffBody's ControlNet among networks that are frozen."""
    model = prepare_control(config, folder)
    store_as_computed(model, trainable(config))
    trainer = Trainer(config, config.model, model, mesh)
    state, frozen = trainer.start(model)
    if config.prompt.kind == "text":
        frozen.blank = encode_text(folder, "")
    return trainer, config.model, state, frozen


def _check_lengths(config: Config, model: ModelConfig, length: int) -> None:
    """Raises ConfigError where the negative prompt has not as many tokens as HFIE's."""
    # Guidance runs both prompts as one batch.
    own = model.dual.out_tokens if model.dual else model.hfie.num_queries
    if config.prompt.kind in OWN_PROMPTS and own != length:
        pair = f"{length} tokens, the model's own {own}"
        raise ConfigError(f"loss.cfg_vsd: the negative prompt has {pair}; set it to 1")


def in_lists(
    step: Callable[[TrainState, Frozen, Batch], tuple[TrainState, Scalars]],
    state: TrainState,
    frozen: Frozen,
) -> tuple[
    Callable[[Arrays, Arrays, Batch], tuple[Arrays, Scalars]],
    Arrays,
    Arrays,
    Callable[[Arrays], TrainState],
]:
    """A step that takes and gives lists of arrays; those of both arguments; a list as a state.

    To take a state of modules apart, and to build the next one, takes the host as long as a small
    network's whole step takes a GPU.
    """
    arrays, tree = jax.tree.flatten(state)
    weights, rest = jax.tree.flatten(frozen)

    def train_step(arrays: Arrays, weights: Arrays, batch: Batch) -> tuple[Arrays, Scalars]:
        after, scalars = step(tree.unflatten(arrays), rest.unflatten(weights), batch)
        # An error, if a step ever gave a state of another structure.
        return tree.flatten_up_to(after), scalars

    return train_step, arrays, weights, tree.unflatten


def to_images(batch: Mapping[str, Array | np.ndarray]) -> dict[str, Image]:
    """uint8 pictures of a batch as float32 in [-1, 1]."""
    pictures = {k: jnp.asarray(batch[k], jnp.float32) for k in PICTURES if k in batch}
    return {k: picture / 127.5 - 1.0 for k, picture in pictures.items()}


def latent_std(model: OneStepRestorer, hq: Image) -> float:
    """Standard deviation of the unscaled posterior's mean; its inverse is the scaling factor."""
    return float(jnp.std(model.vae.encode(hq)[0]))
