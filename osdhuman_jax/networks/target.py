"""Which platform a program is traced for, where operations have kernels of their own."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import jax

_target: ContextVar[str | None] = ContextVar("target", default=None)


@contextmanager
def traced_for(name: str) -> Iterator[None]:
    """What is traced inside is for another platform than this process runs on."""
    token = _target.set(name)
    try:
        yield
    finally:
        _target.reset(token)


def platform() -> str:
    """What programs run on: cpu, cuda, tpu; other GPUs, which JAX calls gpu as well, are gpu."""
    if target := _target.get():
        return target
    name = jax.default_backend()
    cuda = name == "gpu" and "cuda" in jax.devices()[0].client.platform_version
    return "cuda" if cuda else name
