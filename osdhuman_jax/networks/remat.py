"""Rematerialisation by name: what a block keeps for the backward pass, and what it computes again.

    none      everything is kept: fastest, most memory
    products  outputs of convolutions and weight matrices are kept; norms, activations, attention
              weights and LoRA's products, which cost little, are computed again
    blocks    the block's inputs alone are kept: least memory, a second forward pass

A run chooses one by `run.remat` (after Chen et al. 2016, "Training deep nets with sublinear memory
cost"). A block is a module whose `__call__` is decorated with `rematerialised`; what it computes
is the same by all three.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx
from jax import Array
from jax.core import ShapedArray

# Multiplications for each element of a product; LoRA's second product has as many as its rank.
WORTH_KEEPING = 64


def _costly(primitive: object, *operands: ShapedArray | Array, **params: Any) -> bool:
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
    """Decorator of a block's `__call__`, which then obeys the policy that `set_policy` gave it."""

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

    # By this `set_policy` knows the blocks of a model.
    run.obeys_remat = True  # type: ignore[attr-defined]
    return run


def set_policy(model: nnx.Module, name: str) -> None:
    """Give every block of a model the policy `name`, in place. Raises KeyError if there is none."""
    # A wrong name fails here, not while a step is traced.
    POLICIES[name]
    for _, module in nnx.iter_modules(model):
        if hasattr(type(module).__call__, "obeys_remat"):
            module.remat = name  # type: ignore[attr-defined]
