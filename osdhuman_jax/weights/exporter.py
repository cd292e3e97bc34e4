"""A model folder -> what PyTorch's libraries load.

    diffusers   unet/, vae/, scheduler/ and, where the folder has a ControlNet, controlnet/, with
                LoRA merged, for `from_pretrained(.., subfolder=..)`
    peft        unet/ and vae/ with LoRA alone, for `PeftModel.from_pretrained`

HFIE and RAM's image encoder have no counterpart there: the caller brings the prompt's tokens. A
ControlNet takes its conditions beside the latent, `sample=cat([z, hint], 1)`; diffusers' encoder
of pixel hints is there as well, all zero, so that any `controlnet_cond` does nothing.
"""

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np

from osdhuman_jax.cli import check_folder
from osdhuman_jax.config import Json, LoRAConfig, ModelConfig
from osdhuman_jax.disk import copy_file, staged_folder, write_json
from osdhuman_jax.networks.configs import ControlNetConfig
from osdhuman_jax.weights.choices import LAYOUTS
from osdhuman_jax.weights.model_folder import (
    BASE,
    CONFIG,
    GENERATOR,
    check_tensors,
    read_configs,
    read_meta,
    verify,
)
from osdhuman_jax.weights.name_tables import CONTROL_PIXELS
from osdhuman_jax.weights.parts import read_part
from osdhuman_jax.weights.torch_files import Tensor, WeightsError, load, write_safetensors

NETWORKS = ("unet", "vae")
WEIGHTS = "diffusion_pytorch_model.safetensors"  # diffusers' name of a network's tensors
# Widths of diffusers' encoder of pixel hints, which halves the side between each two of them.
PIXEL_WIDTHS = (16, 32, 96, 256)
CONV_IN = "unet.conv_in"  # which OSEDiff trains in full, beside its adapter
# The schedule that Stable Diffusion was trained with, as its own scheduler_config.json has it.
SCHEDULER = {
    "_class_name": "DDPMScheduler",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "steps_offset": 1,
}


def export_model(folder: Path | str, to: str, output: Path | str) -> None:
    """Write a new folder `output` in the format `to`, whole or not at all. Raises a ValueError."""
    folder, output = Path(folder), Path(output)
    # What cannot be written is refused before gigabytes are read to be verified.
    if os.path.lexists(output):
        raise WeightsError(f"{output}: exists; name a new --output")
    check_folder("output", output.absolute().parent)
    meta = read_meta(folder)
    # Every file is proved before one of its tensors goes out under this model's name.
    names = [BASE, GENERATOR] if meta["lora"] else [BASE]
    verify(folder, meta, *names)
    model, adapters = read_configs(folder, meta)
    # Unread: shapes are enough to see that none is missing.
    tensors = {name: t for file in names for name, t in load(folder / file).items()}
    check_tensors(tensors, model, adapters, str(folder))
    control = _controlnet(folder, meta, model) if to == "diffusers" else None
    # Tensors are read while they are written, one at a time.
    with staged_folder(output) as made:
        FORMATS[to](made, tensors, model, adapters)
        if control:
            _save(made / "controlnet", WEIGHTS, control[0], "config.json", control[1])
        copy_file(folder / CONFIG, made / "osdhuman.json")  # provenance and licences


def torch_layout(x: np.ndarray) -> np.ndarray:
    """A convolution's weights HWIO as OIHW, a linear layer's (in, out) as (out, in)."""
    return x.transpose(3, 2, 0, 1) if x.ndim == 4 else x.T


def _save(folder: Path, file: str, tensors: Mapping[str, Tensor], config: str, what: Json) -> None:
    folder.mkdir()
    write_safetensors(folder / file, tensors, {"format": "pt"})
    write_json(folder / config, what)


# diffusers


def _to_diffusers(
    output: Path, tensors: dict[str, Tensor], model: ModelConfig, adapters: LoRAConfig | None
) -> None:
    # Our names are diffusers' but for the prefix and the ends of kernels and scales.
    configs = {"unet": _unet_json(model), "vae": _vae_json(model)}
    for network in NETWORKS:
        made = _torch_names(_merged(tensors, adapters), f"{network}.")
        _save(output / network, WEIGHTS, made, "config.json", configs[network])
    (output / "scheduler").mkdir()
    write_json(output / "scheduler" / "scheduler_config.json", SCHEDULER)


