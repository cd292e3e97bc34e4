"""What is imported beside Stable Diffusion: RAM, DAPE and LPIPS.

Tensors come back unread and with our names; sizes are read off their shapes.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from osdhuman_jax.config import ModelConfig
from osdhuman_jax.networks.configs import (
    VGG16,
    DISTSConfig,
    LPIPSConfig,
    SwinConfig,
    TaggerConfig,
)
from osdhuman_jax.networks.swin import RAMEncoder
from osdhuman_jax.weights import name_tables
from osdhuman_jax.weights.diffusion import state
from osdhuman_jax.weights.model_folder import abstract, shapes
from osdhuman_jax.weights.parts import Part, part_shapes
from osdhuman_jax.weights.torch_files import Tensor, WeightsError

RAM_LICENCE = "Apache-2.0 (RAM)"
DAPE_RANK = 8  # SeeSR, whose file does not say; loralib's alpha is 1, so the scale is 1 / 8
ENCODER = "prompter.image_encoder."


# RAM


@dataclass
class RAM:
    """Image encoder (with the restorer's names) and, where the file has it, the tagging head."""

    swin: SwinConfig
    encoder: dict[str, Tensor]
    tagger: Part[TaggerConfig] | None
    file: Path


def read_ram(path: Path) -> RAM:
    """ram_swin_large_14m.pth, or another file of its layout. Raises WeightsError."""
    source = state(path, "model")
    # Relatives of RAM fail by name, not by a list of tensors that nobody can read.
    _check_ram(path, source)
    # What the file must have follows from its own sizes.
    swin = _swin_sizes(path, source)
    encoder = shapes(abstract(lambda rngs: RAMEncoder(swin, rngs=rngs), "ram", swin))
    targets = {ENCODER + name: shape for name, shape in encoder.items()}
    sizes = _tagger_sizes(source)
    if sizes:
        names = part_shapes("tagger", sizes, ModelConfig(swin=swin))
        targets |= {n: shape for n, shape in names.items() if n.startswith("tagger.")}
    table = {**name_tables.RAM_ENCODER, **name_tables.RAM_TAGGER}
    found = name_tables.convert(source, table, targets, str(path), ignore=name_tables.RAM_IGNORE)
    # The restorer takes the encoder, the prompts of tags the head.
    head = {n: t for n, t in found.items() if n.startswith("tagger.")}
    encoder = {n: t for n, t in found.items() if n.startswith(ENCODER)}
    return RAM(swin, encoder, Part(sizes, head, [path]) if sizes else None, path)


def _check_ram(path: Path, source: Mapping[str, Tensor]) -> None:
    """Raise WeightsError, with its name, where a file is of one of RAM's relatives."""
    needed = "needed is RAM (ram_swin_large_14m.pth)"
    labels = source.get("label_embed")
    # RAM++ has 51 descriptions of each of its 4585 tags in the place of one.
    if "reweight_scale" in source or (labels and labels.shape[0] == 51 * 4585):
        why = "its 51 descriptions of each tag are weighed by the image, and HFIE and DAPE were"
        raise WeightsError(f"{path}: this is RAM++; {why} made with RAM's encoder; {needed}")
    if "label_embed.weight" in source:
        raise WeightsError(f"{path}: this is Tag2Text; {needed}")
    if "visual_encoder.patch_embed.proj.weight" not in source:
        raise WeightsError(f"{path}: holds no Swin visual_encoder; {needed}")


def _swin_sizes(path: Path, source: Mapping[str, Tensor]) -> SwinConfig:
    # Names tell how many blocks each level has; shapes tell the rest.
    block = r"visual_encoder\.layers\.(\d+)\.blocks\.(\d+)\.attn\.qkv\.weight"
    pairs = {(int(m[1]), int(m[2])) for k in source if (m := re.fullmatch(block, k))}
    depths = [sum(i == stage for i, _ in pairs) for stage in sorted({i for i, _ in pairs})]
    first = "visual_encoder.layers.{}.blocks.0."
    try:
        patch = source["visual_encoder.patch_embed.proj.weight"].shape
        heads = [
            source[first.format(i) + "attn.relative_position_bias_table"].shape
            for i in range(len(depths))
        ]
        hidden = source[first.format(0) + "mlp.fc1.weight"].shape
        width = source["image_proj.weight"].shape[0]
        # A table of relative positions has (2 window - 1) squared rows.
        window = (math.isqrt(heads[0][0]) + 1) // 2
        # The paper's RAM has 24 blocks in four stages; other files of its layout are read alike.
        return SwinConfig(
            image_size=_image_size(source, patch[2], window, len(depths)),
            patch_size=patch[2],
            embed_dim=patch[0],
            depths=tuple(depths),
            num_heads=tuple(shape[1] for shape in heads),
            window_size=window,
            mlp_ratio=hidden[0] / hidden[1],
            image_proj_dim=width,
        )
    except (KeyError, IndexError) as error:
        raise WeightsError(f"{path}: tensors 1 missing or misshapen ({error})") from error


def _image_size(source: Mapping[str, Tensor], patch: int, window: int, stages: int) -> int:
    """Side of the pictures, by the mask of the first shifted block.

    Without a mask the last stage is one window, as in RAM.
    """
    # The mask has a row for each window of the picture.
    mask = source.get("visual_encoder.layers.0.blocks.1.attn_mask")
    side = math.isqrt(mask.shape[0]) * window if mask else window * 2 ** (stages - 1)
    return patch * side


def _tagger_sizes(source: Mapping[str, Tensor]) -> TaggerConfig | None:
    """Sizes of the tagging head, or None where the file has none."""
    layer = r"(?:tagging_head|vision_multi)\.encoder\.layer\.(\d+)\.intermediate\.dense\.weight"
    found = {k: t for k, t in source.items() if re.fullmatch(layer, k)}
    labels = source.get("label_embed")
    # Files of the encoder alone are of use too: HFIE needs no tags.
    if not found or labels is None or len(labels.shape) != 2:
        return None
    hidden, width = next(iter(found.values())).shape
    return TaggerConfig(
        num_tags=labels.shape[0],
        label_dim=labels.shape[1],
        hidden_size=width,
        num_hidden_layers=len(found),
        num_attention_heads=TaggerConfig.ram().num_attention_heads,  # shapes do not show it
        intermediate_size=hidden,
    )


# DAPE


def add_dape(path: Path, ram: RAM) -> Part[TaggerConfig]:
    """RAM's tagger with DAPE merged: W + B A / 8 in its head and in the Swin's queries and values.

    The image encoder's changed kernels come with it; the restorer's stay RAM's own.
    """
    if ram.tagger is None:
        raise WeightsError(f"{ram.file}: has no tagging head for DAPE to change")
    # Which layers are adapted, and with which shapes of A and B, follows from RAM's own.
    encoder = {n.removeprefix("prompter."): t for n, t in ram.encoder.items()}
    base = {**ram.tagger.tensors, **encoder}
    layers = [n.removesuffix(".kernel") for n in base if re.search(_DAPE_LAYERS, n)]
    targets = {}
    for layer in layers:
        into, out = base[f"{layer}.kernel"].shape
        fused = layer.endswith("qkv")  # adapted are q and v: two of three
        targets[f"{layer}.lora_A"] = (DAPE_RANK * (1 + fused), into)
        targets[f"{layer}.lora_B"] = (out * 2 // 3 if fused else out, DAPE_RANK)
    found = name_tables.convert(
        state(path), name_tables.DAPE, targets, str(path), ignore=name_tables.RAM_IGNORE
    )
    merged = {
        f"{n}.kernel": _merged(base[f"{n}.kernel"], found[f"{n}.lora_A"], found[f"{n}.lora_B"])
        for n in layers
    }
    return Part(ram.tagger.config, ram.tagger.tensors | merged, [ram.file, path])


_DAPE_LAYERS = r"(?:\.attn\.qkv|crossattention\.self\.(?:query|key))\.kernel$"


def _merged(kernel: Tensor, a: Tensor, b: Tensor) -> Tensor:
    def read() -> np.ndarray:
        down, up = a.read().astype(np.float32), b.read().astype(np.float32)
        if len(down) > DAPE_RANK:  # query and value; the key between them stays
            q, v = (u @ d for u, d in zip(np.split(up, 2), np.split(down, 2), strict=True))
            delta = np.concatenate([q, np.zeros_like(q), v])
        else:
            delta = up @ down
        base = kernel.read()
        return (base.astype(np.float32) + delta.T / DAPE_RANK).astype(base.dtype)

    return Tensor(kernel.shape, kernel.dtype, read)


# LPIPS


def read_lpips(paths: Sequence[Path]) -> Part[LPIPSConfig]:
    """torchvision's VGG16 and the channels' weights of LPIPS v0.1, in one file or two."""
    source: dict[str, Tensor] = {}
    for path in paths:
        found = state(path)
        # Of two files that both hold a tensor, nobody could say which one counts.
        if twice := sorted(set(source) & set(found)):
            raise WeightsError(f"{path}: tensors {len(twice)} twice ({', '.join(twice[:5])})")
        source |= found
    where = " and ".join(map(str, paths))
    config = LPIPSConfig(tuple(_vgg_plan(source)))
    targets = part_shapes("lpips", config, ModelConfig())
    found = name_tables.convert(
        source, name_tables.LPIPS, targets, where, ignore=name_tables.LPIPS_IGNORE
    )
    return Part(config, found, list(paths))


def read_dists(path: Path, vgg: Part[LPIPSConfig]) -> Part[DISTSConfig]:
    """weights.pt of DISTS-pytorch, for the VGG16 that LPIPS brings."""
    config = DISTSConfig.of(vgg.config)
    targets = part_shapes("dists", config, ModelConfig())
    found = name_tables.convert(state(path), name_tables.DISTS, targets, str(path))
    return Part(config, found, [path])


def _vgg_plan(source: Mapping[str, Tensor]) -> list[int]:
    """VGG16's plan with the widths of the file; a width that is missing is the usual one."""
    # torchvision numbers convolutions and the ReLUs between them: a convolution is two further.
    plan, index = [], 0
    for usual in VGG16:
        tensor = source.get(f"features.{index}.bias")
        plan.append((tensor.shape[0] if tensor and tensor.shape else usual) if usual else 0)
        index += 2 if usual else 1
    return plan
