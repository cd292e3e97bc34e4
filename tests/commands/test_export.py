"""Exported restorers run without this package and give the pipeline's pictures."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from skimage.data import astronaut

import osdhuman_jax.weights
from osdhuman_jax.commands import export
from osdhuman_jax.disk import file_digest
from osdhuman_jax.images.codec import Picture
from osdhuman_jax.inference.pipeline import Pipeline
from osdhuman_jax.methods.prompts import TagPrompter

SIDE = 128
PHOTO = np.ascontiguousarray(astronaut()[20 : 20 + SIDE, 160 : 160 + SIDE])
TOKENS = np.linspace(-500, 500, 24, dtype=np.float32).reshape(3, 8)
ALONE = """
import sys
for name in ("osdhuman_jax", "flax", "torch"):
    sys.modules[name] = None  # an import of it fails
import jax, numpy as np
file = np.load("nano.npz")
program = jax.export.deserialize(bytearray(file["program"]))
weights = [file[f"weight_{i}"] for i in range(file["weights"])]
np.save("restored.npy", program.call(weights, np.load("photo.npy")))
"""


@pytest.fixture(scope="module")
def restored(model: Path) -> np.ndarray:
    """What the pipeline makes of the photograph."""
    made = Pipeline.from_folder(model).restore([Picture(PHOTO)])[0].rgb.astype(int)
    assert made.std() > 10 and np.abs(made - PHOTO).mean() > 10
    return made


def flags(model: Path, output: Path, size: int = SIDE) -> list[str]:
    chosen = {"model": model, "size": size, "output": output}
    return [text for name, value in chosen.items() for text in (f"--{name}", str(value))]


def test_the_program_runs_alone(tmp_path, model, restored):
    assert export.main(flags(model, tmp_path / "nano.npz")) == 0
    np.save(tmp_path / "photo.npy", PHOTO[None])
    command = [sys.executable, "-c", ALONE]
    fast = {**os.environ, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}  # to compile
    subprocess.run(command, cwd=tmp_path, env=fast, check=True)
    got = np.load(tmp_path / "restored.npy")
    assert got.dtype == np.uint8 and got.shape == (1, SIDE, SIDE, 3)
    apart = np.abs(got[0].astype(int) - restored)
    assert apart.max() <= 1 and apart.mean() < 0.01


def test_onnx_is_the_pipeline(tmp_path, model, restored):
    import onnxruntime

    assert export.main(flags(model, tmp_path / "nano.onnx")) == 0
    session = onnxruntime.InferenceSession(tmp_path / "nano.onnx")
    (got,) = session.run(None, {session.get_inputs()[0].name: PHOTO[None]})
    assert got.dtype == np.uint8 and got.shape == (1, SIDE, SIDE, 3)
    assert np.abs(got[0].astype(int) - restored).max() <= 1


def prompted(model: Path, folder: Path, kind: str) -> Path:
    """The model with another kind of prompt, and tokens of its own."""
    shutil.copytree(model, folder)
    np.save(folder / "prompt.npy", TOKENS)
    meta = json.loads((folder / "config.json").read_text()) | {"prompt": kind}
    meta["digests"]["prompt.npy"] = file_digest(folder / "prompt.npy")
    (folder / "config.json").write_text(json.dumps(meta))
    return folder


def test_a_prompt_that_is_constant_is_exported(tmp_path, model, restored):
    folder, path = prompted(model, tmp_path / "fixed", "fixed"), tmp_path / "m.npz"
    assert export.main(flags(folder, path)) == 0
    file = np.load(path)
    weights = [file[f"weight_{i}"] for i in range(file["weights"])]
    assert any(np.array_equal(weight, TOKENS) for weight in weights)
    program = jax.export.deserialize(bytearray(file["program"].tobytes()))
    got = np.asarray(program.call(weights, PHOTO[None])[0], int)
    want = Pipeline.from_folder(folder).restore([Picture(PHOTO)])[0].rgb
    assert np.abs(got - want).max() <= 1 and np.abs(got - restored).max() > 5


def test_prompts_from_tags_are_not_exported(tmp_path, model, monkeypatch, capsys):
    tags = TagPrompter.__new__(TagPrompter)
    monkeypatch.setattr(osdhuman_jax.weights, "load_prompter", lambda *_, **__: tags)
    path = tmp_path / "m.npz"
    assert export.main(flags(prompted(model, tmp_path / "ram", "ram"), path)) == 2
    assert "prompts from tags are text" in capsys.readouterr().err and not path.exists()


@pytest.mark.parametrize(
    ("name", "size", "reason"),
    [
        ("a.pt", SIDE, "--output must end in .npz or .onnx"),
        ("a.npz", 102, "--size must be a multiple of 4"),
    ],
)
def test_refusals_are_one_line(tmp_path, model, capsys, name, size, reason):
    assert export.main(flags(model, tmp_path / name, size)) == 2
    said = capsys.readouterr().err
    assert reason in said and said.startswith("export: ") and said.count("\n") == 1
    assert not list(tmp_path.iterdir())
