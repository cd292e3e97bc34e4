"""HAODiff's published files: imported, they restore as in PyTorch; what does not fit is refused."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import haodiff_torch
import jax.numpy as jnp
import make_weights as files
import numpy as np
import pytest
import torch
from convert import call, nchw, normal
from refusals import one_line, status
from safetensors.numpy import load_file
from safetensors.torch import load_file as load_torch
from safetensors.torch import save_file

from osdhuman_jax.commands.weights import main
from osdhuman_jax.weights import WeightsError, load_model, load_part
from osdhuman_jax.weights.haodiff import ENCODER, LORA, import_haodiff, read_lora

SIDE = 64  # pixels of the pictures restored here


@pytest.fixture(scope="module")
def factors(nets) -> dict[str, torch.Tensor]:
    return haodiff_torch.lora(nets)


@pytest.fixture(scope="module")
def generator() -> haodiff_torch.Generator:
    return haodiff_torch.generator()


@pytest.fixture(scope="module")
def published(factors, generator, tmp_path_factory) -> Path:
    """haodiff/, the published files."""
    folder = tmp_path_factory.mktemp("published") / "haodiff"
    return haodiff_torch.folder(folder, generator, factors)


@pytest.fixture(scope="module")
def model(sources, published, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("models") / "haodiff"
    command = ["import", "--sd", sources / "sd", "--haodiff", published]
    assert status(main, *command, "--output", output) == 0
    return output


def test_it_restores_as_in_torch(model, nets, factors, generator):
    loaded = load_model(model)
    lq = np.clip(0.5 * normal(1, SIDE, SIDE, 3, seed=4), -1, 1)
    adapted = files.networks()
    haodiff_torch.with_lora(adapted, factors)
    plain = haodiff_torch.restored(nets, generator, nchw(lq), 3.5).permute(0, 2, 3, 1)
    for guidance in (3.5, 1.0):
        want = haodiff_torch.restored(adapted, generator, nchw(lq), guidance).permute(0, 2, 3, 1)
        found = np.asarray(call(loaded.restorer, lq, None, jnp.float32(guidance)))
        # A level of 255 is 2/255 of [-1, 1]: the pictures are equal to a level.
        assert np.abs(found - want.numpy()).max() < 2 / 255
    assert np.abs(plain.numpy() - want.numpy()).mean() > 0.05  # LoRA matters here


def test_the_folder_says_what_it_is(model, generator):
    meta = json.loads((model / "config.json").read_text())
    assert meta["prompt"] == "dual" and meta["lora"] is None
    assert meta["model"]["timestep"] == 199
    sizes = meta["model"]["dual"]
    assert (sizes["embed_dim"], sizes["depths"], sizes["num_heads"]) == (8, [2, 1], [2, 1])
    assert (sizes["num_features"], sizes["out_tokens"], sizes["guidance"]) == (5, 5, 3.5)
    assert meta["use"]["color_fix"] == "wavelet"
    assert set(meta["provenance"]["haodiff"]["files"]) == {f"haodiff/{ENCODER}", f"haodiff/{LORA}"}
    assert any("no licence" in text for text in meta["licences"])
    # Random projections came with the weights, to the bit.
    base = load_file(model / "base.safetensors")
    own = generator.main_performer.encoder.net["layers"][1][0].fn.fast_attention
    np.testing.assert_array_equal(
        base["prompter.main_performer.layers.1.attn.projection_matrix"],
        own.projection_matrix.numpy(),
    )


def spelt(factors, kind: str) -> dict[str, torch.Tensor]:
    """The same LoRA by other names that its libraries write."""
    if kind == "diffusers":
        pairs = (("unet.", ""), ("lora_A.", "lora.down."), ("lora_B.", "lora.up."))
    else:
        pairs = (("unet.", ""), ("lora_A.", "lora_A.default."), ("lora_B.", "lora_B.default."))
    made = {}
    for name, value in factors.items():
        for theirs, other in pairs:
            name = name.replace(theirs, other)
        made[name] = value
    return made


@pytest.mark.parametrize("kind", ["diffusers", "adapter"])
def test_loras_of_other_names(factors, kind, tmp_path):
    save_file(factors, tmp_path / "a.safetensors")
    save_file(spelt(factors, kind), tmp_path / "b.safetensors")
    one, other = (read_lora(tmp_path / name) for name in ("a.safetensors", "b.safetensors"))
    assert set(one) == set(other)
    for module, pair in one.items():
        for half in "AB":
            np.testing.assert_array_equal(pair[half].read(), other[module][half].read())


def test_alpha_scales_what_is_merged(nets, sources, published, tmp_path):
    name = "conv_in"
    weight = nets.unet.conv_in.weight
    out, into, *window = weight.shape
    few = {
        f"{name}.lora.down.weight": torch.ones(2, into, *window),
        f"{name}.lora.up.weight": torch.ones(out, 2, 1, 1),
        f"{name}.alpha": torch.tensor(6.0),
    }
    shutil.copytree(published, tmp_path / "haodiff")
    save_file(few, tmp_path / "haodiff" / LORA)
    import_haodiff(sources / "sd", tmp_path / "haodiff", tmp_path / "model")
    base = load_file(tmp_path / "model" / "base.safetensors")
    # 6 / 2, times two ranks of one by one.
    expected = weight.numpy().transpose(2, 3, 1, 0) + 6.0
    np.testing.assert_allclose(base["unet.conv_in.kernel"], expected, rtol=1e-6)


def changed(edit: Callable[[dict], None]) -> Callable[[Path], None]:
    """An edit of what the encoder's file holds."""

    def apply(folder: Path) -> None:
        tree = torch.load(folder / ENCODER, weights_only=True)
        edit(tree)
        torch.save(tree, folder / ENCODER)

    return apply


