"""What machines of a cluster have to agree on: paths, sources, which cluster it is."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from curation_runs import curate

from curate import demo, run
from curate.cropping.job import require
from curate.readers import ReaderError, SourceSpec
from osdhuman_jax import workers


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
