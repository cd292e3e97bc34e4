"""The paper's objective on small random networks: Eq. 4 with LPIPS and VSD, and Eq. 7."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from convert import call, normal, params
from flax import nnx

from osdhuman_jax.config import Config
from osdhuman_jax.methods import lora, objectives
from osdhuman_jax.methods.schedule import Schedule
from osdhuman_jax.training import train_step

LATENT = (2, 16, 16, 4)


def whole(**changes) -> Config:
    """The paper's weights."""
    config = tiny.config("restorer")
    config.loss.lpips, config.loss.vsd = 2.0, 1.0
    for name, value in changes.items():
        section, field = name.split("__")
        setattr(getattr(config, section), field, value)
    return config


def shaken(state: nnx.State, seed: int = 7) -> nnx.State:
    """Every leaf away from where it is, LoRA's zeros too."""
    leaves, tree = jax.tree.flatten(state)
    moved = [x + 0.1 * normal(*x.shape, seed=seed + i) for i, x in enumerate(leaves)]
    return jax.tree.unflatten(tree, moved)


@pytest.fixture(scope="module")
def nets():
    trainer, state, frozen = tiny.start(whole())
    part = {"t": jnp.array([20, 700]), "noise": jnp.asarray(normal(*LATENT, seed=1))}
    latent, prompt = jnp.asarray(normal(*LATENT)), jnp.asarray(normal(2, 3, 8, seed=2))
    return trainer, state, frozen, part, latent, prompt


def outputs(unet, part, latent, prompt) -> np.ndarray:
    noisy = Schedule().add_noise(latent, part["noise"], part["t"])
    return np.asarray(call(unet, noisy, part["t"], prompt))


def test_frozen_regularizer_is_the_base_unet(nets):
    """Whatever the generator's adapters are: those of `tiny.restorer` are random."""
    trainer, _, frozen, part, latent, prompt = nets
    plain = tiny.restorer(whole().lora).unet
    with_lora = outputs(plain, part, latent, prompt)
    for path, value in params(plain, lora.LoRAParam).items():
        if path[-1] == "lora_B":
            value[...] = jnp.zeros(value.shape)
    lora.merge(plain)  # nothing: the base is left
    expected = outputs(plain, part, latent, prompt)
    found = outputs(trainer.regularizer.frozen(frozen), part, latent, prompt)
    np.testing.assert_array_equal(found, expected)
    assert np.abs(with_lora - expected).max() > 0.1


def test_finetuned_regularizer_starts_as_the_frozen_one(nets):
    trainer, state, frozen, part, latent, prompt = nets
    base = outputs(trainer.regularizer.frozen(frozen), part, latent, prompt)
    start = outputs(trainer.regularizer.finetuned(frozen, state.reg), part, latent, prompt)
    np.testing.assert_array_equal(start, base)
    moved = trainer.regularizer.finetuned(frozen, shaken(state.reg))
    assert np.abs(outputs(moved, part, latent, prompt) - base).max() > 0.01


@pytest.mark.parametrize("scope", ["all", "mid"])
def test_regularizers_adapters(scope):
    config = whole(loss__reg_lora_scope=scope)
    regularizer = tiny.start(config)[0].regularizer
    layers = {path[:-1] for path, _ in nnx.to_flat_state(regularizer.params)}
    plain = tiny.restorer().unet
    assert layers == set(objectives.regularizer_targets(plain, scope))
    assert {path[0] for path in layers} == (
        {"mid_block"}
        if scope == "mid"
        else {"conv_in", "down_blocks", "mid_block", "up_blocks", "conv_out"}
    )


def test_conv_in_that_is_trained_is_not_the_regularizers(nets):
    """The frozen tree then keeps the two base values, for the regularizers alone."""
    _, _, frozen, part, latent, prompt = nets
    expected = outputs(nets[0].regularizer.frozen(frozen), part, latent, prompt)
    trainer, state, frozen = tiny.start(whole(lora__train_conv_in=True))
    assert set(frozen.unet) == {"conv_in.kernel", "conv_in.bias"}
    assert "base" in state.params["unet"]["conv_in"]
    found = outputs(trainer.regularizer.frozen(frozen), part, latent, prompt)
    np.testing.assert_array_equal(found, expected)


def vsd(nets, reg, latent, prompt, frozen=None, config=None):
    trainer, _, held, part, *_ = nets
    whole_config = replace(trainer.config, loss=config or trainer.config.loss)
    context = objectives.Context(whole_config, frozen or held, trainer.regularizer, reg)
    return objectives.vsd_terms(context, part, latent, prompt)


