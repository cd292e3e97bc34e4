"""ControlNets by their publishers' names: imported, computing and exported as diffusers' own."""

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import make_weights as files
import numpy as np
import pytest
import torch
from convert import abstract, call, close, convert, nchw, normal, params, randomise
from diffusers import ControlNetModel
from safetensors.numpy import load_file
from safetensors.torch import save_file

from benchmarks import references
from osdhuman_jax.commands.weights import main
from osdhuman_jax.networks.configs import ControlNetConfig, UNetConfig
from osdhuman_jax.networks.controlnet import ControlNet
from osdhuman_jax.weights import WeightsError, load_base, load_part
from osdhuman_jax.weights.controls import local_control
from osdhuman_jax.weights.diffusion import read_diffusion

UNET = UNetConfig(
    in_channels=4,
    block_out_channels=files.CHANNELS,
    down_block_types=files.UNET["down_block_types"],
    layers_per_block=files.LAYERS,
    num_attention_heads=files.UNET["attention_head_dim"],
    cross_attention_dim=files.CONTEXT,
    norm_num_groups=32,
)
PART, CONV_IN = "control.safetensors", "control.conv_in.kernel"


def network(channels: int = 13) -> ControlNetModel:
    """diffusers', whose encoder of pixel hints does nothing."""
    made = randomise(references.controlnet(asdict(UNET), channels))
    for value in made.controlnet_cond_embedding.conv_out.parameters():
        value.zero_()
    return made


@pytest.fixture(scope="module")
def theirs() -> ControlNetModel:
    return network()


def write(path: Path, theirs: ControlNetModel) -> Path:
    """A file or folder of the layout that its name tells."""
    state = references.controlnet_state(theirs)
    if path.name == "folder":
        theirs.save_pretrained(path)
    elif path.name == "names.safetensors":
        save_file(theirs.state_dict(), path)
    elif path.name == "v1_general.pth":
        torch.save(files.ldm_control(state), path)
    else:
        # The authors save the model that is controlled as well.
        around = {"module.first_stage_model.x": torch.zeros(1), "module.betas": torch.zeros(9)}
        around |= files.ldm_control(state, "module.control_model.")
        torch.save({"state_dict": around}, path)
    return path


def by_our_names(state: files.State) -> dict[str, np.ndarray]:
    """Without the package's tables."""
    pairs = (convert(key, value) for key, value in state.items())
    return {f"control.{'.'.join(map(str, path))}": array for path, array in pairs}


def imported(path: Path | str, sources: Path, *without: str):
    """(sizes, arrays by name)."""
    part = local_control(path, without)(read_diffusion(sources / "sd"))
    return part.config, {name: tensor.read() for name, tensor in part.tensors.items()}


@pytest.mark.parametrize("name", ["folder", "names.safetensors", "v1_general.pth", "whole.ckpt"])
def test_every_layout_gives_the_same(name, theirs, sources, tmp_path):
    config, found = imported(write(tmp_path / name, theirs), sources)
    want = by_our_names(references.controlnet_state(theirs))
    assert config == ControlNetConfig(UNET, pose=True, attention=True)
    assert set(found) == set(want)
    assert all(np.array_equal(found[key], want[key]) for key in want)


@pytest.mark.parametrize(
    ("channels", "without", "places"),
    [
        (4, (), [0, 1, 2, 3]),
        (8, (), [*range(8)]),
        (8, ("pose", "attention"), [*range(8)]),
        (8, ("pose",), [*range(8)]),
        (9, (), [*range(8), 12]),  # the attention comes last
        (12, (), [*range(12)]),
    ],
)
def test_conditions_that_a_source_lacks_are_zero(channels, without, places, sources, tmp_path):
    theirs = network(channels)
    config, found = imported(write(tmp_path / "v1_general.pth", theirs), sources, *without)
    assert (config.pose, config.attention) == ("pose" not in without, "attention" not in without)
    kernel, want = found[CONV_IN], by_our_names({"conv_in.weight": theirs.conv_in.weight})
    assert kernel.shape == (3, 3, config.in_channels, 32)
    np.testing.assert_array_equal(kernel[:, :, places], want[CONV_IN])
    assert not np.delete(kernel, places, axis=2).any()


def test_import_compute_info_and_export(theirs, sources, tmp_path, capsys):
    given = ["import", "--sd", str(sources / "sd"), "--ram", str(sources / "ram.pth"), "--control"]
    source = write(tmp_path / "folder", theirs)
    assert main([*given, str(source), "--output", str(tmp_path / "a")]) == 0
    told = capsys.readouterr().out
    assert "control: ControlNet of restored picture, pose, attention\n" in told
    assert f"{PART}: " in told and '"has": ["latent", "restored", "pose", "attention"]' in told
    # What it computes, and what diffusers' class makes of an export.
    z, t, context = normal(1, 8, 8, 4), np.asarray([500], np.int32), normal(1, 5, 32, seed=1)
    hint = normal(1, 8, 8, 9, seed=2)
    got = call(load_part(tmp_path / "a", "control"), z, t, context, hint)
    export = ["export", str(tmp_path / "a"), "--to", "diffusers", "--output", str(tmp_path / "b")]
    assert main(export) == 0
    stock = ControlNetModel.from_pretrained(tmp_path / "b" / "controlnet")
    assert stock.config.in_channels == 13
    with torch.no_grad():
        down, middle = stock(
            torch.cat([nchw(z), nchw(hint)], 1),
            torch.from_numpy(t),
            torch.from_numpy(context),
            controlnet_cond=torch.ones(1, 3, 16, 16),
            return_dict=False,
        )
    for mine, want, again in zip(
        got, [*down, middle], residuals(theirs, z, t, context, hint), strict=True
    ):
        close(mine, want, 2e-5)
        close(mine, again, 2e-5)
    # And back again.
    again = [*given, str(tmp_path / "b" / "controlnet"), "--output", str(tmp_path / "c")]
    assert main(again) == 0
    assert (tmp_path / "c" / PART).read_bytes() == (tmp_path / "a" / PART).read_bytes()


