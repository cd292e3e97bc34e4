"""SwinIR: its files through our importer against PyTorch, published sizes, what is refused."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from convert import abstract, call, count, nchw, params, randomise
from safetensors.torch import save_file

from benchmarks.swinir_torch import SwinIR as TorchSwinIR
from configs.models import tiny_swinir
from osdhuman_jax.commands.weights import main
from osdhuman_jax.networks.configs import SwinIRConfig
from osdhuman_jax.networks.swinir_restorer import SwinIR
from osdhuman_jax.weights import WeightsError, load_cleaner, load_part
from osdhuman_jax.weights.importer import import_cleaner

TINY = tiny_swinir()
PLAIN = replace(TINY, unshuffle=1)
LAYOUTS = {
    "diffbir": TINY,
    "real": replace(PLAIN, upscale=4),
    "real x2, 3conv": replace(PLAIN, upscale=2, resi_connection="3conv"),
    "classical x4": replace(PLAIN, upscale=4, upsampler="pixelshuffle"),
    "classical x3": replace(PLAIN, upscale=3, upsampler="pixelshuffle"),
    "lightweight": replace(PLAIN, upscale=2, upsampler="pixelshuffledirect", num_feat=0),
    "noise": replace(PLAIN, upscale=1, upsampler="", num_feat=0),
}
LAYOUTS["jpeg"] = replace(LAYOUTS["noise"], window_size=7, img_range=255.0)


def network(config: SwinIRConfig, slopes: tuple[float, float] = (0.01, 0.2)) -> TorchSwinIR:
    """Random, and gray within a few tenths: hardly any of its pixels are clamped."""
    made = TorchSwinIR(asdict(config), slopes)
    randomise(made)
    with torch.no_grad():
        last = made.upsample[0] if config.upsampler == "pixelshuffledirect" else made.conv_last
        last.weight.mul_(0.2)
        last.bias.mul_(0.0)
    return made


def picture(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(0.2, 0.7, (1, height, width, 3)).astype(np.float32)


def imported(theirs: TorchSwinIR, folder: Path) -> Path:
    torch.save({"params": theirs.state_dict()}, folder / "net.pth")
    import_cleaner(folder / "net.pth", folder / "model")
    return folder / "model"


def gap(model: Path, theirs: TorchSwinIR, x: np.ndarray) -> float:
    """Largest difference in [0, 1]; the outputs have contrast, and most are not clamped."""
    with torch.no_grad():
        want = theirs(nchw(x)).permute(0, 2, 3, 1).numpy()
    assert ((want > 0) & (want < 1)).mean() > 0.75 and want.std() > 0.015
    got = call(load_cleaner(model).restorer, 2 * x - 1)
    assert got.shape == want.shape
    return float(np.abs((got + 1) / 2 - want.clip(0, 1)).max())


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_is_read_off_its_shapes_and_computes_what_pytorch_does(name, tmp_path):
    config = LAYOUTS[name]
    theirs = network(config)
    model = imported(theirs, tmp_path)
    assert load_cleaner(model).config == config
    own = config.window_size * config.unshuffle
    sizes = [(2 * own, 4 * own), (2 * own + 1, 3 * own + own // 2)]
    for size in sizes[1:] if config.upscale == 1 else sizes:
        assert gap(model, theirs, picture(*size)) < 1e-5


@pytest.mark.parametrize("slopes", [(0.2, 0.2), (0.01, 0.01)])
def test_the_two_slopes_are_not_mistaken(slopes, tmp_path):
    model = imported(network(TINY), tmp_path)
    assert gap(model, network(TINY, slopes), picture(32, 64)) > 1e-3


PUBLISHED = {
    "diffbir": (SwinIRConfig.diffbir(), 15_792_587, 660, 1),
    "real M": (SwinIRConfig.real_sr_m(), 11_715_559, 498, 4),
    "real L": (SwinIRConfig.real_sr_l(), 28_013_059, 778, 4),
    "classical": (SwinIRConfig.classical(4), 11_900_199, 496, 4),
    "noise": (SwinIRConfig.color_dn(), 11_504_163, 490, 1),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes(name):
    config, parameters, tensors, scale = PUBLISHED[name]
    made = abstract(lambda rngs: SwinIR(config, rngs=rngs))
    assert (count(made), len(params(made)), made.scale) == (parameters, tensors, scale)


WRAPPERS = {
    "flat": lambda s: s,
    "params_ema": lambda s: {"params_ema": s, "params": {}},
    "state_dict": lambda s: {"state_dict": {f"module.{k}": v for k, v in s.items()}, "epoch": 3},
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_every_wrapper_gives_the_same_model(wrapper, tmp_path, capsys):
    state = network(TINY).state_dict()
    torch.save(WRAPPERS[wrapper](state), tmp_path / "net.ckpt")
    save_file(state, tmp_path / "net.safetensors")
    import_cleaner(tmp_path / "net.safetensors", tmp_path / "other")
    command = ["import", "--cleaner", str(tmp_path / "net.ckpt")]
    assert main([*command, "--output", str(tmp_path / "model")]) == 0
    assert "cleaner (SwinIR), x1, 5 blocks of width 12 in 2 groups" in capsys.readouterr().out
    files = [(tmp_path / name / "base.safetensors").read_bytes() for name in ("model", "other")]
    assert files[0] == files[1]
    meta = json.loads((tmp_path / "model" / "config.json").read_text())
    assert meta["licences"] == ["Apache-2.0 (SwinIR, DiffBIR)"]


def without(state: dict, end: str) -> dict:
    return {key: value for key, value in state.items() if not key.endswith(end)}


FAULTS = {
    "missing": (lambda s: without(s, "1.attn.proj.bias"), "2 missing"),
    "unknown": (lambda s: s | {"absolute_pos_embed": torch.zeros(1, 4, 12)}, "1 unknown"),
    "no table": (lambda s: without(s, "position_bias_table"), "not all of a SwinIR"),
    "no first layer": (lambda s: without(s, "conv_first.1.weight"), "not all of a SwinIR"),
    "gray": (
        lambda s: without(s, "first.1.weight") | {"conv_first.weight": torch.zeros(12, 1, 3, 3)},
        "for gray pictures",
    ),
    "heads": (
        lambda s: {k: v[:, :1].repeat(1, 5) if "table" in k else v for k, v in s.items()},
        "make no network",
    ),
    "a far block": (
        lambda s: s | {"layers.1.residual_group.blocks.9999.norm1.bias": torch.zeros(12)},
        "make no network",
    ),
    "shape": (lambda s: s | {"conv_hr.bias": torch.zeros(3)}, "1 of another shape"),
    "integers": (lambda s: s | {"conv_hr.bias": torch.zeros(8).int()}, "not of numbers with"),
    "no upscale": (lambda s: without(without(s, "up3.weight"), "up3.bias"), "no multiple"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_no_such_file_is_refused_in_one_line(fault, tmp_path):
    change, reason = FAULTS[fault]
    torch.save(change(dict(network(TINY).state_dict())), tmp_path / "net.pth")
    with pytest.raises(WeightsError, match=reason) as error:
        import_cleaner(tmp_path / "net.pth", tmp_path / "model")
    assert "\n" not in str(error.value) and str(tmp_path / "net.pth") in str(error.value)
    assert [p.name for p in tmp_path.iterdir()] == ["net.pth"]


def test_it_becomes_a_part_of_another_models_folder(sources, tmp_path, capsys):
    """Of a file, and of a cleaner's own folder, which a training run leaves."""
    cleaner = imported(network(TINY), tmp_path)
    base = ["import", "--sd", str(sources / "sd"), "--ram", str(sources / "ram.pth")]
    x = picture(32, 64)
    want = call(load_cleaner(cleaner).restorer, 2 * x - 1)
    for name, source in (("a", tmp_path / "net.pth"), ("b", cleaner)):
        output = tmp_path / name
        assert main([*base, "--cleaner", str(source), "--output", str(output)]) == 0
        assert "Apache-2.0 (SwinIR, DiffBIR)" in capsys.readouterr().out
        np.testing.assert_array_equal(call(load_part(output, "cleaner"), 2 * x - 1), want)
