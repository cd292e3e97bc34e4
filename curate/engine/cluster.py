"""Shards on Ray: many machines, the same bytes.

Ray only places calls of `run_shard`. What is done, what is redone and what a result is stays the
ledger's business, so losing a node, or the driver, costs the shards that were under way.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import cv2

from curate.engine.worker import BREAKS, EngineError, Outcome, ShardJob, Task, run_shard


@contextmanager
def session(workers: int) -> Iterator[Any]:
    """Ray, the cluster that RAY_ADDRESS names, else `workers` cores of this machine.

    One inside another is the same one, since starting takes a while. Raises EngineError if Ray is
    not installed.
    """
    ray = import_ray()
    where: dict[str, Any] = {}
    # Left to itself, Ray would take any cluster that runs on this machine.
    if not os.environ.get("RAY_ADDRESS"):
        where = {"address": "local", "num_cpus": max(1, workers)}
    started = not ray.is_initialized()
    if started:
        ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR", **where)
    try:
        yield ray
    finally:
        if started:
            ray.shutdown()


def run_ray(tasks: Sequence[Task], workers: int) -> Iterator[Outcome]:
    """Outcomes as they come in. All paths must be absolute, and the same on all nodes."""
    gpus = tasks[0][1].gpus if tasks else 0
    with session(workers) as ray:
        remote = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=BREAKS)(_run_on_ray)
        names = {remote.remote(*task): task[2] for task in tasks}
        while names:
            for future in ray.wait(list(names))[0]:
                shard = names.pop(future)
                try:
                    yield ray.get(future)
                except ray.exceptions.RayError as error:
                    yield Outcome(shard, error=f"Ray: {str(error).splitlines()[0]}")


def _run_on_ray(root: str, job: ShardJob, shard: str, key: str, limit: float) -> Outcome:
    cv2.setNumThreads(1)
    return run_shard(root, job, shard, key, limit, watched=True)


def import_ray() -> Any:
    """The ray module. Raises EngineError if it is not installed."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError:
        raise EngineError("--engine ray needs Ray: pip install 'osdhuman-jax[ray]'") from None
    return ray