def residuals(theirs, *inputs: np.ndarray) -> list[torch.Tensor]:
    with torch.no_grad():
        down, middle = references.control(theirs, *inputs)
    return [*down, middle]


def test_it_begins_with_the_unet(sources, model):
    config, found = imported("unet", sources)
    control = abstract(lambda rngs: ControlNet(config, rngs=rngs))
    control.copy_from(load_base(model)[0].unet)
    want = {f"control.{'.'.join(map(str, p))}": v[...] for p, v in params(control).items()}
    assert set(found) == set(want)
    assert all(np.array_equal(found[name], want[name]) for name in want)


def test_control_of_another_unet(model, tmp_path):
    config = asdict(ControlNetConfig(replace(UNET, num_attention_heads=(2, 2, 2)), True, True))
    meta = json.loads((model / "config.json").read_text()) | {"parts": {"control": config}}
    (tmp_path / "config.json").write_text(json.dumps(meta))
    with pytest.raises(WeightsError, match="its ControlNet is of another U-Net"):
        load_part(tmp_path, "control")


def with_tensor(name: str, shape: tuple[int, ...], layout: str = "v1_general.pth"):
    """Write a file with one tensor more."""

    def make(folder: Path, theirs: ControlNetModel) -> Path:
        path = write(folder / layout, theirs)
        torch.save(torch.load(path) | {name: torch.ones(shape)}, path)
        return path

    return make


def other_sizes(folder: Path, theirs: ControlNetModel) -> Path:
    path = write(folder / "folder", theirs)
    files.edit_json(path / "config.json", attention_head_dim=[2, 2, 2])
    return path


def of_pixels(folder: Path, theirs: ControlNetModel) -> Path:
    references.controlnet(asdict(UNET), 4).save_pretrained(folder / "pixels")
    path = folder / "pixels" / "diffusion_pytorch_model.safetensors"
    state = load_file(path)
    state["controlnet_cond_embedding.conv_out.bias"] += 1
    save_file({name: torch.from_numpy(value) for name, value in state.items()}, path)
    return folder / "pixels"


def without_one(folder: Path, theirs: ControlNetModel) -> Path:
    state = references.controlnet_state(theirs)
    del state["controlnet_mid_block.bias"]
    save_file(state, folder / "one.safetensors")
    return folder / "one.safetensors"


Make = Callable[[Path, ControlNetModel], Path]
HINT = "input_hint_block.0.weight"
FAULTS: dict[str, tuple[Make, str]] = {
    "no file": (lambda folder, _: folder / "none.pth", "no such file or folder (--control)"),
    "no folder of it": (lambda folder, _: folder, "config.json: missing"),
    "pixels, diffusers": (of_pixels, "this is a ControlNet of pixel hints"),
    "pixels, LDM": (with_tensor(HINT, (16, 3, 3, 3)), "this is a ControlNet of pixel hints"),
    "v-prediction": (
        lambda folder, net: write(folder / "v1_general.pth", net).rename(folder / "v2.1.pt"),
        "this is DiffBIR's v2.1",
    ),
    "missing": (without_one, "1 missing (control.controlnet_mid_block.bias)"),
    "unknown": (with_tensor("zero_convs.9.0.bias", (64,)), "1 unknown (zero_convs.9.0.bias)"),
    "channels": (
        lambda folder, _: write(folder / "v1_general.pth", network(10)),
        "takes 10 channels, not [4, 8, 9, 12, 13]",
    ),
    "another U-Net": (other_sizes, "of another U-Net than --sd's by its num_attention_heads"),
    "trained with pose": (
        lambda folder, net: write(folder / "without.ckpt", net),
        "was trained with pose",
    ),
    "another network": (
        lambda folder, _: files.ldm_file(folder / "x.pth", {"a.weight": torch.zeros(2)}),
        "no ControlNet",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_fault(fault, theirs, sources, tmp_path, capsys):
    make, said = FAULTS[fault]
    path = make(tmp_path, theirs)
    before = sorted(tmp_path.rglob("*"))
    given = ["--sd", str(sources / "sd"), "--ram", str(sources / "ram.pth"), "--control", str(path)]
    without = ["--control_without", "pose"] if path.name == "without.ckpt" else []
    assert main(["import", *given, *without, "--output", str(tmp_path / "a")]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--ram", "r", "--control_without", "pose"], "--control_without goes with --control"),
        (["--haodiff", "h", "--control", "unet"], "with --sd, without --control"),
    ],
)
def test_flags_that_do_not_go_together(given, said, capsys):
    assert main(["import", "--sd", "s", *given, "--output", "o"]) == 2
    assert said in capsys.readouterr().err
