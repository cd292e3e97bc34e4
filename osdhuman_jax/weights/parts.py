"""What a model folder may hold beside its restorer, each in a file of its own:

    clip.safetensors     CLIP's text encoder, for prompts of tags and the null prompt
    tagger.safetensors   RAM's tagging head; with DAPE, also what it changes of the image encoder
    lpips.safetensors    VGG16 and the weights of its channels, for training

config.json has their sizes under "parts" and their digests with the others.
"""

import dataclasses
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from osdhuman_jax.config import ModelConfig
from osdhuman_jax.methods.prompts import ImageTagger
from osdhuman_jax.networks.clip import CLIPTextModel
from osdhuman_jax.networks.lpips import LPIPS
from osdhuman_jax.networks.swin import RAMEncoder
from osdhuman_jax.networks.tagger import Tagger
from osdhuman_jax.weights.model_folder import (
    BASE,
    DTYPES,
    IMPOSSIBLE,
    fill,
    hollow,
    read_configs,
    read_meta,
    shapes,
    verify,
)
from osdhuman_jax.weights.torch_files import Tensor, WeightsError, load

PARTS = ("clip", "tagger", "lpips")


@dataclass
class Part:
    """A network beside the restorer: its arguments, its tensors by our names, where from."""

    sizes: dict[str, Any]
    tensors: dict[str, Tensor]
    files: list[Path] = field(default_factory=list)


def build_part(
    name: str, sizes: dict[str, Any], model: ModelConfig, *, dtype: DTypeLike, rngs: nnx.Rngs
) -> nnx.Module:
    """The network of a part; `sizes` are its arguments."""
    kw: dict[str, Any] = {"dtype": dtype, "rngs": rngs}
    if name == "clip":
        return CLIPTextModel(**sizes, **kw)
    if name == "lpips":
        return LPIPS(plan=tuple(sizes["plan"]), **kw)
    swin = dataclasses.asdict(model.swin)
    return ImageTagger(
        RAMEncoder(**swin, **kw), Tagger(**sizes, context_dim=model.swin.image_proj_dim, **kw)
    )


def part_shapes(name: str, sizes: dict[str, Any], model: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Shapes by name on disk. Raises WeightsError where sizes contradict each other."""
    try:
        module = hollow(lambda rngs: build_part(name, sizes, model, dtype=np.float32, rngs=rngs))
    except IMPOSSIBLE as error:
        raise WeightsError(f"{name}: sizes that make no network: {error!s:.200}") from error
    return {_prefix(name) + key: shape for key, shape in shapes(module).items()}


def _prefix(part: str) -> str:
    """What names on disk begin with; the tagger's begin with its two halves' already."""
    return "" if part == "tagger" else f"{part}."


def load_part(folder: Path | str, name: str, *, precision: str = "fp32") -> nnx.Module:
    """The network of a part, computing in `precision`: CLIPTextModel, ImageTagger or LPIPS.

    Raises WeightsError where the folder does not have it, or not whole and untouched.
    """
    folder, file = Path(folder), f"{name}.safetensors"
    meta = read_meta(folder)
    if name not in meta.get("parts", {}):
        raise WeightsError(f"{folder}: holds no part {name!r}; import it with the model")
    verify(folder, meta, file)
    model, _ = read_configs(folder, meta)
    make = partial(build_part, name, meta["parts"][name], model, dtype=DTYPES[precision])
    module = hollow(lambda rngs: make(rngs=rngs))
    names = set(shapes(module))
    tensors = {n.removeprefix(_prefix(name)): t for n, t in load(folder / file).items()}
    if name == "tagger":
        tensors = _shared_encoder(folder, meta) | tensors
    fill(module, {k: v.read() for k, v in tensors.items()}, names, str(folder / file))
    return module


def _shared_encoder(folder: Path, meta: dict[str, Any]) -> dict[str, Tensor]:
    """The image encoder of the restorer, which the tagger shares but for what DAPE changed."""
    verify(folder, meta, BASE)
    prefix = "prompter.image_encoder."
    base = load(folder / BASE)
    return {n.removeprefix("prompter."): t for n, t in base.items() if n.startswith(prefix)}
