"""What a model folder may hold beside its restorer, each in a file of its own:

    clip.safetensors     CLIP's text encoder, for prompts of tags and the null prompt
    tagger.safetensors   RAM's tagging head; with DAPE, also what it changes of the image encoder
    lpips.safetensors    VGG16 and the weights of its channels, for training
    dists.safetensors    DISTS' own weights of the same VGG16, for HAODiff's training
    control.safetensors  DiffBody's ControlNet for the restorer's U-Net
    cleaner.safetensors  RRDBNet or SwinIR, for DiffBody: restores before the diffusion model
    parser.safetensors   DiffBody's parser of the parts of a body, by which it may be guided

config.json has their sizes under "parts" and their digests with the others.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Generic, Literal, TypeVar, overload

import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from osdhuman_jax.config import ConfigError, Json, ModelConfig, check_values, from_dict, to_dict
from osdhuman_jax.disk import file_digest, write_json
from osdhuman_jax.methods.cleaner import (
    CleanerNetwork,
    CleanerSizes,
    build_cleaner,
    cleaner_sizes,
)
from osdhuman_jax.methods.prompts import ImageTagger
from osdhuman_jax.networks.clip import CLIPTextModel
from osdhuman_jax.networks.configs import (
    CLIPConfig,
    ControlNetConfig,
    DISTSConfig,
    LPIPSConfig,
    PartParserConfig,
    RRDBNetConfig,
    SwinIRConfig,
    TaggerConfig,
)
from osdhuman_jax.networks.controlnet import ControlNet
from osdhuman_jax.networks.dists import DISTS
from osdhuman_jax.networks.lpips import LPIPS
from osdhuman_jax.networks.part_parser import PartParser
from osdhuman_jax.networks.swin import RAMEncoder
from osdhuman_jax.networks.tagger import Tagger
from osdhuman_jax.networks.types import LayerOptions
from osdhuman_jax.weights.model_folder import (
    BASE,
    CONFIG,
    DTYPES,
    IMPOSSIBLE,
    abstract,
    compare,
    fill,
    parameters,
    read_configs,
    read_meta,
    shapes,
    verify,
)
from osdhuman_jax.weights.torch_files import Tensor, WeightsError, load, write_safetensors

AnySizes = (
    CLIPConfig
    | TaggerConfig
    | LPIPSConfig
    | DISTSConfig
    | ControlNetConfig
    | CleanerSizes
    | PartParserConfig
)
Sizes = TypeVar("Sizes", bound=AnySizes)
AnyPart = CLIPTextModel | ImageTagger | LPIPS | DISTS | ControlNet | CleanerNetwork | PartParser
# By their names in config.json and on disk: what makes sizes of a table.
PARTS: dict[str, Callable[[object], AnySizes]] = {
    "clip": partial(from_dict, CLIPConfig),
    "tagger": partial(from_dict, TaggerConfig),
    "lpips": partial(from_dict, LPIPSConfig),
    "dists": partial(from_dict, DISTSConfig),
    "control": partial(from_dict, ControlNetConfig),
    "cleaner": cleaner_sizes,
    "parser": partial(from_dict, PartParserConfig),
}


@dataclass
class Part(Generic[Sizes]):
    """A network beside the restorer: its sizes, its tensors by our names, where from."""

    config: Sizes
    tensors: dict[str, Tensor]
    files: list[Path] = field(default_factory=list)
    remarks: Json = field(default_factory=dict)  # of how it was made; for provenance
    licences: list[str] = field(default_factory=list)  # beside those of the model


def build_part(
    config: AnySizes, model: ModelConfig, *, dtype: DTypeLike, rngs: nnx.Rngs
) -> AnyPart:
    """The network of a part; a tagger is one with the image encoder that it listens to."""
    kw: LayerOptions = {"dtype": dtype, "rngs": rngs}
    if isinstance(config, CLIPConfig):
        return CLIPTextModel(config, **kw)
    if isinstance(config, LPIPSConfig):
        return LPIPS(config, **kw)
    if isinstance(config, DISTSConfig):
        return DISTS(config, rngs=rngs)
    if isinstance(config, ControlNetConfig):
        return ControlNet(config, **kw)
    if isinstance(config, PartParserConfig):
        return PartParser(config, **kw)
    if isinstance(config, RRDBNetConfig | SwinIRConfig):
        return build_cleaner(config, dtype=dtype, rngs=rngs)
    # The head listens to an encoder of the restorer's sizes, with DAPE's changes if there are any.
    tagger = Tagger(config, model.swin.image_proj_dim, **kw)
    return ImageTagger(RAMEncoder(model.swin, **kw), tagger)


def part_shapes(name: str, config: AnySizes, model: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Shapes by name on disk. Raises WeightsError where sizes contradict each other."""
    module = _abstract_part(name, config, model, "fp32")
    return {_prefix(name) + key: shape for key, shape in shapes(module).items()}


def _abstract_part(where: str, config: AnySizes, model: ModelConfig, precision: str) -> AnyPart:
    """A part without its arrays. Raises WeightsError where sizes contradict each other."""
    try:
        make = partial(build_part, config, model, dtype=DTYPES[precision])
        return abstract(lambda rngs: make(rngs=rngs), config, model, precision)
    except IMPOSSIBLE as error:
        raise WeightsError(f"{where}: sizes that make no network: {error!s:.200}") from error


