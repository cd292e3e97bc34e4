"""Export: what PyTorch's libraries load from it computes what the model does."""

import json
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import make_weights as files
import numpy as np
import pytest
import torch
from convert import call, close, nchw, normal
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from peft import PeftModel

from osdhuman_jax.config import LoRAConfig
from osdhuman_jax.methods.osdhuman import OneStepRestorer
from osdhuman_jax.weights import WeightsError, add_lora, load_base, save_model
from osdhuman_jax.weights.exporter import export_model
from osdhuman_jax.weights.importer import import_model
from osdhuman_jax.weights.model_folder import parameters

LORA = LoRAConfig(rank=2, alpha=6.0)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("export")
    files.diffusers_folder(folder / "sd", files.networks())
    torch.save({"model": files.ram_encoder(files.swin())}, folder / "ram.pth")
    import_model(folder / "sd", folder / "ram.pth", folder / "base")
    return folder / "base"


def train(base: Path, folder: Path, lora: LoRAConfig) -> OneStepRestorer:
    """Save the base with LoRA, B not zero, nor `conv_in` what it was where that is trained."""
    restorer, config, _ = load_base(base)
    add_lora(restorer, lora, np.random.default_rng(3))
    rng = np.random.default_rng(4)
    for name, value in parameters(restorer).items():
        if name.endswith("lora_B") or lora.train_conv_in and name.startswith("unet.conv_in."):
            value[...] = jnp.asarray(0.1 * rng.standard_normal(value.shape, np.float32))
    save_model(folder, config, restorer, generator=lora)
    return restorer


@pytest.fixture(scope="module")
def trained(base) -> Path:
    train(base, base.parent / "trained", LORA)
    return base.parent / "trained"


@pytest.fixture(scope="module")
def outputs(trained) -> tuple[np.ndarray, np.ndarray]:
    """(eps, latent) of the model that was exported, LoRA unmerged."""
    restorer = load_base(trained, generator=True)[0]
    z, t, tokens, picture = inputs()
    return call(restorer.unet, z, t, tokens), call(restorer.vae, picture, method="encode")[0]


def inputs() -> tuple[np.ndarray, ...]:
    tokens = normal(1, 5, files.CONTEXT, seed=1)
    return normal(1, 8, 8, 4), np.asarray([999], np.int32), tokens, normal(1, 16, 16, 3, seed=2)


def computed(unet, vae) -> tuple[torch.Tensor, torch.Tensor]:
    z, t, tokens, picture = inputs()
    with torch.no_grad():
        eps = unet(nchw(z), torch.from_numpy(t), torch.from_numpy(tokens)).sample
        return eps, vae.encode(nchw(picture)).latent_dist.mean


def test_diffusers_classes_compute_the_same(trained, outputs, tmp_path):
    export_model(trained, "diffusers", tmp_path / "out")
    unet = UNet2DConditionModel.from_pretrained(tmp_path / "out", subfolder="unet")
    vae = AutoencoderKL.from_pretrained(tmp_path / "out", subfolder="vae")
    assert vae.config.scaling_factor == 0.18215
    for found, want in zip(outputs, computed(unet, vae), strict=True):
        close(found, want, 2e-4)  # merged in one order, added in the other
    scheduler = DDPMScheduler.from_pretrained(tmp_path / "out", subfolder="scheduler")
    assert scheduler.config.prediction_type == "epsilon"
    assert abs(float(scheduler.alphas_cumprod[999]) - 0.0046601) < 1e-6
    assert json.loads((tmp_path / "out" / "osdhuman.json").read_text())["lora"]["rank"] == 2


def test_peft_adapters_compute_the_same(base, trained, outputs, tmp_path):
    export_model(trained, "peft", tmp_path / "out")
    export_model(base, "diffusers", tmp_path / "base")
    unet = UNet2DConditionModel.from_pretrained(tmp_path / "base", subfolder="unet")
    vae = AutoencoderKL.from_pretrained(tmp_path / "base", subfolder="vae")
    plain = computed(unet, vae)
    adapted = [
        PeftModel.from_pretrained(net, str(tmp_path / "out" / name)).base_model.model
        for name, net in (("unet", unet), ("vae", vae))
    ]
    for found, want, before in zip(outputs, computed(*adapted), plain, strict=True):
        close(found, want, 2e-4)
        assert float((want - before).abs().max()) > 0.05


def test_peft_carries_a_conv_in_that_was_trained_in_full(base, tmp_path):
    restorer = train(base, tmp_path / "full", replace(LORA, train_conv_in=True))
    export_model(tmp_path / "full", "peft", tmp_path / "out")
    export_model(base, "diffusers", tmp_path / "base")
    z, t, tokens, _ = inputs()
    unet = UNet2DConditionModel.from_pretrained(tmp_path / "base", subfolder="unet")
    adapted = PeftModel.from_pretrained(unet, str(tmp_path / "out" / "unet")).base_model.model
    with torch.no_grad():
        eps = adapted(nchw(z), torch.from_numpy(t), torch.from_numpy(tokens)).sample
    close(call(restorer.unet, z, t, tokens), eps, 2e-4)


def test_export_and_import_is_the_same_base(base, tmp_path):
    export_model(base, "diffusers", tmp_path / "out")
    import_model(tmp_path / "out", base.parent / "ram.pth", tmp_path / "again")
    digests = [
        json.loads((f / "config.json").read_text())["digests"] for f in (base, tmp_path / "again")
    ]
    assert digests[0] == digests[1]


def test_faults_are_one_line_and_write_nothing(base, trained, tmp_path):
    def refused(said: str, folder: Path, to: str, output: str = "out") -> None:
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(WeightsError, match=said):
            export_model(folder, to, tmp_path / output)
        assert sorted(tmp_path.rglob("*")) == before

    refused("a base model, it holds no LoRA", base, "peft")
    (tmp_path / "there").mkdir()
    refused("there: exists", trained, "diffusers", "there")
    refused("not a model folder", tmp_path, "diffusers")
