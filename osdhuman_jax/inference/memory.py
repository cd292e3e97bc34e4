"""How much memory restoring may take, and whether an error says that there was too little.

The budget of a program, in bytes, is a share of its device's memory, or on a CPU of the host's or
container's. Flags' amounts ("4GiB") are read here too, without JAX.
"""

import os
import re
from pathlib import Path

SHARE_OF_HOST, SHARE_OF_DEVICE = 0.5, 0.9  # by default; a host has other things to hold
EXHAUSTED = "out of memory: try a smaller --max_memory, --batch_size or --upscale"
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
CONTROL_GROUPS = Path("/sys/fs/cgroup")
_LIMITS = ("memory.max", "memory/memory.limit_in_bytes")  # of control groups, versions 2 and 1


def budget() -> int:
    """Bytes that a program may take on one device; the same at every call on a machine."""
    # Command lines parse amounts of memory by this module: JAX would cost them half a second.
    import jax

    device = jax.local_devices()[0]
    statistics = device.memory_stats() if device.platform != "cpu" else None
    if statistics and "bytes_limit" in statistics:
        return int(SHARE_OF_DEVICE * statistics["bytes_limit"])
    return int(SHARE_OF_HOST * host_memory())


def host_memory() -> int:
    """Bytes of memory of this machine, or of the container that the process runs in."""
    # A container is killed at its own limit, which the machine's memory does not show.
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = [physical]
    for name in _LIMITS:
        path = CONTROL_GROUPS / name
        # Version 2 writes "max", version 1 a number beyond all memory, where there is no limit.
        text = path.read_text().strip() if path.is_file() else ""
        limits += [int(text)] if text.isdecimal() else []
    return min(limits)


def parse_bytes(text: str) -> int:
    """Bytes of a text like 4GiB, 1500M or 2e9. Raises ValueError on any other or none at all."""
    match = re.fullmatch(r"([0-9.]+(?:e[0-9]+)?)\s*([KMGT]?)(?:i?B)?", text.strip(), re.I)
    value = int(float(match[1]) * _UNITS[match[2].upper()]) if match else 0
    if value < 1:
        raise ValueError(f"{text!r} is no amount of memory; write for example 4GiB or 800MiB")
    return value


def is_exhausted(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on the host or on a device."""
    # JAX has one class for all errors of its runtime: the status is in the text.
    return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)
