"""What a ControlNet of a model folder is made of: somebody's file, or the U-Net's own weights.

    diffusers' ControlNetModel    a folder, or its .safetensors; its conv_in takes the conditions
    LDM's names                   DiffBIR's v1_general.pth and v2.pth; `control_model.` is taken off
    unet                          no file: the U-Net's encoder, and zeros (ControlNet.copy_from)

conv_in takes [z | E(I_reg) | E(I_pose) | I_attn]. Conditions that a source lacks have weights of
zero at first, so that it computes what it did. ControlNets of pixel hints (lllyasviel's) are
refused. Tensors come back unread and with our names.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path

import numpy as np

from osdhuman_jax.config import Json, ModelConfig
from osdhuman_jax.networks.configs import ControlNetConfig, UNetConfig
from osdhuman_jax.weights import name_tables
from osdhuman_jax.weights.choices import CONDITIONS, FROM_UNET
from osdhuman_jax.weights.diffusion import (
    Diffusion,
    contradictions,
    read_json,
    state,
    unet_config,
    weights_file,
)
from osdhuman_jax.weights.parts import Part, part_shapes
from osdhuman_jax.weights.torch_files import Tensor, WeightsError

NEEDED = "needed is one whose conditions are latents, as DiffBIR's v1_general.pth and v2.pth"
CONV_IN = "control.conv_in.kernel"
# Around the names of a file: a trainer's wrapper, and the whole model that its authors save.
PREFIXES = [a + b for a in ("", "module.") for b in ("", name_tables.LDM_CONTROL)]
# What conv_in may take, in this order; a ControlNet that was never trained takes z alone.
LATENT, RESTORED = "latent", "restored"
LAYOUTS = (
    (LATENT,),
    *((LATENT, RESTORED, *rest) for rest in ((), ("attention",), ("pose",), CONDITIONS)),
)


@dataclass
class ControlSource:
    """A file that was looked at; whether it fits is seen when the U-Net is known."""

    path: Path
    file: Path
    tensors: dict[str, Tensor]  # by the file's names
    prefix: str
    ldm: bool  # names are latent diffusion's, not diffusers'
    channels: int  # that conv_in takes
    config: Json | None = None  # of a diffusers folder


def read_control(path: Path) -> ControlSource:
    """A file or a diffusers folder. Raises WeightsError where it can be none of ours."""
    if not path.exists():
        raise WeightsError(f"{path}: no such file or folder (--control)")
    config = read_json(path / "config.json") if path.is_dir() else None
    file = weights_file(path, "diffusion_pytorch_model") if path.is_dir() else path
    tensors = state(file, "state_dict")
    # Its first layer tells whose names it has, and under which prefix.
    first = {"conv_in.weight": False, "input_blocks.0.0.weight": True}
    found = [(p, name) for p in PREFIXES for name in first if p + name in tensors]
    if not found:
        names = ", ".join(sorted(tensors)[:3])
        raise WeightsError(f"{file}: no ControlNet; {NEEDED}, but it has {names:.120}, ..")
    prefix, name = found[0]
    shape, ldm = tensors[prefix + name].shape, first[name]
    _check_hint(file, tensors, prefix)
    # The same tensors as DiffBIR's earlier ones have, which predict another thing.
    if ldm and re.search(r"v2[._]1", file.name.lower()):
        why = "by its name; it predicts v, which its tensors do not show"
        raise WeightsError(
            f"{file}: this is DiffBIR's v2.1 ({why}); needed is v1_general.pth or v2.pth"
        )
    if len(shape) != 4:
        raise WeightsError(f"{file}: tensors 1 missing or misshapen ({prefix + name})")
    return ControlSource(path, file, tensors, prefix, ldm, shape[1], config)


def _check_hint(file: Path, tensors: dict[str, Tensor], prefix: str) -> None:
    """Raise WeightsError where hints are pictures, encoded by layers of ControlNet's own."""
    pixels = prefix + name_tables.CONTROL_PIXELS
    own = {name for name in tensors if name.startswith(pixels)}
    last = {name for name in own if name.startswith(f"{pixels}conv_out.")}
    # diffusers' class always has them: what our exports have there is zero, and does nothing.
    trained = own and not (last and all(not tensors[name].read().any() for name in last))
    if trained or any(n.startswith(prefix + name_tables.LDM_CONTROL_PIXELS) for n in tensors):
        raise WeightsError(f"{file}: this is a ControlNet of pixel hints; {NEEDED}")


# Makes a ControlNet for a U-Net, whose sizes and tensors may have to be fetched first.
FitControl = Callable[[Diffusion], Part[ControlNetConfig]]


def local_control(location: Path | str, without: Sequence[str] = ()) -> FitControl:
    """What makes the ControlNet of a file or folder, looked at now, or of "unet" (FROM_UNET).

    Raises WeightsError where that cannot be read, or is no ControlNet of conditions as latents.
    """
    source = None if str(location) == FROM_UNET else read_control(Path(location))
    return partial(fit_control, source, without)


