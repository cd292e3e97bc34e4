"""Other processes that work for this one: what they do first, and Ray, which starts them elsewhere.

The data loader's processes, curation's and those that restore a folder need it; free of JAX.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType


class EngineError(RuntimeError):
    """Work that other processes could not do; one line for a person."""


def prepare_process(*ignored: signal.Signals) -> None:
    """Make this process a worker, which leaves the signals `ignored` to its parent.

    It uses one OpenCV thread, since there is a worker for every core. It ends when its parent is
    gone, so that a killed parent leaves no workers behind.
    """
    # Who only asks for Ray waits for no OpenCV.
    import cv2

    cv2.setNumThreads(1)
    # Ctrl-C reaches the whole group of processes: the parent alone decides what it means.
    for kind in ignored:
        signal.signal(kind, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    """Wait for the parent's end, and end with it."""
    # A parent that was killed outright tells its workers nothing: they would stay for ever.
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@contextmanager
def session(workers: int) -> Iterator[ModuleType]:
    """Gives the ray module, connected to a cluster while the block runs.

    The cluster is the one that RAY_ADDRESS names, else `workers` cores of this machine. A session
    inside another uses the outer one, since starting takes a while. Raises EngineError if Ray is
    not installed.
    """
    ray = import_ray()
    where: dict[str, str | int] = {}
    # Left to itself, Ray would take any cluster that runs on this machine.
    if not os.environ.get("RAY_ADDRESS"):
        where = {"address": "local", "num_cpus": max(1, workers)}
    started = not ray.is_initialized()
    # Ray's log lines would break up the progress bar; failures come back as outcomes.
    if started:
        with _same_signals():
            ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR", **where)
    try:
        yield ray
    finally:
        if started:
            ray.shutdown()


@contextmanager
def _same_signals() -> Iterator[None]:
    """A block after which SIGTERM does what it did before."""
    # Ray makes an end of the process of it, which no command could tell as its own interruption.
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        # Only the main thread may, and only there does Ray.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def import_ray() -> ModuleType:
    """The ray module, without the report of its use that it sends home by default.

    Raises EngineError if it is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError:
        raise EngineError("--engine ray needs Ray: pip install 'osdhuman-jax[ray]'") from None
    return ray
