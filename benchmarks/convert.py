"""Random PyTorch weights, copied by name into nnx modules: for parity tests and benchmarks.

Independent of `osdhuman_jax.weights`, which has tests of its own.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

Path = tuple[str | int, ...]


class OneKey(nnx.Rngs):
    """Hands out the same key again and again: tracing a large network takes a tenth of the time."""

    def __init__(self):
        super().__init__(0)

    def params(self):
        return jax.random.key(0)


def params(module: nnx.Module, kind: type = nnx.Param) -> dict[Path, Any]:
    """Every parameter of a kind, by path."""
    return dict(nnx.to_flat_state(nnx.state(module, kind)))


def count(module: nnx.Module, kind: type = nnx.Param) -> int:
    """Number of scalars in parameters of a kind."""
    return sum(int(np.prod(value.shape)) for value in params(module, kind).values())


def abstract(make: Callable[[nnx.Rngs], Any]) -> Any:
    """The module with shapes in the place of arrays."""
    return nnx.eval_shape(lambda: make(OneKey()))


def assign(module: nnx.Module, values: dict[Path, np.ndarray]) -> None:
    """Fill every parameter, in place: no name too few, none too many, no other shape."""
    holes = params(module)
    assert set(values) == set(holes), sorted(map(str, set(values) ^ set(holes)))
    for path, hole in holes.items():
        assert values[path].shape == hole.shape, (path, values[path].shape, hole.shape)
        holes[path] = hole.replace(jnp.asarray(values[path], hole.dtype))
    nnx.update(module, nnx.from_flat_state(holes))


def filled(make: Callable[[nnx.Rngs], Any], seed: int = 0) -> Any:
    """A module with random weights that keep variances; norm scales near one, biases not zero."""
    module, rng = abstract(make), np.random.default_rng(seed)

    def draw(path: Path, shape: tuple[int, ...]) -> np.ndarray:
        noise = rng.standard_normal(shape)
        if path[-1] == "scale":
            return 1 + 0.2 * noise
        return 0.2 * noise if len(shape) == 1 else noise / np.sqrt(np.prod(shape[:-1]))

    assign(module, {path: draw(path, hole.shape) for path, hole in params(module).items()})
    return module


def randomise(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """The same for a PyTorch module, in place, which is then in eval mode and without gradients."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in module.named_parameters():
        noise = torch.randn(value.shape, generator=generator)
        if value.ndim > 1:
            noise /= value[0].numel() ** 0.5
        else:
            noise = 0.2 * noise + float(name.endswith("weight"))  # one-dimensional: a norm's scale
        value.data = noise
    return module.eval().requires_grad_(False)


def convert(key: str, value: torch.Tensor) -> tuple[Path, np.ndarray]:
    """One PyTorch parameter as (nnx path, array): OIHW -> HWIO, (out, in) -> (in, out)."""
    path: list[str | int] = [int(p) if p.isdigit() else p for p in key.split(".")]
    array = value.detach().numpy()
    if path[-1] == "weight":
        path[-1] = "scale" if array.ndim == 1 else "kernel"
        array = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T
    return tuple(path), array


def from_torch(make: Callable[[nnx.Rngs], Any], weights: torch.nn.Module | dict) -> Any:
    """An nnx module with the weights of a PyTorch module or state dict of the same names."""
    module = abstract(make)
    state = weights.state_dict() if isinstance(weights, torch.nn.Module) else weights
    converted = [convert(key, value) for key, value in state.items()]
    assert len(dict(converted)) == len(state), "two keys of one path"
    assign(module, dict(converted))
    if isinstance(weights, torch.nn.Module):
        assert norm_epsilons(module) == {
            name: layer.eps
            for name, layer in weights.named_modules()
            if isinstance(layer, (torch.nn.GroupNorm, torch.nn.LayerNorm))
        }
    return module


def norm_epsilons(module: nnx.Module) -> dict[str, float]:
    """Epsilon of every norm, too small to show in a result, by dotted path."""
    norms = (nnx.GroupNorm, nnx.LayerNorm)
    found = [(path, m) for path, m in nnx.iter_modules(module) if isinstance(m, norms)]
    return {".".join(map(str, path)): m.epsilon for path, m in found}


@nnx.jit(static_argnames="method")
def call(module, *args, method: str = "__call__"):
    """Compiled forward pass."""
    return getattr(module, method)(*args)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    """Standard normal float32 draws."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def nchw(x: np.ndarray) -> torch.Tensor:
    """Channels last -> PyTorch."""
    return torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))


def close(actual: jax.Array, expected: torch.Tensor | np.ndarray, atol: float) -> None:
    """Compare with PyTorch, whose feature maps are NCHW; refuses a constant expectation."""
    want = np.asarray(expected)
    if isinstance(expected, torch.Tensor) and want.ndim == 4:
        want = want.transpose(0, 2, 3, 1)
    assert want.std() > 0.05, "too weak a signal to compare"
    # eight float32 steps beside atol, because blocks without a norm at the end reach 10
    np.testing.assert_allclose(np.asarray(actual), want, rtol=1e-6, atol=atol)
