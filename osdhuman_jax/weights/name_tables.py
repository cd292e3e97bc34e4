"""Names of other people's weights -> ours: tables {pattern: [(name, transform), ...]}, ONE loader.

A pattern is a regular expression that must match the whole source name; \\1 in our name is its
first group. The first pattern that matches is taken, and every source name must match one, or a
pattern of the ignore list beside the table. Sources of the names: diffusers, CompVis' and
Stability's latent diffusion ("LDM"), OpenCLIP, transformers, RAM, SeeSR (DAPE), OSEDiff, lpips.
"""

import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from osdhuman_jax.weights.torch_files import Tensor, complain

Transform = Callable[[np.ndarray], np.ndarray]
Table = Mapping[str, Sequence[tuple[str, Transform]]]
Shapes = Mapping[str, tuple[int, ...]]


# Transforms: views only, so that the shape is known before anything is read.


def same(x: np.ndarray) -> np.ndarray:
    """The array as it is: biases, scales, embeddings."""
    return x


def kernel(x: np.ndarray) -> np.ndarray:
    """A convolution's weights OIHW as HWIO, a linear layer's (out, in) as (in, out)."""
    return x.transpose(2, 3, 1, 0) if x.ndim == 4 else x.T


def linear(x: np.ndarray) -> np.ndarray:
    """(out, in), or the 1x1 convolution (out, in, 1, 1) of older files -> (in, out)."""
    return x[:, :, 0, 0].T if x.shape[2:] == (1, 1) else x.T


def third(index: int) -> Transform:
    """Query (0), key (1) or value (2) of a fused projection, as `linear` or `same` gives it."""

    def part(x: np.ndarray) -> np.ndarray:
        size = len(x) // 3
        return x[index * size : (index + 1) * size].T

    return part


def convert(
    source: Mapping[str, Tensor],
    table: Table,
    targets: Shapes,
    where: str,
    *,
    ignore: Sequence[str] = (),
    rename: Callable[[str], str] = str,
) -> dict[str, Tensor]:
    """Tensors by our names, still unread: each source name used once, each target filled once.

    `rename` turns a source name into the one that the table knows. Raises WeightsError with the
    first names of each kind of fault.
    """
    # Nothing is raised on the way: the error in the end lists faults of every kind.
    found: dict[str, Tensor] = {}
    faults: dict[str, list[str]] = {kind: [] for kind in FAULTS}
    for key, tensor in source.items():
        if any(re.fullmatch(pattern, key) for pattern in ignore):
            continue
        # What the table says of this name, all of whose targets must be there.
        rules = _rules(rename(key), table)
        if not rules or any(name not in targets for name, _ in rules):
            faults["unknown"].append(key)
            continue
        # Views, whose shapes show what is wrong before a byte is read.
        for name, transform in rules:
            made = _turned(tensor, transform)
            if name in found:
                faults["of one layer twice"].append(key)
            if made.shape != targets[name]:
                faults["of another shape"].append(
                    f"{key} {_by(made.shape)}, not {_by(targets[name])}"
                )
            if tensor.dtype.kind not in "fV":  # V: NumPy's kind of bfloat16
                faults["not of numbers with a fraction"].append(f"{key} {tensor.dtype}")
            found[name] = made
    faults["missing"] = sorted(set(targets) - set(found))
    complain(faults, where)
    return found


def _turned(tensor: Tensor, transform: Transform) -> Tensor:
    """The tensor in our layout; as it is where it lacks the axes that the transform takes."""
    try:
        return tensor.view(transform)
    except (TypeError, ValueError, LookupError):
        return tensor


FAULTS = (
    "missing",
    "unknown",
    "of one layer twice",
    "of another shape",
    "not of numbers with a fraction",
)


