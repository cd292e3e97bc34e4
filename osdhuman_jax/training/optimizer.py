"""AdamW (section 4.1), and what a step does with gradients: measure, average, skip.

Generator, regularizer and critic each have an optimizer of this kind. All functions are pure, on
pytrees, and are called inside the compiled step.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import Array
from jaxtyping import Bool

from osdhuman_jax.config import OptimConfig
from osdhuman_jax.networks.types import Scalar

Tree = Any  # a pytree of arrays


def learning_rate(config: OptimConfig, steps: int, updates: int = 1) -> optax.Schedule:
    """Linear warm-up, then constant or cosine decay to zero at the last of `steps`.

    The schedule is one of updates, of which a step has `updates`.
    """
    warm = config.warmup_steps * updates
    after = max(steps * updates - warm, 1)
    peak = config.learning_rate
    main = (
        optax.constant_schedule(peak)
        if config.schedule == "constant"
        else optax.cosine_decay_schedule(peak, after)
    )
    return optax.join_schedules([optax.linear_schedule(0.0, peak, max(warm, 1)), main], [warm])


def make_optimizer(
    config: OptimConfig, steps: int, updates: int = 1
) -> optax.GradientTransformation:
    """AdamW with decoupled decay after clipping by the global norm (section 4.1)."""
    chain = optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(
            learning_rate(config, steps, updates),
            b1=config.b1,
            b2=config.b2,
            eps=config.eps,
            weight_decay=config.weight_decay,
        ),
    )

    def update(updates: Tree, state: Tree, params: Tree | None = None):
        with jax.numpy_dtype_promotion("standard"):  # optax's arithmetic counts on it
            return chain.update(updates, state, params)

    return optax.GradientTransformation(chain.init, update)


def group_norms(tree: Any, name: str) -> dict[str, Scalar]:
    """Norm of a whole state as `name`, and of each network in it as `name_network`."""
    networks = sorted({str(path[0]) for path, _ in nnx.to_flat_state(tree)})
    parts = {f"{name}_{key}": optax.tree.norm(tree[key]) for key in networks}
    return {name: optax.tree.norm(tree), **parts}


def accumulate(
    function: Callable[[Tree], tuple[Tree, Tree]], microbatches: Tree
) -> tuple[Tree, Tree]:
    """`function` of each microbatch (their index is every leaf's first axis), one at a time.

    It returns (what is averaged over them, what is stacked).
    """
    count = jax.tree.leaves(microbatches)[0].shape[0]
    if count == 1:
        mean, kept = function(jax.tree.map(lambda x: x[0], microbatches))
        return mean, jax.tree.map(lambda x: x[None], kept)

    def body(total: Tree, microbatch: Tree) -> tuple[Tree, Tree]:
        found, kept = function(microbatch)
        return jax.tree.map(jnp.add, total, found), kept

    shapes, _ = jax.eval_shape(function, jax.tree.map(lambda x: x[0], microbatches))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    total, kept = jax.lax.scan(body, zeros, microbatches)
    return jax.tree.map(lambda x: x / count, total), kept


def split_microbatches(batch: Tree, count: int) -> Tree:
    """A batch as `count` microbatches, (B, ...) -> (count, B / count, ...).

    Each takes every `count`-th sample, so that one on many devices takes from all of them.
    """

    def leaf(x: Array) -> Array:
        return x.reshape(x.shape[0] // count, count, *x.shape[1:]).swapaxes(0, 1)

    return jax.tree.map(leaf, batch)


def all_finite(*values: Scalar) -> Bool[Array, ""]:
    """Whether every number is finite; of a norm, whether every element under it is."""
    return jnp.all(jnp.isfinite(jnp.stack(values)))


def tree_where(condition: Bool[Array, ""], new: Tree, old: Tree) -> Tree:
    """The leaves of `new`, or all those of `old`."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), new, old)


def ema_update(ema: Tree, params: Tree, step: Array, decay: float) -> Tree:
    """Exponential moving average; the first steps weigh more: decay <= (1 + step) / (10 + step)."""
    n = step.astype(jnp.float32)
    rate = 1.0 - jnp.minimum(decay, (1.0 + n) / (10.0 + n))
    return jax.tree.map(lambda old, new: old + rate * (new - old), ema, params)
