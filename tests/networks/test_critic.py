"""The critic beside a small restorer: what it is asked, what it learns, and what it teaches."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from convert import call, normal
from flax import nnx

from osdhuman_jax.config import Config
from osdhuman_jax.methods import losses, objectives
from osdhuman_jax.networks.critic import Critic
from osdhuman_jax.training import train_step
from osdhuman_jax.training.critics import Critics


def adversarial(**changes) -> Config:
    config = tiny.config("restorer")
    config.run.train = "all"
    config.loss.adversarial, config.loss.features, config.loss.critic_width = 0.1, 1.0, 8
    for name, value in changes.items():
        setattr(config.loss, name, value)
    return config


def images(side: int = 16) -> dict[str, jax.Array]:
    return train_step.to_images(tiny.pictures(2, side))


def fresh(config: Config) -> Critic:
    critics = Critics(config, tiny.MODEL)
    critic = critics.of_pictures(critics.start)
    assert critic is not None
    return critic


def shaken(config: Config) -> Critic:
    """A critic that has opinions: its last layer starts at zero."""
    critic = fresh(config)
    kernel = critic.conv_out.kernel
    kernel.set_value(0.3 * jnp.asarray(normal(*kernel.shape)))
    return critic


terms_of = nnx.jit(objectives.critic_terms)


def test_losses_in_closed_form():
    better, worse = jnp.full((1, 2, 2), 3.0), jnp.full((1, 2, 2), 1.0)
    np.testing.assert_allclose(losses.relativistic(better, worse), np.log1p(np.exp(-2.0)), 1e-6)
    np.testing.assert_allclose(losses.relativistic(worse, better), np.log1p(np.exp(2.0)), 1e-6)
    assert losses.steadiness(better, worse) == 4.0


def test_a_critic_begins_without_an_opinion():
    critic, pictures = fresh(adversarial()), images()
    logits, features = call(critic, pictures["hq"], pictures["lq"])
    assert logits.shape == (2, 2, 2) and not np.asarray(logits).any()
    assert [f.shape for f in features] == [(2, 4, 4, 8), (2, 4, 4, 8), (2, 2, 2, 8), (2, 2, 2, 16)]
    terms = terms_of(critic, pictures["lq"], pictures["hq"], pictures["lq"])
    np.testing.assert_allclose(terms["adversarial"], np.log(2.0), rtol=1e-6)
    assert terms["features"] > 0


def test_a_perfect_image_has_nothing_to_learn_from_the_features():
    critic, pictures = shaken(adversarial()), images()
    terms = terms_of(critic, pictures["hq"], pictures["hq"], pictures["lq"])
    assert terms["features"] == 0.0
    np.testing.assert_allclose(terms["adversarial"], np.log(2.0), rtol=1e-6)


def test_the_penalty_is_the_noise_times_the_slope():
    """To first order in the noise; twice the noise costs four times as much."""
    critic, pictures = shaken(adversarial()), images()
    noise = {f"critic_{k}": jnp.asarray(normal(2, 16, 16, 3, seed=9)) for k in ("hq", "image")}
    part = {**pictures, **noise}

    @jax.jit
    def slope(image, direction):
        _, change = jax.jvp(lambda x: critic(x, pictures["lq"])[0], (image,), (direction,))
        return jnp.mean(change**2)

    want = sum(slope(pictures[k], noise[f"critic_{n}"]) for k, n in (("hq", "hq"), ("lq", "image")))
    for size in (1e-3, 2e-3):
        config = replace(adversarial().loss, critic_noise=size)
        found = objectives.critic_objective(config, critic, pictures["lq"], part)
        np.testing.assert_allclose(found.scalars["critic_penalty"], size**2 * want, rtol=2e-2)
        terms = found.scalars["critic_loss"] + 100 * found.scalars["critic_penalty"]
        np.testing.assert_allclose(found.value, terms, rtol=1e-6)


@pytest.fixture(scope="module")
def stepped():
    trainer, state, frozen = tiny.start(adversarial())
    step, states, scalars = jax.jit(trainer.step), [state], []
    for _ in range(12):
        state, values = step(state, frozen, tiny.pictures())
        states.append(state)
        scalars.append({k: float(v) for k, v in values.items()})
    return states, scalars


def test_both_learn_in_one_step(stepped):
    states, scalars = stepped
    for name in ("params", "critic"):
        pairs = [jax.tree.leaves(getattr(s, name)) for s in (states[0], states[2])]
        moved = [not np.array_equal(a, b) for a, b in zip(*pairs, strict=True)]
        assert np.mean(moved) > 0.9, name
    first = scalars[0]
    np.testing.assert_allclose(first["critic_loss"], np.log(2.0), rtol=1e-6)
    assert first["critic_right"] == 0.0  # all logits alike
    value = first["mse"] + 0.1 * first["adversarial"] + first["features"]
    np.testing.assert_allclose(first["loss"], value, rtol=1e-5)


def test_the_critic_comes_to_tell_real_from_restored(stepped):
    assert stepped[1][-1]["critic_loss"] < np.log(2.0) < stepped[1][-1]["adversarial"]


def test_without_its_terms_there_is_no_critic():
    trainer, state, _ = tiny.start(adversarial(adversarial=0.0, features=0.0))
    assert trainer.critics.start is None and state.critic is None and state.critic_opt is None
