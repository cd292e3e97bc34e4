"""Faults of what is imported: each is one line that names the thing, and nothing is written."""

import shutil
from collections.abc import Callable
from pathlib import Path

import make_weights as files
import numpy as np
import pytest
import torch
from convert import normal
from damage import flip, raising
from make_weights import MERGES, VOCAB
from refusals import one_line
from safetensors.torch import load_file as load_torch
from safetensors.torch import save_file
from transformers import CLIPTextConfig
from transformers import CLIPTextModel as CLIPTextModelOfTorch

from osdhuman_jax.weights import WeightsError
from osdhuman_jax.weights.importer import import_model

BASE, GENERATOR, CONFIG = "base.safetensors", "generator.safetensors", "config.json"


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
LDM = "model.diffusion_model"
LDM_CONV = f"{LDM}.input_blocks.0.0.weight"


def turn(name: str) -> Callable[[dict], object]:
    return lambda s: s.update({name: s[name].transpose(0, 1).contiguous()})


def whole(name: str) -> Callable[[dict], object]:
    return lambda s: s.update({name: s[name].long()})


def drop(name: str) -> Callable[[dict], object]:
    return lambda s: s.pop(name)


def plus(name: str, tensor: torch.Tensor) -> Callable[[dict], object]:
    return lambda s: s.update({name: tensor})


def rewrite(**values) -> Callable[[Path], object]:
    return lambda path: files.edit_json(path, **values)


SD1, MORE = "attn2.to_k.weight", f"{LDM}.extra.weight"
TURNED = "1 of another shape (conv_out.weight 3x3x4x32, not 3x3x32x4)"
WHOLE = "1 not of numbers with a fraction (conv_in.bias int64)"
RAM2, XL = "this is RAM++", "this is Stable Diffusion XL"
# name: (file to damage, how, what is said)
STATE_FAULTS = {
    "missing key": (UNET_FILE, drop("conv_in.bias"), "1 missing (unet.conv_in.bias)"),
    "unknown key": (UNET_FILE, plus("x.y", torch.zeros(2)), "1 unknown (x.y)"),
    "transposed": (UNET_FILE, turn("conv_out.weight"), TURNED),
    "integers": (UNET_FILE, whole("conv_in.bias"), WHOLE),
    "LDM, missing": ("sd.ckpt", drop(LDM_CONV), "1 missing or misshapen"),
    "LDM, unknown": ("sd.ckpt", plus("adapter.w", torch.zeros(1)), "1 unknown (adapter.w)"),
    "LDM, unknown layer": ("sd.ckpt", plus(MORE, torch.zeros(1)), f"1 unknown ({MORE})"),
    "RAM, missing": ("ram.pth", drop("image_proj.bias"), "image_encoder.image_proj.bias)"),
    "RAM, transposed": ("ram.pth", turn(QKV), f"1 of another shape ({QKV} 24x8, not 8x24)"),
    "RAM, unknown": ("ram.pth", plus("gate", torch.zeros(1)), "1 unknown (gate)"),
    "RAM++": ("ram.pth", plus("reweight_scale", torch.zeros(())), RAM2),
    "RAM++ by its labels": ("ram.pth", plus("label_embed", torch.zeros(233_835, 2)), RAM2),
    "Tag2Text": ("ram.pth", plus("label_embed.weight", torch.zeros(2, 2)), "this is Tag2Text"),
    "SD 1.5, LDM": (
        "sd.ckpt",
        lambda s: s.update({k: torch.zeros(32, 768) for k in s if k.endswith(SD1)}),
        "this is Stable Diffusion 1.x",
    ),
    "SDXL, LDM": ("sd.ckpt", plus("conditioner.embedders.0.x", torch.zeros(1)), XL),
}
SCHEDULER = "sd/scheduler/scheduler_config.json"
SAMPLE = "it predicts sample, Eq. 2 needs epsilon"
V = "this is Stable Diffusion 2.1 (768, v-prediction)"
FILE_FAULTS = {
    "v-prediction": (SCHEDULER, rewrite(prediction_type="v_prediction"), V),
    "sample": (SCHEDULER, rewrite(prediction_type="sample"), SAMPLE),
    "no scheduler": (SCHEDULER, Path.unlink, "missing"),
    "SD 1.5": (UNET_JSON, rewrite(cross_attention_dim=768), "this is Stable Diffusion 1.x"),
    "SDXL by width": (UNET_JSON, rewrite(cross_attention_dim=2048), XL),
    "SDXL": (UNET_JSON, rewrite(addition_embed_type="text_time"), XL),
    "other activation": (UNET_JSON, rewrite(act_fn="gelu"), "does not serve: act_fn 'gelu'"),
    "impossible sizes": (UNET_JSON, rewrite(norm_num_groups=7), "sizes that make no unet"),
    "other sizes": (VAE_JSON, rewrite(layers_per_block=2), "missing (vae."),
    "setting of another type": (UNET_JSON, rewrite(block_out_channels=None), "of another type"),
    "no width": (UNET_JSON, rewrite(norm_num_groups=0), "sizes that make no unet"),
    "config is no JSON": (VAE_JSON, lambda path: path.write_text("{"), "not JSON"),
    "config is a list": (VAE_JSON, lambda path: path.write_text("[]"), "not a table"),
    "no weights": (UNET_FILE, Path.unlink, "holds none of diffusion_pytorch_model.safetensors"),
    "no RAM": ("ram.pth", Path.unlink, "no such file or folder (--ram)"),
    "RAM is a photograph": ("ram.pth", lambda p: p.write_bytes(b"\xff\xd8\xff"), "neither"),
}


