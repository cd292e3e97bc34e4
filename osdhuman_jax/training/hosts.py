"""Several processes as one program: who takes part, and what a signal to one means for all.

A run on many hosts is the same command on each, with a workdir that all of them share. How the
processes find each other is decided here alone, by the first of these that holds:

1. `--coordinator`: what the flags leave open is read from Slurm's or Kubernetes's variables;
2. `--processes 1`: this process is alone, whatever else holds;
3. Slurm: a step of several tasks, by its variables;
4. a TPU pod of Google Kubernetes Engine, by its variables;
5. a TPU virtual machine, by Google's metadata server, which knows the other hosts of a pod;
6. Kubernetes: a job with completion mode Indexed, or a JobSet, by the cluster's own server;
7. this process is alone, with all devices of its host.

From 3 to 6 it is JAX that asks (`jax.distributed.initialize`); it is told whom. Nobody waits for
ever: a process whose others do not come ends with one line.

A signal to one process must stop all of them at the same step. Here it is noted, and travels in the
batch through the compiled step, whose result every process has. JAX's own service for that
(`multihost_utils.reached_preemption_sync_point`, which Orbax's `reached_preemption` asks) was left
aside because it hears SIGTERM alone, not Ctrl-C, and nothing at all in a run of one process.
"""

import importlib.util
import os
import signal
import time
from collections.abc import Callable
from types import FrameType
from typing import NamedTuple

import jax
from jax.experimental import multihost_utils

from osdhuman_jax.config import ConfigError
from osdhuman_jax.interruption import Stopped, apart

# What `signal.signal` takes and gives: a function, or one of Python's two constants.
Handler = Callable[[int, FrameType | None], object] | int | None

# Where batch systems say which of a job's processes this is.
INDEX_VARIABLES = ("SLURM_PROCID", "JOB_COMPLETION_INDEX")
# Hosts of a TPU pod, with commas between them, in Google Kubernetes Engine.
POD_VARIABLES = ("TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES")
# Seconds for the others to come: images are fetched and weights copied on some hosts first.
PATIENCE = 600
# Seconds more for JAX, which ends a process with a stack trace when they are over.
MARGIN = 60
ALONE = "--processes 1 if this process is alone"


class Way(NamedTuple):
    """How processes find each other: in words, and as `jax.distributed.initialize` is told.

    What is None JAX finds out.
    """

    said: str
    coordinator: str | None = None
    processes: int | None = None
    process: int | None = None
    method: str | None = None


def find(coordinator: str, processes: int, process: int) -> Way | None:
    """How this process finds the others, by the rules above; None where it is alone.

    Arguments are those of `join`. Raises ConfigError where the flags leave a question open.
    """
    variables = os.environ
    if coordinator:
        return _by_flags(coordinator, processes, process)
    if processes > 1 or process > 0:
        raise ConfigError("--processes and --process need --coordinator HOST:PORT")
    if processes == 1:
        return None
    if _number("SLURM_STEP_NUM_TASKS", 1) > 1:
        return Way("found by Slurm's variables", method="slurm")
    if _on_tpu():
        # One host alone has no others to ask for, in a pod of one or in none.
        pod = next((variables[name] for name in POD_VARIABLES if name in variables), None)
        if pod is not None:
            several = "," in pod or _number("MEGASCALE_NUM_SLICES", 1) > 1
            return Way("found by GKE's variables", method="gketpu") if several else None
        if "TPU_SKIP_MDS_QUERY" not in variables:
            return Way("found by the TPU's metadata server", method="gcetpu")
    if {"KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"} <= set(variables):
        if importlib.util.find_spec("kubernetes") is None:
            raise ConfigError(
                "a pod of an Indexed job finds the others by the package kubernetes: "
                "pip install 'osdhuman-jax[k8s]'; or give --coordinator HOST:PORT and "
                f"--processes N, or {ALONE}"
            )
        return Way("found by Kubernetes's server")
    return None


