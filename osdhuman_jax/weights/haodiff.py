"""HAODiff's released weights -> a model folder.

    img_encoder_weights.pth              dual-prompt generator: extractor and both embedders
    pytorch_lora_weights.safetensors     LoRA of the U-Net, any of its kernels

The generator's sizes are read off its tensors and held against the keyword arguments in the same
file, which alone tell the heads of the pooling. The LoRA is merged while it is imported, so that
the folder is a base model: it restores, and training may start from it. Whatever this project
would compute otherwise than the authors' code is refused by name. Without these files the generator
is random, with upsamplers, and the folder is where the training of both stages begins.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from osdhuman_jax.config import Json, ModelConfig, to_dict
from osdhuman_jax.networks.configs import DualPromptConfig
from osdhuman_jax.weights.companions import read_dists, read_lpips
from osdhuman_jax.weights.diffusion import (
    LICENCE,
    Diffusion,
    locate,
    read_diffusion,
    table_of_tensors,
)
from osdhuman_jax.weights.importer import (
    Location,
    check_local,
    check_output,
    named_digests,
    random_tensors,
    write_folder,
)
from osdhuman_jax.weights.lora_files import Pair, halves, lora_pairs, merged
from osdhuman_jax.weights.model_folder import (
    BASE,
    FORMAT,
    abstract_restorer,
    shapes,
)
from osdhuman_jax.weights.name_tables import Table, convert, kernel, linear, same, third
from osdhuman_jax.weights.parts import Part
from osdhuman_jax.weights.torch_files import Tensor, WeightsError, complain, load

ENCODER, LORA = "img_encoder_weights.pth", "pytorch_lora_weights.safetensors"
TIMESTEP = 199  # T_L of the released model
NO_LICENCE = "HAODiff's weights: no licence was published with them"
POOL_HEADS = 8  # of the class's defaults, where the file does not say
MAP = 128  # side of the features, which the authors' forward pass takes for granted

_PERFORMER = r"((?:main|aux)_performer)"
_LAYER = rf"{_PERFORMER}\.encoder\.net\.layers\.(\d+)"
_TO_LAYER = r"prompter.\1.layers.\2"
TABLE: Table = {
    # Extractor.
    r"(feature_extractor\.absolute_pos_embed)": [(r"prompter.\1", same)],
    r"feature_extractor\.patch_embed\.norm\.weight": [
        ("prompter.feature_extractor.patch_norm.scale", same)
    ],
    r"feature_extractor\.patch_embed\.norm\.bias": [
        ("prompter.feature_extractor.patch_norm.bias", same)
    ],
    r"(feature_extractor\.(?:.+\.)?norm[12]?)\.weight": [(r"prompter.\1.scale", same)],
    r"(feature_extractor\..+\.relative_position_bias_table)": [(r"prompter.\1", same)],
    r"(feature_extractor\..+)\.weight": [(r"prompter.\1.kernel", kernel)],
    r"(feature_extractor\..+)\.bias": [(r"prompter.\1.bias", same)],
    # Embedders: performer-pytorch's residual wrappers are what `.0.fn` and `.1.fn.fn` come from.
    rf"{_LAYER}\.0\.norm\.weight": [(f"{_TO_LAYER}.norm1.scale", same)],
    rf"{_LAYER}\.0\.norm\.bias": [(f"{_TO_LAYER}.norm1.bias", same)],
    rf"{_LAYER}\.1\.norm\.weight": [(f"{_TO_LAYER}.norm2.scale", same)],
    rf"{_LAYER}\.1\.norm\.bias": [(f"{_TO_LAYER}.norm2.bias", same)],
    rf"{_LAYER}\.0\.fn\.fast_attention\.(projection_matrix)": [(rf"{_TO_LAYER}.attn.\3", same)],
    rf"{_LAYER}\.0\.fn\.(to_(?:q|k|v|out))\.weight": [(rf"{_TO_LAYER}.attn.\3.kernel", linear)],
    rf"{_LAYER}\.0\.fn\.(to_(?:q|k|v|out))\.bias": [(rf"{_TO_LAYER}.attn.\3.bias", same)],
    rf"{_LAYER}\.1\.fn\.fn\.(w[12])\.weight": [(rf"{_TO_LAYER}.\3.kernel", linear)],
    rf"{_LAYER}\.1\.fn\.fn\.(w[12])\.bias": [(rf"{_TO_LAYER}.\3.bias", same)],
    **{
        rf"{_PERFORMER}\.attn_pool\.in_proj_{end}": [
            (rf"prompter.\1.attn_pool.{part}_proj.{ours}", third(i)) for i, part in enumerate("qkv")
        ]
        for end, ours in (("weight", "kernel"), ("bias", "bias"))
    },
    rf"{_PERFORMER}\.query_tokens": [(r"prompter.\1.attn_pool.query", lambda x: x[0])],
    rf"{_PERFORMER}\.(pos_embed)": [(r"prompter.\1.\2", same)],
    rf"{_PERFORMER}\.(norm)\.weight": [(r"prompter.\1.\2.scale", same)],
    rf"{_PERFORMER}\.(proj1|linear_embed|attn_pool\.out_proj)\.weight": [
        (r"prompter.\1.\2.kernel", linear)
    ],
    rf"{_PERFORMER}\.(proj1|linear_embed|attn_pool\.out_proj|norm)\.bias": [
        (r"prompter.\1.\2.bias", same)
    ],
}
IGNORE = (
    r".+\.(?:relative_position_index|attn_mask)",  # computed from the sizes
    rf"{_PERFORMER}\.encoder\.proj_updater\..*",  # the whole Performer once more, and a counter
    r"embedding_changer[12]\..*",  # for the discriminator of the training alone
)


def import_haodiff(
    sd: Location,
    folder: Location | None,
    output: Location,
    *,
    lpips: Sequence[Location] = (),
    dists: Location | None = None,
    seed: int = 0,
    overwrite: bool = False,
) -> None:
    """Write a model folder of Stable Diffusion 2.1-base and HAODiff's two files in `folder`.

    `sd` is a diffusers folder, a single file or a hub repository; `lpips` and `dists` add the parts
    that training needs. Without a `folder` the dual-prompt generator is random by `seed`. Raises
    WeightsError, having written nothing.
    """
    # What can be refused is refused before anything is downloaded.
    output = Path(output)
    check_output(output, overwrite)
    given = {"sd": sd, "haodiff": folder, "dists": dists}
    check_local(given | {f"lpips {n}": path for n, path in enumerate(lpips, start=1)})
    files, source, pairs = [], {}, {}
    config = replace(DualPromptConfig.haodiff(), upsamplers=True)
    if folder is not None:
        files = [Path(folder) / name for name in (ENCODER, LORA)]
        if lacking := [file.name for file in files if not file.is_file()]:
            raise WeightsError(f"{folder}: lacks {', '.join(lacking)} (--haodiff)")
        source, config = read_encoder(files[0])
        pairs = read_lora(files[1])
    parts = _parts([Path(path) for path in lpips], dists)

    # Then the base model, whose kernels the LoRA changes.
    diffusion = read_diffusion(locate(str(sd)))
    model = ModelConfig(vae=diffusion.vae, unet=diffusion.unet, timestep=TIMESTEP, dual=config)
    restorer, _ = abstract_restorer(model, where=files[0] if files else None)
    targets = {n: s for n, s in shapes(restorer).items() if n.startswith("prompter.")}
    tensors = dict(diffusion.tensors)
    if folder is None:
        tensors |= random_tensors(targets, seed)
    else:
        width = model.unet.cross_attention_dim
        if (have := source["main_performer.query_tokens"].shape[-1]) != width:
            raise WeightsError(f"{files[0]}: its tokens are {have} wide, the U-Net's {width}")
        tensors |= convert(source, TABLE, targets, str(files[0]), ignore=IGNORE)
        tensors |= merged(diffusion.tensors, pairs, files[1])

    meta: Json = {
        "format": FORMAT,
        "prompt": "dual",
        "model": to_dict(model),
        "lora": None,
        "use": {"color_fix": "wavelet", "blend": 1.0, "work_side": 0, "sides": [0, 0]},
        "parts": {name: to_dict(part.config) for name, part in parts.items()},
        "digests": {},
        "licences": [LICENCE, *([NO_LICENCE] if files else [])],
        "provenance": _provenance(sd, diffusion, files, parts, seed),
    }
    every = {BASE: tensors} | {f"{name}.safetensors": p.tensors for name, p in parts.items()}
    write_folder(output, every, meta, {}, overwrite)


def _parts(lpips: Sequence[Path], dists: Location | None) -> dict[str, Part]:
    """LPIPS and DISTS by their names; DISTS looks at the VGG16 that LPIPS brings."""
    if dists and not lpips:
        raise WeightsError(f"{dists}: DISTS needs the VGG16 of --lpips")
    if not lpips:
        return {}
    vgg = read_lpips(lpips)
    return {"lpips": vgg} | ({"dists": read_dists(Path(dists), vgg)} if dists else {})


def _provenance(
    sd: Location, diffusion: Diffusion, files: list[Path], parts: dict[str, Part], seed: int
) -> Json:
    """Where the files came from, by name and digest."""
    named = partial(named_digests, known={})
    return {
        "stable_diffusion": {
            "source": str(sd),
            "prediction": diffusion.prediction,
            "files": named(diffusion.files),
        },
        "haodiff": {"files": named(files)} if files else {"random_seed": seed},
        **{name: {"files": named(part.files)} for name, part in parts.items()},
    }


# The dual-prompt generator


def read_encoder(path: Path) -> tuple[dict[str, Tensor], DualPromptConfig]:
    """Tensors of img_encoder_weights.pth by its own names, and the sizes that they have.

    Raises WeightsError where it is another file, or a variant that computes something else.
    """
    tree = load(path)
    if not isinstance(tree, dict) or "model_state_dict" not in tree:
        raise WeightsError(f"{path}: not HAODiff's (lacks model_state_dict)")
    source = table_of_tensors(tree["model_state_dict"], str(path))
    swinir, performer = (_keywords(tree, name, path) for name in ("swinir", "performer"))
    _check_variant(source, swinir, path)
    try:
        config = _sizes(source, performer, swinir)
    except (LookupError, ValueError, ArithmeticError) as error:
        raise WeightsError(f"{path}: tensors 1 missing or misshapen ({error})") from error
    _check_keywords(config, swinir, performer, path)
    return source, config


def _keywords(tree: Json, name: str, path: Path) -> Json:
    """Plain keyword arguments of a class, as the file has them; lists as tuples."""
    found = tree.get(f"{name}_kwargs", {})
    if not isinstance(found, dict):
        raise WeightsError(f"{path}: {name}_kwargs are no table of settings")
    return {str(k): tuple(v) if isinstance(v, list) else v for k, v in found.items()}


def _check_variant(source: Mapping[str, Tensor], swinir: Json, path: Path) -> None:
    """Raise WeightsError on a generator that is not computed as ours is."""
    # Each setting with the only value that ours has; absent, it is the class's default, that value.
    only = {
        "in_chans": 3,
        "patch_size": 1,
        "qk_scale": None,
        "resi_connection": "1conv",
        "downsample": True,
        "img_range": 1.0,
    }
    for name, value in only.items():
        if name in swinir and swinir[name] != value:
            raise WeightsError(f"{path}: {name} is {swinir[name]!r:.40}; served is {value!r}")
    if fused := [key for key in source if key.startswith("fusion.")]:
        raise WeightsError(f"{path}: mixes a text's tokens into its prompts ({fused[0]})")
    skipped = swinir.get("skip_branch") or ()
    if skipped not in ((), (1,), (2,)):
        text = "one of 1 and 2 may be left out"
        raise WeightsError(f"{path}: skip_branch is {skipped!r:.40}; {text}")


def _sizes(source: Mapping[str, Tensor], performer: Json, swinir: Json) -> DualPromptConfig:
    """Sizes as shapes tell them.

    Raises a LookupError, ValueError or ArithmeticError where they do not.
    """
    extractor = "feature_extractor."
    trunk = [f"{extractor}layers.{i}." for i in range(_count(source, rf"{extractor}layers"))]
    branches = _count(source, rf"{extractor}branches")
    groups = _count(source, rf"{extractor}branches.0")
    parts = trunk + [f"{extractor}branches.0.{i}." for i in range(groups)]
    tables = [
        source[f"{part}residual_group.blocks.0.attn.relative_position_bias_table"].shape
        for part in parts
    ]
    hidden = source[f"{parts[0]}residual_group.blocks.0.mlp.fc1.weight"].shape  # (4 dim, dim)
    layer = "main_performer.encoder.net.layers"
    projection = source[f"{layer}.0.0.fn.fast_attention.projection_matrix"].shape
    side = math.isqrt(source["main_performer.pos_embed"].shape[1])
    upscale = 4 if f"{extractor}conv_first.conv_down2.weight" in source else 2
    patches = source["main_performer.linear_embed.weight"].shape[1] // hidden[1]
    return DualPromptConfig(
        image_size=side * upscale,
        upscale=upscale,
        embed_dim=hidden[1],
        depths=tuple(_count(source, rf"{part}residual_group.blocks") for part in parts),
        num_heads=tuple(shape[1] for shape in tables),
        window_size=(math.isqrt(tables[0][0]) + 1) // 2,
        mlp_ratio=hidden[0] / hidden[1],
        ape=f"{extractor}absolute_pos_embed" in source,
        num_branches=branches,
        skip_branch=tuple(swinir.get("skip_branch") or ()),
        num_layers=_count(source, layer),
        num_heads_performer=source[f"{layer}.0.0.fn.to_q.weight"].shape[0] // projection[1],
        dim_head=projection[1],
        num_features=projection[0],
        patch_size=math.isqrt(patches),
        out_tokens=source["main_performer.query_tokens"].shape[1],
        num_heads_pool=performer.get("num_heads_pool", POOL_HEADS),
        guidance=DualPromptConfig.haodiff().guidance,
    )


def _count(source: Mapping[str, Tensor], prefix: str) -> int:
    """How many numbered modules a list has. Raises KeyError where there is none, or a gap."""
    pattern = re.compile(re.escape(prefix.removesuffix(".")) + r"\.(\d{1,4})\.")
    numbers = {int(match[1]) for match in map(pattern.match, source) if match}
    # A gap would make as many layers as its last number says.
    if numbers != set(range(len(numbers))) or not numbers:
        raise KeyError(prefix)
    return len(numbers)


def _check_keywords(config: DualPromptConfig, swinir: Json, performer: Json, path: Path) -> None:
    """Raise WeightsError where the file says another size than its tensors have."""
    claimed = {
        "img_size": config.image_size,
        "upscale": config.upscale,
        "embed_dim": config.embed_dim,
        "depths": config.depths,
        "num_heads": config.num_heads,
        "window_size": config.window_size,
        "mlp_ratio": config.mlp_ratio,
        "ape": config.ape,
        "branch_num": config.num_branches,
    }
    pairs = [(name, swinir.get(name, have), have) for name, have in claimed.items()]
    claimed = {
        "out_tokens": config.out_tokens,
        "num_layers": config.num_layers,
        "num_heads_performer": config.num_heads_performer,
        "dim_head": config.dim_head,
    }
    pairs += [(name, performer.get(name, have), have) for name, have in claimed.items()]
    for name, said, have in pairs:
        if said != have:
            raise WeightsError(f"{path}: {name} is {said!r:.40}, its tensors have {have!r}")
    if config.side != MAP:
        text = f"{config.image_size} pixels at 1/{config.upscale}"
        raise WeightsError(f"{path}: features of {text}; HAODiff's are {MAP} wide")
    if type(config.num_heads_pool) is not int or config.num_heads_pool < 1:
        raise WeightsError(f"{path}: num_heads_pool is {config.num_heads_pool!r:.40}")


# LoRA of the U-Net


def read_lora(path: Path) -> dict[str, Pair]:
    """Factors of each adapted module of the U-Net, by names as `lora_pairs` gives them.

    Raises WeightsError where a half is missing, or other networks are adapted too.
    """
    pairs, rest = lora_pairs(table_of_tensors(load(path), str(path)))
    foreign = [name for name in pairs if not name.startswith("unet.")]
    own = {name: pair for name, pair in pairs.items() if name not in foreign}
    faults = {"unknown": rest, "of another network": foreign, "without their half": halves(own)}
    complain(faults, str(path))
    if not own:
        raise WeightsError(f"{path}: holds no LoRA")
    return own
