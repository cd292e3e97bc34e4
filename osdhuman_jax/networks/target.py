"""Which platform a program is traced for, where operations have kernels of their own.

Attention and convolution ask `platform()` which of their programs is best. That is the platform of
this process, but for a program that is made here to run elsewhere: an export, or a count of
operations. Such a program is traced inside `traced_for`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import cv2
import jax

# Widest first, by OpenCV's numbers of what it asks the CPU for.
VECTORS = {"AVX-512": 13, "AVX2": 11, "NEON": 100}

# A context variable, so that what one thread traces for is no matter of another.
_target: ContextVar[str | None] = ContextVar("target", default=None)


@contextmanager
def traced_for(name: str) -> Iterator[None]:
    """Context in which programs are traced for the platform `name`, whatever this process has."""
    token = _target.set(name)
    try:
        yield
    finally:
        _target.reset(token)


def platform() -> str:
    """What programs run on: "cpu", "cuda", "tpu", or "gpu" for GPUs that are not NVIDIA's."""
    if target := _target.get():
        return target
    # JAX calls NVIDIA's and AMD's backends both "gpu"; only the first has cuDNN.
    name = jax.default_backend()
    cuda = name == "gpu" and "cuda" in jax.devices()[0].client.platform_version
    return "cuda" if cuda else name


def vectors() -> str:
    """The widest of this machine's instructions for vectors that are in `VECTORS`, or ""."""
    found = (name for name, number in VECTORS.items() if cv2.checkHardwareSupport(number))
    return next(found, "")


def compiler_options() -> jax.stages.CompilerOptions:
    """Options of XLA's with which programs of many convolutions are faster on this platform."""
    # On a CPU XLA gives convolutions to YNNPACK, which computes those of 64 channels or fewer on
    # one core, whatever the batch; XLA's own, of Eigen, take all cores. Products of matrices and
    # sums stay with YNNPACK. docs/training.md has the figures.
    if platform() != "cpu":
        return {}
    kept = ("LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT", "LIBRARY_FUSION_TYPE_REDUCE")
    return {"xla_cpu_experimental_ynn_fusion_type": ",".join(kept)}
