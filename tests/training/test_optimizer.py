"""Rates and AdamW against PyTorch; parts, counters and averages against their closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from osdhuman_jax.config import OptimConfig
from osdhuman_jax.training import optimizer


def rates(steps: int, *at: int, **values) -> list[float]:
    with jax.numpy_dtype_promotion("standard"):
        schedule = optimizer.learning_rate(OptimConfig(learning_rate=0.5, **values), steps)
        return [float(schedule(step)) for step in at]


@pytest.mark.parametrize(
    ("values", "at", "expected"),
    [
        ({}, (0, 1, 99, 1000), [0.5] * 4),
        ({"warmup_steps": 10}, (0, 5, 10, 99), [0, 0.25, 0.5, 0.5]),
        (
            {"warmup_steps": 10, "schedule": "cosine"},
            (0, 10, 35, 60, 110),
            [0, 0.5, 0.25 * (1 + np.cos(np.pi / 4)), 0.25, 0],
        ),
    ],
    ids=["constant", "warm-up", "cosine"],
)
def test_rates(values, at, expected):
    assert rates(110, *at, **values) == pytest.approx(expected, abs=1e-7)


def test_several_updates_a_step_share_its_schedule():
    """Update 3 n has the rate of step n."""
    values = {"warmup_steps": 10, "schedule": "cosine"}
    with jax.numpy_dtype_promotion("standard"):
        config = OptimConfig(learning_rate=0.5, **values)
        schedule = optimizer.learning_rate(config, 110, 3)
        found = [float(schedule(3 * step)) for step in (5, 10, 35, 60, 110)]
    assert found == pytest.approx(rates(110, 5, 10, 35, 60, 110, **values), abs=1e-7)


def test_optimizer_equals_torch():
    """Gradients on both sides of the clip, weights of two tensors under one norm."""
    values = OptimConfig(learning_rate=0.02, b1=0.8, b2=0.95, weight_decay=0.1, clip_norm=1.0)
    rng = np.random.default_rng(0)
    params = {"a": rng.normal(size=(3, 4)).astype(np.float32), "b": np.ones(5, np.float32)}
    theirs = {k: torch.nn.Parameter(torch.tensor(v)) for k, v in params.items()}
    reference = torch.optim.AdamW(
        theirs.values(), lr=0.02, betas=(0.8, 0.95), eps=1e-8, weight_decay=0.1
    )
    tx = optimizer.make_optimizer(values, 5)
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


def test_parts_cover_the_batch():
    batch = {"x": jnp.arange(12).reshape(12, 1)}
    parts = np.asarray(optimizer.split_microbatches(batch, 3)["x"])[..., 0]
    assert parts.tolist() == [[0, 3, 6, 9], [1, 4, 7, 10], [2, 5, 8, 11]]


@pytest.mark.parametrize("count", [1, 2, 4])
def test_accumulated_mean_is_the_whole_batchs(count):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(8, 3)), jnp.float32)
    mean, kept = optimizer.accumulate(
        lambda factor, part: ({"m": jnp.mean(part, 0)}, factor * part),
        2,
        optimizer.split_microbatches(x, count),
    )
    np.testing.assert_allclose(mean["m"], np.mean(x, 0), rtol=1e-6)
    np.testing.assert_array_equal(kept, 2 * optimizer.split_microbatches(x, count))


def test_average_starts_fast_and_ends_at_its_decay():
    one, zero = {"a": jnp.ones(2)}, {"a": jnp.zeros(2)}
    first = optimizer.ema_update(zero, one, jnp.int32(0), 0.99)["a"]
    late = optimizer.ema_update(zero, one, jnp.int32(10**6), 0.99)["a"]
    np.testing.assert_allclose(first, 0.9, rtol=1e-6)
    np.testing.assert_allclose(late, 0.01, rtol=1e-4)
