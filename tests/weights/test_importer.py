"""Import: every publisher's format gives the same model, which computes what PyTorch's does."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax.numpy as jnp
import make_weights as files
import numpy as np
import pytest
import torch
from convert import call, convert, nchw, normal
from flax import nnx
from make_weights import MERGES, VOCAB, Networks
from safetensors.numpy import load_file
from safetensors.torch import load_file as load_torch
from safetensors.torch import save_file
from transformers import CLIPTextConfig
from transformers import CLIPTextModel as CLIPTextModelOfTorch

from osdhuman_jax.commands.weights import main
from osdhuman_jax.config import Config, LoRAConfig, ModelConfig, to_dict
from osdhuman_jax.methods.prompts import ImageTagger
from osdhuman_jax.networks.clip import CLIPTextModel
from osdhuman_jax.networks.lpips import LPIPS
from osdhuman_jax.training.checkpoint import Checkpoints, load_generator, record_run
from osdhuman_jax.weights import (
    WeightsError,
    add_lora,
    is_generator,
    load_base,
    load_model,
    save_model,
)
from osdhuman_jax.weights.diffusion import MIRRORS, ORIGINAL, locate
from osdhuman_jax.weights.importer import import_model
from osdhuman_jax.weights.parts import load_part
from osdhuman_jax.weights.torch_files import Tensor, write_safetensors

BASE, GENERATOR, CONFIG = "base.safetensors", "generator.safetensors", "config.json"


@pytest.fixture(scope="module")
def nets() -> Networks:
    return files.networks()


@pytest.fixture(scope="module")
def ram_state() -> files.State:
    return {**files.ram_encoder(files.swin()), **files.ram_head()}


@pytest.fixture(scope="module")
def sources(nets, ram_state, tmp_path_factory) -> Path:
    """sd/ (diffusers), sd.safetensors, sd.ckpt (LDM), ram.pth, DAPE.pth, vgg16.pth, vgg.pth."""
    folder = tmp_path_factory.mktemp("sources")
    files.diffusers_folder(folder / "sd", nets)
    for name in ("sd.safetensors", "sd.ckpt"):
        files.ldm_file(folder / name, files.ldm_state(nets))
    torch.save({"model": ram_state | files.ram_extras()}, folder / "ram.pth")
    torch.save(files.dape_state(ram_state), folder / "DAPE.pth")
    torch.save(files.vgg(), folder / "vgg16.pth", _use_new_zipfile_serialization=False)
    torch.save(files.lpips_lin(), folder / "vgg.pth", _use_new_zipfile_serialization=False)
    return folder


@pytest.fixture(scope="module")
def model(sources, tmp_path_factory) -> Path:
    """With every part."""
    output = tmp_path_factory.mktemp("models") / "sd21"
    import_model(
        sources / "sd",
        sources / "ram.pth",
        output,
        dape=sources / "DAPE.pth",
        lpips=[sources / "vgg16.pth", sources / "vgg.pth"],
        clip=sources / "sd",
    )
    return output


def ours(state: files.State, prefix: str) -> dict[str, np.ndarray]:
    """PyTorch's parameters by our names, without the package's tables."""
    converted = (convert(k, v) for k, v in state.items())
    return {f"{prefix}{'.'.join(map(str, path))}": array for path, array in converted}


def same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert set(found) == set(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def below(found: dict[str, np.ndarray], *prefixes: str) -> dict[str, np.ndarray]:
    return {n: v for n, v in found.items() if n.startswith(prefixes)}


def meta(folder: Path) -> dict:
    return json.loads((folder / CONFIG).read_text())


def digests(folder: Path) -> dict[str, str]:
    return meta(folder)["digests"]


def test_every_tensor_is_the_publishers(nets, ram_state, model):
    base = load_file(model / BASE)
    same(below(base, "unet."), ours(nets.unet.state_dict(), "unet."))
    same(below(base, "vae."), ours(nets.vae.state_dict(), "vae."))
    encoder = {k: v for k, v in ram_state.items() if k.startswith(("visual_enc", "image_proj"))}
    same(below(base, "prompter.image_encoder."), ours(encoder, "prompter.image_encoder."))
    assert len(below(base, "prompter.hfie.")) == 9
    text = nets.text.state_dict()
    expected = ours({k.removeprefix("text_model."): v for k, v in text.items()}, "clip.")
    renamed = {n.replace("embedding.kernel", "embedding.embedding"): v for n, v in expected.items()}
    turned = {n: v.T if n.endswith("embedding.embedding") else v for n, v in renamed.items()}
    same(load_file(model / "clip.safetensors"), turned)
    vgg = {k: v for k, v in files.vgg().items() if not k.startswith("classifier")}
    lin = {f"lin.{i}.weight": v for i, v in enumerate(files.lpips_lin().values())}
    same(load_file(model / "lpips.safetensors"), ours(vgg | lin, "lpips."))


def test_dape_is_loralibs_merge(ram_state, sources, model):
    """W + zero_pad(conv1d(A, B, groups=2)) / 8 in the image encoder, W + B A / 8 in the head."""
    lora, changed = torch.load(sources / "DAPE.pth"), {}
    for key, value in ram_state.items():
        name = key.removesuffix(".weight")
        if f"{name}.lora_A" not in lora:
            if not key.startswith(("visual_encoder", "image_proj")):
                changed[f"tagger.{key}"] = value
            continue
        a, b = lora[f"{name}.lora_A"], lora[f"{name}.lora_B"]
        if name.endswith("qkv"):
            delta = torch.nn.functional.conv1d(a[None], b[..., None], groups=2)[0]
            padded = torch.zeros_like(value).reshape(3, -1, value.shape[1])
            padded[0], padded[2] = delta.reshape(2, -1, value.shape[1])
            changed[f"image_encoder.{key}"] = value + padded.reshape(value.shape) / 8
        else:
            changed[f"tagger.{key}"] = value + b @ a / 8
    expected = ours(changed, "")
    expected["tagger.label_embed"] = ram_state["label_embed"].numpy()
    found = load_file(model / "tagger.safetensors")
    assert set(found) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, atol=1e-6, err_msg=name)
    assert sum("qkv" in n for n in found) == 4


def test_config_tells_sizes_licences_and_sources(sources, model):
    said = meta(model)
    assert (said["format"], said["prompt"], said["lora"]) == (1, "hfie", None)
    assert said["model"]["unet"] == {
        "in_channels": 4,
        "block_out_channels": [32, 32, 64],
        "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
        "layers_per_block": 1,
        "num_attention_heads": [1, 1, 1],
        "cross_attention_dim": 32,
        "norm_num_groups": 32,
    }
    assert said["model"]["vae"]["block_out_channels"] == [32, 64]
    assert said["model"]["vae"]["scaling_factor"] == 0.18215
    assert said["model"]["swin"] == {
        "image_size": 32,
        "patch_size": 4,
        "embed_dim": 8,
        "depths": [2, 2],
        "num_heads": [1, 2],
        "window_size": 4,
        "mlp_ratio": 4.0,
        "image_proj_dim": 12,
    }
    assert said["model"]["timestep"] == 999
    assert "RAIL++" in said["licences"][0] and "Apache" in said["licences"][1]
    given = said["provenance"]
    assert given["stable_diffusion"]["source"] == str(sources / "sd")
    assert given["hfie"] == {"random_seed": 0}
    assert len(next(iter(given["ram"]["files"].values()))) == 64
    assert sorted(digests(model)) == sorted(p.name for p in model.glob("*.safetensors"))


@pytest.mark.parametrize("name", ["sd.safetensors", "sd.ckpt"])
def test_single_file_is_the_folder_byte_for_byte(name, sources, model, tmp_path):
    import_model(sources / name, sources / "ram.pth", tmp_path / "a", clip=sources / name)
    assert meta(tmp_path / "a")["model"] == meta(model)["model"]
    assert meta(tmp_path / "a")["parts"]["clip"] == meta(model)["parts"]["clip"]
    for part in (BASE, "clip.safetensors"):
        assert digests(tmp_path / "a")[part] == digests(model)[part]


def test_bin_with_old_attention_names(nets, sources, model, tmp_path):
    folder = files.diffusers_folder(tmp_path / "sd", nets, safe_serialization=False)
    path = folder / "vae" / "diffusion_pytorch_model.bin"
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def rename(key: str) -> str:
        for new, name in old.items():
            key = key.replace(f"attentions.0.{new}.", f"attentions.0.{name}.")
        return key

    torch.save({rename(k): v for k, v in torch.load(path).items()}, path)
    assert sum("proj_attn" in k for k in torch.load(path)) == 4
    assert not list(folder.glob("unet/*.safetensors"))
    import_model(folder, sources / "ram.pth", tmp_path / "a")
    assert digests(tmp_path / "a")[BASE] == digests(model)[BASE]


def test_half_precision_variant_stays_half(nets, sources, tmp_path):
    folder = files.diffusers_folder(tmp_path / "sd", nets)
    for name in ("unet", "vae"):
        path = folder / name / "diffusion_pytorch_model.safetensors"
        half = {k: v.half() for k, v in load_torch(path).items()}
        save_file(half, path.with_name("diffusion_pytorch_model.fp16.safetensors"))
        path.unlink()
    import_model(folder, sources / "ram.pth", tmp_path / "a")
    base = load_file(tmp_path / "a" / BASE)
    state = {k: v.half() for k, v in nets.unet.state_dict().items()}
    same(below(base, "unet."), ours(state, "unet."))
    assert base["unet.conv_in.kernel"].dtype == np.float16
    assert load_base(tmp_path / "a")[0].unet.conv_in.kernel.dtype == jnp.float32


@pytest.mark.parametrize("change", ["flat", "older name", "no buffers"])
def test_other_files_of_ram(change, ram_state, sources, model, tmp_path):
    state = ram_state | ({} if change == "no buffers" else files.ram_extras())
    if change == "older name":
        state = {k.replace("tagging_head", "vision_multi"): v for k, v in state.items()}
    torch.save(state if change == "flat" else {"model": state, "epoch": 3}, tmp_path / "ram.pth")
    import_model(sources / "sd", tmp_path / "ram.pth", tmp_path / "a")
    assert digests(tmp_path / "a")[BASE] == digests(model)[BASE]
    assert meta(tmp_path / "a")["parts"]["tagger"] == meta(model)["parts"]["tagger"]
    assert "image_encoder" not in str(load_file(tmp_path / "a" / "tagger.safetensors").keys())


def test_image_encoder_alone(ram_state, sources, tmp_path):
    torch.save(
        {k: v for k, v in ram_state.items() if "vis" in k or "proj." in k and "image" in k},
        tmp_path / "ram.pth",
    )
    import_model(sources / "sd", tmp_path / "ram.pth", tmp_path / "a")
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == [BASE, CONFIG]
    with pytest.raises(WeightsError, match="no tagging head for DAPE"):
        import_model(
            sources / "sd", tmp_path / "ram.pth", tmp_path / "b", dape=sources / "DAPE.pth"
        )


def test_seed_draws_hfie(sources, model, tmp_path):
    import_model(sources / "sd", sources / "ram.pth", tmp_path / "a", seed=1)
    first, other = load_file(model / BASE), load_file(tmp_path / "a" / BASE)
    differ = {n for n in first if not np.array_equal(first[n], other[n])}
    assert {n.rsplit(".", 1)[-1] for n in differ} == {"kernel", "query"}
    assert all(n.startswith("prompter.hfie.") for n in differ) and len(differ) == 5


def test_parts_load_and_compute(nets, sources, model):
    clip, tagger, lpips = (load_part(model, name) for name in ("clip", "tagger", "lpips"))
    assert isinstance(clip, CLIPTextModel) and isinstance(lpips, LPIPS)
    assert isinstance(tagger, ImageTagger)
    ids = np.random.default_rng(0).integers(2, 40, (2, 7))
    with torch.no_grad():
        want = nets.text(torch.from_numpy(ids)).last_hidden_state
    np.testing.assert_allclose(call(clip, ids.astype(np.int32)), want, atol=1e-4)
    picture = normal(1, 32, 32, 3).clip(-1, 1)
    assert call(tagger, picture).shape == (1, files.TAGS)
    assert float(call(lpips, picture, picture)[0]) == 0 < float(call(lpips, picture, -picture)[0])
    with pytest.raises(WeightsError, match="holds no part 'nothing'"):
        load_part(model, "nothing")


def test_flipped_byte_of_a_part(model, tmp_path):
    folder = shutil.copytree(model, tmp_path / "a")
    data = bytearray((folder / "clip.safetensors").read_bytes())
    data[-3] ^= 1
    (folder / "clip.safetensors").write_bytes(data)
    with pytest.raises(WeightsError, match="clip.safetensors: its bytes do not match"):
        load_part(folder, "clip")
    load_part(folder, "lpips")


# Whole pipelines


def restored_by_torch(nets: Networks, lq: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Encode (mode), one step at 999 (Eq. 2), decode: with diffusers' networks and scheduler."""
    with torch.no_grad():
        z = nets.vae.encode(nchw(lq)).latent_dist.mode() * 0.18215
        t, context = torch.tensor([999]), torch.from_numpy(tokens)
        eps = nets.unet(z, t, encoder_hidden_states=context).sample
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
        alpha = torch.cumprod(1 - betas, 0)[999]
        x0 = (z - (1 - alpha) ** 0.5 * eps) / alpha**0.5
        image = nets.vae.decode(x0.float() / 0.18215).sample.clamp(-1, 1)
    return image.numpy().transpose(0, 2, 3, 1)


