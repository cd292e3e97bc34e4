"""Rematerialisation by name: what a block keeps for the backward pass, and what it computes again.

    none      everything is kept: fastest, most memory
    products  outputs of convolutions and weight matrices are kept; norms, activations, attention
              weights and LoRA's products, which cost little, are computed again
    blocks    the block's inputs alone are kept: least memory, a second forward pass

A block is a module whose `__call__` is decorated with `rematerialised`.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx
from jax import Array

WORTH_KEEPING = 64  # multiplications per element of a product; LoRA's second has its rank


def _costly(primitive: object, *operands: Any, **params: Any) -> bool:
    """Whether a product is one of weights and has `WORTH_KEEPING` terms or more."""
    # A kernel has one multiplication an output for each of its values but the outputs' axis.
    if primitive is jax.lax.conv_general_dilated_p:
        kernel, axes = operands[1].shape, params["dimension_numbers"].rhs_spec
        return math.prod(kernel) // kernel[axes[0]] >= WORTH_KEEPING
    if primitive is jax.lax.dot_general_p:
        (contracted, _), (batch, _) = params["dimension_numbers"]
        # Batched products are attention's: of activations with one another, not of weights.
        terms = math.prod(operands[0].shape[axis] for axis in contracted)
        return not batch and terms >= WORTH_KEEPING
    return False


POLICIES: dict[str, Callable[..., bool] | None] = {
    "none": None,
    "products": _costly,
    "blocks": jax.checkpoint_policies.nothing_saveable,
}


def rematerialised(call: Callable[..., Array]) -> Callable[..., Array]:
    """Decorator of a block's `__call__`: obeys the policy that `set_policy` left in the block."""

    @functools.wraps(call)
    def run(block: nnx.Module, *inputs: Array | None) -> Array:
        policy = POLICIES[getattr(block, "remat", "none")]
        if policy is None:
            return call(block, *inputs)
        # `jax.checkpoint` wants a pure function: the weights are its argument, not its closure.
        graphdef, state = nnx.split(block)

        def pure(state: nnx.State, *inputs: Array | None) -> Array:
            return call(nnx.merge(graphdef, state), *inputs)

        return jax.checkpoint(pure, policy=policy)(state, *inputs)

    run.obeys_remat = True  # type: ignore[attr-defined]
    return run


def set_policy(model: nnx.Module, name: str) -> None:
    """Give every block of a model a policy, in place. Raises KeyError if it has no such name."""
    POLICIES[name]  # a name that is none fails here, not while a step is traced
    for _, module in nnx.iter_modules(model):
        if hasattr(type(module).__call__, "obeys_remat"):
            module.remat = name  # type: ignore[attr-defined]
