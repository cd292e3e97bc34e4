"""Folders of HAODiff's stage 1: written, described, read again; what is another is refused."""

import json
from dataclasses import replace

import numpy as np
import pytest
from convert import call, filled, normal
from damage import flip
from make_dpg import DPG, dpg
from tiny import MODEL, restorer

from osdhuman_jax.commands.weights import main
from osdhuman_jax.config import to_dict
from osdhuman_jax.networks.swinir import BranchedSwinIR
from osdhuman_jax.weights import WeightsError, load_base, load_cleaner, load_dpg, save_dpg
from osdhuman_jax.weights import save_model as save_restorer
from osdhuman_jax.weights.model_folder import parameters

CONFIG, BASE = "config.json", "base.safetensors"


@pytest.fixture(scope="module")
def network() -> BranchedSwinIR:
    return dpg()


@pytest.fixture(scope="module")
def folder(network, tmp_path_factory):
    folder = tmp_path_factory.mktemp("dpg") / "model"
    save_dpg(folder, DPG, network, provenance={"step": 7})
    return folder


def test_what_is_read_is_what_was_written(network, folder):
    found = load_dpg(folder)
    assert (found.config, found.name) == (DPG, "model") and len(found.digest) == 64
    want, have = parameters(network), parameters(found.network)
    assert set(have) == set(want)
    assert {"conv_first.conv_down1.kernel", "upsamplers.2.conv_last.bias"} <= set(have)
    for name, value in want.items():
        np.testing.assert_array_equal(have[name][...], value[...], err_msg=name)
    x = normal(1, DPG.image_size, DPG.image_size, 3)
    shape = (1, DPG.image_size, DPG.image_size, 1)
    assert call(found.network, x, method="reconstruct").motion.shape == shape


def test_a_folder_says_what_it_is(folder, capsys):
    meta = json.loads((folder / CONFIG).read_text())
    assert (meta["format"], meta["kind"]) == (1, "dpg")
    assert meta["model"] == json.loads(json.dumps(to_dict(DPG)))
    assert set(meta["digests"]) == {BASE} and meta["provenance"] == {"step": 7}
    assert main(["info", str(folder)]) == 0
    told = capsys.readouterr().out
    assert "extractor of HAODiff's prompts (stage 1), 32 px, 3 branches" in told
    assert meta["digests"][BASE] in told


def test_other_kinds_are_told_apart(folder, tmp_path):
    for load in (load_base, load_cleaner):
        with pytest.raises(WeightsError, match="prompts by itself .*; needed here is a"):
            load(folder)
    save_restorer(tmp_path, MODEL, restorer())
    with pytest.raises(WeightsError, match="a restorer.*; needed here is the extractor"):
        load_dpg(tmp_path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"model": {"image_size": 32}}, "missing field"),
        ({"model": to_dict(replace(DPG, upscale=3))}, "sizes that make no network: upscale 3"),
        ({"model": to_dict(replace(DPG, num_branches=2))}, "2 branches for 3 targets"),
        ({"model": to_dict(replace(DPG, embed_dim=8))}, "of another shape"),
        ({"digests": {}}, "do not match the digest"),
    ],
)
def test_a_wrong_description_is_refused(change, reason, folder, tmp_path):
    meta = json.loads((folder / CONFIG).read_text()) | change
    (tmp_path / CONFIG).write_text(json.dumps(meta))
    (tmp_path / BASE).write_bytes((folder / BASE).read_bytes())
    with pytest.raises(WeightsError, match=reason) as error:
        load_dpg(tmp_path)
    assert "\n" not in str(error.value)


def test_a_changed_file_is_refused(network, tmp_path):
    save_dpg(tmp_path, DPG, network)
    flip(tmp_path / BASE)
    with pytest.raises(WeightsError, match="do not match the digest"):
        load_dpg(tmp_path)


def test_a_network_without_upsamplers_is_not_written(tmp_path):
    with pytest.raises(WeightsError, match="not the tensors of a network of such sizes"):
        save_dpg(tmp_path / "a", DPG, filled(lambda rngs: BranchedSwinIR(DPG, rngs=rngs)))
    assert not (tmp_path / "a").exists()
