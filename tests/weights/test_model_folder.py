"""Model folders: what is written comes back, and nothing else is accepted."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from convert import call, filled
from damage import flip
from flax import nnx
from make_weights import edit_json
from refusals import one_line
from safetensors.numpy import load_file, save_file
from tiny import DUAL, MODEL, make, restorer

from osdhuman_jax.config import LoRAConfig, UseConfig, to_dict
from osdhuman_jax.disk import file_digest
from osdhuman_jax.methods.osdhuman import OneStepRestorer
from osdhuman_jax.weights import WeightsError, load_base, load_model, random_restorer, save_model
from osdhuman_jax.weights.info import describe

LORA = LoRAConfig(rank=2, alpha=8.0)
BASE, GENERATOR, CONFIG = "base.safetensors", "generator.safetensors", "config.json"
CONV_IN = "unet.conv_in.kernel"  # (3, 3, 4, 8)


def values(model: OneStepRestorer) -> dict[str, np.ndarray]:
    """Every parameter by its dotted path; a layer inside LoRA has the name that it has outside."""
    flat = nnx.to_flat_state(nnx.state(model, nnx.Param))
    return {
        ".".join(str(p) for p in path if p != "base"): np.asarray(value[...])
        for path, value in flat
    }


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return set(a) == set(b) and all(
        a[n].dtype == b[n].dtype and np.array_equal(a[n], b[n]) for n in a
    )


def psnr(a: jax.Array, b: jax.Array) -> float:
    """In dB, of images in [-1, 1]."""
    return float(10 * np.log10(4 / np.mean(np.square(np.asarray(a) - np.asarray(b)))))


@pytest.fixture(scope="module")
def base_only() -> OneStepRestorer:
    return restorer()


@pytest.fixture(scope="module")
def trained() -> OneStepRestorer:
    """With LoRA, B not zero."""
    return restorer(LORA)


@pytest.fixture(scope="module")
def base_folder(base_only, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "base"
    save_model(folder, MODEL, base_only, provenance={"from": "dice"})
    return folder


@pytest.fixture(scope="module")
def folder(trained, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "trained"
    save_model(folder, MODEL, trained, generator=LORA)
    return folder


@pytest.fixture
def broken(folder, tmp_path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(folder, tmp_path / "copy"))


@pytest.fixture(scope="module")
def lq() -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, (1, 16, 16, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def restored(folder, lq) -> np.ndarray:
    return np.asarray(call(load_model(folder).restorer, lq))


def test_base_comes_back_bit_for_bit(base_only, base_folder):
    found, config, adapters = load_base(base_folder)
    assert same(values(found), values(base_only))
    assert config == MODEL and adapters is None
    assert (found.timestep, found.vae.scaling_factor) == (399, 1.0)


def test_generator_comes_back_bit_for_bit(trained, folder):
    found, config, adapters = load_base(folder, generator=True)
    assert same(values(found), values(trained))
    assert config == MODEL and adapters == LORA


@pytest.mark.parametrize(
    "change", [{"train_conv_in": True}, {"vae_encoder": False}, {"unet": False}], ids=str
)
def test_other_generators_come_back(change, tmp_path):
    lora = replace(LORA, **change)
    model = restorer(lora)
    save_model(tmp_path, MODEL, model, generator=lora)
    assert same(values(load_base(tmp_path, generator=True)[0]), values(model))
    names = set(load_file(tmp_path / GENERATOR))
    assert (CONV_IN in names) == lora.train_conv_in
    assert any(n.startswith("vae.") for n in names) == lora.vae_encoder
    assert any(n.startswith("unet.") and ".lora_" in n for n in names) == lora.unet


def test_trained_part_is_a_file_of_its_own(trained, folder):
    base, generator = set(load_file(folder / BASE)), set(load_file(folder / GENERATOR))
    learned = {n for n in values(trained) if ".lora_A" in n or ".lora_B" in n or ".hfie." in n}
    assert generator == learned
    assert base == set(values(trained)) - learned
    assert {"unet.conv_in.lora_A", "vae.quant_conv.lora_B", "prompter.hfie.query"} < generator
    assert {CONV_IN, "vae.encoder.conv_in.bias"} < base


def test_config_says_what_the_model_is(base_folder, folder):
    plain, trained = (json.loads((f / CONFIG).read_text()) for f in (base_folder, folder))
    assert (plain["format"], plain["prompt"], plain["lora"]) == (1, "hfie", None)
    assert plain["provenance"] == {"from": "dice"} and trained["provenance"] == {}
    assert trained["lora"]["rank"] == 2 and trained["model"]["timestep"] == 399
    assert trained["digests"] == {name: file_digest(folder / name) for name in (BASE, GENERATOR)}


def test_use_comes_back_and_is_told(base_only, tmp_path):
    use = UseConfig("wavelet", blend=0.9, work_side=256, sides=(128, 0))
    save_model(tmp_path, MODEL, base_only, use=use)
    assert load_model(tmp_path).use == use
    told = "use: color_fix wavelet, blend 0.9, work_side 256, shorter sides 128 to any"
    assert told in describe(tmp_path)
    path = tmp_path / "config.json"
    meta = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in meta.items() if k != "use"}))  # before it had any
    assert load_model(tmp_path).use == UseConfig()
    path.write_text(json.dumps(meta | {"use": {"color": 1}}))
    with pytest.raises(WeightsError, match="config.json: UseConfig: unknown field"):
        load_model(tmp_path)


def test_saving_again_leaves_the_same_bytes(trained, folder, tmp_path):
    for _ in range(2):
        save_model(tmp_path, MODEL, trained, generator=LORA)
    assert sorted(p.name for p in tmp_path.iterdir()) == [BASE, CONFIG, GENERATOR]
    assert all((tmp_path / p.name).read_bytes() == p.read_bytes() for p in folder.iterdir())


def test_merged_model_computes_what_the_adapters_did(trained, restored, lq, base_folder):
    np.testing.assert_allclose(restored, call(trained, lq), atol=1e-5)
    assert restored.std() > 0.1
    assert np.abs(restored - call(load_model(base_folder).restorer, lq)).max() > 0.1


def test_loaded_model_has_no_adapters_and_knows_its_name(folder):
    model = load_model(folder)
    assert not any(".lora_" in name for name in values(model.restorer))
    assert (model.name, model.digest) == ("trained", file_digest(folder / CONFIG))


def test_half_precision_is_near(folder, restored, lq):
    half = load_model(folder, precision="bf16").restorer
    assert half.vae.encoder.conv_in.dtype == jax.numpy.bfloat16
    output = call(half, lq)
    assert output.dtype == np.float32
    assert 30 < psnr(output, restored) < 80


def test_training_does_not_start_from_a_trained_generator(folder):
    with pytest.raises(WeightsError, match="holds a trained generator"):
        load_base(folder)


def test_random_weights_follow_the_seed():
    first, again, other = (values(random_restorer(MODEL, seed)) for seed in (0, 0, 1))
    assert same(first, again)
    kernels = [n for n in first if n.endswith(("kernel", "query"))]
    assert len(kernels) > 50 and not any(np.array_equal(first[n], other[n]) for n in kernels)


# Faults: each is one error of one line that names the thing.


Damage = Callable[[Path], object]


def update_digest(folder: Path, name: str = BASE) -> None:
    edit_json(folder / CONFIG, digests=digests(folder) | {name: file_digest(folder / name)})


def digests(folder: Path) -> dict[str, str]:
    return json.loads((folder / CONFIG).read_text())["digests"]


def config(edit: Callable[[dict], object]) -> Damage:
    """An edit of config.json."""

    def damage(folder: Path) -> None:
        meta = json.loads((folder / CONFIG).read_text())
        edit(meta)
        (folder / CONFIG).write_text(json.dumps(meta))

    return damage


def tensors(edit: Callable[[dict], object], name: str = BASE) -> Damage:
    """An edit of what a file of weights holds; its digest is right again."""

    def damage(folder: Path) -> None:
        found = load_file(folder / name)
        edit(found)
        save_file(found, folder / name)
        update_digest(folder, name)

    return damage


def truncate(folder: Path) -> None:
    data = (folder / BASE).read_bytes()
    (folder / BASE).write_bytes(data[: len(data) // 2])
    update_digest(folder)


def transpose(found: dict) -> None:
    found[CONV_IN] = np.ascontiguousarray(found[CONV_IN].swapaxes(2, 3))


def misplace(found: dict) -> None:
    found[CONV_IN] = found["unet.conv_in.lora_A"]


def written(text: bytes) -> Damage:
    return lambda folder: (folder / CONFIG).write_bytes(text)


EXTRA, BYTES = {"extra": np.zeros(3, np.float32)}, "its bytes do not match"
FAULTS: dict[str, tuple[Damage, str]] = {
    "no config": (lambda f: (f / CONFIG).unlink(), "copy: not a model folder (no config.json)"),
    "no folder": (shutil.rmtree, "copy: no model folder; make one by osdhuman weights import"),
    "no JSON": (written(b"{"), "config.json: not JSON"),
    "binary config": (written(b"\xff\xfe\0"), "config.json: not JSON"),
    "nested without end": (written(b"[" * 100_000), "config.json: not JSON (nested too deep)"),
    "a list": (written(b"[]"), "config.json: not a model description"),
    "other format": (config(lambda c: c.update(format=2)), "of format 1"),
    "no base": (lambda f: (f / BASE).unlink(), f"{BASE}: missing"),
    "no generator": (lambda f: (f / GENERATOR).unlink(), f"{GENERATOR}: missing"),
    "flipped bit": (lambda f: flip(f / BASE), f"{BASE}: {BYTES}"),
    "flipped bit of the generator": (lambda f: flip(f / GENERATOR), f"{GENERATOR}: {BYTES}"),
    "truncated": (truncate, f"{BASE}: not a safetensors file"),
    "missing": (tensors(lambda t: t.pop(CONV_IN)), f"{BASE}: tensors 1 missing ({CONV_IN})"),
    "unknown": (tensors(lambda t: t.update(EXTRA)), f"{BASE}: tensors 1 unknown (extra)"),
    "wrong file": (tensors(misplace, GENERATOR), f"{GENERATOR}: tensors 1 unknown ({CONV_IN})"),
    "transposed": (tensors(transpose), f"{BASE}: tensors 1 of another shape ({CONV_IN})"),
    "field unknown": (
        config(lambda c: c["model"]["unet"].update(depth=3)),
        "config.json: UNetConfig: unknown field(s) depth",
    ),
    "field missing": (
        config(lambda c: c["lora"].pop("rank")),
        "config.json: LoRAConfig: missing field(s) rank",
    ),
    "sections missing": (
        config(lambda c: [c.pop(name) for name in ("model", "digests")]),
        "config.json: lacks digests, model",
    ),
    "no digest": (config(lambda c: c["digests"].pop(BASE)), f"{BASE}: {BYTES}"),
    "digests are a list": (config(lambda c: c.update(digests=[BASE])), "digests is no table"),
    "parts are a list": (config(lambda c: c.update(parts=["clip"])), "parts is no table"),
    "file outside": (
        config(lambda c: c["digests"].update({"../x": "0"})),
        "config.json: ../x is no file of the folder",
    ),
    "file of the system": (
        config(lambda c: c["digests"].update({"/etc/passwd": "0"})),
        "config.json: /etc/passwd is no file of the folder",
    ),
    "heads that do not divide": (
        config(lambda c: c["model"]["hfie"].update(num_heads=7)),
        "have no 7 heads",
    ),
}


def setting(section: str, **values: object) -> Damage:
    """Other values of a table of config.json, which may be inside another one."""

    def edit(meta: dict) -> None:
        for name in section.split("."):
            meta = meta[name]
        meta.update(values)

    return config(edit)


def text(old: str, new: str) -> Damage:
    """Another text in config.json, such as JSON's writer would not write."""
    return lambda folder: (folder / CONFIG).write_text(
        (folder / CONFIG).read_text().replace(old, new)
    )


