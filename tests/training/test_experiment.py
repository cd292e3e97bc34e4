"""Before the first step: what is trained, what is refused, what a run starts from."""

import importlib
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
from convert import abstract
from flax import nnx
from refusals import one_line

from osdhuman_jax.config import Config, ConfigError, DegradationConfig
from osdhuman_jax.methods import lora
from osdhuman_jax.methods.build import build_restorer
from osdhuman_jax.methods.osdhuman import OneStepRestorer
from osdhuman_jax.training import experiment
from osdhuman_jax.weights import WeightsError, load_base, random_restorer, save_model

CONFIGS = (Path(__file__).parents[2] / "configs").glob("*.py")
HFIE = {"query"} | {f"{p}_proj.{w}" for p in "q k v out".split() for w in ("kernel", "bias")}


# What is trained.


def trained(
    change: Callable[[Config], object], kind: str
) -> tuple[set[str], set[str], OneStepRestorer]:
    """Names of the trained parameters and of all, of a model of shapes."""
    config = tiny.config(kind)
    change(config)
    adapters = config.lora if kind == "restorer" else None
    model = abstract(lambda rngs: tiny.make(rngs, adapters))
    _, params, frozen = nnx.split(model, experiment.trainable(config), ...)
    ours = {".".join(map(str, path)) for path, _ in nnx.to_flat_state(params)}
    rest = {".".join(map(str, path)) for path, _ in nnx.to_flat_state(frozen)}
    return ours, ours | rest, model


def factors(network: str, targets: list) -> set[str]:
    names = {".".join(map(str, (network, *path))) for path in targets}
    assert names
    return {f"{name}.{factor}" for name in names for factor in ("lora_A", "lora_B")}


def nothing(config: Config) -> None:
    pass


def test_vae_run_trains_the_vae():
    ours, every, _ = trained(nothing, "vae")
    assert ours == {n for n in every if n.startswith("vae.")}
    assert {"vae.encoder.conv_in.kernel", "vae.decoder.conv_out.bias"} < ours < every


def test_diffusion_run_trains_the_rest():
    ours, every, _ = trained(nothing, "diffusion")
    assert ours == {n for n in every if not n.startswith("vae.")}
    assert {"unet.conv_in.kernel", "prompter.hfie.query"} < ours < every
    assert any(n.startswith("prompter.image_encoder.") for n in ours)


def test_restorer_run_trains_lora_and_hfie():
    plain = abstract(tiny.make)
    expected = {f"prompter.hfie.{name}" for name in HFIE}
    expected |= factors("unet", lora.unet_targets(plain.unet))
    expected |= factors("vae", lora.vae_encoder_targets(plain.vae))
    ours, _, _ = trained(nothing, "restorer")
    assert ours == expected


def test_restorer_run_can_train_all():
    def every(config: Config) -> None:
        config.run.train = "all"

    params, names, _ = trained(every, "restorer")
    assert params == names


def test_all_weights_leave_vsd_no_frozen_network():
    config = tiny.config("restorer")
    config.run.train, config.loss.vsd = "all", 1.0
    with pytest.raises(ConfigError, match="^loss.vsd: a run that trains all weights"):
        experiment.check(config)


def test_conv_in_can_be_trained_too():
    without, _, _ = trained(nothing, "restorer")
    ours, _, _ = trained(lambda c: setattr(c.lora, "train_conv_in", True), "restorer")
    assert ours - without == {"unet.conv_in.base.kernel", "unet.conv_in.base.bias"}
    assert without < ours


@pytest.mark.parametrize("network", ["unet", "vae"])
def test_lora_can_be_left_out_of_a_network(network):
    field = "unet" if network == "unet" else "vae_encoder"
    without, _, _ = trained(nothing, "restorer")
    ours, _, _ = trained(lambda c: setattr(c.lora, field, False), "restorer")
    assert ours == {n for n in without if not n.startswith(f"{network}.")} < without


