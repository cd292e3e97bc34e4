"""Devices as a mesh; batches split over `data`, weights by their shape over `fsdp`.

Anything that a compiled program of a run takes is put on its devices here, in one process or in
several. Trained state is copied to every device, a batch is split over all of them, and a frozen
weight is split where it is large enough to be worth it.
"""

from collections.abc import Mapping
from typing import TypeVar

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jax.typing import ArrayLike

from osdhuman_jax.config import ConfigError

Tree = TypeVar("Tree")  # any pytree of arrays

# In elements; a smaller weight is cheaper to copy to every device than to gather from them.
SMALLEST_SPLIT = 2**16


def make_mesh(data: int, fsdp: int) -> Mesh:
    """Mesh (data, fsdp) of all devices; one may be -1. Raises ConfigError if it does not fit."""
    # -1 is what the other axis leaves.
    count = jax.device_count()
    sizes = [data, fsdp]
    if -1 in sizes:
        other = sizes[1 - sizes.index(-1)]
        sizes[sizes.index(-1)] = max(count // max(other, 1), 1)
    if sizes[0] * sizes[1] != count or min(sizes) < 1:
        raise ConfigError(f"mesh: data={data}, fsdp={fsdp} do not fit {count} device(s)")
    # "Auto": the compiler finds out how what lies between arguments and results is split.
    return jax.make_mesh(tuple(sizes), ("data", "fsdp"), axis_types=(AxisType.Auto, AxisType.Auto))


def replicated(mesh: Mesh) -> NamedSharding:
    """A copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The first axis over all devices."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def weight_sharding(mesh: Mesh, shape: tuple[int, ...]) -> NamedSharding:
    """How a frozen weight of `shape` lies on the devices.

    Its largest axis that `fsdp` divides is split; small and indivisible weights are copied.
    """
    # By shape alone: no layer needs to say how its weights are split.
    parts = mesh.shape["fsdp"]
    fits = [axis for axis, size in enumerate(shape) if size % parts == 0]
    if parts == 1 or not fits or np.prod(shape) < SMALLEST_SPLIT:
        return replicated(mesh)
    largest = max(fits, key=lambda axis: shape[axis])
    return NamedSharding(mesh, PartitionSpec(*[None] * largest, "fsdp"))


def put(x: ArrayLike, sharding: NamedSharding) -> jax.Array:
    """An array, the same in every process, placed on the devices of all of them."""
    if jax.process_count() == 1:
        return jax.device_put(x, sharding)
    # A process can only fill its own devices: each takes its pieces of what all of them hold.
    host = np.asarray(x)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


def put_everywhere(mesh: Mesh, tree: Tree) -> Tree:
    """A pytree copied to every device."""
    return jax.tree.map(lambda x: put(x, replicated(mesh)), tree)


def put_weights(mesh: Mesh, tree: Tree) -> Tree:
    """A pytree of frozen weights, each split or copied by its shape."""
    return jax.tree.map(lambda x: put(x, weight_sharding(mesh, x.shape)), tree)


def put_batch(mesh: Mesh, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
    """The global batch, of which each process gives its share and holds that on its devices."""
    sharding = batch_sharding(mesh)
    return {k: jax.make_array_from_process_local_data(sharding, v) for k, v in batch.items()}
