"""The tiny restorer: its sizes, its folder on disk, what trains it, and stand-ins for it.

Every test that needs a whole restorer takes this one, of one level where pictures are of 16 pixels
and of two where they are photographs, so that its programs are compiled once.
"""

from dataclasses import astuple, replace
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import jax.numpy as jnp
import numpy as np
from convert import filled
from flax import nnx
from skimage.data import astronaut
from tiny_models import DEEP, DUAL, DUAL_DEEP, DUAL_MODEL, MODEL

from osdhuman_jax.config import Config, LoRAConfig, UseConfig
from osdhuman_jax.inference.pipeline import Pipeline
from osdhuman_jax.methods.build import build_restorer
from osdhuman_jax.methods.osdhuman import OneStepRestorer
from osdhuman_jax.networks.configs import DISTSConfig, LPIPSConfig
from osdhuman_jax.networks.dists import DISTS
from osdhuman_jax.networks.lpips import LPIPS
from osdhuman_jax.training import train_step
from osdhuman_jax.weights import Model, add_lora, save_model

__all__ = ["DEEP", "DUAL", "DUAL_DEEP", "DUAL_MODEL", "MODEL"]
# With what HAODiff's first stage learns by.
RECONSTRUCTING = replace(DUAL_MODEL, dual=replace(DUAL, upsamplers=True))
# A photograph, 60 pixels high and 48 wide.
PHOTO = cv2.resize(astronaut(), (48, 60), interpolation=cv2.INTER_AREA)


def make(rngs: nnx.Rngs, lora: LoRAConfig | None = None) -> OneStepRestorer:
    """The untrained module."""
    model = build_restorer(MODEL, rngs=rngs)
    if lora:
        add_lora(model, lora, np.random.default_rng(0))
    return model


def restorer(lora: LoRAConfig | None = None, seed: int = 0) -> OneStepRestorer:
    """Every weight random, LoRA's B included; each caller has a copy of its own."""
    return nnx.clone(_restorer(astuple(lora) if lora else (), seed))


@cache
def _restorer(lora: tuple, seed: int) -> OneStepRestorer:
    """Made once: tracing the initialisers takes a second."""
    return filled(lambda rngs: make(rngs, LoRAConfig(*lora) if lora else None), seed)


@cache
def model() -> Model:
    """The same of two levels, as a pipeline takes it."""
    deep = filled(lambda rngs: build_restorer(DEEP, rngs=rngs))
    return Model(deep, DEEP, "0" * 64, "tiny")


def save(folder: Path, use: UseConfig | None = None) -> Path:
    """A model folder of that one."""
    save_model(folder, DEEP, model().restorer, use=use)
    return folder


def config(kind: str) -> Config:
    """An experiment that learns fast; without decay, a weight moves by its gradient alone."""
    made = Config(model=MODEL)
    made.loss.lpips = made.loss.vsd = 0.0
    made.loss.chroma = 0.5
    made.optim.learning_rate = 3e-3
    made.optim.weight_decay = 0.0
    made.data.sources = ("photos",)
    made.run.kind = kind
    made.run.precision = "fp32"
    made.run.remat = "none"
    return made


def pictures(count: int = 2, side: int = 16) -> dict[str, np.ndarray]:
    """A batch: smooth HQ, noisy LQ."""
    rng = np.random.default_rng(0)
    waves = np.cos(np.arange(side)[None, :, None, None] * rng.uniform(0, 1, (count, 1, 1, 3)))
    hq = 127.5 + 100.0 * np.broadcast_to(waves, (count, side, side, 3))
    lq = hq + rng.normal(0, 20, hq.shape)
    return {"hq": hq.astype(np.uint8), "lq": lq.clip(0, 255).astype(np.uint8)}


LPIPS_SIZES = LPIPSConfig((4, 4, 0, 8))


def lpips() -> LPIPS:
    """VGG's kin, of two levels."""
    model = filled(lambda rngs: LPIPS(LPIPS_SIZES, rngs=rngs), 3)
    for lin in model.lin:  # the real ones are not negative either
        lin.kernel.set_value(abs(lin.kernel[...]))
    return model


def start(config: Config, model: OneStepRestorer | None = None):
    """(trainer, state, frozen) of a restorer with random weights, LPIPS where it is asked for."""
    model = model or restorer(config.lora if config.run.kind == "restorer" else None)
    trainer = train_step.Trainer(config, config.model, model)
    perceptual = config.run.kind == "restorer" and config.loss.lpips
    return trainer, *trainer.start(model, lpips() if perceptual else None)


def haodiff_config(stage: int) -> Config:
    """One of HAODiff's stages."""
    made = config("dpg" if stage == 1 else "restorer")
    made.model = RECONSTRUCTING
    made.prompt.kind = "dual"
    made.loss.chroma = 0.0
    made.data.crop = made.run.eval_crop = DUAL.image_size
    made.data.mask = stage == 1
    if stage == 1:
        made.loss.mse, made.loss.dice = 0.0, 0.5
    else:
        made.lora.rank, made.lora.alpha, made.lora.vae_encoder = 2, 2.0, False
        made.loss.ea, made.loss.gan = 0.5, 0.1
    return made


def haodiff(made: Config, count: int = 2) -> tuple:
    """Trainer, state, frozen weights and a batch of such a stage, every weight random."""
    model = filled(lambda rngs: build_restorer(RECONSTRUCTING, rngs=rngs), 1)
    first = made.run.kind == "dpg"
    batch = {k: jnp.asarray(v) for k, v in pictures(count, 64 if first else 16).items()}
    if first:
        trainer = train_step.Trainer(made, RECONSTRUCTING, model)
        right = jnp.asarray(np.arange(64)[None, :, None] > 40)
        batch["mask"] = jnp.broadcast_to(right, (count, 64, 64))
        return trainer, *trainer.start(model), batch
    add_lora(model, made.lora, np.random.default_rng(0))
    trainer = train_step.Trainer(made, RECONSTRUCTING, model)
    dists = filled(lambda rngs: DISTS(DISTSConfig.of(LPIPS_SIZES), rngs=rngs), 2)
    for weights in (dists.alpha, dists.beta):
        weights.set_value(abs(weights[...]))
    return trainer, *trainer.start(model, lpips(), dists), batch


class Nothing:
    """Stands for a prompter: one token, which says nothing."""

    input_size = 4

    def __call__(self, view):
        return jnp.zeros((view.shape[0], 1, 1))


class Halve(OneStepRestorer):
    """Stands for a restorer whose output is known: half of its input's contrast."""

    multiple = 8
    prompter = Nothing()

    def __init__(self, gain: float = 0.5) -> None:
        self.gain = nnx.Param(np.float32(gain))

    def __call__(self, lq, prompt=None):
        assert lq.shape[1] % 8 == lq.shape[2] % 8 == 0
        return lq * self.gain[...]


def halving(gain: float = 0.5, digest: str = "0" * 64, **options: Any) -> Pipeline:
    """A pipeline whose output is its input with half the contrast."""
    return Pipeline(Model(Halve(gain), MODEL, digest, "halve"), **options)


def arrays(tree: nnx.State) -> dict[str, np.ndarray]:
    """Leaves by dotted path."""
    return {".".join(map(str, path)): np.asarray(v[...]) for path, v in nnx.to_flat_state(tree)}


def changed(before: nnx.State, after: nnx.State) -> set[str]:
    """Names of the leaves that are not the same; both must have the same names."""
    old, new = arrays(before), arrays(after)
    assert set(old) == set(new)
    return {name for name in old if not np.array_equal(old[name], new[name])}
