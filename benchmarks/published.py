"""A whole restorer in PyTorch, and the files that its networks' authors would publish of it."""

from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks import references
from benchmarks.convert import convert, randomise
from osdhuman_jax.config import LoRAConfig, ModelConfig
from osdhuman_jax.weights.generators import Generator
from osdhuman_jax.weights.torch_files import Tensor

RANK, ALPHA = 4, 8


def hfie_plan(model: ModelConfig) -> dict[str, int]:
    """Arguments that both implementations take."""
    widths = {"dim": model.unet.cross_attention_dim, "kv_dim": model.swin.image_proj_dim}
    heads = {"num_heads": model.hfie.num_heads}
    return {"num_queries": model.hfie.num_queries, **widths, **heads}


def reference_restorer(model: ModelConfig) -> references.Restorer:
    """Whole, with random weights; the last layer is damped, so that few pixels are clamped."""
    theirs = references.Restorer(
        references.vae(asdict(model.vae)),
        references.unet(asdict(model.unet)),
        references.RAM(asdict(model.swin)),
        references.HFIE(**hfie_plan(model)),
        model.timestep,
    )
    randomise(theirs)
    theirs.vae.decoder.conv_out.weight.data *= 0.5
    return theirs


def publish(theirs: references.Restorer, folder: Path) -> tuple[Path, Path]:
    """A diffusers folder and RAM's checkpoint: where the import starts."""
    theirs.vae.save_pretrained(folder / "sd" / "vae")
    theirs.unet.save_pretrained(folder / "sd" / "unet")
    references.SCHEDULER.save_pretrained(folder / "sd" / "scheduler")
    torch.save({"model": theirs.ram.state()}, folder / "ram.pth")
    return folder / "sd", folder / "ram.pth"


def adapt_all(theirs: references.Restorer, model: ModelConfig) -> Generator:
    """peft's adapters put into the reference, in place; they and HFIE as a generator."""
    found: dict[str, Tensor] = {}
    random = torch.Generator().manual_seed(9)
    for network in ("unet", "vae"):
        net = references.adapt(getattr(theirs, network), RANK, ALPHA)
        for key, value in net.named_parameters():
            if "lora_" in key:
                drawn = torch.randn(value.shape, generator=random)
                value.data = 0.1 * drawn / max(1, value[0].numel()) ** 0.5
                path, array = references.from_peft(key, value)
                found[".".join(map(str, (network, *path)))] = Tensor.of(array)
    for key, value in theirs.hfie.state().items():
        path, array = convert(key, value)
        found[".".join(("prompter.hfie", *map(str, path)))] = Tensor.of(array)
    return Generator(LoRAConfig(rank=RANK, alpha=float(ALPHA)), found, "peft", model)
