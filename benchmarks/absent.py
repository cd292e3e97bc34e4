"""An accelerator that is not here, to compile for: a program's memory is known without running it.

GPUs need the CUDA build of JAX's compiler (`pip install "jax[cuda12]"`), TPUs that of `libtpu` (of
the version that `pip install "jax[tpu]"` brings); neither needs a device or a driver. A slice of
TPUs is named as Google names its topology, `v5e:2x4`; `v5e:2x4*2` are two slices.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from jax.experimental import topologies

from osdhuman_jax.networks.target import traced_for
from osdhuman_jax.training import flops

# Tiles of its products are chosen by trying them on the GPU.
OPTIONS = {"cuda": {"xla_gpu_enable_triton_gemm": False}, "tpu": {}}
GPUS = {path.stem: path for path in Path(__file__).parent.glob("*.txtpb")}
TPUS = ("v4", "v5e", "v5p", "v6e")  # what a slice's name begins with


@dataclass(frozen=True)
class Chip:
    """What the compiler does not say of a TPU: its clock in Hz and its memory in bytes."""

    clock: float
    memory: float


# By (a part of) `Device.device_kind`, in an order in which no name hides a longer one. Memory is
# of Google's pages of each version; clocks are those at which the published peaks are what the
# matrix units can do: v4 and v5p have eight of 128 x 128, v5e four, and v6e as much as 16.
CHIPS = {
    "TPU v4": Chip(1.05e9, 32e9),
    "TPU v5 lite": Chip(1.5e9, 16e9),
    "TPU v5": Chip(1.75e9, 95e9),
    "TPU v6": Chip(1.75e9, 32e9),
}


def chip(device_kind: str) -> Chip | None:
    """A TPU's clock and memory; None of another device."""
    return next((found for name, found in CHIPS.items() if name in device_kind), None)


def target(name: str) -> str:
    """`name` as it is. Raises ValueError, for argparse, where nothing can be compiled for it."""
    if name in GPUS or name.partition(":")[0] in TPUS:
        return name
    raise ValueError(name)


@contextmanager
def devices(name: str) -> Iterator[tuple[list[Any], dict[str, Any]]]:
    """The devices of a target, and its compiler's options; traced is for their kind inside."""
    jax.config.update("jax_platforms", "cpu")
    described: dict[str, Any] = {}
    if name in GPUS:
        os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"  # it would ask the driver
        kind, package, topology = "cuda", "cuda12", "1x1x1"
        described = {"target_config": GPUS[name].read_text(), "topology": topology}
    else:
        # It would ask the machine of a TPU for its neighbours, and lock a device that is not here.
        hosts = {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost"}
        os.environ.update({**hosts, "TPU_ACCELERATOR_TYPE": "v5litepod-8"})
        os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"
        topology, _, slices = name.partition("*")
        kind, package = "tpu", "tpu"
        described = {"num_slices": int(slices)} if slices else {}
    try:
        found = topologies.get_topology_desc(topology, kind, **described)
    except (NotImplementedError, RuntimeError) as error:
        advice = f'no compiler for {name} here: pip install "jax[{package}]"'
        raise SystemExit(f"{advice} ({str(error).splitlines()[0]:.200})") from None
    with traced_for(kind):
        yield list(found.devices), OPTIONS[kind]


def compile_for(
    program: Callable[..., Any], inputs: tuple[Any, ...], device: Any, options: Any
) -> tuple[Any, int, float]:
    """A program compiled for one device, the operations of its products, and the seconds taken."""
    # Counted on no platform of its own, for kernels of a device hide products from a count; by
    # another function, since JAX keeps what it has traced of one.
    with traced_for("none"):
        work = flops.operations(jax.make_jaxpr(lambda *x: program(*x))(*inputs))
    placed = jax.sharding.SingleDeviceSharding(device)
    inputs = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=placed), inputs)
    before = time.perf_counter()
    compiled = jax.jit(program).lower(*inputs).compile(options)
    return compiled, work, time.perf_counter() - before
