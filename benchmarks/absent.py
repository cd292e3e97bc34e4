"""A GPU that is not here, to compile for: its programs' memory is known without running them.

Needs the CUDA build of JAX's compiler (`pip install "jax[cuda12]"`), no GPU and no driver.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
from jax.experimental import topologies

from osdhuman_jax.networks.target import traced_for

OPTIONS = {"xla_gpu_enable_triton_gemm": False}  # its tiles are chosen by trying them on the GPU
DESCRIPTIONS = {path.stem: path for path in Path(__file__).parent.glob("*.txtpb")}


@contextmanager
def gpu(name: str) -> Iterator[Any]:
    """One of DESCRIPTIONS, to compile for; attention is traced as on NVIDIA's GPUs inside."""
    os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"  # it would ask the driver
    jax.config.update("jax_platforms", "cpu")
    target = DESCRIPTIONS[name].read_text()
    try:
        found = topologies.get_topology_desc(
            "1x1x1", "cuda", target_config=target, topology="1x1x1"
        )
    except NotImplementedError:
        raise SystemExit('no compiler for CUDA here: pip install "jax[cuda12]"') from None
    with traced_for("cuda"):
        yield found.devices[0]