def _by(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def _rules(key: str, table: Table) -> list[tuple[str, Transform]]:
    for pattern, rules in table.items():
        if match := re.fullmatch(pattern, key):
            return [(match.expand(name), transform) for name, transform in rules]
    return []


# diffusers

# Layers by their kind, which their names tell: it decides how a weight is turned.
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_LINEAR = r"(?:to_[qkv]|to_out\.0|proj_in|proj_out|net\.0\.proj|net\.2|linear_[12]|time_emb_proj)"
_CONV = r"(?:conv|conv[12]|conv_in|conv_out|conv_shortcut|quant_conv|post_quant_conv)"
_NORM = r"(?:norm|norm[123]|group_norm|conv_norm_out)"


def diffusers(network: str) -> Table:
    """UNet2DConditionModel ("unet") or AutoencoderKL ("vae"), of any version of diffusers."""
    old = {
        rf"(.+)\.{a}\.{end}": [(rf"{network}.\1.{b}.{ours}", transform)]
        for a, b in _OLD_ATTENTION.items()
        for end, ours, transform in (("weight", "kernel", linear), ("bias", "bias", same))
    }
    return {
        **old,
        rf"((?:.+\.)?{_LINEAR})\.weight": [(rf"{network}.\1.kernel", linear)],
        rf"((?:.+\.)?{_CONV})\.weight": [(rf"{network}.\1.kernel", kernel)],
        rf"((?:.+\.)?{_NORM})\.weight": [(rf"{network}.\1.scale", same)],
        r"(.+)\.bias": [(rf"{network}.\1.bias", same)],
    }


# ControlNetModel: a U-Net's encoder, and the convolutions to the U-Net.
CONTROL: Table = {
    r"(controlnet_(?:down_blocks\.\d+|mid_block))\.weight": [(r"control.\1.kernel", kernel)],
    **diffusers("control"),
}
# Its encoder of pixel hints, which does nothing where its last layer is zero.
CONTROL_PIXELS = "controlnet_cond_embedding."


# LDM single files: names of blocks are numbers, so they are first turned into diffusers' names.

LDM_UNET, LDM_VAE, LDM_CLIP = "model.diffusion_model.", "first_stage_model.", "cond_stage_model."
LDM_IGNORE = (
    r"model_ema\..*",  # diffusers, too, takes the plain weights where a file has both
    r"(?:betas|alphas_.*|sqrt_.*|log_one_minus_.*|posterior_.*|logvar|lvlb_weights|scale_factor)",
)
# The parts of a residual block, in the order in which they are computed.
_RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}


def ldm_unet_names(levels: int, layers: int) -> dict[str, str]:
    """Modules of LDM's U-Net with `levels` resolutions of `layers` resnets -> diffusers'."""
    # Layers outside of the levels.
    step, names = layers + 1, {"input_blocks.0.0": "conv_in", "out.0": "conv_norm_out"}
    names |= {"out.2": "conv_out", "time_embed.0": "time_embedding.linear_1"}
    names |= {"time_embed.2": "time_embedding.linear_2", "middle_block.1": "mid_block.attentions.0"}
    names |= _resnet("middle_block.0", "mid_block.resnets.0")
    names |= _resnet("middle_block.2", "mid_block.resnets.1")
    for i in range(levels):
        # Each level downwards has its resnets and a downsampler, upwards one resnet more.
        names[f"input_blocks.{step * (i + 1)}.0.op"] = f"down_blocks.{i}.downsamplers.0.conv"
        for j in range(layers):
            names |= _block(f"input_blocks.{1 + step * i + j}", f"down_blocks.{i}", j)
        for j in range(step):
            names |= _block(f"output_blocks.{step * i + j}", f"up_blocks.{i}", j)
        for slot in (1, 2):  # after a resnet alone, or after its attention
            last = f"output_blocks.{step * i + layers}.{slot}.conv"
            names[last] = f"up_blocks.{i}.upsamplers.0.conv"
    return names


# ControlNet's own names, and what else its authors' files and DiffBIR's may hold.
LDM_CONTROL, LDM_CONTROL_PIXELS = "control_model.", "input_hint_block."
LDM_CONTROL_IGNORE = (
    r"(?:model|model_ema|first_stage_model|cond_stage_model|cond_encoder|preprocess_model)\..*",
    LDM_IGNORE[1],
)


def ldm_control_names(levels: int, layers: int) -> dict[str, str]:
    """Modules of LDM's ControlNet -> diffusers'."""
    names = ldm_unet_names(levels, layers) | {"middle_block_out.0": "controlnet_mid_block"}
    # One for conv_in, one for each resnet, and one for each halving.
    own = range(levels * (layers + 1))
    return names | {f"zero_convs.{i}.0": f"controlnet_down_blocks.{i}" for i in own}


def _resnet(theirs: str, ours: str) -> dict[str, str]:
    return {f"{theirs}.{a}": f"{ours}.{b}" for a, b in _RESNET.items()}


