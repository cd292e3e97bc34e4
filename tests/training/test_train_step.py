"""The training step of every kind of run: what it changes, what it computes, what is refused."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from convert import call
from flax import nnx

from osdhuman_jax.config import Config
from osdhuman_jax.training import train_step
from osdhuman_jax.weights import load_base

KINDS = ("vae", "diffusion", "restorer")
STEPS = 10
NETWORKS = {"vae": ("vae",), "diffusion": ("unet", "prompter")}
NETWORKS["restorer"] = ("vae", "unet", "prompter")
SCALARS = {
    "vae": {"mse", "chroma", "kl"},
    "diffusion": {"diffusion"},
    "restorer": {"mse", "clamp_rate"},
}


def test_all_weights_of_a_restorer_can_be_trained(folder):
    config = tiny.config("restorer")
    config.run.train = "all"
    config.loss.l1 = config.loss.gradient = config.loss.colour = 1.0
    trainer, _, state, frozen = train_step.build(config, folder)
    batch = {k: jnp.asarray(v) for k, v in tiny.pictures(side=32).items()}
    after, scalars = jax.jit(trainer.step)(state, frozen, batch)
    assert {"l1", "gradient", "colour"} <= set(scalars)
    total = sum(float(scalars[name]) for name in ("mse", "l1", "gradient", "colour"))
    assert float(scalars["loss"]) == pytest.approx(total, rel=1e-5)
    whole, _, _ = load_base(folder)
    names = set(tiny.arrays(nnx.state(whole, nnx.Param)))
    assert set(tiny.arrays(after.params)) == names
    moved = tiny.changed(state.params, after.params)
    assert {"vae.encoder.conv_in.kernel", "vae.decoder.conv_out.kernel"} <= moved
    assert {n.split(".")[0] for n in moved} == {"vae", "unet", "prompter"}


# The step.


@dataclass
class Run:
    """Ten compiled steps on one batch; `states[n]` is the state after step n."""

    config: Config
    trainer: train_step.Trainer
    frozen: train_step.Frozen
    step: Callable
    batch: dict
    states: list[train_step.TrainState]
    scalars: list[dict]


@pytest.fixture(scope="module", params=KINDS)
def run(request, folder) -> Run:
    config = tiny.config(request.param)
    trainer, _, state, frozen = train_step.build(config, folder)
    step = jax.jit(trainer.step)
    batch = {k: jnp.asarray(v) for k, v in tiny.pictures().items()}
    states, scalars = [state], []
    for _ in range(STEPS):
        state, values = step(state, frozen, batch)
        states.append(state)
        scalars.append({k: float(v) for k, v in values.items()})
    return Run(config, trainer, frozen, step, batch, states, scalars)


def again(run: Run, state: train_step.TrainState, step: int, batch: dict | None = None):
    """One more step from a state, with the randomness of another step."""
    moved = replace(state, step=jnp.asarray(step, jnp.int32))
    return run.step(moved, run.frozen, batch or run.batch)


def test_scalars_have_names_and_are_finite(run):
    kind = run.config.run.kind
    parts = ("", *(f"_{network}" for network in NETWORKS[kind]))
    norms = {f"{name}_norm{part}" for name in ("grad", "update") for part in parts}
    expected = {"loss", "nonfinite", *norms, *SCALARS[kind]}
    assert all(set(values) == expected for values in run.scalars)
    assert np.isfinite([list(values.values()) for values in run.scalars]).all()
    assert all(values["grad_norm"] > 0 for values in run.scalars)
    assert [int(state.step) for state in run.states] == list(range(STEPS + 1))


def test_every_trained_leaf_changes(run):
    """LoRA's A has no gradient while B is zero, so it waits for the second step."""
    params = [state.params for state in run.states]
    names = set(tiny.arrays(params[0]))
    waiting = {n for n in names if n.endswith("lora_A")}
    assert tiny.changed(params[0], params[1]) == names - waiting
    assert tiny.changed(params[0], params[2]) == names
    assert bool(waiting) == (run.config.run.kind == "restorer")
    assert {v.dtype for v in tiny.arrays(params[-1]).values()} == {np.dtype(np.float32)}


def test_everything_else_stays_as_in_the_folder(run, folder):
    """As `train.py` ends a run: state and frozen weights back into the module."""
    model = nnx.merge(run.trainer.graphdef, run.states[-1].params, run.frozen.restorer)
    base = tiny.arrays(nnx.state(load_base(folder)[0], nnx.Param))
    found = {
        n.replace(".base.", "."): v for n, v in tiny.arrays(nnx.state(model, nnx.Param)).items()
    }
    trained = {n.replace(".base.", ".") for n in tiny.arrays(run.states[-1].params)}
    assert set(found) - set(base) == {n for n in trained if ".lora_" in n}
    assert {n for n in base if not np.array_equal(base[n], found[n])} == trained & set(base)


def test_loss_falls_on_one_batch(run):
    """Compared with the randomness of the first step."""
    after = float(again(run, run.states[-1], 0)[1]["loss"])
    assert after < 0.95 * run.scalars[0]["loss"]


