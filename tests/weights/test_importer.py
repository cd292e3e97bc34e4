"""Import: every publisher's format gives the same model, which computes what PyTorch's does."""

import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax.numpy as jnp
import make_weights as files
import numpy as np
import pytest
import torch
from convert import call, convert, normal
from damage import flip
from make_weights import meta, same
from safetensors.numpy import load_file
from safetensors.torch import load_file as load_torch
from safetensors.torch import save_file

from osdhuman_jax.commands.weights import main
from osdhuman_jax.config import ModelConfig, to_dict
from osdhuman_jax.methods.prompts import ImageTagger
from osdhuman_jax.networks.clip import CLIPTextModel
from osdhuman_jax.networks.lpips import LPIPS
from osdhuman_jax.weights import (
    WeightsError,
    load_base,
)
from osdhuman_jax.weights.diffusion import MIRRORS, ORIGINAL, locate
from osdhuman_jax.weights.importer import import_model
from osdhuman_jax.weights.parts import load_part
from osdhuman_jax.weights.torch_files import Tensor, write_safetensors

BASE, GENERATOR, CONFIG = "base.safetensors", "generator.safetensors", "config.json"


def ours(state: files.State, prefix: str) -> dict[str, np.ndarray]:
    """PyTorch's parameters by our names, without the package's tables."""
    converted = (convert(k, v) for k, v in state.items())
    return {f"{prefix}{'.'.join(map(str, path))}": array for path, array in converted}


def below(found: dict[str, np.ndarray], *prefixes: str) -> dict[str, np.ndarray]:
    return {n: v for n, v in found.items() if n.startswith(prefixes)}


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
    flip(folder / "clip.safetensors")
    with pytest.raises(WeightsError, match="clip.safetensors: its bytes do not match"):
        load_part(folder, "clip")
    load_part(folder, "lpips")


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


def test_import_and_info_by_command(sources, tmp_path, capsys):
    flags = ["--sd", sources / "sd", "--ram", sources / "ram.pth", "--output", tmp_path / "a"]
    words = [str(word) for word in ("import", *flags)]
    assert main(words) == 0
    told = capsys.readouterr().out
    assert main(["info", str(tmp_path / "a")]) == 0 and capsys.readouterr().out == told
    for text in ("unet: 972,036 parameters in 324 tensors, float32", "RAIL++", "Apache-2.0"):
        assert text in told
    assert all(digest in told for digest in digests(tmp_path / "a").values())
    assert main(words) == 2
    refused = f"error: {tmp_path / 'a'}: exists; give --overwrite to replace it\n"
    assert capsys.readouterr() == ("", refused)


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
