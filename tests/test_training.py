"""The training step of every kind of run: what it changes, what it computes, what is refused."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import small
import torch
from convert import abstract, call
from flax import nnx

from osdhuman_jax import lora, training
from osdhuman_jax.config import Config, ConfigError, OptimConfig
from osdhuman_jax.metrics import psnr_y, ssim_y
from osdhuman_jax.restorer import Restorer
from osdhuman_jax.weights import load_base, random_restorer, save_model

KINDS = ("vae", "diffusion", "restorer")
STEPS = 10
SCALARS = {
    "vae": {"loss", "mse", "chroma", "kl", "grad_norm", "update_norm"},
    "diffusion": {"loss", "diffusion", "grad_norm", "update_norm"},
    "restorer": {"loss", "mse", "clamp_rate", "grad_norm", "update_norm"},
}
HFIE = {"query"} | {f"{p}_proj.{w}" for p in "q k v out".split() for w in ("kernel", "bias")}


def arrays(tree: nnx.State) -> dict[str, np.ndarray]:
    """Leaves by dotted path."""
    return {".".join(map(str, path)): np.asarray(v[...]) for path, v in nnx.to_flat_state(tree)}


def changed(before: nnx.State, after: nnx.State) -> set[str]:
    old, new = arrays(before), arrays(after)
    assert set(old) == set(new)
    return {name for name in old if not np.array_equal(old[name], new[name])}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A base model with random weights."""
    folder = tmp_path_factory.mktemp("base")
    save_model(folder, small.MODEL, random_restorer(small.MODEL, 0))
    return folder


# What is trained.


def trained(change: Callable[[Config], object], kind: str) -> tuple[set[str], set[str], Restorer]:
    """Names of the trained parameters and of all, of a model of shapes."""
    config = small.config(kind)
    change(config)
    adapters = config.lora if kind == "restorer" else None
    model = abstract(lambda rngs: small.make(rngs, adapters))
    _, params, frozen = nnx.split(model, training.trainable(config), ...)
    ours = {".".join(map(str, path)) for path, _ in nnx.to_flat_state(params)}
    rest = {".".join(map(str, path)) for path, _ in nnx.to_flat_state(frozen)}
    return ours, ours | rest, model


def factors(network: str, targets: list) -> set[str]:
    names = {".".join(map(str, (network, *path))) for path in targets}
    assert names
    return {f"{name}.{factor}" for name in names for factor in ("lora_A", "lora_B")}


def nothing(config: Config) -> None:
    pass


def test_vae_run_trains_the_vae():
    ours, every, _ = trained(nothing, "vae")
    assert ours == {n for n in every if n.startswith("vae.")}
    assert {"vae.encoder.conv_in.kernel", "vae.decoder.conv_out.bias"} < ours < every


def test_diffusion_run_trains_the_rest():
    ours, every, _ = trained(nothing, "diffusion")
    assert ours == {n for n in every if not n.startswith("vae.")}
    assert {"unet.conv_in.kernel", "prompter.hfie.query"} < ours < every
    assert any(n.startswith("prompter.image_encoder.") for n in ours)


def test_restorer_run_trains_lora_and_hfie():
    plain = abstract(small.make)
    expected = {f"prompter.hfie.{name}" for name in HFIE}
    expected |= factors("unet", lora.unet_targets(plain.unet))
    expected |= factors("vae", lora.vae_encoder_targets(plain.vae))
    ours, _, _ = trained(nothing, "restorer")
    assert ours == expected


def test_conv_in_can_be_trained_too():
    without, _, _ = trained(nothing, "restorer")
    ours, _, _ = trained(lambda c: setattr(c.lora, "train_conv_in", True), "restorer")
    assert ours - without == {"unet.conv_in.base.kernel", "unet.conv_in.base.bias"}
    assert without < ours


@pytest.mark.parametrize("network", ["unet", "vae"])
def test_lora_can_be_left_out_of_a_network(network):
    field = "unet" if network == "unet" else "vae_encoder"
    without, _, _ = trained(nothing, "restorer")
    ours, _, _ = trained(lambda c: setattr(c.lora, field, False), "restorer")
    assert ours == {n for n in without if not n.startswith(f"{network}.")} < without


# The step.


