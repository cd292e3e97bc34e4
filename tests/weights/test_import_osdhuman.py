"""OSDHuman's own files, in each layout that they may have: imported, they compute as in PyTorch."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import make_weights as files
import numpy as np
import pytest
import torch
from convert import call, convert, normal, randomise
from refusals import one_line, status
from safetensors.numpy import load_file
from safetensors.torch import save_file

from benchmarks import references
from osdhuman_jax.commands.weights import main
from osdhuman_jax.methods.osdhuman import OneStepRestorer
from osdhuman_jax.methods.prompts import HFIEPrompter
from osdhuman_jax.weights import WeightsError, load_base, load_model
from osdhuman_jax.weights.importer import import_model
from osdhuman_jax.weights.model_folder import parameters
from osdhuman_jax.weights.osdhuman_files import read_osdhuman

QUERIES, WIDTH, KEYS, HEADS, RANK = 5, files.CONTEXT, 12, 16, 2
Factors = dict[str, torch.Tensor]  # "unet.conv_in.lora_A": ...


def attention(keys: int = KEYS, heads: int = HEADS) -> references.HFIE:
    return randomise(references.HFIE(QUERIES, WIDTH, keys, heads), 11)


def adapted(nets: files.Networks) -> Factors:
    """Random factors of what OSEDiff adapts, scaled to matter."""
    rng, made = torch.Generator().manual_seed(9), {}
    for network, net in (("unet", nets.unet), ("vae", nets.vae)):
        for name in references.adapted_names(net):
            out, into, *window = net.get_submodule(name).weight.shape
            a = torch.randn((RANK, into, *window), generator=rng) / (into * 9) ** 0.5
            b = 0.2 * torch.randn((out, RANK, *([1] * len(window))), generator=rng)
            made |= {f"{network}.{name}.lora_A": a, f"{network}.{name}.lora_B": b}
    return made


def with_factors(factors: Factors, scale: float, nets: files.Networks) -> files.Networks:
    """The networks with W + scale B A in their layers, in place."""
    for key in (k for k in factors if k.endswith("lora_A")):
        network, name = key.removesuffix(".lora_A").split(".", 1)
        a, b = factors[key], factors[key.replace("lora_A", "lora_B")]
        weight = getattr(nets, network).get_submodule(name).weight
        weight.data += scale * (b.flatten(1) @ a.flatten(1)).view(weight.shape)
    return nets


# Layouts: each writes its files and returns the scale of its LoRA


def osdface_names(net: references.HFIE) -> files.State:
    names = {"q": "query", "k": "key", "v": "value", "out": "out"}
    state = {"latent_queries": net.query.data}
    for ours, theirs in names.items():
        for end in ("weight", "bias"):
            state[f"multihead_attn.{theirs}_fc.{end}"] = net.state()[f"{ours}_proj.{end}"]
    return state


def haodiff_names(net: references.HFIE) -> files.State:
    pool = {f"attn_pool.{k}": v for k, v in net.mha.state_dict().items()}
    return {"query_tokens": net.query.data[None], **pool}


def peft(factors: Factors, network: str = "", prefix: str = "") -> files.State:
    chosen = {k: v for k, v in factors.items() if k.startswith(network)}
    return {f"{prefix}{k.removeprefix(f'{network}.')}.weight": v for k, v in chosen.items()}


def as_haodiff(folder: Path, factors: Factors, hfie: references.HFIE) -> float:
    save_file(peft(factors), folder / "pytorch_lora_weights.safetensors")
    state = {"model_state_dict": haodiff_names(hfie), "performer_kwargs": {"layers": [1, "a"]}}
    torch.save(state, folder / "img_encoder_weights.pth")
    return 1.0  # diffusers: the rank


def as_osdface(folder: Path, factors: Factors, hfie: references.HFIE) -> float:
    for network in ("unet", "vae"):
        names = (("lora_A.weight", "lora.down.weight"), ("lora_B.weight", "lora.up.weight"))
        state = peft(factors, network)
        state = {k.replace(*names[0]).replace(*names[1]): v for k, v in state.items()}
        modules = {k.split(".lora.")[0] for k in state}
        state |= {f"{module}.alpha": torch.tensor(3.0 * RANK) for module in modules}
        save_file(state, folder / f"{network}.safetensors")
    torch.save({"state_dict": osdface_names(hfie)}, folder / "embedding_change_weights.ckpt")
    return 3.0


def as_osediff(folder: Path, factors: Factors, hfie: references.HFIE) -> float:
    tree: dict = {"rank_unet": RANK, "rank_vae": RANK, "unet_lora_others_modules": ["conv_in"]}
    for network in ("unet", "vae"):
        state = peft(factors, network)
        default = {k.replace(".weight", ".default_encoder.weight"): v for k, v in state.items()}
        tree[f"state_dict_{network}"] = default
    layer = files.networks().unet.conv_in
    tree["state_dict_unet"]["conv_in.base_layer.weight"] = layer.weight.data
    tree["state_dict_unet"]["conv_in.base_layer.bias"] = layer.bias.data
    torch.save(tree, folder / "osdhuman.pkl")
    torch.save(hfie.state(), folder / "hfie_7.pth", _use_new_zipfile_serialization=False)
    return 8.0 / RANK


def as_peft(folder: Path, factors: Factors, hfie: references.HFIE) -> float:
    for network in ("unet", "vae"):
        (folder / network).mkdir()
        save_file(peft(factors, network, "base_model.model."), folder / network / "a.safetensors")
        text = json.dumps({"r": RANK, "lora_alpha": 5 * RANK, "alpha_pattern": {}})
        (folder / network / "adapter_config.json").write_text(text)
    bare = {k.removeprefix("attn_pool."): v for k, v in haodiff_names(hfie).items()}
    torch.save(bare | {"num_heads": HEADS}, folder / "attn_pool")
    (folder / "attn_pool").rename(folder / "attn_pool.pt")
    return 5.0


def as_noted(folder: Path, factors: Factors, hfie: references.HFIE) -> float:
    """One file, with what newer versions of diffusers note in it."""
    note = {"lora_adapter_metadata": json.dumps({"unet.r": RANK, "unet.lora_alpha": 2 * RANK})}
    state = peft(factors) | {f"hfie.{k}": v for k, v in osdface_names(hfie).items()}
    save_file({k: v.contiguous() for k, v in state.items()}, folder / "a.safetensors", note)
    return 2.0


LAYOUTS = {"haodiff": as_haodiff, "osdface": as_osdface, "osediff": as_osediff}
LAYOUTS |= {"peft": as_peft, "noted": as_noted}


@pytest.fixture(scope="module")
def factors(nets) -> Factors:
    return adapted(nets)


@pytest.fixture(scope="module")
def published(factors, tmp_path_factory) -> Path:
    """HAODiff's layout, to be damaged in copies."""
    folder = tmp_path_factory.mktemp("published") / "osdhuman"
    folder.mkdir()
    as_haodiff(folder, factors, attention())
    return folder