def test_two_runs_are_bit_equal(run, folder):
    _, _, state, frozen = train_step.build(run.config, folder)
    losses = []
    for _ in range(3):
        state, values = run.step(state, frozen, run.batch)
        losses.append(float(values["loss"]))
    assert losses == [values["loss"] for values in run.scalars[:3]]
    pairs = zip(jax.tree.leaves(state), jax.tree.leaves(run.states[3]), strict=True)
    assert all(np.array_equal(a, b) for a, b in pairs)


def test_randomness_is_a_function_of_the_step(run):
    first, same, other = (float(again(run, run.states[0], n)[1]["loss"]) for n in (0, 0, 1))
    assert first == same == run.scalars[0]["loss"] != other


def test_scalars_say_what_was_done(run):
    _, values = again(run, run.states[0], 0)
    old, new = (tiny.arrays(run.states[n].params) for n in (0, 1))
    moved = np.sqrt(sum(np.sum((new[n] - old[n]).astype(np.float64) ** 2) for n in old))
    np.testing.assert_allclose(values["update_norm"], moved, rtol=1e-3)
    loss, kind = float(values["loss"]), run.config.run.kind
    if kind == "vae":
        assert values["kl"] > 0
        weighted = values["mse"] + 0.5 * values["chroma"] + 1e-6 * values["kl"]
        np.testing.assert_allclose(loss, weighted, rtol=1e-6)
    else:
        assert loss == float(values["mse" if kind == "restorer" else "diffusion"])


def test_step_sees_only_the_pictures_it_needs(run):
    dark = {**run.batch, "lq": jnp.zeros_like(run.batch["lq"])}
    same = float(again(run, run.states[0], 0, dark)[1]["loss"]) == run.scalars[0]["loss"]
    assert same == (run.config.run.kind != "restorer")


def lifted(frozen: train_step.Frozen, colour: list[float]) -> train_step.Frozen:
    """A copy whose decoder adds `colour` to every pixel."""
    copy = jax.tree.map(lambda x: x, frozen)
    bias = copy.restorer["vae"]["decoder"]["conv_out"]["bias"]
    bias.set_value(bias[...] + jnp.asarray(colour))
    return copy


@pytest.mark.parametrize("run", ["restorer"], indirect=True)
def test_clamped_pixels_give_no_gradient(run):
    """Red is above 1 everywhere: its target can no longer matter to the weights."""
    frozen = lifted(run.frozen, [100.0, 0.0, 0.0])
    other = {**run.batch, "hq": run.batch["hq"].at[..., 0].set(0)}
    one, two = (run.step(run.states[2], frozen, batch) for batch in (run.batch, other))
    assert not tiny.changed(one[0].params, two[0].params)
    assert one[1]["grad_norm"] == two[1]["grad_norm"] > 0
    assert float(two[1]["mse"]) > float(one[1]["mse"]) + 0.1
    assert float(one[1]["clamp_rate"]) >= 1 / 3
    free = run.step(run.states[2], run.frozen, other)
    assert free[1]["grad_norm"] != run.step(run.states[2], run.frozen, run.batch)[1]["grad_norm"]


@pytest.mark.parametrize("run", ["restorer"], indirect=True)
def test_wholly_clamped_output_is_counted_and_moves_nothing(run):
    _, values = run.step(run.states[2], lifted(run.frozen, [100.0] * 3), run.batch)
    assert (float(values["clamp_rate"]), float(values["grad_norm"])) == (1.0, 0.0)
    hq = np.asarray(run.batch["hq"]) / 127.5 - 1
    np.testing.assert_allclose(values["loss"], np.mean((1 - hq) ** 2), rtol=1e-5)


def test_eval_step_gives_images(run):
    kind = run.config.run.kind
    step = jax.jit(run.trainer.images)
    found = np.asarray(step(run.states[-1].params, run.frozen, run.batch))
    assert found.shape == (2, 16, 16, 3) and found.dtype == np.float32
    assert found.std() > 0.05 and found.min() >= -1 and found.max() <= 1
    before = np.asarray(step(run.states[0].params, run.frozen, run.batch))
    assert not np.array_equal(before, found)
    swapped = {"hq": run.batch["lq"], "lq": run.batch["hq"]}
    assert not np.array_equal(step(run.states[-1].params, run.frozen, swapped), found)
    needed = "lq" if kind == "restorer" else "hq"
    alone = {needed: run.batch[needed], "lq" if needed == "hq" else "hq": run.batch[needed]}
    np.testing.assert_array_equal(step(run.states[-1].params, run.frozen, alone), found)


def test_latent_std_measures_the_unscaled_mean(folder):
    model, _, _ = load_base(folder)
    hq = train_step.to_images(tiny.pictures())["hq"]
    model.vae.scaling_factor = 7.0
    mean, _ = call(model.vae, hq, method="encode")
    np.testing.assert_allclose(train_step.latent_std(model, hq), np.std(mean), rtol=1e-5)


# What surrounds it.


def test_pictures_become_images():
    levels = np.array([0, 51, 255], np.uint8).reshape(1, 1, 1, 3)
    for hq in (levels, jnp.asarray(levels)):
        found = train_step.to_images({"hq": hq, "skipped": jnp.zeros(1)})
        assert set(found) == {"hq"} and found["hq"].dtype == jnp.float32
        np.testing.assert_allclose(np.ravel(found["hq"]), [-1.0, -0.6, 1.0], atol=1e-6)
