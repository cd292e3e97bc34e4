"""Human body restoration in one diffusion step: OSDHuman (ICML 2025) in JAX and Flax NNX.

    from osdhuman_jax import Restorer

    better = Restorer.load()(picture)

The import is light: JAX is loaded when `Restorer` is used for the first time. `__version__` is the
one place of the package's number; the wheel takes it from here.
"""

from typing import TYPE_CHECKING

from osdhuman_jax import renamed

if TYPE_CHECKING:
    from osdhuman_jax.api import Restorer

__all__ = ["Restorer", "__version__"]

__version__ = "0.2.0.dev0"

renamed.install()


def __getattr__(name: str) -> object:
    """`Restorer` at its first use: modules that need no JAX are imported without it."""
    # Python asks here for what the module itself does not have.
    if name == "Restorer":
        from osdhuman_jax.api import Restorer

        return Restorer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
