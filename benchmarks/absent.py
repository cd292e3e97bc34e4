"""An accelerator that is not here, to compile for: a program's memory is known without running it.

GPUs need the CUDA build of JAX's compiler (`pip install "jax[cuda12]"`), TPUs that of `libtpu` (of
the version that `pip install "jax[tpu]"` brings); neither needs a device or a driver. libtpu serves
one process of a machine at a time.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
from jax.experimental import topologies

from osdhuman_jax.networks.target import traced_for

# Tiles of its products are chosen by trying them on the GPU.
OPTIONS = {"cuda": {"xla_gpu_enable_triton_gemm": False}, "tpu": {}}
GPUS = {path.stem: path for path in Path(__file__).parent.glob("*.txtpb")}
TPUS = ("v4", "v5e", "v5p", "v6e")  # what a slice's name begins with: v5e:2x4


def target(name: str) -> str:
    """`name` as it is. Raises ValueError, for argparse, where nothing can be compiled for it."""
    if name in GPUS or name.partition(":")[0] in TPUS:
        return name
    raise ValueError(name)


@contextmanager
def device(name: str) -> Iterator[tuple[Any, dict[str, Any]]]:
    """The first device of a target, and its compiler's options; traced is for its kind inside."""
    jax.config.update("jax_platforms", "cpu")
    if name in GPUS:
        os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"  # it would ask the driver
        kind, package = "cuda", "cuda12"
        described: dict[str, Any] = {"target_config": GPUS[name].read_text(), "topology": "1x1x1"}
        slices = "1x1x1"
    else:
        # It would ask the machine of a TPU for its neighbours.
        hosts = {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost"}
        os.environ.update({**hosts, "TPU_ACCELERATOR_TYPE": "v5litepod-8"})
        kind, package, described, slices = "tpu", "tpu", {}, name
    try:
        found = topologies.get_topology_desc(slices, kind, **described)
    except (NotImplementedError, RuntimeError) as error:
        advice = f'no compiler for {name} here: pip install "jax[{package}]"'
        raise SystemExit(f"{advice} ({str(error).splitlines()[0]:.200})") from None
    with traced_for(kind):
        yield found.devices[0], OPTIONS[kind]
