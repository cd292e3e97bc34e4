"""LoRA factors in the files of peft and diffusers, by whatever of their names.

    {"unet.conv_in.lora_A.weight": ..., ...}  ->  {"unet.conv_in": {"A": ..., "B": ...}, ...}

Needed where a file adapts modules of diffusers' networks. Tensors stay unread.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from osdhuman_jax.weights.name_tables import kernel
from osdhuman_jax.weights.torch_files import Tensor, complain

Pair = dict[str, Tensor]  # "A", "B" and perhaps "alpha" of one module
_NAMES = (  # peft's, diffusers' older, and peft's with the adapter's name
    (r"lora_A(?:\.[^.]+)?\.weight", "A"),
    (r"lora_B(?:\.[^.]+)?\.weight", "B"),
    (r"lora\.down\.weight", "A"),
    (r"lora\.up\.weight", "B"),
    (r"alpha", "alpha"),
)


def lora_pairs(source: Mapping[str, Tensor]) -> tuple[dict[str, Pair], list[str]]:
    """Factors by network and module in diffusers ("unet.conv_in"), and the names of all else.

    Where a name does not begin with its network, the module tells which one has such.
    """
    pairs: dict[str, Pair] = {}
    rest = []
    for key, tensor in source.items():
        for pattern, half in _NAMES:
            match = re.fullmatch(rf"(.+?)\.{pattern}", key)
            pair = pairs.setdefault(_with_network(match[1]), {}) if match else {}
            # A second adapter of one module is nothing that a pair could hold.
            if match and half not in pair:
                pair[half] = tensor
                break
        else:
            rest.append(key)
    return pairs, rest


def _with_network(module: str) -> str:
    module = module.replace("base_model.model.", "")
    if re.match(r"(?:unet|vae|text_encoder\w*)\.", module):
        return module
    vae = re.match(r"(?:encoder|decoder|quant_conv|post_quant_conv)(?:\.|$)", module)
    return f"{'vae' if vae else 'unet'}.{module}"


def halves(pairs: Mapping[str, Pair]) -> list[str]:
    """Modules that lack one of their two factors."""
    return [shown(name) for name, pair in pairs.items() if not {"A", "B"} <= set(pair)]


def shown(module: str) -> str:
    """A module as errors name it: the U-Net's as diffusers does, all else with their network."""
    return module.removeprefix("unet.")


def merged(base: Mapping[str, Tensor], pairs: Mapping[str, Pair], path: Path) -> dict[str, Tensor]:
    """Adapted kernels of a base, W + alpha / rank B A, still unread. Raises WeightsError."""
    faults: dict[str, list[str]] = {
        "unknown": [],
        "of another shape": [],
        "not of numbers with a fraction": [],
        "whose alpha is not one number above 0": [],
    }
    made: dict[str, Tensor] = {}
    for module, pair in pairs.items():
        name = f"{module}.kernel"
        if any(pair[half].dtype.kind not in "fV" for half in "AB"):  # V: NumPy's of bfloat16
            faults["not of numbers with a fraction"].append(shown(module))
        if "alpha" in pair and not 0 < _number(pair["alpha"]) < math.inf:
            faults["whose alpha is not one number above 0"].append(shown(module))
        if name not in base:
            faults["unknown"].append(shown(module))
            continue
        tensor = _changed(base[name], pair)
        if tensor is None:
            faults["of another shape"].append(shown(module))
        else:
            made[name] = tensor
    complain(faults, str(path))
    return made


def _number(tensor: Tensor) -> float:
    """The one number of a tensor, or NaN."""
    return float(tensor.read().reshape(())) if math.prod(tensor.shape) == 1 else math.nan


def _changed(weight: Tensor, pair: Pair) -> Tensor | None:
    """A kernel in our layout, (h, w, in, out) or (in, out), with its LoRA; None if none fits."""
    a, b = pair["A"], pair["B"]
    *window, inputs, outputs = weight.shape
    rank = a.shape[0] if a.shape else 0
    # A is as its layer but with `rank` outputs, B takes these to the layer's, pixel by pixel.
    ones = (1,) * len(window)
    if not rank or a.shape != (rank, inputs, *window) or b.shape != (outputs, rank, *ones):
        return None

    def read() -> np.ndarray:
        alpha = _number(pair["alpha"]) if "alpha" in pair else rank
        # Whoever writes the kernel refuses what is not finite: NumPy need not warn of it.
        with np.errstate(over="ignore", invalid="ignore"):
            down, up = (x.read().astype(np.float32) for x in (a, b))
            delta = up.reshape(outputs, rank) @ down.reshape(rank, -1)  # [out, in h w]
            delta = kernel(np.float32(alpha / rank) * delta.reshape(outputs, inputs, *window))
            own = weight.read()
            return (own.astype(np.float32) + delta).astype(own.dtype)

    return replace(weight, read=read)
