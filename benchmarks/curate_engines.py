"""How many crops a second and core each engine of curation makes, with a detector's network.

    python -m benchmarks.curate_engines --output results/engines --detector ssd \
        --detector_weights models/detector/mediapipe-objectron-0.4.1675468480.tgz --gpus 1

The crop job runs over generated photographs of 640 x 480 on worker processes of this machine, as
plain tasks of Ray, and on actors of Ray Data; what they make is compared. CPU seconds are those of
all processes from a job's start to its end: imports, loading the network and Ray's own work count,
starting Ray does not. With --gpus the jobs on Ray are run once more asking for a GPU each, of which
Ray is told that there are so many; none is used, but Ray starts a process for each task then.
"""

import argparse
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread

import numpy as np

from benchmarks.curate import USUAL, window
from curate.config import CurateConfig, put
from curate.cropping.index import IndexJob, crop_shards
from curate.cropping.job import CropJob
from curate.demo import PORTRAITS, photograph, write_jpeg
from curate.engine.cluster import run_actors, run_tasks
from curate.engine.engine import Engine, run_local
from curate.engine.ledger import ShardLedger, tree_digest
from curate.readers import SourceSpec
from osdhuman_jax.workers import import_ray

PERIOD = 0.1  # seconds between two looks at the processes
TICKS = os.sysconf("SC_CLK_TCK")
SETTINGS = (*USUAL.settings, "box.long_min=128", "square.side_min=192")
ENGINES = {"local": run_local, "Ray tasks": run_tasks, "Ray actors": run_actors}


def cpu_seconds() -> dict[int, float]:
    """CPU seconds of this process and of all below it, by process."""
    parents, used = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:  # it has just ended
            continue
        process = int(folder.name)
        parents[process], used[process] = int(fields[1]), sum(map(int, fields[11:13])) / TICKS
    mine = {os.getpid()}
    while more := {process for process, parent in parents.items() if parent in mine} - mine:
        mine |= more
    return {process: used[process] for process in mine}


@contextmanager
def counted_cpu() -> Iterator[Callable[[], float]]:
    """Gives a function that tells the CPU seconds that were used so far in the block."""
    before, seen, end = cpu_seconds(), {}, Event()

    def watch() -> None:
        while not end.wait(PERIOD):
            seen.update(cpu_seconds())

    def total() -> float:
        seen.update(cpu_seconds())
        return sum(used - before.get(process, 0.0) for process, used in seen.items())

    thread = Thread(target=watch)
    thread.start()
    try:
        yield total
    finally:
        end.set()
        thread.join()


def measure(root: Path, job: CropJob, run: Callable, workers: int) -> str:
    """What making the crops of all shards took, as text. Raises SystemExit if a shard failed."""
    ledger = ShardLedger(root)
    Engine(root).run(IndexJob(job.sources, job.config.shard_images), [job.sources[0].name])
    shards = crop_shards(ledger, job.sources)
    tasks = [(str(root), job, shard, job.key(ledger, shard), job.config.limit) for shard in shards]
    with counted_cpu() as cpu:
        start = time.monotonic()
        outcomes = list(run(tasks, workers))
        seconds, wall = cpu(), time.monotonic() - start
    if errors := [outcome.error for outcome in outcomes if outcome.error]:
        raise SystemExit(errors[0])
    images, crops = (sum(o.facts[unit] for o in outcomes) for unit in ("images", "crops"))
    text = f"{images} images in {len(shards)} shards, {crops} crops: {seconds:.1f} CPU s, "
    return f"{text}{crops / seconds:.2f} crops a CPU second; {wall:.0f} s by the clock"


def main(argv: Sequence[str] | None = None) -> None:
    """Measure all engines; print a line each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--detector", default="ssd")
    parser.add_argument("--detector_weights", required=True)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--gpus", type=int, default=0, help="GPUs that Ray is told of")
    flags = parser.parse_args(argv)
    output = flags.output.absolute()
    config = CurateConfig()
    for setting in (*SETTINGS, f"detect.kind={flags.detector}"):
        put(config, *setting.split("="))
    config.detect.weights = os.path.abspath(flags.detector_weights)
    photographs = [photograph(name) for name in PORTRAITS]
    for i in range(flags.images):
        rgb = window(photographs, np.random.default_rng(i), USUAL)
        write_jpeg(output / "images" / f"{i:06d}.jpg", rgb)
    source = SourceSpec("folder", (str(output / "images"),), "folder")
    # Ray puts its workers last in line by default, which is no measure on a machine that is used.
    os.environ.setdefault("RAY_worker_niceness", "0")
    ray = import_ray()
    ray.init("local", num_cpus=flags.workers, num_gpus=flags.gpus, log_to_driver=False)
    made = {}
    for gpus in (0.0, 1.0)[: 1 + bool(flags.gpus)]:
        for name, run in list(ENGINES.items())[bool(gpus) :]:
            root = output / f"{name.replace(' ', '-').lower()}{'-gpu' * bool(gpus)}"
            line = measure(root, CropJob(config, (source,), gpus=gpus), run, flags.workers)
            print(f"{name}{', a GPU each' * bool(gpus)}: {line}", flush=True)
            made[root] = tree_digest(root)
    print("the same bytes" if len(set(made.values())) == 1 else f"DIFFERENT: {made}")


if __name__ == "__main__":
    main()