def refused(said: str, copy: Path, sd: str = "sd", **options) -> None:
    before = sorted(copy.rglob("*"))
    with one_line(WeightsError) as caught:
        import_model(copy / sd, copy / "ram.pth", copy / "models" / "a", **options)
    assert said in str(caught.value) and len(str(caught.value)) < 700
    assert sorted(copy.rglob("*")) == before


@pytest.mark.parametrize("fault", STATE_FAULTS)
def test_fault_of_tensors(fault, copy):
    name, edit, said = STATE_FAULTS[fault]
    edit_state(copy / name, edit)
    refused(said, copy, "sd.ckpt" if name == "sd.ckpt" else "sd")


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
    refused(V, copy, path.name)


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
    value = torch.load(copy / "ram.pth")["model"]["image_proj.bias"].numpy().tobytes()
    flip(copy / "ram.pth", (copy / "ram.pth").read_bytes().find(value))
    (copy / "models").mkdir()
    refused("is broken", copy)


QUANT, FIRST = "quant_conv.lora_A.default_encoder.weight", "conv_in.lora_A.default_{}.weight"


def first_layer_again(tree: dict) -> None:
    state = tree["state_dict_unet"]
    state[FIRST.format("others")] = state[FIRST.format("encoder")]


def more(name: str | int, tensor: torch.Tensor) -> Callable[[dict], object]:
    return lambda t: t["state_dict_unet"].update({name: tensor})


OSEDIFF_FAULTS = {
    "no tags": (lambda t: None, "for prompts of kind dape it lacks clip, tokenizer/vocab.json"),
    "not one": (lambda t: t.pop("rank_unet"), "not OSEDiff's (lacks rank_unet)"),
    "two ranks": (lambda t: t.update(rank_vae=8), "ranks 2 and 8; served is one"),
    "another rank": (lambda t: t.update(rank_unet=3, rank_vae=3), "of another shape (conv_in.lora"),
    "missing": (lambda t: t["state_dict_vae"].pop(QUANT), "1 missing (vae.quant_conv.lora_A)"),
    "unknown": (more("x.lora_A.default.weight", torch.zeros(2, 2)), "unknown (x.lora_A.default"),
    "a list": (lambda t: t.update(state_dict_vae=["x"]), "(vae): holds no table of tensors"),
    "a number": (more(3, torch.zeros(1)), "holds other things than tensors (3)"),
    "layer twice": (first_layer_again, f"1 of one layer twice ({FIRST.format('others')})"),
}


@pytest.mark.parametrize("fault", OSEDIFF_FAULTS)
def test_fault_of_osediff(fault, published, copy):
    edit, said = OSEDIFF_FAULTS[fault]
    tree = torch.load(published[1])
    edit(tree)
    torch.save(tree, copy / "osediff.pkl")
    refused(said, copy, generator=copy / "osediff.pkl")


def test_kinds_of_prompts_that_do_not_fit(nets, published, copy):
    osediff, text = published[1], files.text_prompts(copy, copy, nets)
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


@pytest.fixture
def no_hub(monkeypatch) -> None:
    asked = raising(AssertionError("the hub is asked"))
    monkeypatch.setattr("osdhuman_jax.weights.importer.locate", asked)


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
def test_local_places_are_checked_before_the_hub_is_asked(
    tmp_path, monkeypatch, no_hub, change, said
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "given.pth").touch()
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
def test_local_files_are_read_before_the_hub_is_asked(copy, monkeypatch, no_hub, change, said):
    monkeypatch.chdir(copy)
    (copy / "text.pth").write_text("no weights")
    with pytest.raises(WeightsError) as caught:
        import_model(**{"sd": "someone/model", "ram": "ram.pth", "output": "made/out"} | change)
    assert said in str(caught.value) and not (copy / "made").exists()