def test_restoration_is_torchs(nets, model):
    lq, tokens = normal(1, 32, 32, 3).clip(-1, 1), normal(1, 5, files.CONTEXT, seed=1)
    restorer = load_model(model).restorer
    want = restored_by_torch(nets, lq, tokens)
    got = np.asarray(call(restorer, lq, tokens))
    assert want.std() > 0.1
    assert np.abs(got - want).max() < 2 / 255  # one level of 255


def text_prompts(folder: Path, sources: Path, nets: Networks) -> dict:
    """What OSEDiff's own prompts need, as options of the import."""
    clip = files.text_folder(folder / "text", nets, VOCAB, MERGES)
    return {"dape": sources / "DAPE.pth", "clip": clip, "tags": files.tag_folder(folder / "tags")}


@pytest.fixture(scope="module")
def published(sources, tmp_path_factory) -> tuple[Networks, Path, Path]:
    """(networks with OSEDiff's adapters, osediff.pkl, imported model)."""
    folder, nets = tmp_path_factory.mktemp("osediff"), files.networks()
    torch.save(files.osediff(nets), folder / "osediff.pkl")
    plain = files.networks()
    for mine, theirs in ((nets.unet, plain.unet), (nets.vae, plain.vae)):
        source = theirs.state_dict()
        for key, value in mine.state_dict().items():  # the base is frozen but for conv_in
            if "lora" not in key and not key.startswith("conv_in."):
                value.copy_(source[key.replace(".base_layer", "")])
    args = (sources / "sd", sources / "ram.pth", folder / "model")
    import_model(*args, generator=folder / "osediff.pkl", **text_prompts(folder, sources, plain))
    return nets, folder / "osediff.pkl", folder / "model"


