"""Which convolutions of a traced function compute in which type."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.extend.core

from osdhuman_jax.networks.target import traced_for


def convolutions(function: Callable[..., Any], *args: Any) -> list[tuple[str, bool]]:
    """(type of the inputs, whether they are kept exact) of each convolution, in order.

    Exact is what asks for it itself: the tests' default for all products is taken off. The program
    is that of a TPU, which rounds what does not ask; a CPU's has products in convolutions' places.
    """
    found = []
    with jax.default_matmul_precision("default"), traced_for("tpu"):
        traced = jax.make_jaxpr(function)(*args)
    for equation in _equations(traced.jaxpr):
        if equation.primitive.name == "conv_general_dilated":
            (kind,) = {variable.aval.dtype.name for variable in equation.invars}
            exact = equation.params["precision"]
            found.append((kind, exact == (jax.lax.Precision.HIGHEST,) * 2))
    return found


def _equations(jaxpr: Any) -> Iterator[Any]:
    """Those of a program and, in their places, of the programs within it."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from _equations(inner)