def test_equal_regularizers_give_zero(nets):
    _, state, _, _, latent, prompt = nets
    value, slope = jax.jit(jax.value_and_grad(lambda z: vsd(nets, state.reg, z, prompt)["vsd"]))(
        latent
    )
    assert float(value) == 0.0 and not np.any(slope)


def test_vsd_on_networks_is_its_closed_form(nets):
    """And what is logged: mean |z - x0| and its inverse."""
    trainer, state, frozen, part, latent, prompt = nets
    reg = shaken(state.reg)
    terms, slope = jax.jit(
        jax.value_and_grad(
            lambda z: (lambda t: (t["vsd"], t))(vsd(nets, reg, z, prompt)), has_aux=True
        )
    )(latent)
    unets = trainer.regularizer.frozen(frozen), trainer.regularizer.finetuned(frozen, reg)
    eps, eps_finetuned = (jnp.asarray(outputs(unet, part, latent, prompt)) for unet in unets)
    noisy = Schedule().add_noise(latent, part["noise"], part["t"])
    x0, x0_finetuned = (Schedule().eps_to_x0(noisy, e, part["t"]) for e in (eps, eps_finetuned))
    gap = np.abs(latent - x0).mean(axis=(1, 2, 3), keepdims=True)
    np.testing.assert_allclose(
        slope, 2 * (x0_finetuned - x0) / gap / latent.size, rtol=2e-3, atol=1e-6
    )
    np.testing.assert_allclose(terms[1]["x0_gap"], gap.mean(), rtol=1e-4)
    np.testing.assert_allclose(terms[1]["vsd_weight"], (1 / gap).mean(), rtol=1e-4)


def test_vsd_gives_no_gradient_to_regularizers_frozen_tree_and_prompt(nets):
    _, state, frozen, _, latent, prompt = nets

    def value(reg, frozen, prompt, latent):
        return vsd(nets, reg, latent, prompt, frozen)["vsd"]

    grads = jax.jit(jax.grad(value, (0, 1, 2, 3)))(shaken(state.reg), frozen, prompt, latent)
    assert all(not np.any(x) for x in jax.tree.leaves(grads[:3]))
    assert np.any(grads[3])


def test_guidance_of_one_is_none(nets):
    trainer, state, frozen, _, latent, prompt = nets
    guided = replace(frozen, negative=jnp.asarray(normal(1, 3, 8, seed=9)))
    reg = shaken(state.reg)
    plain, one, much = jax.jit(
        lambda: (
            vsd(nets, reg, latent, prompt),
            vsd(nets, reg, latent, prompt, guided),
            vsd(nets, reg, latent, prompt, guided, replace(trainer.config.loss, cfg_vsd=7.5)),
        )
    )()
    np.testing.assert_allclose(one["vsd"], plain["vsd"], rtol=1e-3)
    assert abs(float(much["x0_gap"]) - float(plain["x0_gap"])) > 1e-3


def test_a_prompt_in_the_batch_stands_in_for_hfie():
    config = tiny.config("restorer")
    model = tiny.restorer(config.lora)
    images = train_step.to_images(tiny.pictures())
    part = {**images, "posterior": jnp.zeros(LATENT)}
    graphdef, weights = nnx.split(model)

    @jax.jit
    def values(weights):
        model = nnx.merge(graphdef, weights)
        context = objectives.Context(config, objectives.Frozen(weights))
        prompts = {name: {"prompt": model.prompter(images[name])} for name in ("lq", "hq")}
        return {
            name: objectives.generator_objective(model, context, {**part, **prompt}).value
            for name, prompt in {"none": {}, **prompts}.items()
        }

    found = values(weights)
    assert found["none"] == found["lq"] != found["hq"]


# The step.


@pytest.fixture(scope="module")
def stepped():
    """Two steps of the whole objective, with an average."""
    trainer, state, frozen = tiny.start(whole(optim__ema=0.5))
    step = jax.jit(trainer.step)
    batch = {k: jnp.asarray(v, jnp.float32) for k, v in tiny.pictures().items()}
    states, scalars = [state], []
    for _ in range(2):
        state, values = step(state, frozen, batch)
        states.append(state)
        scalars.append({k: float(v) for k, v in values.items()})
    return trainer, frozen, step, batch, states, scalars


def test_scalars_of_the_whole_objective(stepped):
    scalars = stepped[5]
    for values in scalars:
        parts = values["mse"] + 2 * values["lpips"] + values["vsd"]
        np.testing.assert_allclose(values["loss"], parts, rtol=1e-5)
        assert values["nonfinite"] == 0 and np.isfinite(list(values.values())).all()
        assert values["lpips"] > 0 and values["reg_grad_norm"] > 0 and values["x0_gap"] > 0
    assert scalars[0]["vsd"] == 0 < scalars[1]["vsd"]