def put_parts(folder: Path, parts: Mapping[str, Part]) -> None:
    """Add parts to a model folder, in the place of those of their names if it has them.

    Its description is written last; a folder that others use is to be changed as a copy.
    """
    meta = read_meta(folder)
    for name, part in parts.items():
        file = f"{name}.safetensors"
        write_safetensors(folder / file, part.tensors)
        meta["digests"][file] = file_digest(folder / file)
        if part.remarks:
            meta.setdefault("provenance", {})[name] = part.remarks
    licences = [*meta.get("licences", []), *(x for part in parts.values() for x in part.licences)]
    sizes = {name: to_dict(part.config) for name, part in parts.items()}
    meta |= {"parts": meta.get("parts", {}) | sizes, "licences": list(dict.fromkeys(licences))}
    write_json(folder / CONFIG, meta)


def read_part(folder: Path, name: str) -> Part:
    """A part of a model folder for another one, its tensors unread.

    Raises WeightsError where the folder does not have it, or not whole and untouched.
    """
    meta, file = read_meta(folder), folder / f"{name}.safetensors"
    config = part_config(folder, meta, name)
    verify(folder, meta, file.name)
    tensors = load(file)
    compare(tensors, part_shapes(name, config, read_configs(folder, meta)[0]), str(file))
    return Part(config, tensors, [file])


def part_config(folder: Path, meta: Json, name: str) -> AnySizes:
    """Sizes of a part of a model folder. Raises WeightsError where they are not there."""
    if name not in meta.get("parts", {}):
        raise WeightsError(f"{folder}: holds no part {name!r}; import it with the model")
    try:
        config = PARTS[name](meta["parts"][name])
        check_values(config, f"parts.{name}")
    except ConfigError as error:
        raise WeightsError(f"{folder / CONFIG}: {error}") from error
    # It says of which U-Net it is, as another's would not add up.
    if isinstance(config, ControlNetConfig) and config.unet != read_configs(folder, meta)[0].unet:
        raise WeightsError(f"{folder / CONFIG}: its ControlNet is of another U-Net")
    return config


def _prefix(part: str) -> str:
    """What names on disk begin with; the tagger's begin with its two halves' already."""
    return "" if part == "tagger" else f"{part}."


@overload
def load_part(
    folder: Path | str, name: Literal["clip"], *, precision: str = "fp32"
) -> CLIPTextModel: ...
@overload
def load_part(
    folder: Path | str, name: Literal["tagger"], *, precision: str = "fp32"
) -> ImageTagger: ...
@overload
def load_part(folder: Path | str, name: Literal["lpips"], *, precision: str = "fp32") -> LPIPS: ...
@overload
def load_part(folder: Path | str, name: Literal["dists"], *, precision: str = "fp32") -> DISTS: ...
@overload
def load_part(
    folder: Path | str, name: Literal["control"], *, precision: str = "fp32"
) -> ControlNet: ...
@overload
def load_part(
    folder: Path | str, name: Literal["cleaner"], *, precision: str = "fp32"
) -> CleanerNetwork: ...
@overload
def load_part(
    folder: Path | str, name: Literal["parser"], *, precision: str = "fp32"
) -> PartParser: ...


def load_part(folder: Path | str, name: str, *, precision: str = "fp32") -> AnyPart:
    """The network of a part, computing in `precision`.

    Raises WeightsError where the folder does not have it, or not whole and untouched.
    """
    folder, file = Path(folder), f"{name}.safetensors"
    meta = read_meta(folder)
    config = part_config(folder, meta, name)
    # The file against its digest, then a network without arrays to fill.
    verify(folder, meta, file)
    model, _ = read_configs(folder, meta)
    module = _abstract_part(f"{folder / CONFIG}: {name}", config, model, precision)
    # A tagger's own tensors come before those that it shares with the restorer.
    names = set(shapes(module))
    tensors = {n.removeprefix(_prefix(name)): t for n, t in load(folder / file).items()}
    # DAPE's own tensors replace those that it shares with the restorer.
    if name == "tagger":
        tensors = _shared_encoder(folder, meta) | tensors
    fill(module, {k: v.read() for k, v in tensors.items()}, names, str(folder / file))
    return module


def save_part(folder: Path | str, name: str, config: AnySizes, network: AnyPart) -> None:
    """Give a model folder a part, in the place of one of its name; tensors as they are."""
    arrays = {n: np.asarray(p.get_value()) for n, p in parameters(network).items()}
    tensors = {_prefix(name) + n: Tensor.of(array) for n, array in arrays.items()}
    put_parts(Path(folder), {name: Part(config, tensors)})


def _shared_encoder(folder: Path, meta: Json) -> dict[str, Tensor]:
    """The image encoder of the restorer, which the tagger shares but for what DAPE changed."""
    verify(folder, meta, BASE)
    # The base's: LoRA never touches the image encoder.
    prefix = "prompter.image_encoder."
    base = load(folder / BASE)
    return {n.removeprefix("prompter."): t for n, t in base.items() if n.startswith(prefix)}
