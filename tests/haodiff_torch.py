"""HAODiff's published files, small and random: what the tests of its import read.

The networks are those of `benchmarks.haodiff_torch`; files have their buffers, duplicates and what
the training alone needs.
"""

import math
from pathlib import Path

import torch
from convert import randomise
from make_weights import Networks
from safetensors.torch import save_file
from torch import nn

from benchmarks.haodiff_torch import Extractor, Generator, favor_of_numpy

__all__ = ["Extractor", "Generator", "favor_of_numpy"]

SWINIR = {
    "img_size": 512,
    "patch_size": 1,
    "in_chans": 3,
    "embed_dim": 8,
    "depths": [2, 1],
    "num_heads": [2, 1],
    "window_size": 8,
    "mlp_ratio": 2.0,
    "upscale": 4,
    "downsample": True,
    "ape": True,
    "img_range": 1.0,
    "resi_connection": "1conv",
    "branch_num": 3,
    "pretrained_swinir": "experiments/pretrained.pth",
}
PERFORMER = {
    "dim_head": 4,
    "embed_dim": 32,
    "mid_tokens": 64,
    "out_tokens": 5,
    "num_layers": 2,
    "num_heads_performer": 2,
    "num_heads_pool": 2,
    "light_changer": False,
}
FEATURES = int(4 * math.log(4))  # random ones of a Performer, by the width of its heads


def generator(seed: int = 5, **sizes) -> Generator:
    """With random weights and projections."""
    made = randomise(Generator(SWINIR | sizes, PERFORMER), seed)
    for name, buffer in made.named_buffers():
        if name.endswith("projection_matrix") and "updater" not in name:
            rng = torch.Generator().manual_seed(len(name))
            buffer.copy_(torch.randn(buffer.shape, generator=rng))
    return made.eval().requires_grad_(False)


def checkpoint(net: Generator) -> dict:
    return {
        "model_state_dict": net.state_dict(),
        "swinir_kwargs": dict(SWINIR),
        "performer_kwargs": dict(PERFORMER),
    }


def lora(nets: Networks, rank: int = 2) -> dict[str, torch.Tensor]:
    """Random factors of every kernel of the U-Net, by peft's names, scaled to matter."""
    rng, made = torch.Generator().manual_seed(9), {}
    for name, module in nets.unet.named_modules():
        if not isinstance(module, (nn.Linear, nn.Conv2d)):
            continue
        out, into, *window = module.weight.shape
        ones = (1,) * len(window)
        fan_in = module.weight[0].numel()
        a = torch.randn((rank, into, *window), generator=rng) / fan_in**0.5
        b = 0.3 * torch.randn((out, rank, *ones), generator=rng)
        made |= {f"unet.{name}.lora_A.weight": a, f"unet.{name}.lora_B.weight": b}
    return made


def with_lora(nets: Networks, factors: dict[str, torch.Tensor]) -> None:
    """Add the factors to the weights of `nets.unet`, in place."""
    for name, module in nets.unet.named_modules():
        if (key := f"unet.{name}.lora_A.weight") in factors:
            a, b = factors[key], factors[f"unet.{name}.lora_B.weight"]
            module.weight.data += (b.flatten(1) @ a.flatten(1)).view(module.weight.shape)


def folder(path: Path, net: Generator, factors: dict[str, torch.Tensor]) -> Path:
    """The two published files."""
    path.mkdir()
    torch.save(checkpoint(net), path / "img_encoder_weights.pth")
    save_file(factors, path / "pytorch_lora_weights.safetensors")
    return path


def restored(nets: Networks, net: Generator, lq: torch.Tensor, guidance: float) -> torch.Tensor:
    """The published inference in one pass, of the posterior's mean, not clamped to 8 bits."""
    negative, positive = net(lq)
    z = nets.vae.encode(lq).latent_dist.mean * nets.vae.config.scaling_factor
    t = torch.full((len(z),), 199)
    eps = [nets.unet(z, t, encoder_hidden_states=p).sample for p in (negative, positive)]
    guided = eps[0] + guidance * (eps[1] - eps[0])
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    bar = float(torch.cumprod(1 - betas, 0)[199])
    z = (z - (1 - bar) ** 0.5 * guided) / bar**0.5
    return nets.vae.decode(z / nets.vae.config.scaling_factor).sample.clamp(-1, 1)
