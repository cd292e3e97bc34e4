"""Floating-point operations of a program, counted from its jaxpr, and what devices can do at most.

The log's `mfu`, the share of the devices' peak that a run uses, and the benchmarks need both.
Counted are matrix products and convolutions, two operations for each multiplication, as is usual
where a utilisation is stated (PaLM, Chowdhery et al. 2022, appendix B). Whatever XLA makes of the
program, the number is the same.
"""

import math
from dataclasses import replace

import jax
import jax.numpy as jnp
from flax import nnx
from jax.core import ShapedArray
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var, jaxprs_in_params

from osdhuman_jax.config import DataConfig
from osdhuman_jax.data.structures import JOINTS, MOST
from osdhuman_jax.methods.objectives import Frozen
from osdhuman_jax.networks.target import traced_for
from osdhuman_jax.training.train_step import PICTURES, Trainer, TrainState

# Dense bfloat16 operations a second by (a part of) `Device.device_kind`, from the makers' sheets.
PEAKS = {
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "A800": 312e12,
    "L40S": 362e12,
    "RTX 4090": 165e12,
    "V100": 125e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v6": 918e12,
}


def peak(device_kind: str) -> float | None:
    """Peak operations a second of a device; None of one that is not in the table."""
    # In the table's order, where a longer name stands before the one that it begins with.
    return next((v for name, v in PEAKS.items() if name in device_kind), None)


def _shape(variable: Var | Literal) -> tuple[int, ...]:
    """Shape of what goes into a product or comes out of it."""
    # For type checkers, to which an abstract value may be something without a shape.
    assert isinstance(variable.aval, ShapedArray)
    return variable.aval.shape


def _product(eqn: JaxprEqn) -> int:
    """Operations of one product: 2 x elements of the result x terms of each."""
    # A matrix product sums over the axes that it contracts.
    out = math.prod(_shape(eqn.outvars[0]))
    if eqn.primitive.name == "dot_general":
        (contracted, _), _ = eqn.params["dimension_numbers"]
        return 2 * out * math.prod(_shape(eqn.invars[0])[i] for i in contracted)
    # A convolution sums over its kernel, but for the axis of the outputs.
    kernel = _shape(eqn.invars[1])
    outputs = kernel[eqn.params["dimension_numbers"].rhs_spec[0]]
    # A convolution over an input dilated with zeros (the backward pass of a stride) skips them.
    zeros = math.prod(eqn.params["lhs_dilation"])
    return 2 * out * math.prod(kernel) // (outputs * zeros)


def operations(jaxpr: Jaxpr | ClosedJaxpr) -> int:
    """Operations of a (closed) jaxpr.

    A loop counts as often as it runs, a condition as its branch with the most operations.
    """
    total = 0
    for eqn in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        name = eqn.primitive.name
        if name in ("dot_general", "conv_general_dilated"):
            total += _product(eqn)
        elif name == "cond":
            total += max(operations(branch) for branch in eqn.params["branches"])
        else:
            times = eqn.params["length"] if name == "scan" else 1
            total += times * sum(operations(inner) for inner in jaxprs_in_params(eqn.params))
    return total


def batch_shapes(config: DataConfig) -> dict[str, jax.ShapeDtypeStruct]:
    """What a step of a run on these data is given of a batch, but for its prompts."""
    count, size = config.batch_size, config.size
    picture = jax.ShapeDtypeStruct((count, *size, 3), jnp.uint8)
    shapes = {k: picture for k in (PICTURES if config.degrade else PICTURES[:1])}
    if config.mask:
        shapes["mask"] = jax.ShapeDtypeStruct((count, *size), jnp.bool_)
    if config.poses:
        shapes["people"] = jax.ShapeDtypeStruct((count, MOST, JOINTS, 3), jnp.float32)
        shapes["attention"] = jax.ShapeDtypeStruct((count, *size, 1), jnp.float32)
    return shapes


def step_flops(trainer: Trainer, state: TrainState, frozen: Frozen) -> int:
    """Matrix and convolution operations of one step, without what rematerialisation repeats."""
    # The same step without what is done to save memory: nothing computed twice, nothing split.
    config = replace(
        trainer.config,
        run=replace(trainer.config.run, remat="none"),
        optim=replace(trainer.config.optim, accumulate=1),
    )
    # Shapes are enough to trace it.
    pictures = batch_shapes(config.data)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), (state, frozen))
    restorer = nnx.merge(trainer.graphdef, shapes[0].params, shapes[1].restorer)
    plain = Trainer(config, trainer.model, restorer)
    plain.lpips, plain.dists = trainer.lpips, trainer.dists
    # On no platform of its own: cuDNN's kernels hide products from a count, blocks repeat some.
    with traced_for("none"):
        return operations(jax.make_jaxpr(plain.step)(*shapes, pictures))