def test_osediff_restores_as_it_does_in_torch(published, model):
    nets, _, folder = published
    lq, tokens = normal(1, 32, 32, 3).clip(-1, 1), normal(1, 5, files.CONTEXT, seed=1)
    restorer = load_model(folder).restorer
    want = restored_by_torch(nets, lq, tokens)
    assert np.abs(np.asarray(call(restorer, lq, tokens)) - want).max() < 2 / 255
    base = load_model(model).restorer
    assert np.abs(np.asarray(call(base, lq, tokens)) - want).max() > 0.1
    with pytest.raises(ValueError, match="no prompter"):
        restorer(jnp.asarray(lq))


def test_osediff_is_a_generator(published):
    _, _, folder = published
    said, generator = meta(folder), load_file(folder / GENERATOR)
    assert said["prompt"] == "dape"
    assert (said["lora"]["rank"], said["lora"]["alpha"]) == (2, 8.0)
    assert said["lora"]["train_conv_in"] is True
    lines = (folder / "tags" / "ram_tag_list_threshold.txt").read_text().split()
    assert lines == ["0.68"] * files.TAGS  # RAM's own
    assert (folder / "tokenizer" / "merges.txt").read_text().split("\n")[1:-1] == MERGES
    assert "unet.conv_in.kernel" in generator
    assert "unet.conv_in.kernel" not in load_file(folder / BASE)