def _by_flags(coordinator: str, processes: int, process: int) -> Way:
    """What the flags leave open the environment says. Raises ConfigError where it does not."""
    found = [_number(name, -1) for name in INDEX_VARIABLES if name in os.environ]
    index = found[0] if process < 0 and found else process
    total = _number("SLURM_STEP_NUM_TASKS", -1) if processes < 0 else processes
    if not 0 <= index < total:
        raise ConfigError(f"--process {index} of --processes {total}: give both, 0 <= process")
    return Way(f"found by --coordinator {coordinator}", coordinator, total, index)


def _number(name: str, missing: int) -> int:
    """A variable of the environment as a number. Raises ConfigError where it is none."""
    value = os.environ.get(name) or str(missing)
    try:
        return int(value)
    except ValueError:
        raise ConfigError(f"{name} is {value!r:.80} in the environment, and no number") from None


def _on_tpu() -> bool:
    """Whether this machine has TPU chips and what drives them."""
    # JAX looks when it is imported, and says it nowhere else.
    from jax._src import cloud_tpu_init

    return cloud_tpu_init.running_in_cloud_tpu_vm


def join(
    coordinator: str,
    processes: int,
    process: int,
    say: Callable[[str], object] = lambda line: None,
    patience: int = PATIENCE,
) -> None:
    """Start `jax.distributed` where there are several processes; call it before any computation.

    Args:
        coordinator: host:port of process 0; empty = see `find`.
        processes, process: how many there are and which one this is; -1 = ask the environment.
        say: is told in a line how the processes found each other.
        patience: seconds for the others to come.

    Raises ConfigError where the flags leave a question open, and where the others do not come: end
    the process by `interruption.leave` then.
    """
    way = find(coordinator, processes, process)
    if way is None:
        return
    known = way.processes is not None
    which = f"process {way.process} of {way.processes}" if known else "a process"
    say(f"{which}, {way.said}; waiting for the others, {patience} s at most")
    end = time.monotonic() + patience

    def start() -> None:
        jax.distributed.initialize(
            way.coordinator,
            way.processes,
            way.process,
            local_device_ids=_local_devices(),
            cluster_detection_method=way.method,
            initialization_timeout=patience + MARGIN,
        )

    # Apart, since JAX hears no signal meanwhile, and ends the process itself when it gives up.
    try:
        apart(start, lambda: time.monotonic() > end)
    except Stopped:
        raise ConfigError(
            f"{which}, {way.said}: the others did not come in {patience} s. Start the same command "
            "on every host, where each must reach the port of process 0; or give "
            f"{ALONE}"
        ) from None
    # JAX has one class for all errors of its runtime, and asking servers has many.
    except (RuntimeError, ValueError, OSError, LookupError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        # Of a variable that is not set JAX tells the name alone.
        reason = f"{error.args[0]} is not set" if isinstance(error, KeyError) else reason
        raise ConfigError(f"{which}, {way.said}: {reason}; give {ALONE}") from error
    say(f"process {jax.process_index()} of {jax.process_count()}, {way.said}")


def _local_devices() -> list[int] | None:
    """Which devices of its host a process takes, for `jax.distributed.initialize`."""
    # Under Slurm JAX gives each task one device: with one task on a host, let it have them all.
    tasks, hosts = (os.environ.get(f"SLURM_STEP_NUM_{name}") for name in ("TASKS", "NODES"))
    return [] if tasks and tasks == hosts else None


def is_first() -> bool:
    """Whether this process writes what only one may write."""
    return jax.process_index() == 0


def wait(name: str) -> None:
    """Return when every process has come here; `name` must be the same in all of them."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


class Signals:
    """Context in which the first SIGTERM or SIGINT is noted; the second does what it always did.

    `received` is the first one, None before it.
    """

    KINDS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        # What stood there before, for as long as it does not stand there again.
        self._before: dict[int, Handler] = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        # With the old handlers back, a second signal ends a process that does not stop by itself.
        self.received = signal.Signals(number)
        self._restore()

    def _restore(self) -> None:
        while self._before:
            number, handler = self._before.popitem()
            # JAX's own handler, in a run of several processes, is not Python's: it reads as None.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def __enter__(self) -> "Signals":
        self._before = {kind: signal.signal(kind, self._note) for kind in self.KINDS}
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()
