"""Weights as their publishers distribute them, small and random, and what the import makes of them.

A session's fixtures: not to be changed.
"""

from pathlib import Path

import make_weights as files
import pytest
import torch
from make_weights import Networks

from osdhuman_jax.weights.importer import import_model


@pytest.fixture(scope="session")
def nets() -> Networks:
    return files.networks()


@pytest.fixture(scope="session")
def ram_state() -> files.State:
    return {**files.ram_encoder(files.swin()), **files.ram_head()}


@pytest.fixture(scope="session")
def sources(nets, ram_state, tmp_path_factory) -> Path:
    """sd/ (diffusers), sd.safetensors, sd.ckpt (LDM), ram.pth, DAPE.pth, vgg16.pth, vgg.pth."""
    folder = tmp_path_factory.mktemp("sources")
    files.diffusers_folder(folder / "sd", nets)
    for name in ("sd.safetensors", "sd.ckpt"):
        files.ldm_file(folder / name, files.ldm_state(nets))
    torch.save({"model": ram_state | files.ram_extras()}, folder / "ram.pth")
    torch.save(files.dape_state(ram_state), folder / "DAPE.pth")
    torch.save(files.vgg(), folder / "vgg16.pth", _use_new_zipfile_serialization=False)
    torch.save(files.lpips_lin(), folder / "vgg.pth", _use_new_zipfile_serialization=False)
    return folder


@pytest.fixture(scope="session")
def model(sources, tmp_path_factory) -> Path:
    """With every part."""
    output = tmp_path_factory.mktemp("models") / "sd21"
    import_model(
        sources / "sd",
        sources / "ram.pth",
        output,
        dape=sources / "DAPE.pth",
        lpips=[sources / "vgg16.pth", sources / "vgg.pth"],
        clip=sources / "sd",
    )
    return output


@pytest.fixture(scope="session")
def published(sources, tmp_path_factory) -> tuple[Networks, Path, Path]:
    """(networks with OSEDiff's adapters, osediff.pkl, imported model)."""
    folder, nets = tmp_path_factory.mktemp("osediff"), files.networks()
    torch.save(files.osediff(nets), folder / "osediff.pkl")
    plain = files.networks()
    for mine, theirs in ((nets.unet, plain.unet), (nets.vae, plain.vae)):
        source = theirs.state_dict()
        for key, value in mine.state_dict().items():  # the base is frozen but for conv_in
            if "lora" not in key and not key.startswith("conv_in."):
                value.copy_(source[key.replace(".base_layer", "")])
    args = (sources / "sd", sources / "ram.pth", folder / "model")
    text = files.text_prompts(folder, sources, plain)
    import_model(*args, generator=folder / "osediff.pkl", **text)
    return nets, folder / "osediff.pkl", folder / "model"