@dataclass
class Run:
    """Ten compiled steps on one batch; `states[n]` is the state after step n."""

    config: Config
    graphdef: nnx.GraphDef
    frozen: nnx.State
    step: Callable
    batch: dict
    states: list[training.TrainState]
    scalars: list[dict]


def start(config: Config, folder: Path) -> tuple[nnx.GraphDef, training.TrainState, nnx.State]:
    model, _ = training.prepare(config, folder)
    graphdef, params, frozen = nnx.split(model, training.trainable(config), ...)
    tx = small.optimizer(config.optim, STEPS)
    return graphdef, training.init_state(params, tx), frozen


@pytest.fixture(scope="module", params=KINDS)
def run(request, folder) -> Run:
    config = small.config(request.param)
    graphdef, state, frozen = start(config, folder)
    tx = small.optimizer(config.optim, STEPS)
    objective = training.make_objective(config)
    step = jax.jit(training.make_train_step(graphdef, tx, objective, config.run.seed))
    batch = {k: jnp.asarray(v) for k, v in small.pictures().items()}
    states, scalars = [state], []
    for _ in range(STEPS):
        state, values = step(state, frozen, batch)
        states.append(state)
        scalars.append({k: float(v) for k, v in values.items()})
    return Run(config, graphdef, frozen, step, batch, states, scalars)


def again(run: Run, state: training.TrainState, step: int, batch: dict | None = None):
    """One more step from a state, with the randomness of another step."""
    moved = replace(state, step=jnp.asarray(step, jnp.int32))
    return run.step(moved, run.frozen, batch or run.batch)


def test_scalars_have_names_and_are_finite(run):
    assert all(set(values) == SCALARS[run.config.run.kind] for values in run.scalars)
    assert np.isfinite([list(values.values()) for values in run.scalars]).all()
    assert all(values["grad_norm"] > 0 for values in run.scalars)


def test_steps_are_counted(run):
    assert [int(state.step) for state in run.states] == list(range(STEPS + 1))


def test_every_trained_leaf_changes(run):
    """LoRA's A has no gradient while B is zero, so it waits for the second step."""
    params = [state.params for state in run.states]
    names = set(arrays(params[0]))
    waiting = {n for n in names if n.endswith("lora_A")}
    assert changed(params[0], params[1]) == names - waiting
    assert changed(params[0], params[2]) == names
    assert bool(waiting) == (run.config.run.kind == "restorer")


def test_trained_leaves_stay_float32(run):
    assert {v.dtype for v in arrays(run.states[-1].params).values()} == {np.dtype(np.float32)}


def test_everything_else_stays_as_in_the_folder(run, folder):
    """As `train.py` ends a run: state and frozen weights back into the module."""
    model = nnx.merge(run.graphdef, run.states[-1].params, run.frozen)
    base = arrays(nnx.state(load_base(folder)[0], nnx.Param))
    found = {n.replace(".base.", "."): v for n, v in arrays(nnx.state(model, nnx.Param)).items()}
    trained = {n.replace(".base.", ".") for n in arrays(run.states[-1].params)}
    assert set(found) - set(base) == {n for n in trained if ".lora_" in n}
    assert {n for n in base if not np.array_equal(base[n], found[n])} == trained & set(base)


def test_loss_falls_on_one_batch(run):
    """Compared with the randomness of the first step."""
    after = float(again(run, run.states[-1], 0)[1]["loss"])
    assert after < 0.95 * run.scalars[0]["loss"]


def test_two_runs_are_bit_equal(run, folder):
    _, state, frozen = start(run.config, folder)
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
    old, new = (arrays(run.states[n].params) for n in (0, 1))
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


def lifted(frozen: nnx.State, colour: list[float]) -> nnx.State:
    """A copy whose decoder adds `colour` to every pixel."""
    copy = jax.tree.map(lambda x: x, frozen)
    bias = copy["vae"]["decoder"]["conv_out"]["bias"]
    bias.set_value(bias[...] + jnp.asarray(colour))
    return copy