def settings(kind: str, **values: object) -> Callable[[Path], None]:
    return changed(lambda tree: tree[f"{kind}_kwargs"].update(values))


def replaced(table: dict, values: dict[str, torch.Tensor | None]) -> None:
    """Put tensors in or, with None, take them away."""
    for name, value in values.items():
        table.pop(name, None)
        if value is not None:
            table[name] = value


def tensors(**values: torch.Tensor | None) -> Callable[[Path], None]:
    """Of the encoder; `__` stands for a dot."""
    named = {name.replace("__", "."): value for name, value in values.items()}
    return changed(lambda tree: replaced(tree["model_state_dict"], named))


def lora(**values: torch.Tensor | None) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        table = load_torch(folder / LORA)
        replaced(table, values)
        save_file(table, folder / LORA)

    return apply


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


KEY, MAP = "unet.conv_in.lora_A.weight", torch.zeros(1, 64, 8)
ALPHA = "unet.conv_in.alpha"
ODD_ALPHA = "1 whose alpha is not one number above 0 (conv_in)"
QUERY, NAN = "main_performer.query_tokens", torch.full((1, 5, 32), torch.nan)
LAYERS = "main_performer.encoder.net.layers"


def deeper(tree: dict) -> None:
    """A layer far above all others, and no setting that says how many there are."""
    tree["model_state_dict"][f"{LAYERS}.9999.0.norm.weight"] = torch.zeros(8)
    tree["performer_kwargs"].pop("num_layers")


