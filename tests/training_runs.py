"""Runs of `train.py` in processes of their own, as a user starts them."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from safetensors.numpy import load_file

ROOT = Path(__file__).parent.parent
DEADLINE = 1800  # seconds


def environment(cache: Path, devices: int = 1) -> dict[str, str]:
    """Simulated devices; what one process compiles the next finds in `cache`."""
    return {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "true",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
    }


def command(workdir: Path, *overrides: str) -> list[str]:
    base = [sys.executable, str(ROOT / "train.py"), "--config", str(ROOT / "configs/debug.py")]
    return [*base, "--workdir", str(workdir), *overrides]


def start(workdir: Path, *overrides: str, cache: Path, devices: int = 1) -> subprocess.Popen:
    """A run in a process group of its own; read its `stderr`, or it may fill and block it."""
    argv, env = command(workdir, *overrides), environment(cache, devices)
    own_group = {"start_new_session": True}
    return subprocess.Popen(argv, env=env, stderr=subprocess.PIPE, text=True, **own_group)


def run(
    workdir: Path, *overrides: str, cache: Path, devices: int = 1
) -> subprocess.CompletedProcess:
    argv, env = command(workdir, *overrides), environment(cache, devices)
    return subprocess.run(argv, env=env, capture_output=True, text=True, timeout=DEADLINE)


def wait_for(process: subprocess.Popen, happened: Callable[[], object]) -> bool:
    """Whether something happened before the process ended."""
    end = time.monotonic() + DEADLINE
    while not happened():
        if process.poll() is not None:
            return False
        assert time.monotonic() < end
        time.sleep(0.01)
    return True


def saved(workdir: Path) -> list[int]:
    """Steps of whole checkpoints."""
    folder = workdir / "checkpoints"
    return sorted(int(p.name) for p in folder.glob("*") if p.name.isdigit())


def scalars(workdir: Path) -> list[dict]:
    """Lines of metrics.jsonl."""
    path = workdir / "metrics.jsonl"
    return [json.loads(x) for x in path.read_text().splitlines()] if path.exists() else []


def losses(workdir: Path) -> dict[int, float]:
    return {x["step"]: x["loss"] for x in scalars(workdir) if "loss" in x}


def assert_same_model(ours: Path, theirs: Path) -> None:
    """Every tensor of two runs' model folders equal, bit for bit."""
    for name in ("generator.safetensors", "base.safetensors"):
        a, b = (load_file(workdir / "model" / name) for workdir in (ours, theirs))
        assert sorted(a) == sorted(b)
        assert all((a[k] == b[k]).all() for k in a)
