"""SwinIR's released files, and DiffBIR's of the same network: their names, and sizes from shapes.

Read are SwinIR's `.pth` for real pictures (`params_ema`), for smaller ones, noise and JPEG
(`params`), and DiffBIR's (bare or in `state_dict`). A file says nothing of what it is but by its
tensors: what stands behind the body is known by which layers there are, all sizes by shapes. The
one number that no shape shows is the range inside, which only the networks for JPEG have
otherwise; they alone have windows of 7.
"""

import math
import re
from collections.abc import Mapping

from osdhuman_jax.networks.configs import SwinIRConfig
from osdhuman_jax.weights import name_tables
from osdhuman_jax.weights.torch_files import Tensor, WeightsError

# The released names are ours but for the ends.
TABLE: name_tables.Table = {
    r"((?:.+\.)?norm[12]?)\.weight": [(r"\1.scale", name_tables.same)],
    r"(.+)\.weight": [(r"\1.kernel", name_tables.kernel)],
    r"(.+\.bias)": [(r"\1", name_tables.same)],
    r"(.+\.relative_position_bias_table)": [(r"\1", name_tables.same)],
}
IGNORE = (r".+\.(?:relative_position_index|attn_mask)",)  # computed from the sizes
LICENCE = "Apache-2.0 (SwinIR, DiffBIR)"
JPEG_WINDOW, JPEG_RANGE = 7, 255.0  # blocks of JPEG are 8 wide, which windows of 7 do not repeat
_BLOCK = r"layers\.(\d{1,4})\.residual_group\.blocks\.(\d{1,4})\."


def is_swinir(names: Mapping[str, object]) -> bool:
    """Whether these are the names of such a file."""
    return any(re.match(_BLOCK, name) for name in names)


def origin_of(config: SwinIRConfig) -> str:
    """Whose layout it is."""
    return "SwinIR" if config.unshuffle == 1 else "DiffBIR (SwinIR)"


def sizes_of(source: Mapping[str, Tensor], where: str) -> SwinIRConfig:
    """Sizes as the tensors' shapes tell them. Raises WeightsError where they tell none."""
    shape = {name: tensor.shape for name, tensor in source.items()}
    try:
        return _sizes(shape, where)
    except (LookupError, TypeError, ValueError, ZeroDivisionError) as error:
        if isinstance(error, WeightsError):
            raise
        raise WeightsError(f"{where}: not all of a SwinIR ({error!r:.100})") from error


def _sizes(shape: Mapping[str, tuple[int, ...]], where: str) -> SwinIRConfig:
    # The first layer: squares of pixels, or pixels, of three colours.
    unshuffled = "conv_first.1.weight" in shape
    dim, channels, *_ = shape[f"conv_first.{'1.' if unshuffled else ''}weight"]
    if channels == 1:
        raise WeightsError(f"{where}: this SwinIR is for gray pictures; needed is one for colour")

    # The body: how many blocks each group has, and of one of each what its layers are.
    found = [match for match in (re.match(_BLOCK, name) for name in shape) if match]
    blocks: dict[int, int] = {}
    for match in found:
        blocks[int(match[1])] = max(blocks.get(int(match[1]), 0), int(match[2]) + 1)
    groups = sorted(blocks)
    first = [f"layers.{group}.residual_group.blocks.0" for group in groups]
    tables = [shape[f"{name}.attn.relative_position_bias_table"] for name in first]
    window = (math.isqrt(tables[0][0]) + 1) // 2
    hidden = shape[f"{first[0]}.mlp.fc1.weight"][0]

    upsampler, upscale, width = _upsampler(shape)
    return SwinIRConfig(
        embed_dim=dim,
        depths=tuple(blocks[group] for group in groups),
        num_heads=tuple(table[1] for table in tables),
        window_size=window,
        mlp_ratio=hidden / dim,
        upscale=upscale,
        upsampler=upsampler,
        num_feat=width,
        resi_connection="3conv" if "conv_after_body.0.weight" in shape else "1conv",
        unshuffle=math.isqrt(channels // 3),
        img_range=JPEG_RANGE if window == JPEG_WINDOW else 1.0,
    )


def _upsampler(shape: Mapping[str, tuple[int, ...]]) -> tuple[str, int, int]:
    """What stands behind the body: its name, how much larger it makes things, its width."""
    width = shape.get("conv_before_upsample.0.weight", (0,))[0]
    if "conv_up1.weight" in shape:
        return "nearest+conv", 2 ** sum(f"conv_up{k}.weight" in shape for k in range(1, 8)), width
    # Convolutions of shuffles, and what each multiplies the channels with.
    shuffles = sorted(name for name in shape if re.fullmatch(r"upsample\.\d+\.weight", name))
    if not shuffles:
        return "", 1, 0
    if not width:
        return "pixelshuffledirect", math.isqrt(shape[shuffles[0]][0] // 3), 0
    return "pixelshuffle", math.prod(math.isqrt(shape[n][0] // width) for n in shuffles), width
