"""Imported models at work: they restore as PyTorch does, are generators, and can be trained."""

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax.numpy as jnp
import make_weights as files
import numpy as np
import pytest
import torch
from convert import call, nchw, normal
from flax import nnx
from make_weights import MERGES, Networks, meta, same
from safetensors.numpy import load_file

from osdhuman_jax.commands.weights import main
from osdhuman_jax.config import Config, LoRAConfig
from osdhuman_jax.training.checkpoint import Checkpoints, load_generator, record_run
from osdhuman_jax.weights import (
    WeightsError,
    add_lora,
    is_generator,
    load_base,
    load_model,
    save_model,
)
from osdhuman_jax.weights.importer import import_model

BASE, GENERATOR, CONFIG = "base.safetensors", "generator.safetensors", "config.json"


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


def test_generator_of_a_run(model, sources, tmp_path):
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
    assert main([str(word) for word in ("import", *args, "--output", tmp_path / "a")]) == 0
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
    parts = {"lpips": lpips, **files.text_prompts(tmp_path, sources, nets)}
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
