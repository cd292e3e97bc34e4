"""Devices as a mesh; batches split over all of it, weights by their shape over `fsdp`.

Anything that a compiled program of a run takes is put on its devices here, in one process or in
several. Trained state is copied to every device, a batch is split over all of them, and a frozen
weight is split where it is large enough to be worth it, within a slice of TPUs.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.flatten_util import ravel_pytree
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jax.typing import ArrayLike
from jaxtyping import PyTree

from osdhuman_jax.config import ConfigError

Tree = TypeVar("Tree")  # any pytree of arrays
Held = TypeVar("Held")  # likewise

SLICE = "slice"  # the mesh's first axis where TPUs are of several slices, and there only

# In elements; a smaller weight is cheaper to copy to every device than to gather from them.
SMALLEST_SPLIT = 2**16


def make_mesh(data: int, fsdp: int, devices: Sequence[Any] | None = None) -> Mesh:
    """Mesh (data, fsdp) of all devices; one may be -1. Raises ConfigError if it does not fit.

    TPUs of several slices have the mesh (slice, data, fsdp): `data`, as it is given, counts the
    parts of the batch in all of them, the mesh's axis those in one.
    """
    # -1 is what the other axis leaves.
    devices = jax.devices() if devices is None else devices
    count, slices = len(devices), slices_of(devices)
    sizes = [data, fsdp]
    if -1 in sizes:
        other = sizes[1 - sizes.index(-1)]
        sizes[sizes.index(-1)] = max(count // max(other, 1), 1)
    asked = f"mesh: data={data}, fsdp={fsdp}"
    if sizes[0] * sizes[1] != count or min(sizes) < 1:
        raise ConfigError(f"{asked} do not fit {count} device(s)")
    if sizes[0] % slices:
        raise ConfigError(f"{asked} would split weights over {slices} slices: lower mesh.fsdp")
    # Not by `jax.make_mesh`, which refuses machines with GPUs for slices. Neighbours on a TPU's
    # torus stay neighbours, if need be along a part of one of its axes.
    shape, split = (sizes[0] // slices, sizes[1]), {"allow_split_physical_axes": True}
    try:
        if slices == 1:
            placed = mesh_utils.create_device_mesh(shape, devices, **split)
        else:
            within, between = (1, *shape), (slices, 1, 1)
            placed = mesh_utils.create_hybrid_device_mesh(within, between, devices, **split)
    except (ValueError, NotImplementedError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{asked} do not fit how the devices are joined: {reason}") from error
    # "Auto": the compiler finds out how what lies between arguments and results is split.
    names = ("data", "fsdp") if slices == 1 else (SLICE, "data", "fsdp")
    return Mesh(placed, names, axis_types=(AxisType.Auto,) * len(names))


def slices_of(devices: Sequence[Any]) -> int:
    """How many slices of TPUs there are, which a slower network joins; 1 of anything else.

    Machines with GPUs are counted likewise by JAX, but XLA joins the sums between them.
    """
    if devices[0].platform != "tpu":
        return 1
    # A slice that is alone may not count them.
    return len({getattr(device, "slice_index", 0) for device in devices})


def over_slices(
    mesh: Mesh | None,
    function: Callable[[Held, PyTree], tuple[PyTree, PyTree]],
    held: Held,
    parts: PyTree,
) -> tuple[PyTree, PyTree]:
    """`function(held, parts)`, called for each slice's share of `parts` where there are slices.

    `held` is all that it takes beside `parts`, whose leaves are split along their second axis. It
    returns two trees: the first, of float32, is averaged over the slices, the second is put
    together again along the second axis.
    """
    if mesh is None or SLICE not in mesh.shape:
        return function(held, parts)

    def share(held: Held, parts: PyTree) -> tuple[PyTree, PyTree]:
        mean, kept = function(held, parts)
        # As one vector: XLA joins what it sums within a slice, and sends between slices one by one,
        # of which a chip can have a few hundred under way at the most.
        vector, back = ravel_pytree(mean)
        return back(jax.lax.pmean(vector, SLICE)), kept

    # Within a slice the compiler goes on to find out what is split, and how.
    whole, split = PartitionSpec(), PartitionSpec(None, SLICE)
    specs = {"in_specs": (whole, split), "out_specs": (whole, split)}
    run = jax.shard_map(share, mesh=mesh, axis_names={SLICE}, check_vma=False, **specs)
    return run(held, parts)


def replicated(mesh: Mesh) -> NamedSharding:
    """A copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The first axis over all devices."""
    return NamedSharding(mesh, PartitionSpec(mesh.axis_names))


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