def test_generator_of_a_model_folder(model, sources, tmp_path):
    lora = LoRAConfig(rank=2, alpha=4.0)
    restorer, config, _ = load_base(model)
    add_lora(restorer, lora, np.random.default_rng(3))
    restorer.prompter.hfie.query[...] += 1
    config.timestep = 399
    save_model(tmp_path / "trained", config, restorer, generator=lora)
    args = (sources / "sd.ckpt", sources / "ram.pth", tmp_path / "a")
    import_model(*args, generator=tmp_path / "trained")
    same(load_file(tmp_path / "a" / GENERATOR), load_file(tmp_path / "trained" / GENERATOR))
    same(load_file(tmp_path / "a" / BASE), load_file(tmp_path / "trained" / BASE))
    assert meta(tmp_path / "a")["model"]["timestep"] == 399
    with pytest.raises(WeightsError, match="a base model, it holds no trained generator"):
        import_model(*args[:2], tmp_path / "b", generator=model)


def test_generator_of_a_run(model, sources, monkeypatch, tmp_path):
    """LoRA and HFIE of the last checkpoint, as the command finds them in a workdir."""
    config, workdir = Config(lora=LoRAConfig(rank=2, alpha=4.0)), tmp_path / "run"
    config.run.kind, config.run.init, config.model.timestep = "restorer", str(model), 399
    workdir.mkdir()
    record_run(workdir, config, model)
    restorer, _, _ = load_base(model)
    add_lora(restorer, config.lora, np.random.default_rng(3))
    params = nnx.state(restorer, partial(is_generator, config.lora))
    checkpoints = Checkpoints(workdir, keep=1)
    checkpoints.save(7, {"params": params}, {})
    checkpoints.close()
    args = ("--sd", sources / "sd", "--ram", sources / "ram.pth", "--generator", workdir)
    words = map(str, ("weights", "import", *args, "--output", tmp_path / "a"))
    monkeypatch.setattr(sys, "argv", list(words))
    assert main() == 0
    learnt = {".".join(map(str, p)): np.asarray(v[...]) for p, v in nnx.to_flat_state(params)}
    same(load_file(tmp_path / "a" / GENERATOR), learnt)
    assert meta(tmp_path / "a")["model"]["timestep"] == 399
    assert "at step 7" in meta(tmp_path / "a")["provenance"]["generator"]["source"]
    files.edit_json(workdir / CONFIG, prompt={"kind": "null", "source": "lq"})
    assert load_generator(workdir).prompt == "null"  # and not HFIE, which such a run leaves alone


GUIDED = """
from pathlib import Path

from configs import debug
from osdhuman_jax.weights.model_folder import read_configs, read_meta


def get_config():
    config, folder = debug.get_config(), Path({folder!r})
    config.model, _ = read_configs(folder, read_meta(folder))
    config.loss.lpips, config.loss.cfg_vsd, config.prompt.kind = 2.0, 7.5, "null"
    config.run.init, config.run.best, config.run.steps = str(folder), "val_lpips", 4
    config.run.log_every, config.run.sample_every, config.run.checkpoint_every = 1, 2, 2
    return config
"""


