"""What a model folder is, in words: parts, counts, dtypes, digests, licences, provenance."""

import json
import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from osdhuman_jax.config import Json
from osdhuman_jax.networks.configs import RRDBNetConfig, SwinIRConfig
from osdhuman_jax.weights.abilities import Abilities, abilities_of, strength_of
from osdhuman_jax.weights.choices import CONDITIONS
from osdhuman_jax.weights.cleaners import read_sizes
from osdhuman_jax.weights.model_folder import (
    CLEANER,
    RESTORER,
    kind_of,
    read_configs,
    read_meta,
    read_use,
    verify,
)
from osdhuman_jax.weights.parts import part_config
from osdhuman_jax.weights.torch_files import Tensor, load

DUAL = tuple(
    f"prompter.{name}" for name in ("feature_extractor", "main_performer", "aux_performer")
)
GROUPS = ("vae", "unet", "prompter.image_encoder", "prompter.hfie", *DUAL)


def describe(folder: Path | str) -> str:
    """Several lines. Raises WeightsError where a file is gone or not what its digest says."""
    folder = Path(folder)
    # What kind of network, and how it is best used.
    alone = kind_of(folder) == CLEANER
    meta = read_meta(folder, CLEANER if alone else RESTORER)
    lines = _cleaner(folder, meta) if alone else _restorer(folder, meta)
    # Nothing is said of a folder whose files are not those that were written.
    verify(folder, meta, *meta["digests"])
    # Each file: what it holds, and of which network.
    for name, digest in meta["digests"].items():
        if not name.endswith(".safetensors"):
            lines += [f"{name}: sha256 {digest}"]
            continue
        tensors = load(folder / name)
        size = (folder / name).stat().st_size
        lines += [f"{name}: {_sum(tensors)}, {size:,} bytes", f"  sha256 {digest}"]
        lines += [f"  {group}: {_sum(part)}" for group, part in _groups(tensors).items()]
    # Where it came from, for whoever passes the model on.
    lines += [f"licence: {text}" for text in meta.get("licences", [])]
    lines += [f"{key}: {json.dumps(value)}" for key, value in meta.get("provenance", {}).items()]
    return "\n".join(lines)


def _restorer(folder: Path, meta: Json) -> list[str]:
    model, adapters = read_configs(folder, meta)
    use, prompt = read_use(folder, meta), meta.get("prompt", "hfie")
    can = abilities_of(meta, use)
    what = f"timestep {model.timestep}" if can is None else "DiffBody, many steps"
    lines = [f"{folder}: prompt {prompt}, {what}"]
    sides = "any" if use.sides == (0, 0) else f"{use.sides[0]} to {use.sides[1] or 'any'}"
    text = f"color_fix {use.color_fix}, blend {use.blend:g}, work_side {use.work_side}"
    lines += [f"use: {text}, shorter sides {sides}"]
    own = model.dual.guidance if model.dual else None
    faces = f"keep_faces {use.keep_faces:g}" if use.keep_faces else "faces not looked for"
    lines += [f"strength: {strength_of(use, own, can)}; {faces}"]
    if adapters:
        lines += [f"generator: LoRA of rank {adapters.rank}, alpha {adapters.alpha:g}"]
    return lines + (_diffbody(folder, meta, can) if can else [])


def _diffbody(folder: Path, meta: Json, can: Abilities) -> list[str]:
    """What the parts of a DiffBody are."""
    sample, control = can.sample, part_config(folder, meta, "control")
    seen = ["restored picture", *(name for name in CONDITIONS if getattr(control, name))]
    lines = [f"control: ControlNet of {', '.join(seen)}"]
    lines += [f"steps: {sample.steps}, {sample.sampler}, control_scale {sample.control_scale:g}"]
    # The others may be missing, and a person should see what that means.
    has_cleaner = "cleaner" in meta["parts"]
    size = part_config(folder, meta, "cleaner") if has_cleaner else None
    lines += [f"cleaner: {_network(size)}" if size else "cleaner: none, so it cannot restore"]
    if can.text:
        found = "RAM's tags" if can.tags else "the empty one"
        lines += [f"text: cfg {sample.cfg:g}; where no text is given, {found}"]
    lines += [f"people: {'BlazePose' if can.people else 'by osdhuman poses alone'}"]
    ways = [name for name, there in (("parser", can.parser), ("BlazePose", can.people)) if there]
    return [*lines, f"guidance by parts: {' or '.join(ways) or 'none'}"]


def _cleaner(folder: Path, meta: Json) -> list[str]:
    return [f"{folder}: cleaner {_network(read_sizes(folder, meta))}"]


def _network(size: object) -> str:
    """A cleaner's network and its sizes."""
    if isinstance(size, RRDBNetConfig):
        width = f"{size.num_block} blocks of width {size.num_feat} + {size.num_grow_ch}"
        return f"(RRDBNet), x{size.scale}, {width}"
    assert isinstance(size, SwinIRConfig)  # there are two
    width = f"{sum(size.depths)} blocks of width {size.embed_dim} in {len(size.depths)} groups"
    return f"(SwinIR), x{size.scale}, {width}"


def _sum(tensors: Mapping[str, Tensor]) -> str:
    counts = Counter()
    for tensor in tensors.values():
        counts[str(tensor.dtype)] += math.prod(tensor.shape)
    dtypes = ", ".join(sorted(counts))
    return f"{sum(counts.values()):,} parameters in {len(tensors)} tensors, {dtypes}"


def _groups(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The restorer's networks, where a file has more than one of them."""
    found = {
        group: {n: t for n, t in tensors.items() if n.startswith(f"{group}.")} for group in GROUPS
    }
    found = {group: part for group, part in found.items() if part}
    return found if len(found) > 1 else {}