@pytest.mark.parametrize(
    ("section", "name", "value", "said"),
    [
        ("run", "kind", "painter", "run.kind: 'painter' is none of vae, diffusion, dpg, restorer"),
        ("data", "sources", (), "data.sources: name at least one"),
        ("data", "degrade", False, "data.degrade: "),
        ("loss", "reg_lora_scope", "top", "loss.reg_lora_scope: 'top'"),
        ("loss", "reg_updates", 0, "loss.reg_updates: 0"),
        ("loss", "vsd_timesteps", (980, 20), "loss.vsd_timesteps: (980, 20)"),
        ("loss", "reg_timesteps", (0, 1001), "loss.reg_timesteps: (0, 1001)"),
        ("prompt", "kind", "poem", "prompt.kind: 'poem'"),
        ("prompt", "source", "sr", "prompt.source: 'sr'"),
        ("run", "remat", "most", "run.remat: 'most'"),
        ("run", "best", "loss", "run.best: 'loss'"),
        ("optim", "accumulate", 3, "data.batch_size: 16 does not divide among 1 device(s) x 3"),
        ("optim", "ema", 1.0, "optim.ema: 1.0"),
        ("optim", "max_nonfinite", 0, "optim.max_nonfinite: 0"),
        ("run", "precision", "fp8", "run.precision: 'fp8'"),
        ("run", "latent", "median", "run.latent: 'median'"),
        ("optim", "schedule", "linear", "optim.schedule: 'linear'"),
        ("data", "batch_size", 0, "data.batch_size: 0 must be at least 1"),
        ("data", "crop", -64, "data.crop: -64 is negative"),
        ("data", "gray", 1.5, "data.gray: 1.5 is more than 1"),
        ("data", "kinds", (1.0, float("nan")), "data.kinds: nan is no finite number"),
        ("optim", "learning_rate", 0.0, "optim.learning_rate: 0.0 must be above 0"),
        ("optim", "learning_rate", float("nan"), "optim.learning_rate: nan is no finite"),
        ("optim", "eps", -1e-8, "optim.eps: -1e-08 is negative"),
        ("optim", "clip_norm", 0.0, "optim.clip_norm: 0.0 must be above 0"),
        ("optim", "weight_decay", -0.1, "optim.weight_decay: -0.1 is negative"),
        ("optim", "b2", 1.0, "optim.b2: 1.0 is not in [0, 1)"),
        ("loss", "mse", float("-inf"), "loss.mse: -inf is no finite"),
        ("run", "log_every", 0, "run.log_every: 0 must be at least 1"),
        ("run", "steps", True, "run.steps: True is no int"),
        ("run", "steps", 1.5, "run.steps: 1.5 is no int"),
        ("data", "kinds", ("(nan", 0.5), "data.kinds: ('(nan', 0.5) is no tuple[float, ...]"),
        ("data", "sources", "photos", "data.sources: 'photos' is no tuple[str, ...]"),
        ("loss", "vsd_timesteps", (20, 500, 980), "loss.vsd_timesteps: (20, 500, 980) is no tuple"),
        ("cleaner", "swinir", 3, "cleaner.swinir: 3 is no "),
    ],
)
def test_check_refuses(section, name, value, said):
    config = tiny.config("restorer")
    setattr(getattr(config, section), name, value)
    with one_line(ConfigError, f"^{re.escape(said)}"):
        experiment.check(config)


def test_check_refuses_a_number_of_an_inner_section():
    config = tiny.config("restorer")
    config.data = replace(config.data, degradation=DegradationConfig(sinc_prob=2.0))
    with pytest.raises(ConfigError, match=r"^data.degradation.sinc_prob: 2.0 is more than 1$"):
        experiment.check(config)


@pytest.mark.parametrize("shares", [("a", "b", "c"), (0.5, 0.5), (0.1, 0.2, 0.3, 0.4)])
def test_check_refuses_shares_that_are_not_three_numbers(shares):
    config = tiny.config("restorer")
    config.data = replace(config.data, degradation=DegradationConfig())
    # As flags do: nothing checks what is set.
    config.data.degradation.first_order = shares
    with one_line(ConfigError, r"^data.degradation.first_order: .* is no tuple\[float, float, "):
        experiment.check(config)


@pytest.mark.parametrize("name", sorted({path.stem for path in CONFIGS} - {"curate", "models"}))
def test_check_lets_the_given_configs_pass(name):
    experiment.check(importlib.import_module(f"configs.{name}").get_config())


@pytest.mark.parametrize("kind", ["vae", "diffusion"])
def test_check_asks_the_other_kinds_for_neither(kind):
    config = tiny.config(kind)
    config.data.degrade, config.loss.lpips, config.loss.vsd = False, 2.0, 1.0
    experiment.check(config)


def test_another_architecture_is_refused_by_name(folder):
    config = tiny.config("vae")
    config.model = replace(config.model, unet=replace(config.model.unet, cross_attention_dim=16))
    config.model = replace(config.model, hfie=replace(config.model.hfie, num_queries=4))
    with pytest.raises(ConfigError) as caught:
        experiment.prepare(config, folder)
    assert str(caught.value) == f"model.unet, model.hfie: differ from those of {folder}"


def test_timestep_is_the_configs_and_scale_the_folders(folder):
    config = tiny.config("diffusion")
    vae = replace(config.model.vae, scaling_factor=0.5)
    config.model = replace(config.model, timestep=7, vae=vae)
    model, found = experiment.prepare(config, folder)
    assert (model.timestep, found.timestep) == (7, 7)
    assert (model.vae.scaling_factor, found.vae.scaling_factor) == (1.0, 1.0)


def test_lora_follows_the_seed_and_starts_from_zero(folder):
    config = tiny.config("restorer")
    first, other = (experiment.prepare(replace_seed(config, s), folder)[0] for s in (1, 2))
    a = [tiny.arrays(nnx.state(model, lora.LoRAParam)) for model in (first, other)]
    assert all((not np.any(a[0][n])) == n.endswith("lora_B") for n in a[0])
    assert not any(np.array_equal(a[0][n], a[1][n]) for n in a[0] if n.endswith("lora_A"))


