"""Human body restoration in one diffusion step: OSDHuman (ICML 2025) in JAX and Flax NNX.

from osdhuman_jax import Restorer
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from osdhuman_jax.api import Restorer

__all__ = ["Restorer"]


def __getattr__(name: str) -> Any:
    """`Restorer` at its first use: modules that need no JAX are imported without it."""
    if name == "Restorer":
        from osdhuman_jax.api import Restorer

        return Restorer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
