"""Shards on Ray: many machines, the same bytes.

Ray only places calls of `run_shard`. What is done, what is redone and what a result is stays the
ledger's business, so losing a node, or the driver, costs the shards that were under way. Shards of
a job that has a network (a detector, a learned metric) go to actors of Ray Data, which live as long
as the job and load the network once; those of other jobs are plain tasks. Only `--engine ray` needs
this module.
"""

import logging
import pickle
import warnings
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from curate.engine.worker import BREAKS, Outcome, ShardJob, Task, run_shard
from osdhuman_jax.workers import EngineError, session

if TYPE_CHECKING:
    # At run time Ray is imported only where it is used: it is an extra, and slow.
    from ray.data import Dataset


def run_ray(tasks: Sequence[Task], workers: int) -> Iterator[Outcome]:
    """Run tasks on the cluster; yields their outcomes as they come in.

    All paths must be absolute, and the same on all nodes.
    """
    # All tasks are of one job, so that the first one tells what they need.
    run = run_actors if tasks and tasks[0][1].network else run_tasks
    return run(tasks, workers)


def run_tasks(tasks: Sequence[Task], workers: int) -> Iterator[Outcome]:
    """Run each shard as a task of Ray's."""
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


def run_actors(tasks: Sequence[Task], workers: int) -> Iterator[Outcome]:
    """Run the shards on actors of Ray Data, as many as the cluster has room for."""
    left, error = {task[2]: task for task in tasks}, "its actor died again and again"
    with session(workers) as ray:
        try:
            for row in _on_actors(tasks).iter_rows():
                # Unpickling is safe: an actor of this run has just pickled it.
                outcome: Outcome = pickle.loads(row["outcome"])
                del left[outcome.shard]
                yield outcome
        except ray.exceptions.RayError as fault:
            error = str(fault).splitlines()[0]
    # These are not done; the engine's second pass takes them up again.
    yield from (Outcome(shard, error=f"Ray: {error}") for shard in left)


def _on_actors(tasks: Sequence[Task]) -> "Dataset":
    """The pickled outcomes of tasks as a dataset, which comes in while actors work."""
    try:
        import ray.data
    except ImportError:
        text = "--engine ray needs Ray's data library: pip install 'osdhuman-jax[ray]'"
        raise EngineError(text) from None
    root, job, _, _, limit = tasks[0]
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    # Neither a shard that is lost nor one that takes long is to end the run.
    context.max_errored_blocks = context.execution_no_progress_timeout_s = -1
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    # A block for each shard, and one at a time for an actor, so that none waits for a busy one.
    shards = [{"shard": task[2], "key": task[3]} for task in tasks]
    size = min(len(shards), _room(ray, job.gpus))
    pool = ray.data.ActorPoolStrategy(size=size, max_tasks_in_flight_per_actor=1)
    # An actor that died is started again, and its shard is given to one again, where the ledger's
    # note isolates the items. Ray Data would do so for ever.
    limits: dict[str, Any] = {"max_restarts": -1, "max_task_retries": BREAKS}
    with warnings.catch_warnings():
        # Ray 2.64 will take these limits away, which is why pyproject.toml ends before it.
        warnings.simplefilter("ignore")
        return ray.data.from_items(shards, override_num_blocks=len(shards)).map_batches(
            ShardActor,
            batch_size=1,
            compute=pool,
            fn_constructor_args=(root, job, limit),
            num_cpus=1,
            num_gpus=job.gpus,
            **limits,
        )


class ShardActor:
    """A process of Ray's that works shards; what a job has loaded for one is there for the next."""

    def __init__(self, root: str, job: ShardJob, limit: float) -> None:
        self._root, self._job, self._limit = root, job, limit

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Pickled outcomes of a batch of shards, which comes with their keys."""
        pairs = zip(batch["shard"].tolist(), batch["key"].tolist(), strict=True)
        outcomes = [_run_on_ray(self._root, self._job, *pair, self._limit) for pair in pairs]
        return {"outcome": np.array([pickle.dumps(o) for o in outcomes], object)}


def _room(ray: ModuleType, gpus: float) -> int:
    """How many actors of one core, and of so many GPUs, the cluster has room for; 1 at least."""
    have = ray.cluster_resources()
    most = have.get("CPU", 0)
    if gpus:
        most = min(most, have.get("GPU", 0) / gpus)
    # Where there is no room at all Ray waits for a node that has some, as it does with tasks.
    return max(1, int(most))


def _run_on_ray(root: str, job: ShardJob, shard: str, key: str, limit: float) -> Outcome:
    """`run_shard` in one of Ray's processes, which have not run `prepare_process`."""
    cv2.setNumThreads(1)
    return run_shard(root, job, shard, key, limit, watched=True)