def test_a_generator_goes_on_with_what_it_has_learnt(folder, tmp_path):
    config = tiny.config("restorer")
    model, sizes = experiment.prepare(config, folder)
    for value in nnx.to_flat_state(nnx.state(model, lora.LoRAParam)).leaves:
        value[...] = value[...] + 1
    save_model(tmp_path / "generator", sizes, model, generator=config.lora)
    again, _ = experiment.prepare(replace_seed(config, 7), tmp_path / "generator")
    assert not tiny.changed(nnx.state(model, nnx.Param), nnx.state(again, nnx.Param))
    other = replace(config, lora=replace(config.lora, alpha=3.0))
    with pytest.raises(ConfigError, match="lora: .*alpha=3.0.* differs from that of"):
        experiment.prepare(other, tmp_path / "generator")
    with pytest.raises(WeightsError, match="a run starts from a base model"):
        experiment.prepare(tiny.config("vae"), tmp_path / "generator")


def test_a_trained_conv_in_is_not_the_regularizers(folder, tmp_path):
    """`base.safetensors` has no other: a run with VSD would be regularized by what it trains."""
    config = tiny.config("restorer")
    config.lora.train_conv_in = True
    model, sizes = experiment.prepare(config, folder)
    save_model(tmp_path / "generator", sizes, model, generator=config.lora)
    assert experiment.prepare(config, tmp_path / "generator")
    config.loss.vsd = 1.0
    assert experiment.prepare(config, folder)
    with pytest.raises(ConfigError, match="lora.train_conv_in: .*generator.*start from the base"):
        experiment.prepare(config, tmp_path / "generator")


def replace_seed(config: Config, seed: int) -> Config:
    return replace(config, run=replace(config.run, seed=seed))


def test_base_folder_is_the_configs(tmp_path):
    config = tiny.config("vae")
    config.run.init = str(tmp_path / "given")
    assert experiment.base_folder(config, tmp_path) == tmp_path / "given"
    assert not list(tmp_path.iterdir())


def test_random_base_is_drawn_once_and_kept(tmp_path):
    config = tiny.config("vae")
    first = experiment.base_folder(config, tmp_path)
    written = {p.name: p.stat().st_mtime_ns for p in first.iterdir()}
    assert first == tmp_path / "init" and "config.json" in written
    assert experiment.base_folder(config, tmp_path) == first
    assert {p.name: p.stat().st_mtime_ns for p in first.iterdir()} == written
    models = (random_restorer(config.model, config.run.seed), load_base(first)[0])
    assert not tiny.changed(*(nnx.state(model, nnx.Param) for model in models))


@pytest.fixture
def two_prompts(folder) -> Config:
    """A first stage of HAODiff that starts from the model of one prompt."""
    config = tiny.config("dpg")
    config.model, config.prompt.kind = replace(tiny.DUAL_MODEL), "dual"
    config.run.init = str(folder)
    return config


def test_two_prompts_begin_with_vae_and_unet_of_a_model_of_one(folder, two_prompts, tmp_path):
    base = experiment.base_folder(two_prompts, tmp_path)
    assert base == tmp_path / "init"
    made, sizes = experiment.prepare(two_prompts, base)
    source, of_source, _ = load_base(folder)
    drawn = random_restorer(two_prompts.model, two_prompts.run.seed)
    assert sizes.vae.scaling_factor == of_source.vae.scaling_factor
    for part, given in (("vae", source), ("unet", source), ("prompter", drawn)):
        theirs, ours = (nnx.state(getattr(model, part), nnx.Param) for model in (given, made))
        assert not tiny.changed(theirs, ours), part
    # Made once: the run goes on from it whatever becomes of the folder.
    written = (base / "config.json").read_bytes()
    two_prompts.run.seed += 1
    assert experiment.base_folder(two_prompts, tmp_path) == base
    assert (base / "config.json").read_bytes() == written


def test_two_prompts_for_networks_of_other_sizes_are_refused(two_prompts, tmp_path):
    two_prompts.model.unet = replace(tiny.MODEL.unet, cross_attention_dim=16)
    with pytest.raises(ConfigError, match="^model.unet: differ from those of "):
        experiment.base_folder(two_prompts, tmp_path)
    assert not (tmp_path / "init").exists()


def test_all_weights_are_trained_but_haodiffs_extractor():
    config = tiny.config("restorer")
    config.model, config.prompt.kind, config.run.train = tiny.DUAL_MODEL, "dual", "all"
    model = abstract(lambda rngs: build_restorer(tiny.DUAL_MODEL, rngs=rngs))
    ours = set(lora.leaves_by_name(nnx.state(model, experiment.trainable(config))))
    every = set(lora.leaves_by_name(nnx.state(model, nnx.Param)))
    kept = {n for n in every if "feature_extractor" in n or n.endswith("projection_matrix")}
    assert ours == every - kept and any("performer" in n for n in kept)
    assert {"vae.encoder.conv_in.kernel", "unet.conv_in.kernel"} < ours
    assert any(n.startswith("prompter.aux_performer.") for n in ours)
