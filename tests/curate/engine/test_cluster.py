"""What machines of a cluster have to agree on: paths, sources, which cluster it is."""

import json
import os
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from curation_runs import curate
from engine_jobs import Doubling, Dying

from curate import demo, run
from curate.config import BodyConfig, CurateConfig, DetectConfig, ScoreConfig
from curate.cropping.job import CropJob, require
from curate.engine import cluster
from curate.engine.engine import Engine
from curate.engine.ledger import tree_digest
from curate.engine.worker import Outcome, ShardJob
from curate.quality.score_job import ScoreJob
from curate.readers import ReaderError, SourceSpec
from osdhuman_jax import workers
from osdhuman_jax.workers import EngineError


def test_paths_of_a_plan_are_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    demo.write_person(tmp_path / "person")
    Path("boxes.csv").write_text("path,x0,y0,x1,y1\n")
    natural = {"mu_prisparam": np.linspace(0.5, 2, 36), "cov_prisparam": np.eye(36)}
    np.savez("niqe.npz", **natural)
    flags = ["--output=out", "--source=person=person", "--detector=boxes"]
    flags += ["--detector_weights=boxes.csv", "--set=score.weights=iqa"]
    flags = run.parse([*flags, "--niqe_params=niqe.npz"])
    plan = run.make_plan(flags)
    assert flags.output == tmp_path / "out"
    assert plan.config.detect.weights == str(tmp_path / "boxes.csv")
    assert plan.config.score.weights == str(tmp_path / "iqa")
    assert plan.config.score.niqe_params == str(tmp_path / "niqe.npz")
    assert plan.config.score.persons == ""


@pytest.mark.parametrize("left", ["nothing", "an empty folder"])
def test_a_machine_without_the_sources_makes_nothing(tmp_path, capsys, left):
    """As where a node has not mounted them, or they went after the command began."""
    source = SourceSpec("person", (str(tmp_path / "person"),), "person")
    demo.write_person(tmp_path / "person")
    require([source])
    (tmp_path / "person").rename(tmp_path / "elsewhere")
    if left != "nothing":
        (tmp_path / "person").mkdir()
    with pytest.raises(ReaderError, match="person is not there, or empty, on .*: mount it"):
        require([source])


def test_the_crop_job_looks_for_its_source(tmp_path, capsys, monkeypatch):
    source = demo.write_person(tmp_path / "person")
    assert curate(tmp_path / "set", "index", sources=[source]) == 0
    (tmp_path / "person").rename(tmp_path / "elsewhere")
    monkeypatch.setattr(run.readers, "check", lambda source: None)  # as on the driver's machine
    assert curate(tmp_path / "set", "crop") == 2
    assert "person is not there" in capsys.readouterr().err
    assert not list((tmp_path / "set" / "done").glob("crop/*"))
    (tmp_path / "elsewhere").rename(tmp_path / "person")
    assert curate(tmp_path / "set", "crop") == 0
    marker = next((tmp_path / "set" / "done").glob("crop/*"))
    assert "missing_file" not in json.loads(marker.read_text())["facts"]["reasons"]


@pytest.mark.parametrize("address", ["", "10.0.0.1:6379"])
def test_ray_is_this_machines_unless_a_cluster_is_named(monkeypatch, address):
    asked = {}
    ray = SimpleNamespace(
        is_initialized=lambda: False, init=lambda **options: asked.update(options), shutdown=list
    )
    monkeypatch.setattr(workers, "import_ray", lambda: ray)
    monkeypatch.setenv("RAY_ADDRESS", address)
    with workers.session(3) as session:
        assert session is ray
    wanted = {} if address else {"address": "local", "num_cpus": 3}
    assert {name: asked[name] for name in ("address", "num_cpus") if name in asked} == wanted


@pytest.mark.parametrize(
    ("job", "network"),
    [
        (CropJob(CurateConfig()), False),
        (CropJob(CurateConfig(detect=DetectConfig("boxes", "a.csv"))), False),
        (CropJob(CurateConfig(detect=DetectConfig("yolo", "a.onnx"))), True),
        (CropJob(CurateConfig(body=BodyConfig(True, "a.whl"))), True),
        (ScoreJob("classic", ScoreConfig()), False),
        (ScoreJob("persons", ScoreConfig(persons="a.onnx")), True),
        (ScoreJob("musiq", ScoreConfig("pyiqa")), True),
    ],
)
def test_only_jobs_with_a_network_go_to_actors(monkeypatch, job: ShardJob, network: bool):
    monkeypatch.setattr(cluster, "run_actors", lambda tasks, workers: "actors")
    monkeypatch.setattr(cluster, "run_tasks", lambda tasks, workers: "tasks")
    assert cluster.run_ray([("", job, "a-0", "", 60.0)], 2) == ("actors" if network else "tasks")


@pytest.mark.slow
def test_actors_give_the_same_bytes_and_a_killed_one_loses_nothing(tmp_path, monkeypatch):
    """Also beside an item that crashes, and one that hangs."""
    # Ray's workers are to find the test's jobs, and not to be the last in line.
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    monkeypatch.setenv("RAY_worker_niceness", "0")
    shards = [f"{k}-{k + 2}" for k in range(20, 40, 2)] + ["12-16"]
    Engine(tmp_path / "calm", workers=1, limit=2.0).run(Doubling(), shards)
    outcomes: list[Outcome] = []

    def kill_third(outcome: Outcome) -> None:
        outcomes.append(outcome)
        if len(outcomes) == 3:
            os.kill(outcome.facts["process"], signal.SIGKILL)

    with cluster.session(2):
        engine = Engine(tmp_path / "actors", kind="ray", workers=2, limit=2.0)
        engine.run(Doubling(delay=0.2, network=True), shards, kill_third)
        with pytest.raises(EngineError, match="1 shards failed: double 0-4: Ray: its actor died"):
            Engine(tmp_path / "dying", kind="ray", workers=1).run(Dying(network=True), ["0-4"])
    assert sorted(o.shard for o in outcomes) == sorted(shards)
    assert not any(o.error for o in outcomes)
    # An actor lives on from shard to shard: two, and one for each death.
    assert len({o.facts["process"] for o in outcomes}) <= 5
    assert tree_digest(tmp_path / "actors") == tree_digest(tmp_path / "calm")
