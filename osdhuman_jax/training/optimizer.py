"""AdamW (OSDHuman's section 4.1), and what a step does with gradients: measure, average, skip.

Generator, regularizer and critic each have an optimizer of this kind. The functions are pure and
work on pytrees of arrays; they are called inside the compiled step, and nothing else needs them.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import Array
from jaxtyping import Bool, PyTree

from osdhuman_jax.config import OptimConfig
from osdhuman_jax.networks.types import Scalar
from osdhuman_jax.training.sharding import Held


def learning_rate(config: OptimConfig, steps: int, updates: int = 1) -> optax.Schedule:
    """Linear warm-up, then a constant rate or a cosine down to zero at the last of `steps`.

    An optimizer counts its own updates; `updates` is how many of them a step of the run has.
    """
    # All in updates: warm-up and decay end where the run's steps say, however many there are.
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
    """AdamW (Loshchilov & Hutter 2019) of gradients that are clipped by their global norm."""
    # Clipped first, so that one wild batch does not stay in Adam's averages.
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

    def update(
        updates: PyTree, state: PyTree, params: PyTree | None = None
    ) -> tuple[PyTree, PyTree]:
        # optax mixes dtypes, which strict promotion would refuse.
        with jax.numpy_dtype_promotion("standard"):
            return chain.update(updates, state, params)

    return optax.GradientTransformation(chain.init, update)


def updated(
    optimizer: optax.GradientTransformation, gradients: PyTree, state: PyTree, params: PyTree
) -> tuple[PyTree, PyTree, PyTree]:
    """One update. Returns the new parameters, the optimizer's new state, and what was added."""
    updates, state = optimizer.update(gradients, state, params)
    return optax.apply_updates(params, updates), state, updates


def group_norms(tree: nnx.State, name: str) -> dict[str, Scalar]:
    """Norm of a whole state as `name`, and of each network in it as `name_network`."""
    networks = sorted({str(path[0]) for path, _ in nnx.to_flat_state(tree)})
    parts = {f"{name}_{key}": optax.tree.norm(tree[key]) for key in networks}
    return {name: optax.tree.norm(tree), **parts}


def accumulate(
    function: Callable[[Held, PyTree], tuple[PyTree, PyTree]], held: Held, microbatches: PyTree
) -> tuple[PyTree, PyTree]:
    """Calls `function(held, microbatch)` for one microbatch after the other; gathers the results.

    What it takes beside a microbatch is an argument, since it may be called by `over_slices`.
    The first axis of every leaf of `microbatches` counts them. A result is two trees: the first is
    averaged over the microbatches, the second is stacked along a new first axis.
    """
    # One microbatch needs no loop, and compiles to a simpler program.
    count = jax.tree.leaves(microbatches)[0].shape[0]
    if count == 1:
        mean, kept = function(held, jax.tree.map(lambda x: x[0], microbatches))
        return mean, jax.tree.map(lambda x: x[None], kept)

    def body(total: PyTree, microbatch: PyTree) -> tuple[PyTree, PyTree]:
        found, kept = function(held, microbatch)
        return jax.tree.map(jnp.add, total, found), kept

    # A scan wants its sum's shapes before the first microbatch has been seen.
    shapes, _ = jax.eval_shape(function, held, jax.tree.map(lambda x: x[0], microbatches))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    total, kept = jax.lax.scan(body, zeros, microbatches)
    return jax.tree.map(lambda x: x / count, total), kept


def split_microbatches(batch: PyTree, count: int) -> PyTree:
    """A batch as `count` microbatches, (B, ...) -> (count, B / count, ...).

    Each takes every `count`-th sample, so that one on many devices takes from all of them.
    """

    def leaf(x: Array) -> Array:
        x = x.reshape(x.shape[0] // count, count, *x.shape[1:])  # [B / count, count, ...]
        return x.swapaxes(0, 1)  # [count, B / count, ...]

    return jax.tree.map(leaf, batch)


def all_finite(*values: Scalar) -> Bool[Array, ""]:
    """Whether every number is finite; a norm is where all that it is taken of is."""
    return jnp.all(jnp.isfinite(jnp.stack(values)))


def tree_where(condition: Bool[Array, ""], new: PyTree, old: PyTree) -> PyTree:
    """All leaves of `new` where the condition holds, else all those of `old`."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), new, old)


def ema_update(ema: PyTree, params: PyTree, step: Array, decay: float) -> PyTree:
    """The exponential moving average `ema` after `params`, the result of a step, joins it."""
    # At first a slow average would still be the beginning: hence TensorFlow's warm-up,
    # decay <= (1 + step) / (10 + step).
    n = step.astype(jnp.float32)
    rate = 1.0 - jnp.minimum(decay, (1.0 + n) / (10.0 + n))
    return jax.tree.map(lambda old, new: old + rate * (new - old), ema, params)