FAULTS |= {
    f"{section} {values!s:.40}": (setting(section, **values), f"config.json: {said}")
    for section, values, said in (
        ("model", {"timestep": 1000}, "model.timestep is 1000, not between 0 and 999"),
        ("model", {"timestep": -1}, "model.timestep is -1, not between 0 and 999"),
        ("model.vae", {"scaling_factor": 0.0}, "model.vae.scaling_factor is 0.0, not above 0"),
        ("model.swin", {"window_size": 0}, "model.swin.window_size is 0, not above 0"),
        ("model.unet", {"block_out_channels": [-8]}, "model.unet.block_out_channels is -8, not"),
        ("lora", {"rank": 0}, "lora.rank is 0, not above 0"),
        ("use", {"blend": 5.0}, "use.blend is 5.0, not between 0 and 1"),
        ("use", {"color_fix": "pink"}, "use.color_fix is 'pink', none of none, adain, wavelet"),
        ("use", {"work_side": -1}, "use.work_side is -1, not at least 0"),
        ("use", {"work_side": 10**400}, "use.work_side is 1000"),
        ("use", {"sides": [2048, 128]}, "use.sides is [2048, 128], whose first is the greater"),
        ("use", {"blend": float("nan")}, "not JSON (NaN is no finite number)"),
    )
} | {
    "too large a number": (
        text('"scaling_factor": 1.0', '"scaling_factor": 1e999'),
        "config.json: not JSON (1e999 is no finite number)",
    ),
    "unknown prompts": (
        config(lambda c: c.update(prompt="hfee")),
        "prompt is 'hfee', none of hfie",
    ),
    "prompts of two": (
        config(lambda c: c.update(prompt="dual")),
        "config.json: prompt is 'dual', but model.dual has no sizes of two prompts",
    ),
    "prompts of another": (
        config(lambda c: c["model"].update(dual=to_dict(DUAL))),
        "config.json: prompt is 'hfie', but model.dual has sizes of two prompts",
    ),
    "guidance": (
        config(lambda c: c["model"].update(dual=to_dict(replace(DUAL, guidance=-1.0)))),
        "config.json: model.dual.guidance is -1.0, not at least 0",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_is_one_line(fault, broken):
    damage, said = FAULTS[fault]
    damage(broken)
    with one_line(WeightsError) as caught:
        load_model(broken)
    assert said in str(caught.value) and str(broken) in str(caught.value)


def test_many_faults_are_one_error_with_the_first_names(broken):
    def edit(found: dict) -> None:
        transpose(found)
        for name in [n for n in found if n.startswith("vae.decoder")]:
            del found[name]

    tensors(edit)(broken)
    with pytest.raises(WeightsError) as caught:
        load_model(broken)
    said = str(caught.value)
    count = sum(name.startswith("vae.decoder") for name in values(filled(make)))
    assert f"{count} missing (vae.decoder.conv_in.bias, vae.decoder.conv_in.kernel, " in said
    assert f"1 of another shape ({CONV_IN})" in said and len(said) < 500
