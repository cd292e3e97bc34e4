"""A folder restored by a cluster's workers: the same files, whoever is killed on the way."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import tiny
from folder_files import files, lines
from PIL import Image
from refusals import status

from osdhuman_jax.commands import restore
from osdhuman_jax.inference import folder_cluster
from osdhuman_jax.inference.folder_cluster import BREAKS, KILLED, Crew, Places, places
from osdhuman_jax.inference.folder_worker import Orders, Relay, RunStopped, Worker
from osdhuman_jax.inference.jobs import Job
from osdhuman_jax.inference.ledger import held
from osdhuman_jax.inference.settings import Settings, identity
from osdhuman_jax.workers import EngineError

ROOT = Path(__file__).parents[2]
DIGEST = "0" * 64
COUNT = 60


class Died(Exception):
    """Stands for Ray's error of a worker that is gone."""


class Failed(Exception):
    """Stands for Ray's error of a call that raised `cause`."""

    def __init__(self, cause: Exception) -> None:
        self.cause = cause


@dataclass(eq=False)
class Asked:
    """What Ray gives for a call: its answer comes later, None until then."""

    worker: "FakeWorker"
    method: str
    arguments: tuple
    answer: object = None


class FakeWorker:
    """A worker that writes its jobs' names as pictures, one by one, and dies over some."""

    def __init__(self, cluster: "FakeRay") -> None:
        self.cluster, self.alive, self.added = cluster, True, 0
        self.todo: list[Job] = []
        self.begun: list[Job] = []
        self.staged: Job | None = None

    def __getattr__(self, method: str) -> SimpleNamespace:
        return SimpleNamespace(remote=lambda *arguments: Asked(self, method, arguments))

    def answer(self, method: str, arguments: tuple) -> object:
        """What a call gives, or None if it is not over."""
        if not self.alive:
            raise Died("The actor died.")
        if method == "ready" and self.cluster.deaths_at_start:
            self.cluster.deaths_at_start -= 1
            last = Died("The actor died.\n\nOut of memory.")
            raise Failed(RuntimeError("no GPU")) if self.cluster.deaths_at_start % 2 else last
        if method == "ready":
            return "fake"
        if method == "work":
            return self.finished(arguments[0])
        if arguments[0] == self.added and self.staged:
            self.cluster.write(self.staged)
            self.staged = None
        if self.staged or not self.todo:
            return None
        self.staged, self.added = self.todo.pop(0), self.added + 1
        if self.staged.output.stem in self.cluster.poison:
            self.alive = False
            raise Died("The actor died.")
        return [self.cluster.line(self.staged)]

    def finished(self, jobs: list[Job]) -> list | None:
        """Remarks on a portion when all of it has its pictures; a new one is begun."""
        if jobs[0] not in self.begun:
            self.begun += jobs
            self.todo += jobs
        left = {*self.todo, self.staged} & set(jobs)
        return None if left else [(jobs[0], "looks clean")]


class FakeRay(ModuleType):
    """As much of Ray as a crew asks for, without processes and threads."""

    exceptions = SimpleNamespace(RayError=Died, RayTaskError=Failed)

    def __init__(self, output: Path, poison: set[str] = frozenset(), deaths_at_start: int = 0):
        super().__init__("ray")
        self.output, self.poison, self.deaths_at_start = output, poison, deaths_at_start
        self.hired: list[FakeWorker] = []
        self.put = lambda value: value

    def remote(self, **options: object):
        assert options["max_concurrency"] == folder_cluster.LANES + 2
        return lambda kind: SimpleNamespace(remote=self.hire)

    def hire(self, orders: Orders) -> FakeWorker:
        self.hired.append(FakeWorker(self))
        return self.hired[-1]

    def wait(
        self, calls: list[Asked], num_returns: int, timeout: float
    ) -> tuple[list[Asked], list[Asked]]:
        # What one call begins another one tells of.
        for call in [*calls, *calls]:
            if call.answer is None:
                try:
                    call.answer = call.worker.answer(call.method, call.arguments)
                except (Died, Failed) as error:
                    call.answer = error
        ready = [call for call in calls if call.answer is not None]
        assert ready, "nobody will ever answer"
        return ready, [call for call in calls if call not in ready]

    def get(self, call: Asked) -> object:
        if isinstance(call.answer, Exception):
            raise call.answer
        return call.answer

    def kill(self, worker: FakeWorker) -> None:
        worker.alive = False

    def line(self, job: Job) -> dict:
        digest = hashlib.sha256(job.output.name.encode()).hexdigest()
        return {"output": job.output.as_posix(), "status": "ok", "output_sha256": digest}

    def write(self, job: Job) -> None:
        """A picture takes its name: its line must be there by then."""
        assert job.output.as_posix() in {line["output"] for line in lines(self.output)}
        (self.output / job.output).write_text(job.output.name)


