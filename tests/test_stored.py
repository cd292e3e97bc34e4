"""What version 0.1 wrote still loads: a run, its model, a restored and a curated folder.

`stored/version_0_1.tar.xz` was written by that version: the thinnest model, a checkpoint after two
of four steps, two photographs restored by the finished model, and two drawings that curation
indexed, cropped and scored.
"""

import json
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from refusals import status

from curate import run
from osdhuman_jax.commands import restore
from osdhuman_jax.images.codec import read_image
from osdhuman_jax.inference.pipeline import Pipeline
from osdhuman_jax.training.checkpoint import read_config, steps_saved
from osdhuman_jax.weights import load_model

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("version_0_1")
    with tarfile.open(ROOT / "tests" / "stored" / "version_0_1.tar.xz") as archive:
        # The first releases of Python 3.11 have no filters.
        archive.extractall(folder, **{"filter": "data"} if hasattr(tarfile, "data_filter") else {})
    return folder / "stored"


def test_a_model_restores_the_same_picture(stored):
    """Up to rounding: products are summed in another order on another processor."""
    model = load_model(stored / "run" / "model")
    assert model.config.timestep == 999 and model.use.blend == 1.0
    pipeline = Pipeline.from_folder(stored / "run" / "model")
    for name in ("a.png", "b.png"):
        found = pipeline.restore([read_image(stored / "photos" / name)])[0].rgb.astype(int)
        assert np.abs(found - read_image(stored / "restored" / name).rgb.astype(int)).max() <= 1


def test_a_finished_folder_is_finished(stored, capsys):
    folders = ["--input", stored / "photos", "--output", stored / "restored"]
    words = [*folders, "--model", stored / "run" / "model", "--blend", "1", "--color_fix", "none"]
    assert status(restore.main, *words) == 0
    assert "(2 were there already)" in capsys.readouterr().out


def test_a_run_is_read(stored):
    assert read_config(stored / "run").run.steps == 4 and steps_saved(stored / "run") == [2]
    picture = read_image(stored / "photos" / "a.png")
    pipeline = Pipeline.from_run(stored / "run")
    assert pipeline.restore([picture])[0].size == picture.size


def test_a_curated_folder_is_read_and_not_done_again(stored):
    """Its crops stay done, byte for byte; scores of earlier metrics are made anew, not mixed."""
    folder = stored / "curated"
    marks = {path: path.read_bytes() for path in (folder / "done").rglob("*.json")}
    assert len(marks) == 4
    for stage in ("score", "report"):
        assert run.main([stage, f"--output={folder}"]) == 0
    now = {path: path.read_bytes() for path in (folder / "done").rglob("*.json")}
    (scored,) = (path for path in marks if path.parent.name == "score-classic")
    assert now.pop(scored) != marks.pop(scored) and now == marks
    funnel = json.loads((folder / "report" / "report.json").read_text())["funnel"]
    assert {"images": 2, "candidates": 2}.items() <= funnel["person"].items()


@pytest.mark.slow
def test_a_run_goes_on(stored, tmp_path):
    """To the weights that the version before ended with, whose order of sums was its own."""
    (tmp_path / "thin.py").write_text(CONFIG)
    command = [sys.executable, str(ROOT / "train.py"), "--config", str(tmp_path / "thin.py")]
    done = subprocess.run(
        [*command, "--workdir", "run"], cwd=stored, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert steps_saved(stored / "run")[-1] == 4
    rows = (stored / "run" / "metrics.jsonl").read_text().splitlines()
    assert all(json.loads(row)["step"] > 2 for row in rows)


CONFIG = f"""
import json
import sys

sys.path.insert(0, {str(ROOT)!r})

from osdhuman_jax.config import Config, from_dict


def get_config():
    return from_dict(Config, json.loads(open("run/config.json").read()))
"""