@pytest.mark.slow
def test_a_run_with_every_imported_part(sources, nets, tmp_path):
    """LPIPS in the loss and in validation, guidance by CLIP's negative prompt, the null prompt."""
    lpips = [sources / "vgg16.pth", sources / "vgg.pth"]
    parts = {"lpips": lpips, **text_prompts(tmp_path, sources, nets)}
    import_model(sources / "sd", sources / "ram.pth", tmp_path / "base", **parts)
    (tmp_path / "guided.py").write_text(GUIDED.format(folder=str(tmp_path / "base")))
    argv = [sys.executable, "train.py", "--config", tmp_path / "guided.py", "--workdir"]
    root = Path(__file__).parents[2]
    result = subprocess.run([*argv, tmp_path / "w"], cwd=root, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    lines = [json.loads(x) for x in (tmp_path / "w/metrics.jsonl").read_text().splitlines()]
    steps = {x["step"]: x for x in lines if "loss" in x}
    assert sorted(steps) == [1, 2, 3, 4]
    assert all(x["lpips"] > 0 and np.isfinite(x["loss"]) for x in steps.values())
    assert steps[1]["vsd"] > 0  # guided by the negative prompt, equal regularizers differ
    assert [x["step"] for x in lines if x.get("val_lpips", 0) > 0] == [2, 4]
    assert meta(tmp_path / "w/model")["prompt"] == "null"


# Faults: each is one line, and nothing is written.


@pytest.fixture
def copy(sources, tmp_path) -> Path:
    """Sources to damage."""
    return Path(shutil.copytree(sources, tmp_path / "copy"))


def edit_state(path: Path, edit: Callable[[dict], object]) -> None:
    if path.suffix == ".safetensors":
        state = load_torch(path)
        edit(state)
        save_file(state, path)
    else:
        tree = torch.load(path)
        edit(tree.get("model", tree.get("state_dict", tree)))
        torch.save(tree, path)


UNET_FILE = "sd/unet/diffusion_pytorch_model.safetensors"
UNET_JSON, VAE_JSON = "sd/unet/config.json", "sd/vae/config.json"
QKV = "visual_encoder.layers.0.blocks.0.attn.qkv.weight"
LDM_CONV = "model.diffusion_model.input_blocks.0.0.weight"


def turn(name: str) -> Callable[[dict], object]:
    return lambda s: s.update({name: s[name].transpose(0, 1).contiguous()})


def drop(name: str) -> Callable[[dict], object]:
    return lambda s: s.pop(name)


def plus(name: str, tensor: torch.Tensor) -> Callable[[dict], object]:
    return lambda s: s.update({name: tensor})


def rewrite_header(edit: Callable[[dict], object], claim: int = 0) -> Callable[[Path], object]:
    """Change what a safetensors file says of its tensors, or how long that is."""

    def damage(path: Path) -> None:
        data = path.read_bytes()
        end = 8 + int.from_bytes(data[:8], "little")
        header = json.loads(data[8:end])
        edit(header)
        text = json.dumps(header).encode()
        path.write_bytes((claim or len(text)).to_bytes(8, "little") + text + data[end:])

    return damage


def overlap(header: dict) -> None:
    """Two tensors of one size in the same place."""
    first, second = (f"conv_{end}.bias" for end in ("in", "norm_out"))
    header[second]["data_offsets"] = header[first]["data_offsets"]


def rewrite(**values) -> Callable[[Path], object]:
    return lambda path: files.edit_json(path, **values)


# name: (--sd, file to damage, how, what is said)
STATE_FAULTS = {
    "missing key": ("sd", UNET_FILE, drop("conv_in.bias"), "1 missing (unet.conv_in.bias)"),
    "unknown key": ("sd", UNET_FILE, plus("x.y", torch.zeros(2)), "1 unknown (x.y)"),
    "transposed": (
        "sd",
        UNET_FILE,
        turn("conv_out.weight"),
        "1 of another shape (conv_out.weight 3x3x4x32, not 3x3x32x4)",
    ),
    "integers": (
        "sd",
        UNET_FILE,
        lambda s: s.update({"conv_in.bias": s["conv_in.bias"].long()}),
        "1 not of numbers with a fraction (conv_in.bias int64)",
    ),
    "single file, missing": ("sd.ckpt", "sd.ckpt", drop(LDM_CONV), "1 missing or misshapen"),
    "single file, unknown": (
        "sd.ckpt",
        "sd.ckpt",
        plus("adapter.w", torch.zeros(1)),
        "1 unknown (adapter.w)",
    ),
    "single file, unknown layer": (
        "sd.ckpt",
        "sd.ckpt",
        plus("model.diffusion_model.extra.weight", torch.zeros(1)),
        "1 unknown (model.diffusion_model.extra.weight)",
    ),
    "RAM, missing": ("sd", "ram.pth", drop("image_proj.bias"), "image_encoder.image_proj.bias)"),
    "RAM, transposed": ("sd", "ram.pth", turn(QKV), f"1 of another shape ({QKV} 24x8, not 8x24)"),
    "RAM, unknown": ("sd", "ram.pth", plus("gate", torch.zeros(1)), "1 unknown (gate)"),
    "RAM++": ("sd", "ram.pth", plus("reweight_scale", torch.zeros(())), "this is RAM++"),
    "RAM++ without its scale": (
        "sd",
        "ram.pth",
        plus("label_embed", torch.zeros(233_835, 2)),
        "this is RAM++",
    ),
    "Tag2Text": ("sd", "ram.pth", plus("label_embed.weight", torch.zeros(2, 2)), "is Tag2Text"),
    "SD 1.5, single file": (
        "sd.ckpt",
        "sd.ckpt",
        lambda s: s.update({k: torch.zeros(32, 768) for k in s if k.endswith("attn2.to_k.weight")}),
        "this is Stable Diffusion 1.x",
    ),
    "SDXL, single file": (
        "sd.ckpt",
        "sd.ckpt",
        plus("conditioner.embedders.0.x", torch.zeros(1)),
        "this is Stable Diffusion XL",
    ),
}
FILE_FAULTS = {
    "v-prediction": (
        "sd/scheduler/scheduler_config.json",
        rewrite(prediction_type="v_prediction"),
        "this is Stable Diffusion 2.1 (768, v-prediction)",
    ),
    "sample prediction": (
        "sd/scheduler/scheduler_config.json",
        rewrite(prediction_type="sample"),
        "it predicts sample, Eq. 2 needs epsilon",
    ),
    "no scheduler": ("sd/scheduler/scheduler_config.json", Path.unlink, "missing"),
    "SD 1.5": (UNET_JSON, rewrite(cross_attention_dim=768), "this is Stable Diffusion 1.x"),
    "SDXL by width": (UNET_JSON, rewrite(cross_attention_dim=2048), "Stable Diffusion XL"),
    "SDXL": (UNET_JSON, rewrite(addition_embed_type="text_time"), "Stable Diffusion XL"),
    "other activation": (UNET_JSON, rewrite(act_fn="gelu"), "does not serve: act_fn 'gelu'"),
    "impossible sizes": (UNET_JSON, rewrite(norm_num_groups=7), "sizes that make no unet"),
    "other sizes": (VAE_JSON, rewrite(layers_per_block=2), "missing (vae."),
    "setting of another type": (UNET_JSON, rewrite(block_out_channels=None), "of another type"),
    "no width": (UNET_JSON, rewrite(norm_num_groups=0), "sizes that make no unet"),
    "config is no JSON": (VAE_JSON, lambda path: path.write_text("{"), "not JSON"),
    "config is a list": (VAE_JSON, lambda path: path.write_text("[]"), "not a table"),
    "no weights": (UNET_FILE, Path.unlink, "holds none of diffusion_pytorch_model.safetensors"),
    "overlapping offsets": (UNET_FILE, rewrite_header(overlap), "not a sound safetensors file"),
    "absurd header": (UNET_FILE, rewrite_header(len, 2**60), "not a sound safetensors file"),
    "no RAM": ("ram.pth", Path.unlink, "no such file or folder (--ram)"),
    "RAM is a photograph": ("ram.pth", lambda p: p.write_bytes(b"\xff\xd8\xff"), "neither"),
}


def refused(said: str, copy: Path, sd: str = "sd", **options) -> None:
    before = sorted(copy.rglob("*"))
    with pytest.raises(WeightsError) as caught:
        import_model(copy / sd, copy / "ram.pth", copy / "models" / "a", **options)
    message = str(caught.value)
    assert said in message and "\n" not in message and len(message) < 700
    assert sorted(copy.rglob("*")) == before


@pytest.mark.parametrize("fault", STATE_FAULTS)
def test_fault_of_tensors(fault, copy):
    sd, name, edit, said = STATE_FAULTS[fault]
    edit_state(copy / name, edit)
    refused(said, copy, sd)


@pytest.mark.parametrize("fault", FILE_FAULTS)
def test_fault_of_files(fault, copy):
    name, edit, said = FILE_FAULTS[fault]
    edit(copy / name)
    refused(said, copy)


@pytest.mark.parametrize("tell", ["name", "step", "yaml"])
def test_single_file_that_predicts_v(tell, copy):
    path = copy / ("v2-1_768-ema.ckpt" if tell == "name" else "a.ckpt")
    tree = torch.load(copy / "sd.ckpt")
    torch.save(tree | ({"global_step": 110_000} if tell == "step" else {}), path)
    if tell == "yaml":
        path.with_suffix(".yaml").write_text('model:\n  params:\n    parameterization: "v"\n')
    refused("this is Stable Diffusion 2.1 (768, v-prediction)", copy, path.name)


def test_payload_in_a_checkpoint_is_not_run(copy):
    class Payload:
        def __reduce__(self):
            return exec, (f"open({str(copy / 'executed')!r}, 'w')",)

    tree = torch.load(copy / "sd.ckpt")
    torch.save(tree | {"callbacks": Payload()}, copy / "sd.ckpt")
    refused("sd.ckpt: its pickle names __builtin__.exec", copy, "sd.ckpt")
    torch.save({"x": Payload()}, copy / "osediff.pkl")
    refused("osediff.pkl: its pickle names", copy, generator=copy / "osediff.pkl")


def test_storage_that_breaks_while_it_is_written(copy):
    data = bytearray((copy / "ram.pth").read_bytes())
    value = torch.load(copy / "ram.pth")["model"]["image_proj.bias"].numpy().tobytes()
    data[data.find(value)] ^= 1
    (copy / "ram.pth").write_bytes(data)
    (copy / "models").mkdir()
    refused("is broken", copy)


OSEDIFF_FAULTS = {
    "no tags": (lambda t: None, "for prompts of kind dape it lacks clip, tokenizer/vocab.json"),
    "not one": (lambda t: t.pop("rank_unet"), "not OSEDiff's (lacks rank_unet)"),
    "two ranks": (lambda t: t.update(rank_vae=8), "ranks 2 and 8; served is one"),
    "another rank": (lambda t: t.update(rank_unet=3, rank_vae=3), "of another shape (conv_in.lora"),
    "key missing": (
        lambda t: t["state_dict_vae"].pop("quant_conv.lora_A.default_encoder.weight"),
        "1 missing (vae.quant_conv.lora_A)",
    ),
    "key unknown": (
        lambda t: t["state_dict_unet"].update({"x.lora_A.default.weight": torch.zeros(2, 2)}),
        "unknown (x.lora_A.default.weight)",
    ),
    "list for a table": (
        lambda t: t.update(state_dict_vae=["x"]),
        "(vae): holds no table of tensors",
    ),
    "name that is a number": (
        lambda t: t["state_dict_unet"].update({3: torch.zeros(1)}),
        "holds other things than tensors (3)",
    ),
    "layer twice": (
        lambda t: t["state_dict_unet"].update(
            {
                k.replace("default_encoder", "default_others"): v
                for k, v in list(t["state_dict_unet"].items())
                if k == "conv_in.lora_A.default_encoder.weight"
            }
        ),
        "1 of one layer twice (conv_in.lora_A.default_others.weight)",
    ),
}


@pytest.mark.parametrize("fault", OSEDIFF_FAULTS)
def test_fault_of_osediff(fault, published, copy):
    edit, said = OSEDIFF_FAULTS[fault]
    tree = torch.load(published[1])
    edit(tree)
    torch.save(tree, copy / "osediff.pkl")
    refused(said, copy, generator=copy / "osediff.pkl")


def test_kinds_of_prompts_that_do_not_fit(nets, published, copy):
    osediff, text = published[1], text_prompts(copy, copy, nets)
    said = "osediff.pkl: has no HFIE, its prompts are of kind dape"
    refused(said, copy, generator=osediff, prompt="hfie")
    said = "its tags are those of dape, not of ram"
    refused(said, copy, prompt="ram", **text)
    del text["dape"]
    refused("its tags are those of ram, not of dape", copy, generator=osediff, **text)
    np.save(copy / "tokens.npy", normal(5, files.CONTEXT))
    said = "tokens.npy: prompts of kind null are not of a file"
    refused(said, copy, prompt="null", prompt_file=copy / "tokens.npy", **text)
    np.save(copy / "tokens.npy", normal(5, files.CONTEXT + 1))
    said = "tokens.npy: no prompt of this model"
    refused(said, copy, prompt_file=copy / "tokens.npy")


def test_text_encoder_that_does_not_fit(nets, copy):
    clip = files.text_folder(copy / "text", nets, [*VOCAB, *map(str, range(40))], MERGES)
    refused("has ids beyond the text encoder's 40", copy, clip=clip)
    (clip / "tokenizer" / "tokenizer.json").write_text("{")
    refused("tokenizer: no vocabulary of CLIP", copy, clip=clip)
    narrow = files.TEXT | {"hidden_size": 16}
    CLIPTextModelOfTorch(CLIPTextConfig(**narrow)).save_pretrained(clip / "text_encoder")
    refused("its tokens are 16 wide, the U-Net's 32", copy, clip=clip)


def test_fault_of_dape(copy):
    edit_state(copy / "DAPE.pth", lambda s: s.popitem())
    refused("DAPE.pth: tensors 1 missing (", copy, dape=copy / "DAPE.pth")


def test_existing_output_is_kept(model, sources, tmp_path):
    folder = shutil.copytree(model, tmp_path / "a")
    args = (sources / "sd", sources / "ram.pth", folder)
    before = (folder / CONFIG).read_bytes()
    with pytest.raises(WeightsError, match="exists; give --overwrite"):
        import_model(*args)
    assert (folder / CONFIG).read_bytes() == before
    import_model(*args, overwrite=True)
    assert sorted(p.name for p in folder.iterdir()) == [BASE, CONFIG, "tagger.safetensors"]
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "precious").touch()
    with pytest.raises(WeightsError, match="not a model folder, so it is not overwritten"):
        import_model(*args[:2], tmp_path / "b", overwrite=True)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"ram": "nothing.pth"}, "nothing.pth: no such file or folder (--ram)"),
        ({"ram": "."}, ".: not a file (--ram)"),
        ({"dape": "no.pth"}, "no.pth: no such file or folder (--dape)"),
        ({"lpips": ["given.pth", "vgg.pth"]}, "vgg.pth: no such file or folder (--lpips)"),
        ({"tags": "given.pth"}, "given.pth: not a folder (--tags)"),
        ({"prompt_file": "."}, ".: not a file (--prompt_file)"),
        ({"generator": "osediff.pkl"}, "osediff.pkl: no such file or folder (--generator)"),
        ({"clip": "no_encoder"}, "no_encoder: no such file or folder (--clip)"),
        ({"output": "given.pth/out"}, "given.pth is no folder; name another one"),
    ],
)
def test_local_places_are_checked_before_the_hub_is_asked(tmp_path, monkeypatch, change, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "given.pth").touch()

    def ask(source: str) -> None:
        raise AssertionError(f"asked the hub for {source}")

    monkeypatch.setattr("osdhuman_jax.weights.importer.locate", ask)
    arguments = {"sd": "someone/model", "ram": "given.pth", "output": "made/out"} | change
    with pytest.raises(ValueError) as caught:  # a WeightsError or CommandError
        import_model(**arguments)
    assert said in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["given.pth"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"ram": "text.pth"}, "text.pth"),
        ({"lpips": ["vgg16.pth", "text.pth"]}, "text.pth"),
        ({"dape": "text.pth"}, "text.pth"),
        ({"clip": "text.pth"}, "text.pth"),
        ({"generator": "text.pth"}, "text.pth"),
        ({"prompt_file": "text.pth"}, "text.pth: no prompt"),
        ({"tags": "sd"}, "ram_tag_list.txt: No such file"),
        ({"prompt": "fixed"}, "for prompts of kind fixed it lacks prompt.npy"),
        ({"prompt": "null"}, "for prompts of kind null it lacks clip"),
        ({"prompt": "ram", "clip": "someone/text"}, "it lacks tags/ram_tag_list.txt"),
    ],
)
def test_local_files_are_read_before_the_hub_is_asked(copy, monkeypatch, change, said):
    monkeypatch.chdir(copy)
    (copy / "text.pth").write_text("no weights")

    def ask(source: str) -> None:
        raise AssertionError(f"asked the hub for {source}")

    monkeypatch.setattr("osdhuman_jax.weights.importer.locate", ask)
    with pytest.raises(WeightsError) as caught:
        import_model(**{"sd": "someone/model", "ram": "ram.pth", "output": "made/out"} | change)
    assert said in str(caught.value) and not (copy / "made").exists()


