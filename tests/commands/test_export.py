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
from flax import nnx
from skimage.data import astronaut

import osdhuman_jax.weights
from osdhuman_jax.commands import export
from osdhuman_jax.disk import file_digest
from osdhuman_jax.images.codec import Picture, write_png
from osdhuman_jax.inference import standalone
from osdhuman_jax.inference.pipeline import Pipeline
from osdhuman_jax.methods.prompts import TagPrompter
from osdhuman_jax.networks.layers import Upsample2D
from osdhuman_jax.weights import load_model

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


@pytest.fixture(scope="module")
def exact(tmp_path_factory, model: Path) -> Path:
    """The model as an .onnx in float32."""
    path = tmp_path_factory.mktemp("onnx") / "nano.onnx"
    assert export.main(flags(model, path)) == 0
    return path


def run(path: Path, pictures: np.ndarray) -> np.ndarray:
    """What onnxruntime makes of pictures."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path)
    return session.run(None, {session.get_inputs()[0].name: pictures})[0]


def test_onnx_is_the_pipeline(exact, restored):
    got = run(exact, PHOTO[None])
    assert got.dtype == np.uint8 and got.shape == (1, SIDE, SIDE, 3)
    assert np.abs(got[0].astype(int) - restored).max() <= 1


@pytest.fixture
def known(exact, monkeypatch):
    """The conversion, which takes longest, is that of another test."""
    import onnx_ir

    monkeypatch.setattr(standalone, "converted", lambda *_: onnx_ir.load(exact))


def test_weights_beyond_the_limit_lie_beside(tmp_path, model, exact, known, monkeypatch, capsys):
    path, beside = tmp_path / "nano.onnx", tmp_path / "nano.onnx.data"
    monkeypatch.setattr(standalone, "ONNX_LIMIT", 2**16)
    assert export.main(flags(model, path)) == 0
    assert path.stat().st_size + beside.stat().st_size // 2 < exact.stat().st_size
    assert capsys.readouterr().out.count(" MiB\n") == 2
    assert np.array_equal(run(path, PHOTO[None]), run(exact, PHOTO[None]))
    # Neither is replaced unasked; both are where that is asked for.
    path.unlink()
    assert export.main(flags(model, path)) == 2
    assert f"{beside}: exists; give --overwrite" in capsys.readouterr().err
    monkeypatch.setattr(standalone, "ONNX_LIMIT", 2**31)
    assert export.main([*flags(model, path), "--overwrite"]) == 0
    assert sorted(tmp_path.iterdir()) == [path]
    assert np.array_equal(run(path, PHOTO[None]), run(exact, PHOTO[None]))


@pytest.mark.parametrize("limit", [standalone.ONNX_LIMIT, 2**16])
def test_int8_is_close_and_in_the_unet(
    tmp_path, model, known, restored, capsys, monkeypatch, limit
):
    import onnx

    monkeypatch.setattr(standalone, "ONNX_LIMIT", limit)
    (tmp_path / "photos").mkdir()
    write_png(tmp_path / "photos" / "astronaut.png", PHOTO)
    path = tmp_path / "nano.onnx"
    more = ["--int8", "--calibrate", str(tmp_path / "photos")]
    assert export.main([*flags(model, path), *more]) == 0
    decibels = float(capsys.readouterr().out.split("int8 is ")[1].split(" dB")[0])
    got = run(path, PHOTO[None])
    assert standalone.weights_beside(path).exists() == (limit == 2**16)
    apart = got[0].astype(float) - restored
    assert apart.any() and 10 * np.log10(255**2 / np.square(apart).mean()) > decibels - 0.5 > 30
    # A weight of 8 bits for each of the U-Net's layers but those that enlarge and the shortcuts of
    # 1 x 1, and for no others.
    graph = onnx.load(path).graph
    eight = [t for t in graph.initializer if t.data_type == onnx.TensorProto.INT8 and t.dims[1:]]
    unet = load_model(model).restorer.unet
    layers = [layer for _, layer in nnx.iter_modules(unet) if isinstance(layer, nnx.Conv)]
    layers = [layer for layer in layers if layer.kernel_size != (1, 1)]
    enlarging = [layer for _, layer in nnx.iter_modules(unet) if isinstance(layer, Upsample2D)]
    assert len(eight) == len(layers) - len(enlarging) > 0


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
    ("name", "more", "reason"),
    [
        ("a.npz", ["--int8"], "--int8 goes with an .onnx in --precision fp32"),
        ("a.onnx", ["--int8", "--precision", "bf16"], "--int8 goes with an .onnx"),
        ("a.onnx", ["--calibrate", "photos"], "--calibrate goes with --int8"),
    ],
)
def test_flags_of_int8_go_together(tmp_path, model, capsys, name, more, reason):
    with pytest.raises(SystemExit, match="2"):
        export.main([*flags(model, tmp_path / name), *more])
    assert reason in capsys.readouterr().err


def test_int8_needs_pictures(tmp_path, model, capsys):
    (tmp_path / "none").mkdir()
    more = ["--int8", "--calibrate", str(tmp_path / "none")]
    assert export.main([*flags(model, tmp_path / "a.onnx"), *more]) == 2
    assert "no folder with images" in capsys.readouterr().err


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