def test_regularizer_learns_on_its_own(stepped):
    """A waits for the second update, since its gradient is zero while B is."""
    first, second, third = (state.reg for state in stepped[4])
    names = set(tiny.arrays(first))
    assert tiny.changed(first, second) == {name for name in names if name.endswith("lora_B")}
    assert tiny.changed(first, third) == names


def test_average_follows(stepped):
    first, second = stepped[4][:2]
    triples = zip(
        *(jax.tree.leaves(t) for t in (first.ema, second.params, second.ema)), strict=True
    )
    for old, new, ema in triples:
        np.testing.assert_allclose(ema, old + 0.9 * (new - old), rtol=1e-5, atol=1e-7)


def test_a_step_that_is_not_finite_changes_nothing(stepped):
    _, frozen, step, batch, states, _ = stepped
    poisoned = {**batch, "lq": batch["lq"].at[0, 0, 0, 0].set(jnp.nan)}
    state, rows = states[2], []
    for pictures in (poisoned, poisoned, batch):
        before = state
        state, scalars = step(state, frozen, pictures)
        rows.append(float(scalars["nonfinite"]))
        if pictures is poisoned:
            same = replace(state, step=before.step, nonfinite=before.nonfinite)
            leaves = zip(jax.tree.leaves(same), jax.tree.leaves(before), strict=True)
            assert all(np.array_equal(a, b) for a, b in leaves)
    assert rows == [1, 2, 0] and int(state.step) == int(states[2].step) + 3
    assert not np.isnan(np.concatenate([np.ravel(x) for x in jax.tree.leaves(state.params)])).any()


@pytest.mark.slow
def test_a_batch_in_parts_is_the_same_step():
    """With two updates of the regularizer."""
    batch, found = tiny.pictures(4), []
    for parts in (1, 2):
        config = whole(loss__reg_updates=2, optim__accumulate=parts)
        trainer, state, frozen = tiny.start(config)
        found.append((state, *jax.jit(trainer.step)(state, frozen, batch)))
    (before, one, reference), (_, two, scalars) = found
    for name in reference:
        np.testing.assert_allclose(scalars[name], reference[name], rtol=2e-3, atol=1e-5)
    for tree in ("params", "reg"):
        start, whole_, cut = (
            np.concatenate([np.ravel(x) for x in jax.tree.leaves(getattr(s, tree))])
            for s in (before, one, two)
        )
        moved = np.abs(whole_ - start).max()
        assert moved > 1e-4 and np.quantile(np.abs(cut - whole_), 0.99) < 1e-2 * moved


# Memory.


def nbytes(tree) -> int:
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


@pytest.mark.slow
def test_the_frozen_unet_is_held_once():
    """The compiled step's own account: three roles need hardly more than one does."""
    sizes = replace(tiny.MODEL.unet, block_out_channels=(256,), norm_num_groups=32)
    accounts = []
    for vsd_weight in (0.0, 1.0):
        config = whole(loss__vsd=vsd_weight, lora__vae_encoder=False)
        config.model = replace(tiny.MODEL, unet=sizes)
        state, frozen = jax.eval_shape(lambda config=config: wide_start(config))
        picture = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.uint8)
        step = jax.jit(TRAINERS.pop().step, donate_argnums=0)
        compiled = step.lower(state, frozen, {"hq": picture, "lq": picture}).compile()
        memory = compiled.memory_analysis()
        assert memory.argument_size_in_bytes < 1.01 * nbytes((state, frozen)) + 1e4
        accounts.append(memory)
    unet = nbytes(frozen.restorer["unet"])
    one, three = accounts
    assert unet > 2e7 and nbytes((state, frozen)) < 1.25 * unet
    assert three.argument_size_in_bytes - one.argument_size_in_bytes < 1.1 * nbytes(state)
    assert three.temp_size_in_bytes - one.temp_size_in_bytes < 0.5 * unet
    assert three.generated_code_size_in_bytes < 0.5 * unet  # no weights baked in as constants


TRAINERS: list[train_step.Trainer] = []


def wide_start(config: Config):
    """State and frozen weights, the trainer left in TRAINERS: shapes alone pass out of a trace."""
    from osdhuman_jax.methods.build import build_restorer
    from osdhuman_jax.weights import add_lora

    model = build_restorer(config.model, rngs=nnx.Rngs(0))
    add_lora(model, config.lora, np.random.default_rng(0))
    trainer = train_step.Trainer(config, config.model, model)
    TRAINERS.append(trainer)
    return trainer.start(model, tiny.lpips())
