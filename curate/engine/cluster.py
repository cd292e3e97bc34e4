"""Shards on Ray: many machines, the same bytes.

Ray only places calls of `run_shard`. What is done, what is redone and what a result is stays the
ledger's business, so losing a node, or the driver, costs the shards that were under way. Only
`--engine ray` needs this module.
"""

from collections.abc import Iterator, Sequence

import cv2

from curate.engine.worker import BREAKS, Outcome, ShardJob, Task, run_shard
from osdhuman_jax.workers import session


def run_ray(tasks: Sequence[Task], workers: int) -> Iterator[Outcome]:
    """Run tasks on the cluster; yields their outcomes as they come in.

    All paths must be absolute, and the same on all nodes.
    """
    # All tasks are of one job, so that the first one tells what they need.
    gpus = tasks[0][1].gpus if tasks else 0
    with session(workers) as ray:
        # Ray runs a task again whose process died. The ledger's note of the first attempt then
        # makes `run_shard` work its items in isolation.
        remote = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=BREAKS)(_run_on_ray)
        names = {remote.remote(*task): task[2] for task in tasks}
        while names:
            for future in ray.wait(list(names))[0]:
                shard = names.pop(future)
                try:
                    yield ray.get(future)
                except ray.exceptions.RayError as error:
                    # The shard is not done; the engine's second pass takes it up again.
                    yield Outcome(shard, error=f"Ray: {str(error).splitlines()[0]}")


def _run_on_ray(root: str, job: ShardJob, shard: str, key: str, limit: float) -> Outcome:
    """`run_shard` in one of Ray's processes, which have not run `prepare_process`."""
    cv2.setNumThreads(1)
    return run_shard(root, job, shard, key, limit, watched=True)
