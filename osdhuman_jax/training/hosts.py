"""Several processes as one program: who takes part, and what a signal to one means for all.

A run on many hosts is the same command on each, with a workdir that all of them share. Slurm's
variables are enough (`srun --ntasks-per-node=1 python train.py ...`); elsewhere the flags say it,
and in a Kubernetes job with completion mode Indexed the process's number is taken from
JOB_COMPLETION_INDEX.

A signal to one process must stop all of them at the same step. Here it is noted, and travels in the
batch through the compiled step, whose result every process has. JAX's own service for that
(`multihost_utils.reached_preemption_sync_point`, which Orbax's `reached_preemption` asks) was left
aside because it hears SIGTERM alone, not Ctrl-C, and nothing at all in a run of one process.
"""

import os
import signal
from collections.abc import Callable
from types import FrameType

import jax
from jax.experimental import multihost_utils

from osdhuman_jax.config import ConfigError

# What `signal.signal` takes and gives: a function, or one of Python's two constants.
Handler = Callable[[int, FrameType | None], object] | int | None

# Where batch systems say which of a job's processes this is.
INDEX_VARIABLES = ("SLURM_PROCID", "JOB_COMPLETION_INDEX")


def join(coordinator: str, processes: int, process: int) -> None:
    """Start `jax.distributed` where there are several processes; call it before any computation.

    Args:
        coordinator: host:port of process 0; empty = ask Slurm, or be alone.
        processes, process: how many there are and which one this is; -1 = ask the environment.

    Raises ConfigError where the flags leave a question open.
    """
    # Alone, or under Slurm, whose variables JAX reads itself.
    if not coordinator:
        if processes > 1 or process > 0:
            raise ConfigError("--processes and --process need --coordinator HOST:PORT")
        if int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
            jax.distributed.initialize(local_device_ids=_local_devices())
        return
    # What the flags leave open the environment says.
    found = [os.environ[name] for name in INDEX_VARIABLES if name in os.environ]
    index = int(found[0]) if process < 0 and found else process
    total = int(os.environ.get("SLURM_STEP_NUM_TASKS", "-1")) if processes < 0 else processes
    if not 0 <= index < total:
        raise ConfigError(f"--process {index} of --processes {total}: give both, 0 <= process")
    jax.distributed.initialize(coordinator, total, index, local_device_ids=_local_devices())


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