@pytest.mark.parametrize("run", ["restorer"], indirect=True)
def test_clamped_pixels_give_no_gradient(run):
    """Red is above 1 everywhere: its target can no longer matter to the weights."""
    frozen = lifted(run.frozen, [100.0, 0.0, 0.0])
    other = {**run.batch, "hq": run.batch["hq"].at[..., 0].set(0)}
    one, two = (run.step(run.states[2], frozen, batch) for batch in (run.batch, other))
    assert not changed(one[0].params, two[0].params)
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
    step = jax.jit(training.make_eval_step(run.graphdef, kind, run.config.run.seed))
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
    hq = training.to_images(small.pictures())["hq"]
    model.vae.scaling_factor = 7.0
    mean, _ = call(model.vae, hq, method="encode")
    np.testing.assert_allclose(training.latent_std(model, hq), np.std(mean), rtol=1e-5)


# What surrounds it.


def test_pictures_become_images():
    levels = np.array([0, 51, 255], np.uint8).reshape(1, 1, 1, 3)
    for hq in (levels, jnp.asarray(levels)):
        found = training.to_images({"hq": hq, "skipped": jnp.zeros(1)})
        assert set(found) == {"hq"} and found["hq"].dtype == jnp.float32
        np.testing.assert_allclose(np.ravel(found["hq"]), [-1.0, -0.6, 1.0], atol=1e-6)


def test_evaluate_shows_rows_of_lq_output_hq():
    rng = np.random.default_rng(0)
    lq, out, hq = rng.integers(0, 256, (3, 4, 12, 14, 3), np.uint8)
    means, grid = training.evaluate(out, {"lq": lq, "hq": hq})
    assert grid.shape == (4 * 12, 3 * 14, 3) and grid.dtype == np.uint8
    for row in range(4):
        expected = np.concatenate([lq[row], out[row], hq[row]], axis=1)
        np.testing.assert_array_equal(grid[12 * row : 12 * row + 12], expected)
    assert means == {
        "val_psnr_y": pytest.approx(np.mean([psnr_y(a, b) for a, b in zip(out, hq, strict=True)])),
        "val_ssim_y": pytest.approx(np.mean([ssim_y(a, b) for a, b in zip(out, hq, strict=True)])),
    }


def test_evaluate_without_lq_has_two_columns():
    hq = np.random.default_rng(0).integers(0, 256, (2, 12, 14, 3), np.uint8)
    means, grid = training.evaluate(hq, {"hq": hq})
    assert grid.shape == (24, 28, 3)
    assert means == {"val_psnr_y": pytest.approx(80), "val_ssim_y": pytest.approx(1)}


def rates(steps: int, *at: int, **values) -> list[float]:
    with jax.numpy_dtype_promotion("standard"):
        schedule = training.learning_rate(OptimConfig(learning_rate=0.5, **values), steps)
        return [float(schedule(step)) for step in at]


def test_constant_rate():
    assert rates(100, 0, 1, 99, 1000) == [0.5] * 4


def test_warm_up_is_linear():
    assert rates(100, 0, 5, 10, 99, warmup_steps=10) == pytest.approx([0, 0.25, 0.5, 0.5])


def test_cosine_ends_at_zero():
    found = rates(110, 0, 10, 35, 60, 110, warmup_steps=10, schedule="cosine")
    quarter = 0.25 * (1 + np.cos(np.pi / 4))
    assert found == pytest.approx([0, 0.5, quarter, 0.25, 0], abs=1e-7)


def test_optimizer_equals_torch():
    """Gradients on both sides of the clip, weights of two tensors under one norm."""
    values = OptimConfig(learning_rate=0.02, b1=0.8, b2=0.95, weight_decay=0.1, clip_norm=1.0)
    rng = np.random.default_rng(0)
    params = {"a": rng.normal(size=(3, 4)).astype(np.float32), "b": np.ones(5, np.float32)}
    theirs = {k: torch.nn.Parameter(torch.tensor(v)) for k, v in params.items()}
    reference = torch.optim.AdamW(
        theirs.values(), lr=0.02, betas=(0.8, 0.95), eps=1e-8, weight_decay=0.1
    )
    tx = small.optimizer(values, 5)
    update = jax.jit(tx.update)
    ours = {k: jnp.asarray(v) for k, v in params.items()}
    state, norms = tx.init(ours), []
    for scale in (0.05, 3.0, 0.1, 10.0, 0.5):
        grads = {k: (scale * rng.normal(size=v.shape)).astype(np.float32) for k, v in ours.items()}
        updates, state = update(grads, state, ours)
        ours = optax.apply_updates(ours, updates)
        for name, parameter in theirs.items():
            parameter.grad = torch.tensor(grads[name])
        norms.append(float(torch.nn.utils.clip_grad_norm_(theirs.values(), 1.0)))
        reference.step()
    assert min(norms) < 0.5 and max(norms) > 5
    for name, expected in theirs.items():
        np.testing.assert_allclose(ours[name], expected.detach(), rtol=0, atol=1e-6)
        assert np.abs(ours[name] - params[name]).max() > 0.02