def _block(theirs: str, ours: str, j: int) -> dict[str, str]:
    attention = {f"{theirs}.1": f"{ours}.attentions.{j}"}
    return _resnet(f"{theirs}.0", f"{ours}.resnets.{j}") | attention


def ldm_vae_names(levels: int, layers: int) -> dict[str, str]:
    """Modules of LDM's autoencoder -> diffusers'; its decoder counts levels from the image."""
    names = {}
    for side, count in (("encoder", layers), ("decoder", layers + 1)):
        names |= {f"{side}.norm_out": f"{side}.conv_norm_out"}
        for k in (1, 2):
            names[f"{side}.mid.block_{k}"] = f"{side}.mid_block.resnets.{k - 1}"
        # The middle: a resnet, attention, a resnet.
        attention = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v"}
        for a, b in {**attention, "proj_out": "to_out.0"}.items():
            names[f"{side}.mid.attn_1.{a}"] = f"{side}.mid_block.attentions.0.{b}"
        # The levels, which the decoder numbers from the finest.
        down = side == "encoder"
        theirs, ours = ("down", "down_blocks") if down else ("up", "up_blocks")
        sample = "downsample" if down else "upsample"
        for i in range(levels):
            source = f"{side}.{theirs}.{i if down else levels - 1 - i}"
            names[f"{source}.{sample}.conv"] = f"{side}.{ours}.{i}.{sample}rs.0.conv"
            for j in range(count):
                names[f"{source}.block.{j}"] = f"{side}.{ours}.{i}.resnets.{j}"
    return names


def renamer(names: Mapping[str, str]) -> Callable[[str], str]:
    """Replaces the longest module path that `names` knows at a name's beginning."""

    def rename(key: str) -> str:
        # From the whole name to its first part, so that the longest path wins.
        parts = key.replace("nin_shortcut", "conv_shortcut").split(".")
        for n in range(len(parts), 0, -1):
            if (head := ".".join(parts[:n])) in names:
                return ".".join([names[head], *parts[n:]])
        return key

    return rename


# Text encoder