def run_fake(output: Path, workers: int = 2, **faults) -> tuple[Crew, FakeRay, list[int]]:
    settings, counts = Settings(), []
    orders = Orders(output, DIGEST, "fp32", 1, None, settings, output, output, None)
    jobs = [Job(Path(f"/in/{i}"), Path(f"{i:02}.png"), (9, 9)) for i in range(40)]
    with held(output) as ledger:
        ray = FakeRay(output, **faults)
        made = identity(DIGEST, "fp32", settings)
        crew = Crew(ray, Places(workers, {}, "nothing"), orders, ledger, made)
        crew.run(jobs, counts.append)
    return crew, ray, counts


def test_all_pictures_have_their_line_first_and_then_their_name(tmp_path):
    crew, ray, counts = run_fake(tmp_path / "out")
    assert len(files(tmp_path / "out")) == len(lines(tmp_path / "out")) == sum(counts) == 40
    assert crew.failures == [] and len(ray.hired) == 2 and len(crew.remarks) > 2
    assert not any(worker.alive for worker in ray.hired)


def test_a_picture_that_kills_its_worker_twice_fails_by_name_and_no_other_does(tmp_path):
    crew, ray, counts = run_fake(tmp_path / "out", poison={"07", "31"})
    failed = {job.output.stem: why for job, why in crew.failures}
    assert failed == {"07": KILLED, "31": KILLED} and len(crew.failures) == 2
    assert len(files(tmp_path / "out")) == 38 and sum(counts) == 40
    last = {line["output"]: line for line in lines(tmp_path / "out")}
    assert [name for name, line in last.items() if line["status"] == "failed"] == [
        "07.png",
        "31.png",
    ]
    assert last["07.png"]["model"] == "fake" and last["07.png"]["model_digest"] == DIGEST


def test_workers_that_cannot_start_are_tried_again_and_then_given_up(tmp_path):
    _, ray, _ = run_fake(tmp_path / "out", deaths_at_start=2)
    assert len(files(tmp_path / "out")) == 40 and len(ray.hired) == 4
    with pytest.raises(EngineError, match="before they are ready .*: (Out of|no GPU)"):
        run_fake(tmp_path / "none", deaths_at_start=99)
    assert not (tmp_path / "none").exists()
    _, ray, _ = run_fake(tmp_path / "one", workers=1, deaths_at_start=BREAKS - 1)
    assert len(ray.hired) == BREAKS


@pytest.mark.parametrize(
    ("total", "machines", "asked", "wanted"),
    [
        ({"GPU": 8.0, "CPU": 64.0}, [64], None, (8, {"num_gpus": 1})),
        ({"TPU": 4.0, "CPU": 64.0}, [64], None, (4, {"resources": {"TPU": 1}})),
        ({"CPU": 12.0}, [0, 4, 8], None, (2, {"num_cpus": 4, "scheduling_strategy": "SPREAD"})),
        ({"CPU": 12.0}, [4, 8], 6, (6, {"num_cpus": 2, "scheduling_strategy": "SPREAD"})),
    ],
)
def test_places(total, machines, asked, wanted):
    nodes = [{"Alive": True, "Resources": {"CPU": float(n)}} for n in machines]
    ray = ModuleType("ray")
    vars(ray).update(cluster_resources=lambda: total, nodes=lambda: nodes)
    assert places(ray, asked)[:2] == wanted


def test_a_line_is_waited_for_and_a_stop_gives_no_name():
    relay, ended = Relay(), []

    def add(number: int) -> None:
        try:
            relay.add({"n": number})
            ended.append(number)
        except RunStopped:
            ended.append(-number)

    threads = [threading.Thread(target=add, args=(n,)) for n in (1, 2)]
    threads[0].start()
    assert relay.take(0, 5.0) == [{"n": 1}] and ended == []
    assert relay.take(1, 0.0) == []
    threads[0].join()
    threads[1].start()
    assert relay.take(1, 5.0) == [{"n": 2}]
    relay.stop()
    threads[1].join()
    assert ended == [1, -2]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"version": "0"}, "not the driver's 0"),
        ({"token": Path("none")}, "mount it"),
        ({"model": Path("none")}, "none, on"),
        ({}, "another model"),
    ],
)
def test_a_machine_that_is_another_is_named(tmp_path, model, change, why):
    orders = Orders(model, DIGEST, "fp32", 1, None, Settings(), tmp_path, tmp_path, None)
    with pytest.raises(EngineError, match=why):
        Worker(replace(orders, **change)).ready()