@pytest.mark.parametrize("kind", KINDS)
def test_check_lets_good_configs_pass(kind):
    training.check(small.config(kind))


@pytest.mark.parametrize(
    ("section", "name", "value", "said"),
    [
        ("run", "kind", "painter", "run.kind: 'painter' is none of vae, diffusion, restorer"),
        ("data", "sources", (), "data.sources: name at least one"),
        ("data", "degrade", False, "data.degrade: "),
        ("loss", "lpips", 2.0, "loss.lpips and loss.vsd: "),
        ("loss", "vsd", 1.0, "loss.lpips and loss.vsd: "),
        ("run", "precision", "fp8", "run.precision: 'fp8'"),
        ("run", "latent", "median", "run.latent: 'median'"),
        ("optim", "schedule", "linear", "optim.schedule: 'linear'"),
        ("data", "batch_size", 0, "data.batch_size: 0"),
    ],
)
def test_check_refuses(section, name, value, said):
    config = small.config("restorer")
    setattr(getattr(config, section), name, value)
    with pytest.raises(ConfigError) as caught:
        training.check(config)
    assert str(caught.value).startswith(said) and "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["vae", "diffusion"])
def test_check_asks_the_other_kinds_for_neither(kind):
    config = small.config(kind)
    config.data.degrade, config.loss.lpips, config.loss.vsd = False, 2.0, 1.0
    training.check(config)


def test_another_architecture_is_refused_by_name(folder):
    config = small.config("vae")
    config.model = replace(config.model, unet=replace(config.model.unet, cross_attention_dim=16))
    config.model = replace(config.model, hfie=replace(config.model.hfie, num_queries=4))
    with pytest.raises(ConfigError) as caught:
        training.prepare(config, folder)
    assert str(caught.value) == f"model.unet, model.hfie: differ from those of {folder}"


def test_timestep_is_the_configs_and_scale_the_folders(folder):
    config = small.config("diffusion")
    vae = replace(config.model.vae, scaling_factor=0.5)
    config.model = replace(config.model, timestep=7, vae=vae)
    model, found = training.prepare(config, folder)
    assert (model.timestep, found.timestep) == (7, 7)
    assert (model.vae.scaling_factor, found.vae.scaling_factor) == (1.0, 1.0)


def test_lora_follows_the_seed_and_starts_from_zero(folder):
    config = small.config("restorer")
    first, other = (training.prepare(replace_seed(config, s), folder)[0] for s in (1, 2))
    a = [arrays(nnx.state(model, lora.LoRAParam)) for model in (first, other)]
    assert all((not np.any(a[0][n])) == n.endswith("lora_B") for n in a[0])
    assert not any(np.array_equal(a[0][n], a[1][n]) for n in a[0] if n.endswith("lora_A"))


def replace_seed(config: Config, seed: int) -> Config:
    return replace(config, run=replace(config.run, seed=seed))


def test_base_folder_is_the_configs(tmp_path):
    config = small.config("vae")
    config.run.init = str(tmp_path / "given")
    assert training.base_folder(config, tmp_path) == tmp_path / "given"
    assert not list(tmp_path.iterdir())


def test_random_base_is_drawn_once_and_kept(tmp_path):
    config = small.config("vae")
    first = training.base_folder(config, tmp_path)
    written = {p.name: p.stat().st_mtime_ns for p in first.iterdir()}
    assert first == tmp_path / "init" and "config.json" in written
    assert training.base_folder(config, tmp_path) == first
    assert {p.name: p.stat().st_mtime_ns for p in first.iterdir()} == written
    models = (random_restorer(config.model, config.run.seed), load_base(first)[0])
    assert not changed(*(nnx.state(model, nnx.Param) for model in models))