def _torch_names(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Those of one network by diffusers' names, in PyTorch's layout."""
    made = {}
    for name, tensor in tensors.items():
        if name.startswith(prefix):
            path, kind = name.removeprefix(prefix).rsplit(".", 1)
            made[f"{path}.{'bias' if kind == 'bias' else 'weight'}"] = tensor.view(torch_layout)
    return made


def _controlnet(
    folder: Path, meta: Json, model: ModelConfig
) -> tuple[dict[str, Tensor], Json] | None:
    """Tensors and settings of the folder's ControlNet for diffusers' class, if it has one."""
    if "control" not in meta.get("parts", {}):
        return None
    part = read_part(folder, "control")
    config = part.config
    assert isinstance(config, ControlNetConfig)
    tensors = _torch_names(part.tensors, "control.")
    # An encoder of pixel hints as diffusers' class must have one, from pixels to latents.
    halvings = round(math.log2(model.vae.downscale))
    widths = [PIXEL_WIDTHS[min(i, len(PIXEL_WIDTHS) - 1)] for i in range(halvings + 1)]
    dtype = tensors["conv_in.weight"].dtype
    tensors |= _no_pixels([3, *widths, model.unet.block_out_channels[0]], dtype)
    unet = _unet_json(model)
    own: Json = {
        "_class_name": "ControlNetModel",
        "in_channels": config.in_channels,
        "conditioning_embedding_out_channels": widths,
    }
    return tensors, {n: v for n, v in unet.items() if n not in _NOT_DOWN} | own


# Settings of a U-Net that are of its way up.
_NOT_DOWN = ("out_channels", "up_block_types")


def _no_pixels(widths: list[int], dtype: np.dtype) -> dict[str, Tensor]:
    """diffusers' ControlNetConditioningEmbedding with these widths, all zero."""
    first, *inner, last = pairwise(widths)
    # Between two widths are two layers: one that keeps its input's width, one that halves the side.
    blocks = [pair for a, b in inner for pair in ((a, a), (a, b))]
    layers = {"conv_in": first, "conv_out": last}
    layers |= {f"blocks.{i}": pair for i, pair in enumerate(blocks)}
    made = {}
    for name, (into, out) in layers.items():
        for end, shape in (("weight", (out, into, 3, 3)), ("bias", (out,))):
            zeros = partial(np.zeros, shape, dtype)
            made[f"{CONTROL_PIXELS}{name}.{end}"] = Tensor(shape, dtype, zeros)
    return made


def _merged(tensors: dict[str, Tensor], adapters: LoRAConfig | None) -> dict[str, Tensor]:
    """Kernels with scale * A B added, each computed when it is read."""
    # A convolution's A has its kernel's axes, so that A B is a kernel too.
    made = {n: t for n, t in tensors.items() if not n.endswith((".lora_A", ".lora_B"))}
    for name in tensors:
        if name.endswith(".lora_A") and adapters:
            layer = name.removesuffix(".lora_A")
            three = (made[f"{layer}.kernel"], tensors[name], tensors[f"{layer}.lora_B"])
            made[f"{layer}.kernel"] = _sum(*three, adapters.alpha / adapters.rank)
    return made


def _sum(kernel: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    def read() -> np.ndarray:
        base = kernel.read()
        # In float32, and rounded once to what the file keeps.
        delta = np.float32(scale) * (a.read() @ b.read())
        return (base.astype(np.float32) + delta).astype(base.dtype)

    return Tensor(kernel.shape, kernel.dtype, read)


def _unet_json(model: ModelConfig) -> Json:
    unet = asdict(model.unet)
    # Fields have diffusers' names already, but for the one that diffusers misnames.
    heads = unet.pop("num_attention_heads")
    down = unet["down_block_types"]
    return {
        "_class_name": "UNet2DConditionModel",
        **unet,
        "attention_head_dim": heads,  # diffusers' name for the number of heads
        "out_channels": unet["in_channels"],
        "up_block_types": [kind.replace("Down", "Up") for kind in reversed(down)],
        "mid_block_type": "UNetMidBlock2DCrossAttn",
        "use_linear_projection": True,
    }


def _vae_json(model: ModelConfig) -> Json:
    levels = len(model.vae.block_out_channels)
    return {
        "_class_name": "AutoencoderKL",
        **asdict(model.vae),
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
    }


# peft


def _to_peft(
    output: Path, tensors: dict[str, Tensor], model: ModelConfig, adapters: LoRAConfig | None
) -> None:
    if adapters is None:
        raise WeightsError("a base model, it holds no LoRA to export")
    # For conv_in alone, which OSEDiff trains in full: peft keeps such a layer whole.
    full = _merged(tensors, adapters)
    for network in NETWORKS:
        made, layers = {}, []
        for name, tensor in tensors.items():
            path, kind = name.rsplit(".", 1)
            layer = path.removeprefix(f"{network}.")
            if not name.startswith(f"{network}.") or kind not in ("lora_A", "lora_B"):
                continue
            # Its adapter is merged into the whole layer below.
            if adapters.train_conv_in and path == CONV_IN:
                continue
            # peft keeps a convolution's B as a pointwise convolution, a linear layer's as a matrix.
            conv = len(tensors[f"{path}.kernel"].shape) == 4
            pointwise = conv and kind == "lora_B"  # a 1x1 convolution in peft
            turned = tensor.view(_pointwise if pointwise else torch_layout)
            made[f"base_model.model.{layer}.{kind}.weight"] = turned
            layers += [layer] if kind == "lora_A" else []
        config = _adapter_json(adapters, sorted(layers))
        if adapters.train_conv_in and network == "unet":  # whole, its own adapter merged
            made["base_model.model.conv_in.weight"] = full[f"{CONV_IN}.kernel"].view(torch_layout)
            made["base_model.model.conv_in.bias"] = full[f"{CONV_IN}.bias"]
            config["modules_to_save"] = ["conv_in"]
        if layers:
            file = "adapter_model.safetensors"
            _save(output / network, file, made, "adapter_config.json", config)


def _pointwise(x: np.ndarray) -> np.ndarray:
    """(rank, out) -> (out, rank, 1, 1)."""
    return x.T[:, :, None, None]


def _adapter_json(adapters: LoRAConfig, layers: list[str]) -> Json:
    return {
        "peft_type": "LORA",
        "r": adapters.rank,
        "lora_alpha": adapters.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": layers,
        "inference_mode": True,
    }


Writer = Callable[[Path, dict[str, Tensor], ModelConfig, LoRAConfig | None], None]
FORMATS: dict[str, Writer] = dict(zip(LAYOUTS, (_to_diffusers, _to_peft), strict=True))