# The hub


def test_withdrawn_model_is_looked_for_on_mirrors(monkeypatch, tmp_path):
    asked = []

    def snapshot_download(repository, **_):
        asked.append(repository)
        if repository != MIRRORS[1]:
            raise OSError(f"404 {repository}\nmore")
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert locate(ORIGINAL) == tmp_path
    assert asked == [ORIGINAL, *MIRRORS]
    with pytest.raises(WeightsError, match=r"somebody/else: no such path.*\(404 somebody/else\)$"):
        locate("somebody/else")
    assert locate("a/b/c") == Path("a/b/c") and locate("/abs") == Path("/abs")


# The command


def command(*args: object) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "osdhuman_jax", "weights", *map(str, args)]
    return subprocess.run(words, capture_output=True, text=True)


def test_import_and_info_by_command(sources, tmp_path):
    sd, ram, out = sources / "sd", sources / "ram.pth", tmp_path / "a"
    done = command("import", "--sd", sd, "--ram", ram, "--output", out)
    assert (done.returncode, done.stderr) == (0, "")
    told = command("info", out)
    assert told.stdout == done.stdout and told.returncode == 0
    for text in ("unet: 972,036 parameters in 324 tensors, float32", "RAIL++", "Apache-2.0"):
        assert text in told.stdout
    assert all(digest in told.stdout for digest in digests(out).values())
    again = command("import", "--sd", sd, "--ram", ram, "--output", out)
    assert again.returncode == 2 and again.stdout == ""
    assert again.stderr == f"error: {out}: exists; give --overwrite to replace it\n"