REFUSED = {
    "missing encoder": (without(ENCODER), f"lacks {ENCODER}"),
    "missing lora": (without(LORA), f"lacks {LORA}"),
    "class in the settings": (settings("swinir", norm_layer=torch.nn.LayerNorm), "LayerNorm"),
    "no state": (changed(lambda tree: tree.pop("model_state_dict")), "lacks model_state_dict"),
    "colours": (settings("swinir", in_chans=1), "in_chans is 1"),
    "patches": (settings("swinir", patch_size=4), "patch_size is 4"),
    "scale": (settings("swinir", qk_scale=0.5), "qk_scale is 0.5"),
    "three convolutions": (settings("swinir", resi_connection="3conv"), "resi_connection"),
    "no downsampler": (settings("swinir", downsample=False), "downsample is False"),
    "first branch left out": (settings("swinir", skip_branch=[0]), "skip_branch is (0,)"),
    "another width": (settings("swinir", embed_dim=150), "embed_dim is 150"),
    "other heads": (settings("performer", num_heads_performer=6), "num_heads_performer is 6"),
    "text": (tensors(fusion__weight=torch.zeros(77, 154)), "text's tokens"),
    "no trunk": (tensors(main_performer__pos_embed=None), "missing or misshapen"),
    "unknown tensor": (tensors(feature_extractor__more__weight=torch.zeros(3)), "unknown"),
    "another map": (
        tensors(main_performer__pos_embed=MAP, feature_extractor__absolute_pos_embed=MAP),
        "img_size is 512",
    ),
    "half a pair": (lora(**{KEY: None}), "without their half (conv_in)"),
    "VAE's LoRA": (
        lora(**{"vae.encoder.conv_in.lora_A.weight": torch.zeros(1, 1)}),
        "of another network",
    ),
    "unknown module": (
        lora(**{f"unet.nowhere.lora_{h}.weight": torch.zeros(2, 2) for h in "AB"}),
        "unknown (nowhere)",
    ),
    "another shape": (lora(**{KEY: torch.zeros(2, 5, 3, 3)}), "of another shape (conv_in)"),
    "list of a list": (settings("swinir", skip_branch=[[1]]), "skip_branch is ([1],)"),
    "heads that do not divide": (settings("performer", num_heads_pool=7), "width 32 have no 7"),
    "layers left out": (changed(deeper), f"missing or misshapen ('{LAYERS}')"),
    "no features": (
        tensors(**{f"{LAYERS}.0.0.fn.fast_attention.projection_matrix": torch.zeros(0, 0)}),
        "missing or misshapen",
    ),
    "numbers for tables": (
        tensors(
            main_performer__attn_pool__in_proj_weight=torch.tensor(1.0),
            aux_performer__query_tokens=torch.tensor(1.0),
        ),
        "4 of another shape",
    ),
    "name of two lines": (tensors(**{"a\nb\x1b[31m": MAP}), r"unknown (a\nb\x1b[31m)"),
    "long name": (tensors(**{"x" * 9000: MAP}), f"1 unknown ({'x' * 160})"),
    "NaN": (tensors(**{QUERY: NAN}), "pool.query holds NaN or infinite numbers"),
    "too large for 32 bits": (
        tensors(**{QUERY: torch.full((1, 5, 32), 1e300, dtype=torch.float64)}),
        "pool.query holds NaN or infinite numbers",
    ),
    "LoRA of NaN": (
        lora(**{KEY: torch.full((2, 4, 3, 3), torch.nan)}),
        "unet.conv_in.kernel holds NaN or infinite numbers",
    ),
    "LoRA too large for 32 bits": (
        lora(**{KEY: torch.full((2, 4, 3, 3), 1e300, dtype=torch.float64)}),
        "unet.conv_in.kernel holds NaN or infinite numbers",
    ),
    "LoRA of integers": (
        lora(**{KEY: torch.ones(2, 4, 3, 3, dtype=torch.int64)}),
        "1 not of numbers with a fraction (conv_in)",
    ),
    "two alphas": (lora(**{ALPHA: torch.ones(2)}), ODD_ALPHA),
    "alpha of NaN": (lora(**{ALPHA: torch.tensor(torch.nan)}), ODD_ALPHA),
    "alpha of nothing": (lora(**{ALPHA: torch.tensor(0.0)}), ODD_ALPHA),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_refusals(sources, published, fault, tmp_path):
    damage, message = REFUSED[fault]
    shutil.copytree(published, tmp_path / "haodiff")
    damage(tmp_path / "haodiff")
    with one_line(WeightsError, re.escape(message)):
        import_haodiff(sources / "sd", tmp_path / "haodiff", tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["haodiff"]  # nothing was written


@pytest.mark.parametrize("beside", ["--ram", "--dape", "--generator", "--cleaner"])
def test_it_goes_with_sd_alone(sources, published, beside, tmp_path, capsys):
    command = ["import", "--sd", sources / "sd", "--haodiff", published, beside, "x"]
    assert status(main, *command, "--output", tmp_path / "model") == 2
    assert beside in capsys.readouterr().err


def test_a_start_of_the_training_has_random_prompts_and_the_losses_networks(sources, tmp_path):
    torch.save(files.vgg(), tmp_path / "vgg16.pth")
    torch.save(files.lpips_lin(), tmp_path / "vgg.pth")
    weights = {k: torch.rand(1, 3 + 5 * 4, 1, 1) for k in ("alpha", "beta")}
    torch.save(weights, tmp_path / "weights.pt")
    command = ["import", "--sd", sources / "sd", "--prompt", "dual", "--output", tmp_path / "model"]
    command += ["--lpips", tmp_path / "vgg16.pth", tmp_path / "vgg.pth"]
    command += ["--dists", tmp_path / "weights.pt", "--seed", "3"]
    assert status(main, *command) == 0
    loaded = load_model(tmp_path / "model")
    assert loaded.config.dual.upsamplers and loaded.restorer.prompter.feature_extractor.upsamplers
    rows = loaded.restorer.prompter.main_performer.layers[0].attn.projection_matrix[...]
    assert abs(float(rows[0] @ rows[1])) < 1e-3 < float(abs(rows[0]).max())
    dists = load_part(tmp_path / "model", "dists")
    np.testing.assert_array_equal(dists.alpha[...], weights["alpha"].flatten())
    assert load_part(tmp_path / "model", "lpips").taps


def test_dists_needs_the_vgg_of_lpips(sources, tmp_path):
    torch.save({}, tmp_path / "weights.pt")
    with pytest.raises(WeightsError, match="--lpips"):
        import_haodiff(sources / "sd", None, tmp_path / "model", dists=tmp_path / "weights.pt")
