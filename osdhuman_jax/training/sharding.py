"""Devices as a mesh; batches split over `data`, weights by their shape over `fsdp`."""

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from osdhuman_jax.config import ConfigError

SMALLEST_SPLIT = 2**16  # elements; below, a copy on every device is cheaper than gathering


def make_mesh(data: int, fsdp: int) -> Mesh:
    """Mesh (data, fsdp) of all devices; one may be -1. Raises ConfigError if it does not fit."""
    count = jax.device_count()
    sizes = [data, fsdp]
    if -1 in sizes:
        other = sizes[1 - sizes.index(-1)]
        sizes[sizes.index(-1)] = max(count // max(other, 1), 1)
    if sizes[0] * sizes[1] != count or min(sizes) < 1:
        raise ConfigError(f"mesh: data={data}, fsdp={fsdp} do not fit {count} device(s)")
    return jax.make_mesh(tuple(sizes), ("data", "fsdp"), axis_types=(AxisType.Auto, AxisType.Auto))


def replicated(mesh: Mesh) -> NamedSharding:
    """A copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The first axis over all devices."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def weight_sharding(mesh: Mesh, shape: tuple[int, ...]) -> NamedSharding:
    """The largest axis that `fsdp` divides is split; small or indivisible weights are copied."""
    parts = mesh.shape["fsdp"]
    fits = [axis for axis, size in enumerate(shape) if size % parts == 0]
    if parts == 1 or not fits or np.prod(shape) < SMALLEST_SPLIT:
        return replicated(mesh)
    largest = max(fits, key=lambda axis: shape[axis])
    return NamedSharding(mesh, PartitionSpec(*[None] * largest, "fsdp"))