# Full size


def write_half(path: Path, state: files.State) -> Path:
    """Zeros of the shapes of `state`, float16, one after the other."""
    half = np.dtype(np.float16)
    tensors = {
        name: Tensor(tuple(value.shape), half, partial(np.zeros, tuple(value.shape), half))
        for name, value in state.items()
    }
    write_safetensors(path, tensors)
    return path


@pytest.mark.slow
def test_full_size_in_little_memory(tmp_path):
    """Stable Diffusion's single file and Swin-L: every name is known, 1 GiB of memory suffices."""
    nets, swin = files.full_size()
    sd = write_half(tmp_path / "v2-1_512-ema-pruned.safetensors", files.ldm_state(nets))
    ram = write_half(tmp_path / "ram.safetensors", files.ram_encoder(swin))
    words = ("import", "--sd", sd, "--ram", ram, "--clip", sd, "--output", tmp_path / "a")
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, *map(str, words)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    for text in (
        "unet: 865,910,724 parameters",
        "vae: 83,653,863 parameters",
        "prompter.image_encoder: 195,985,460 parameters",
        "clip.safetensors: 340,387,840 parameters",
    ):
        assert text in done.stdout
    model = meta(tmp_path / "a")["model"]
    assert model == to_dict(ModelConfig())
    anonymous = int(done.stdout.rsplit("peak anonymous KiB: ", 1)[1])
    assert anonymous < 1 << 20


MEASURED = """
import re, sys, threading, time
from pathlib import Path
from osdhuman_jax.commands.weights import main
peak = 0
def watch():  # resident memory but for the pages of files, which the system may drop
    global peak
    while True:
        text = Path("/proc/self/status").read_text()
        peak = max(peak, int(re.search(r"RssAnon:\\s+(\\d+)", text)[1]))
        time.sleep(0.02)
threading.Thread(target=watch, daemon=True).start()
code = main()
print("peak anonymous KiB:", peak)
sys.exit(code)
"""