def hfie_of(restorer: OneStepRestorer):
    assert isinstance(restorer.prompter, HFIEPrompter)
    return restorer.prompter.hfie


def same_tokens(restorer: OneStepRestorer, hfie: references.HFIE, keys: int = KEYS) -> None:
    embeddings = normal(2, 7, keys, seed=3)
    with torch.no_grad():
        want = hfie(torch.from_numpy(embeddings)).numpy()
    np.testing.assert_allclose(call(hfie_of(restorer), embeddings), want, atol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout(layout, sources, factors, tmp_path):
    (tmp_path / "files").mkdir()
    hfie = attention()
    scale = LAYOUTS[layout](tmp_path / "files", factors, hfie)
    generator = read_osdhuman(tmp_path / "files")
    import_model(sources / "sd", sources / "ram.pth", tmp_path / "model", generator=generator)
    restorer = load_model(tmp_path / "model").restorer
    same_tokens(restorer, hfie)
    have = {name: np.asarray(p.get_value()) for name, p in parameters(restorer).items()}
    expected = with_factors(factors, scale, files.networks())
    for network, net in (("unet", expected.unet), ("vae", expected.vae)):
        for key, value in net.state_dict().items():
            path, array = convert(key, value)
            name = ".".join((network, *map(str, path)))
            np.testing.assert_allclose(have[name], array, atol=1e-5, err_msg=name)


def test_projections_in_one(sources, ram_state, factors, tmp_path):
    """PyTorch fuses them where the embeddings are as wide as the prompts."""
    encoder = {k: v for k, v in ram_state.items() if k.startswith("visual_encoder")}
    projection = {"image_proj.weight": files.draw(WIDTH, 16, seed=1)}
    torch.save(encoder | projection | {"image_proj.bias": torch.zeros(WIDTH)}, tmp_path / "ram.pth")
    (tmp_path / "files").mkdir()
    hfie = attention(WIDTH, heads=8)
    as_haodiff(tmp_path / "files", factors, hfie)
    generator = read_osdhuman(tmp_path / "files", hfie_heads=8)
    import_model(sources / "sd", tmp_path / "ram.pth", tmp_path / "model", generator=generator)
    same_tokens(load_model(tmp_path / "model").restorer, hfie, WIDTH)


def test_a_picture_is_torchs(sources, published, nets, factors, ram_state, tmp_path, capsys):
    command = ["--sd", sources / "sd", "--ram", sources / "ram.pth", "--osdhuman", published]
    command += ["--output", tmp_path / "model", "--hfie_heads", 8, "--lora_alpha", 4]
    assert status(main, "import", *command) == 0
    told = capsys.readouterr().out
    for text in ('"8, by --hfie_heads"', '"4, by --lora_alpha"', "OSDHuman's weights: no licence"):
        assert text in told
    ram = references.RAM(files.SWIN | {"patch_size": 4, "mlp_ratio": 4.0, "image_proj_dim": KEYS})
    ram.swin = files.swin()
    ram.image_proj.weight.data = ram_state["image_proj.weight"]
    ram.image_proj.bias.data = ram_state["image_proj.bias"]
    lq = normal(1, 32, 32, 3, seed=4).clip(-1, 1)
    changed = with_factors(factors, 2.0, files.networks())
    restored = {}
    for name, parts in (("plain", nets), ("changed", changed)):
        theirs = references.Restorer(parts.vae, parts.unet, ram, attention(heads=8), 999)
        with torch.no_grad():
            restored[name] = theirs.eval()(lq).numpy().transpose(0, 2, 3, 1)
    found = np.asarray(call(load_model(tmp_path / "model").restorer, lq))
    # A level of 255 is 2/255 of [-1, 1].
    assert np.abs(found - restored["changed"]).max() < 2 / 255
    assert np.abs(restored["plain"] - restored["changed"]).mean() > 0.05


def test_it_is_a_generator_to_go_on_with(sources, published, factors, tmp_path):
    """LoRA unmerged; a layer that none here adapts is changed in the base, none is left out."""
    folder = Path(shutil.copytree(published, tmp_path / "files"))
    state = {k: v for k, v in peft(factors).items() if not k.startswith("unet.mid_block")}
    extra = "unet.time_embedding.linear_1"
    weight = files.networks().unet.time_embedding.linear_1.weight
    state[f"{extra}.lora_A.weight"] = torch.ones(RANK, weight.shape[1])
    state[f"{extra}.lora_B.weight"] = torch.ones(weight.shape[0], RANK)
    save_file(state, folder / "pytorch_lora_weights.safetensors")
    model = tmp_path / "model"
    generator = read_osdhuman(folder)
    import_model(sources / "sd", sources / "ram.pth", model, generator=generator)
    _, config, adapters = load_base(model, generator=True)
    assert adapters is not None
    assert (adapters.rank, adapters.alpha, adapters.train_conv_in) == (RANK, RANK, False)
    assert (config.timestep, config.hfie.num_queries, config.hfie.num_heads) == (999, QUERIES, 16)
    said = json.loads((model / "config.json").read_text())
    assert said["prompt"] == "hfie" and "hfie" not in said["provenance"]
    given = said["provenance"]["generator"]
    assert given["hfie_heads"].startswith("16, this project's default")
    assert given["lora_alpha"].startswith("2, the rank")
    assert {len(digest) for digest in given["files"].values()} == {64} and len(given["files"]) == 2
    assert given["layers"]["merged"] == 1 and given["layers"]["not_adapted"] > 10
    base, learnt = (load_file(model / f"{n}.safetensors") for n in ("base", "generator"))
    np.testing.assert_array_equal(
        learnt["unet.conv_in.lora_B"], factors["unet.conv_in.lora_B"][:, :, 0, 0].T
    )
    assert not learnt["unet.mid_block.resnets.0.conv1.lora_A"].any()
    np.testing.assert_allclose(base[f"{extra}.kernel"], weight.numpy().T + RANK, rtol=1e-6)


# Refusals

LORA, ENCODER = "pytorch_lora_weights.safetensors", "img_encoder_weights.pth"
Damage = Callable[[Path], object]


def lora(edit: Callable[[dict], object]) -> Damage:
    def apply(folder: Path) -> None:
        state = {k: torch.from_numpy(v) for k, v in load_file(folder / LORA).items()}
        edit(state)
        save_file(state, folder / LORA)

    return apply


def encoder(edit: Callable[[dict], object]) -> Damage:
    def apply(folder: Path) -> None:
        tree = torch.load(folder / ENCODER, weights_only=True)
        edit(tree)
        torch.save(tree, folder / ENCODER)

    return apply


def more(**tensors: torch.Tensor) -> Damage:
    """Tensors added to HFIE's; `__` stands for a dot."""
    named = {k.replace("__", "."): v for k, v in tensors.items()}
    return encoder(lambda tree: tree["model_state_dict"].update(named))


def without(text: str) -> Damage:
    return lora(lambda state: [state.pop(k) for k in list(state) if text in k])


def alphas(state: dict) -> None:
    state["unet.conv_in.alpha"], state["unet.conv_out.alpha"] = torch.ones(()), torch.zeros(())


def settings(**values: object) -> Damage:
    return lambda folder: (folder / "adapter_config.json").write_text(json.dumps(values))


def deep(tree: dict) -> None:
    for _ in range(9):
        tree["a"] = dict(tree)


KEY = "unet.conv_in.lora_A.weight"
NORM = torch.ones(WIDTH)
REFUSED: dict[str, tuple[Damage, str]] = {
    "nothing": (lambda f: [p.unlink() for p in f.iterdir()], "holds no file of .safetensors"),
    "no HFIE": (lambda f: (f / ENCODER).unlink(), "lacks HFIE's attention, HFIE's queries; found"),
    "no LoRA": (lambda f: (f / LORA).unlink(), "lacks the U-Net's LoRA, the VAE's LoRA"),
    "no LoRA of the VAE": (without("vae."), "lacks the VAE's LoRA; found the U-Net's LoRA ("),
    "norm": (more(norm__weight=NORM), f"({ENCODER}: norm.weight 32); found"),
    "changer": (
        more(conv1__weight=torch.ones(8, 4, 1), conv2__weight=torch.ones(4, 8, 1)),
        "2 tensors that no layer here takes (img_encoder_weights.pth: conv1.weight 8x4x1",
    ),
    "an optimizer": (encoder(lambda t: t.update(a=[torch.ones(2)])), f"{ENCODER}: a.0 2)"),
    "second attention": (more(b__out_proj__bias=NORM), "of one layer twice (b.out_proj.bias)"),
    "no bias": (encoder(lambda t: t["model_state_dict"].pop("attn_pool.in_proj_bias")), "missing"),
    "another width": (
        more(query_tokens=torch.ones(1, 5, 8)),
        "its prompts are 8 wide",
    ),
    "no table of queries": (more(query_tokens=torch.ones(9)), "query_tokens is 9, no table"),
    "two heads": (
        encoder(lambda t: t.update(a={"num_heads": 2}, b={"num_heads": 4})),
        "its settings have [2, 4] heads; give --hfie_heads",
    ),
    "heads that do not fit": (encoder(lambda t: t.update(num_heads=5)), "no 5 heads"),
    "half a pair": (without(KEY), "without their half (conv_in)"),
    "in two files": (lambda f: shutil.copy(f / LORA, f / "b.safetensors"), "in two files"),
    "two adapters": (
        lora(lambda s: s.update({"conv_in.lora_A.b.weight": s[KEY].clone()})),
        "1 tensors that no layer here takes",
    ),
    "unknown module": (
        lora(lambda s: s.update({f"x.lora_{h}.weight": torch.ones(2, 2) for h in "AB"})),
        "1 unknown (x)",
    ),
    "another shape": (lora(lambda s: s.update({KEY: torch.ones(2, 5, 3, 3)})), "of another shape"),
    "another rank": (lora(lambda s: s.update({KEY: torch.ones(3, 4, 3, 3)})), "LoRA of ranks 2, 3"),
    "two alphas": (lora(alphas), "LoRA of alphas 0, 1"),
    "no number": (lora(lambda s: s.update({"unet.conv_in.alpha": NORM})), "is not one number"),
    "alpha by layer": (settings(alpha_pattern={"a": 1}), "has alpha_pattern, which is not served"),
    "alpha is text": (settings(lora_alpha="8"), "its lora_alpha is '8'"),
    "alpha is nothing": (settings(lora_alpha=0), "alpha is 0"),
    "tables within tables": (encoder(deep), "tables within tables"),
    "no table": (lambda f: torch.save(torch.ones(2), f / "a.pt"), "holds no table of tensors"),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_refusals(fault, sources, published, tmp_path):
    damage, message = REFUSED[fault]
    folder = Path(shutil.copytree(published, tmp_path / "files"))
    damage(folder)
    with one_line(WeightsError) as caught:
        generator = read_osdhuman(folder)
        import_model(sources / "sd", sources / "ram.pth", tmp_path / "model", generator=generator)
    assert message in str(caught.value) and len(str(caught.value)) < 700
    assert [path.name for path in tmp_path.iterdir()] == ["files"]  # nothing was written


def test_flags_do_not_contradict_files(published, tmp_path):
    folder = Path(shutil.copytree(published, tmp_path / "files"))
    settings(lora_alpha=4, r=2)(folder)
    encoder(lambda tree: tree.update(num_heads=2))(folder)
    read_osdhuman(folder, hfie_heads=2, lora_alpha=4.0)
    with pytest.raises(WeightsError, match="its LoRA's alpha is 4, not 8"):
        read_osdhuman(folder, lora_alpha=8.0)
    with pytest.raises(WeightsError, match=r"its settings have \[2\] heads, not 8"):
        read_osdhuman(folder, hfie_heads=8)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--osdhuman", "o", "--generator", "g"], "--osdhuman is a generator itself"),
        (["--hfie_heads", "8"], "--hfie_heads goes with --osdhuman"),
        (["--osdhuman", "nowhere"], "nowhere: no such file or folder (--osdhuman)"),
        (["--osdhuman", "o", "--cleaner", "c"], "--cleaner goes alone, without --"),
    ],
)
def test_flags_that_do_not_go_together(flags, said, tmp_path, capsys):
    output = ["--output", tmp_path / "model"]
    assert status(main, "import", "--sd", "a/b", "--ram", "r", *flags, *output) == 2
    assert said in capsys.readouterr().err and not list(tmp_path.iterdir())