# The projection is for comparing texts with pictures, which no prompt needs.
CLIP_IGNORE = (r"(?:text_model\.)?embeddings\.position_ids", r"text_projection\.weight")
CLIP: Table = {
    r"(?:text_model\.)?(embeddings\.\w+_embedding)\.weight": [(r"clip.\1.embedding", same)],
    r"(?:text_model\.)?(.+\.layer_norm[12]|final_layer_norm)\.weight": [(r"clip.\1.scale", same)],
    r"(?:text_model\.)?(.+\.(?:[qkv]_proj|out_proj|fc[12]))\.weight": [(r"clip.\1.kernel", linear)],
    r"(?:text_model\.)?(.+)\.bias": [(r"clip.\1.bias", same)],
}
# OpenCLIP's parts of a layer by transformers' names; its in_proj is three layers in one.
_OPENCLIP = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "attn.out_proj": "self_attn.out_proj"}
_OPENCLIP |= {"mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
_LAYER, _OURS = r"transformer\.resblocks\.(\d+)\.", r"clip.encoder.layers.\1."


def _openclip_layer(theirs: str, ours: str) -> dict[str, list[tuple[str, Transform]]]:
    norm = theirs.startswith("ln")
    weight = (f"{_OURS}{ours}.{'scale' if norm else 'kernel'}", same if norm else linear)
    name = _LAYER + re.escape(theirs)
    return {rf"{name}\.weight": [weight], rf"{name}\.bias": [(f"{_OURS}{ours}.bias", same)]}


OPENCLIP: Table = {
    r"token_embedding\.weight": [("clip.embeddings.token_embedding.embedding", same)],
    r"positional_embedding": [("clip.embeddings.position_embedding.embedding", same)],
    r"ln_final\.weight": [("clip.final_layer_norm.scale", same)],
    r"ln_final\.bias": [("clip.final_layer_norm.bias", same)],
    **{
        rf"{_LAYER}attn\.in_proj_{end}": [
            (f"{_OURS}self_attn.{part}_proj.{ours}", third(i)) for i, part in enumerate("qkv")
        ]
        for end, ours in (("weight", "kernel"), ("bias", "bias"))
    },
    **{k: v for names in _OPENCLIP.items() for k, v in _openclip_layer(*names).items()},
}


def openclip_ignore(layers: int) -> tuple[str, ...]:
    """What Stable Diffusion does not use: the last of OpenCLIP's layers, its projection, a mask."""
    return (rf"transformer\.resblocks\.{layers}\..*", "text_projection", "logit_scale", "attn_mask")


# RAM and DAPE

RAM_ENCODER: Table = {
    r"(visual_encoder\.patch_embed\.proj)\.weight": [(r"prompter.image_encoder.\1.kernel", kernel)],
    r"(visual_encoder\.(?:.+\.)?norm[12]?)\.weight": [(r"prompter.image_encoder.\1.scale", same)],
    r"(visual_encoder\..+\.relative_position_bias_table)": [(r"prompter.image_encoder.\1", same)],
    r"(visual_encoder\..+\.(?:qkv|proj|fc[12]|reduction)|image_proj)\.weight": [
        (r"prompter.image_encoder.\1.kernel", linear)
    ],
    r"(visual_encoder\..+|image_proj)\.bias": [(r"prompter.image_encoder.\1.bias", same)],
}
_HEAD = r"(?:tagging_head|vision_multi)\.(encoder\.layer\.\d+\."  # the older name is RAM's own
_CROSS = r"(?:crossattention\.self\.(?:query|key|value)|(?:\w+\.)?\w+\.dense)"
RAM_TAGGER: Table = {
    r"(label_embed)": [(r"tagger.\1", same)],
    r"(wordvec_proj|fc)\.weight": [(r"tagger.\1.kernel", linear)],
    r"(wordvec_proj|fc)\.bias": [(r"tagger.\1.bias", same)],
    rf"{_HEAD}{_CROSS})\.weight": [(r"tagger.tagging_head.\1.kernel", linear)],
    rf"{_HEAD}.+\.LayerNorm)\.weight": [(r"tagger.tagging_head.\1.scale", same)],
    rf"{_HEAD}.+)\.bias": [(r"tagger.tagging_head.\1.bias", same)],
}
RAM_IGNORE = (
    r"visual_encoder\..+\.(?:relative_position_index|attn_mask)",  # computed from the sizes
    r"(?:tag_encoder|text_decoder)\..*",  # captions, not tags
    r"(?:tagging_head|vision_multi)\.embeddings\..*",  # RAM deletes both of these
    r"(?:tagging_head|vision_multi)\.encoder\.layer\.\d+\.attention\..*",
)
# What DAPE adapts: queries and keys of the head, and the Swin's fused projections.
DAPE_TAGS = rf"{_HEAD}crossattention\.self\.(?:query|key))"
DAPE_IMAGE = r"(visual_encoder\.layers\.\d+\.blocks\.\d+\.attn\.qkv)"
DAPE: Table = {
    rf"{DAPE_IMAGE}\.lora_([AB])": [(r"image_encoder.\1.lora_\2", same)],
    rf"{DAPE_TAGS}\.lora_([AB])": [(r"tagger.tagging_head.\1.lora_\2", same)],
}

# OSEDiff and LPIPS

# Three adapters by their names in peft, of which each layer has one.
OSEDIFF_UNET: Table = {
    r"(.+)\.lora_A\.default_\w+\.weight": [(r"unet.\1.lora_A", kernel)],
    r"(.+)\.lora_B\.default_\w+\.weight": [(r"unet.\1.lora_B", linear)],
    r"conv_in\.(?:base_layer\.)?weight": [("unet.conv_in.kernel", kernel)],
    r"conv_in\.(?:base_layer\.)?bias": [("unet.conv_in.bias", same)],
}
OSEDIFF_VAE: Table = {
    r"(.+)\.lora_A\.default_\w+\.weight": [(r"vae.\1.lora_A", kernel)],
    r"(.+)\.lora_B\.default_\w+\.weight": [(r"vae.\1.lora_B", linear)],
}
# torchvision's convolutions, and lpips' 1x1 convolutions behind a dropout.
LPIPS: Table = {
    r"features\.(\d+)\.weight": [(r"lpips.features.\1.kernel", kernel)],
    r"features\.(\d+)\.bias": [(r"lpips.features.\1.bias", same)],
    r"lin(\d)\.model\.1\.weight": [(r"lpips.lin.\1.kernel", kernel)],
}
LPIPS_IGNORE = (r"classifier\..*",)
DISTS: Table = {
    r"(alpha|beta)": [(r"dists.\1", lambda x: x.reshape(-1))],
}
