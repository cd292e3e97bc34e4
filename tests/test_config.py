"""Configurations: through JSON and back, the paper's values, and flags on the command line."""

import importlib
import json
from pathlib import Path

import pytest
from absl import flags

from configs import base, diffbody, diffbody_nostruct, diffbody_notext, models
from osdhuman_jax.commands.config_flags import define_config
from osdhuman_jax.config import Config, ConfigError, ModelConfig, from_dict, to_dict

ROOT = Path(__file__).parent.parent
PRESETS = sorted(
    p.stem for p in (ROOT / "configs").glob("*.py") if p.stem not in ("models", "curate")
)


def through_json(config):
    return from_dict(type(config), json.loads(json.dumps(to_dict(config))))


@pytest.mark.parametrize(
    "config", [Config(), ModelConfig(), models.tiny(), models.nano(), models.small()]
)
def test_json_round_trip(config):
    assert through_json(config) == config


@pytest.mark.parametrize("name", PRESETS)
def test_presets_come_back_from_json_and_are_new_each_time(name):
    get_config = importlib.import_module(f"configs.{name}").get_config
    config = get_config()
    assert isinstance(config, Config) and through_json(config) == config
    config.model.vae.scaling_factor = -1.0
    assert get_config().model.vae.scaling_factor > 0


def test_unknown_and_missing_fields_are_named():
    values = to_dict(Config())
    values["model"]["unet"] |= {"depth": 3, "act": "relu"}
    with pytest.raises(ConfigError, match=r"^UNetConfig: unknown field\(s\) act, depth$"):
        from_dict(Config, values)
    values = to_dict(Config())
    del values["optim"]["b1"], values["optim"]["eps"]
    with pytest.raises(ConfigError, match=r"^OptimConfig: missing field\(s\) b1, eps$"):
        from_dict(Config, values)


def test_younger_fields_have_their_old_meaning_where_a_file_lacks_them():
    values = to_dict(Config())
    for section, name in (("run", "train"), ("data", "kinds"), ("loss", "l1")):
        del values[section][name]
    del values["model"]["vae"]["stem"]
    assert from_dict(Config, values) == Config()


@pytest.mark.parametrize("value", [3, None, "vae", [1]])
def test_value_in_the_place_of_a_section_is_named(value):
    with pytest.raises(ConfigError, match="^VAEConfig: not a table of fields"):
        from_dict(ModelConfig, to_dict(ModelConfig()) | {"vae": value})


TAGS_OF_HQ = {"prompt.kind": "dape", "prompt.source": "hq"}
ABLATIONS = {
    "table3_lsdir": {"data.sources": ("data/lsdir",)},
    "table4_null": {"prompt.kind": "null"},
    "table4_dape_hq": TAGS_OF_HQ,
    "table4_hfie_hq": {"prompt.source": "hq"},
    "table4_hfie_lq": {},
    "osediff": {
        "data.sources": ("data/lsdir", "data/ffhq10k"),
        **TAGS_OF_HQ,
        "prompt.kind": "ram",
        "lora.train_conv_in": True,
        "loss.cfg_vsd": 7.5,
        "loss.reg_lora_scope": "mid",
    },
}


@pytest.mark.parametrize("name", ABLATIONS)
def test_an_ablation_is_the_papers_run_but_for(name):
    config = importlib.import_module(f"configs.{name}").get_config()
    config.loss.negative_prompt = base.get_config().loss.negative_prompt
    ours, paper = to_dict(config), to_dict(base.get_config())
    different = {
        f"{section}.{field}": getattr(getattr(config, section), field)
        for section, fields in ours.items()
        for field, value in fields.items()
        if value != paper[section][field]
    }
    assert different == ABLATIONS[name]


def test_diffbodys_ablations_are_its_run_but_for_what_they_leave_out():
    """Figures 7 and 8; where a folder is, and how it is used, follows from that."""
    whole = to_dict(diffbody.get_config())
    found = {}
    for name, config in (("struct", diffbody_nostruct), ("text", diffbody_notext)):
        ours = to_dict(config.get_config())
        found[name] = {
            f"{section}.{field}": ours[section][field]
            for section, fields in whole.items()
            for field, value in fields.items()
            if ours[section][field] != value and field not in ("init", "sample")
        }
    gone = {"control.pose": False, "control.attention": False, "loss.attention": 0.0}
    assert found["struct"] == gone | {"data.poses": [], "run.eval_poses": []}
    assert found["text"] == {"data.captions": [], "run.eval_captions": []}


def test_paper_values():
    config = base.get_config()
    assert config.run.kind == "restorer"
    assert config.model.timestep == 999
    assert (config.lora.rank, config.lora.alpha) == (4, 8.0)
    assert (config.lora.vae_encoder, config.lora.unet, config.lora.train_conv_in) == (
        True,
        True,
        False,
    )
    assert (config.loss.mse, config.loss.lpips, config.loss.vsd) == (1.0, 2.0, 1.0)
    assert (config.loss.cfg_vsd, config.loss.vsd_timesteps) == (1.0, (20, 980))
    assert (config.optim.learning_rate, config.optim.schedule) == (5e-5, "constant")
    assert (config.data.batch_size, config.data.crop, config.run.steps) == (16, 512, 35_000)


def test_base_config_says_only_where_things_are():
    ours, defaults = to_dict(base.get_config()), to_dict(Config())
    changed = {(s, n) for s in ours for n in ours[s] if ours[s][n] != defaults[s][n]}
    assert changed == {("data", "sources"), ("run", "init"), ("run", "eval_sources")}


def parse(*overrides: str) -> Config:
    """What `train.py` reads from its command line."""
    values = flags.FlagValues()
    argv = ["train.py", "--config", str(ROOT / "configs/base.py"), *overrides]
    values(define_config(argv, values))
    return values["config"].value


@pytest.mark.parametrize(
    ("flag", "section", "name", "value"),
    [
        ("learning_rate=1e-4", "optim", "learning_rate", 1e-4),
        ("sources=('a','b')", "data", "sources", ("a", "b")),
        ("flip=false", "data", "flip", False),
        ("precision=fp32", "run", "precision", "fp32"),
    ],
)
def test_flag_changes_one_field(flag, section, name, value):
    expected = base.get_config()
    setattr(getattr(expected, section), name, value)
    assert parse(f"--config.{section}.{flag}") == expected != base.get_config()


def test_flag_reaches_a_nested_section():
    found = parse("--config.model.vae.block_out_channels=(8,16)")
    assert found.model.vae.block_out_channels == (8, 16)