def fit_control(
    source: ControlSource | None, without: Sequence[str], diffusion: Diffusion
) -> Part[ControlNetConfig]:
    """The ControlNet of a U-Net, from its own weights where there is no source.

    It takes every condition but those of `without`. Raises WeightsError where the source is of
    another U-Net, or was trained with a condition that it is to be without.
    """
    # What there is to be, and what of it the source has.
    unet, kept = diffusion.unet, [name for name in CONDITIONS if name not in without]
    config = ControlNetConfig(unet, pose="pose" in kept, attention="attention" in kept)
    targets = part_shapes("control", config, ModelConfig(unet=unet))
    have = _layout(source, unet) if source else (LATENT,)
    if source and (lost := [name for name in have if name in without]):
        text = f"was trained with {' and '.join(lost)}, which --control_without leaves out"
        raise WeightsError(f"{source.file}: {text}")
    # The source against what must be in it, then its first layer with inputs for the rest.
    width = {name: unet.in_channels for name in (LATENT, RESTORED, "pose")} | {"attention": 1}
    *kernel, _, out = targets[CONV_IN]
    narrow = targets | {CONV_IN: (*kernel, sum(width[name] for name in have), out)}
    made = _converted(source, narrow, unet) if source else _of_unet(diffusion.tensors, narrow)
    made[CONV_IN] = _spread(made[CONV_IN], have, (LATENT, RESTORED, *kept), width)
    remarks: Json = {"source": str(source.path) if source else "the U-Net", "has": list(have)}
    return Part(config, made, [source.file] if source else [], remarks)


def _layout(source: ControlSource, unet: UNetConfig) -> tuple[str, ...]:
    """What the source's conv_in takes. Raises WeightsError where it is of another U-Net."""
    # Heads are in no shape: where a folder tells its sizes, they are compared.
    if source.config is not None:
        where = source.path / "config.json"
        contradictions(where, source.config, {"global_pool_conditions": False})
        try:
            theirs = replace(unet_config(where, source.config), in_channels=unet.in_channels)
        except TypeError as error:
            raise WeightsError(f"{where}: a setting of another type ({error})") from error
        odd = [f.name for f in fields(unet) if getattr(theirs, f.name) != getattr(unet, f.name)]
        if odd:
            raise WeightsError(f"{where}: of another U-Net than --sd's by its {', '.join(odd)}")
    known = {
        sum(1 if name == "attention" else unet.in_channels for name in layout): layout
        for layout in LAYOUTS
    }
    if source.channels not in known:
        text = f"its first layer takes {source.channels} channels, not {sorted(known)}"
        raise WeightsError(f"{source.file}: {text}")
    return known[source.channels]


def _converted(
    source: ControlSource, targets: dict[str, tuple[int, ...]], unet: UNetConfig
) -> dict[str, Tensor]:
    """The source's tensors by our names, each used once."""
    rename: Callable[[str], str] = str
    if source.ldm:
        # Numbers of blocks run through all levels.
        levels, layers = len(unet.block_out_channels), unet.layers_per_block
        rename = name_tables.renamer(name_tables.ldm_control_names(levels, layers))
    # Beside the authors' ControlNet lies the whole model that it controls.
    ignore = [rf"{re.escape(source.prefix + name_tables.CONTROL_PIXELS)}.*"]
    if source.prefix.endswith(name_tables.LDM_CONTROL):
        wrapper = re.escape(source.prefix.removesuffix(name_tables.LDM_CONTROL))
        ignore += [wrapper + pattern for pattern in name_tables.LDM_CONTROL_IGNORE]
    return name_tables.convert(
        source.tensors,
        name_tables.CONTROL,
        targets,
        str(source.file),
        ignore=ignore,
        rename=lambda key: rename(key.removeprefix(source.prefix)),
    )


def _of_unet(unet: dict[str, Tensor], targets: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """The U-Net's tensors, and zeros for the convolutions to it."""
    dtype, made = unet["unet.conv_in.kernel"].dtype, {}
    for name, shape in targets.items():
        zeros = Tensor(shape, dtype, partial(np.zeros, shape, dtype))
        made[name] = unet.get(name.replace("control.", "unet.", 1), zeros)
    return made


def _spread(
    kernel: Tensor, have: Sequence[str], want: Sequence[str], width: dict[str, int]
) -> Tensor:
    """A kernel HWIO with inputs for all of `want`: zero where it does not have them."""
    height, across, _, out = kernel.shape
    sizes = {name: (height, across, width[name], out) for name in want}

    def read() -> np.ndarray:
        ends = np.cumsum([width[name] for name in have])
        parts = dict(zip(have, np.split(kernel.read(), ends[:-1], axis=2), strict=True))
        zeros = {n: np.zeros(size, kernel.dtype) for n, size in sizes.items() if n not in parts}
        return np.concatenate([(parts | zeros)[name] for name in want], axis=2)

    shape = (height, across, sum(width[name] for name in want), out)
    return Tensor(shape, kernel.dtype, read)
