"""LoRA (Hu et al. 2022, section 4.1) as surgery on a loaded network, which does not know about it.

OSDHuman trains the VAE's encoder and the U-Net by it (its section 4.1). An adapted layer computes

    y = base(x) + scale * (op(x, A) @ B)

where op is the base's convolution or matrix product. A has the base kernel's shape but `rank`
outputs, B is (rank, out), and scale = alpha / rank. At first A ~ N(0, std 1/rank) and B = 0 (peft's
"gaussian"), so that a network computes what it did before. `inject` puts adapters around layers,
`merge` folds them into the weights once they are trained.
"""

from collections.abc import Callable, Hashable, Iterator, Mapping
from functools import reduce

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from osdhuman_jax.networks.convolution import Conv3x3, moved
from osdhuman_jax.networks.target import platform

Path = tuple[Hashable, ...]  # attribute names and list indices


class LoRAParam(nnx.Param):
    """A trainable low-rank factor, which training finds by this type."""


class LoRA(nnx.Module):
    """A linear layer or convolution with a low-rank residual beside it."""

    def __init__(
        self, base: nnx.Linear | nnx.Conv, rank: int, alpha: float, *, rng: np.random.Generator
    ):
        # Drawn on the host: the shapes are many, and a compiled draw for each would take minutes.
        shape = base.kernel.shape
        gaussian = rng.standard_normal((*shape[:-1], rank), np.float32)
        self.base = base
        self.lora_A = LoRAParam(jnp.asarray(gaussian / rank))
        self.lora_B = LoRAParam(jnp.zeros((rank, shape[-1]), jnp.float32))
        self.scale = alpha / rank

    def __call__(self, x: Array) -> Array:
        y = self.base(x)
        # Factors are kept in float32, where small updates are not lost, and used as y is computed.
        a, b = self.lora_A[...].astype(y.dtype), self.lora_B[...].astype(y.dtype)
        down = self._down(x.astype(y.dtype), a)  # [..., rank]
        return y + self.scale * jnp.matmul(down, b, precision=self.base.precision)

    def _down(self, x: Array, a: Array) -> Array:
        """op(x, A): the base's operation with A in the place of its kernel."""
        if isinstance(self.base, nnx.Linear):
            return jnp.matmul(x, a, precision=self.base.precision)
        # XLA's CPU backend takes several times as long for a convolution to so few channels.
        if platform() == "cpu" and x.dtype == jnp.float32 and isinstance(self.base, Conv3x3):
            return moved(x, a)
        return jax.lax.conv_general_dilated(
            x,
            a,
            self.base.strides,  # type: ignore[arg-type]
            self.base.padding,  # type: ignore[arg-type]
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision=self.base.precision,
        )

    def merged(self) -> nnx.Linear | nnx.Conv:
        """The base with kernel + scale * A B, in the kernel's dtype."""
        # On the host: JAX would compile a product for each of a hundred shapes, whenever it starts.
        kernel = self.base.kernel[...]
        # A convolution's A is (h, w, in, rank): the product is over the last axis all the same.
        a, b = np.asarray(self.lora_A[...]), np.asarray(self.lora_B[...])
        delta = np.float32(self.scale) * (a @ b)
        self.base.kernel[...] = jnp.asarray(np.asarray(kernel, np.float32) + delta, kernel.dtype)
        return self.base


def leaf_name(path: Path) -> str:
    """Dotted path of a leaf, as files have it: an adapter around a layer does not change it."""
    return ".".join(str(part) for part in path if part != "base")


def leaves_by_name(state: nnx.State) -> dict[str, nnx.Variable]:
    """Variables of a state by their names on disk."""
    return {leaf_name(path): leaf for path, leaf in nnx.to_flat_state(state)}


def state_of_names(
    like: nnx.State, named: Mapping[str, nnx.Variable], prefix: str = ""
) -> nnx.State:
    """A state of the paths of `like`, whose names begin with `prefix`, filled from `named`."""
    paths = [path for path, _ in nnx.to_flat_state(like)]
    return nnx.from_flat_state(
        [(path, named[leaf_name(path).removeprefix(prefix)]) for path in paths]
    )


def _layers(model: nnx.Module) -> Iterator[tuple[Path, nnx.Module]]:
    """Every convolution and linear layer of a model, with its path."""
    kinds = (nnx.Linear, nnx.Conv)
    return ((path, m) for path, m in nnx.iter_modules(model) if isinstance(m, kinds))


def unet_targets(unet: nnx.Module) -> list[Path]:
    """Every convolution and linear layer but the time embedding's (258 in SD 2.1)."""
    # OSEDiff's list of layers lacks those that see the timestep alone.
    skip = ("time_embedding", "time_emb_proj")
    return [path for path, _ in _layers(unet) if not set(skip) & set(path)]


def vae_encoder_targets(vae: nnx.Module) -> list[Path]:
    """Every convolution and linear layer of the encoder, and quant_conv (32 in SD 2.1)."""
    return [path for path, _ in _layers(vae) if path[0] in ("encoder", "quant_conv")]


def _child(module: nnx.Module, name: Hashable) -> nnx.Module:
    """A module inside another, by its index in a list or its attribute's name."""
    if isinstance(module, nnx.List) and isinstance(name, int):
        return module[name]
    return getattr(module, str(name))


def _replace(model: nnx.Module, path: Path, make: Callable[[nnx.Module], nnx.Module]) -> None:
    """Put `make(layer)` in the place of the layer at a path."""
    *parents, name = path
    owner = reduce(_child, parents, model)
    made = make(_child(owner, name))
    if isinstance(owner, nnx.List) and isinstance(name, int):
        owner[name] = made
    else:
        setattr(owner, str(name), made)


def inject(
    model: nnx.Module, targets: list[Path], *, rank: int, alpha: float, rng: np.random.Generator
) -> None:
    """Put a LoRA around each target, in place. Raises ValueError where one is there already."""
    # All are looked at before the first is changed, so that an error leaves the model as it was.
    for path in targets:
        if "base" in path or isinstance(reduce(_child, path, model), LoRA):
            raise ValueError(f"{'.'.join(map(str, path))}: has LoRA already")
    for path in targets:
        _replace(model, path, lambda layer: LoRA(layer, rank, alpha, rng=rng))  # type: ignore[arg-type]


def merge(model: nnx.Module) -> None:
    """Fold every LoRA into its base kernel, in place."""
    # A list first: what is walked over may not change on the way.
    adapters = [path for path, m in nnx.iter_modules(model) if isinstance(m, LoRA)]
    for path in adapters:
        _replace(model, path, lambda adapter: adapter.merged())  # type: ignore[attr-defined]