def test_flags_of_a_cluster_are_refused_without_one(tmp_path, capsys, monkeypatch, model):
    flags = ["--input", tmp_path, "--output", tmp_path / "out"]
    assert status(restore.main, *flags, "--workers", 2) == 2
    assert status(restore.main, *flags, "--engine", "ray", "--checkpoint", "runs/a") == 2
    Image.fromarray(tiny.PHOTO).save(tmp_path / "a.png")
    monkeypatch.setitem(sys.modules, "ray", None)
    assert status(restore.main, *flags, "--model", model, "--engine", "ray") == 2
    said = capsys.readouterr().err
    assert "--workers is for --engine ray" in said and "WORKDIR/model" in said
    assert "pip install 'osdhuman-jax[ray]'" in said and not (tmp_path / "out").exists()


def start(folder: Path, output: str, *flags: str, address: str = "") -> subprocess.Popen:
    """The command in a process of its own, on a cluster if there is an address."""
    command = [sys.executable, str(ROOT / "infer.py"), "--input", "in", "--output", output]
    kept = {"JAX_COMPILATION_CACHE_DIR": str(folder / "programs"), "PYTHONPATH": str(ROOT)}
    env = {**os.environ, **kept, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    env |= {"RAY_ADDRESS": address} if address else {}
    argv = [*command, "--model", "model", *flags]
    quiet = subprocess.DEVNULL
    return subprocess.Popen(argv, env=env, cwd=folder, stdout=quiet, stderr=quiet)


def workers_below(ancestor: int) -> list[int]:
    """Processes of workers whose machine was started by a process."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            named = (folder / "cmdline").read_bytes().startswith(b"ray::Worker")
            if named and ancestor in parents(int(folder.name)):
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def parents(process: int) -> list[int]:
    found = []
    while process > 1:
        text = Path(f"/proc/{process}/stat").read_text()
        process = int(text.rpartition(")")[2].split()[1])
        found.append(process)
    return found


def wait_for_lines(process: subprocess.Popen, output: Path, count: int) -> None:
    record = output / "provenance.jsonl"
    while not record.exists() or record.read_bytes().count(b"\n") < count:
        assert process.poll() is None, "it ended too soon"
        time.sleep(0.01)


def made_of(output: Path) -> dict[str, dict]:
    """The last line of each picture, but for its time."""
    data = (output / "provenance.jsonl").read_text().splitlines()
    found = {line["output"]: line for line in map(json.loads, data)}
    return {name: {**line, "seconds": None} for name, line in sorted(found.items())}


@pytest.mark.slow
def test_a_cluster_gives_the_same_bytes_though_workers_and_drivers_die(tmp_path, monkeypatch):
    """Two machines' worth of workers; first one worker is killed, then the driver."""
    from osdhuman_jax.workers import import_ray

    import_ray()
    # Else everything else on this machine comes before the workers.
    monkeypatch.setenv("RAY_worker_niceness", "0")
    from ray.cluster_utils import Cluster

    rng = np.random.default_rng(0)
    for i in range(COUNT):
        path = tmp_path / "in" / f"part{i % 3}" / f"{i:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        size = rng.integers(8, 120, 2)
        Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(path)
    (tmp_path / "in" / "bad.png").write_text("no picture")
    tiny.save(tmp_path / "model")
    assert start(tmp_path, "local").wait() == 1

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "num_gpus": 0})
    try:
        cluster.add_node(num_cpus=1, num_gpus=0)
        run = start(tmp_path, "cluster", "--engine=ray", address=cluster.address)
        wait_for_lines(run, tmp_path / "cluster", 5)
        os.kill(workers_below(os.getpid())[0], signal.SIGKILL)
        wait_for_lines(run, tmp_path / "cluster", COUNT // 2)
        run.kill()
        assert run.wait() == -signal.SIGKILL
        assert len(files(tmp_path / "cluster")) < COUNT
        # The second one is interrupted, as by Ctrl-C: it leaves no half of a picture.
        again = start(tmp_path, "cluster", "--engine=ray", address=cluster.address)
        wait_for_lines(again, tmp_path / "cluster", COUNT // 2 + 5)
        again.send_signal(signal.SIGTERM)
        assert again.wait() == 130
        assert not list((tmp_path / "cluster").rglob(".*"))
        last = start(tmp_path, "cluster", "--engine=ray", address=cluster.address)
        assert last.wait() == 1
    finally:
        cluster.shutdown()
    assert files(tmp_path / "cluster") == files(tmp_path / "local")
    assert made_of(tmp_path / "cluster") == made_of(tmp_path / "local")
    assert not list((tmp_path / "cluster").rglob(".*"))
