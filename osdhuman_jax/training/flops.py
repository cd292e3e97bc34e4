"""Floating-point operations of a program, counted from its jaxpr, and what devices can do at most.

Counted are matrix products and convolutions, two operations a multiplication, as everybody does
who states a utilisation; whatever XLA makes of the program, the number is the same.
"""

import math
from typing import Any

from jax.extend.core import jaxprs_in_params

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
    return next((v for name, v in PEAKS.items() if name in device_kind), None)


def _product(eqn: Any) -> int:
    """Operations of one product: 2 x elements of the result x terms of each."""
    out = math.prod(eqn.outvars[0].aval.shape)
    if eqn.primitive.name == "dot_general":
        (contracted, _), _ = eqn.params["dimension_numbers"]
        return 2 * out * math.prod(eqn.invars[0].aval.shape[i] for i in contracted)
    kernel = eqn.invars[1].aval.shape
    outputs = kernel[eqn.params["dimension_numbers"].rhs_spec[0]]
    # A convolution over an input dilated with zeros (the backward pass of a stride) skips them.
    zeros = math.prod(eqn.params["lhs_dilation"])
    return 2 * out * math.prod(kernel) // (outputs * zeros)


def count(jaxpr: Any) -> int:
    """Operations of a (closed) jaxpr; loops by their length, the dearest branch of a condition."""
    total = 0
    for eqn in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        name = eqn.primitive.name
        if name in ("dot_general", "conv_general_dilated"):
            total += _product(eqn)
        elif name == "cond":
            total += max(count(branch) for branch in eqn.params["branches"])
        else:
            times = eqn.params["length"] if name == "scan" else 1
            total += times * sum(count(inner) for inner in jaxprs_in_params(eqn.params))
    return total
