"""A trained generator that is imported onto a base: LoRA and, unless it is OSEDiff's, HFIE.

    a model folder            says itself on which base it was trained, and must meet that base
    osediff.pkl and the like  say nothing of their base: they are read when its sizes are known

Tensors come back unread and with our names.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from osdhuman_jax.config import Json, LoRAConfig, ModelConfig
from osdhuman_jax.networks.configs import HFIEConfig
from osdhuman_jax.weights import name_tables
from osdhuman_jax.weights.diffusion import table_of_tensors
from osdhuman_jax.weights.model_folder import (
    CONFIG,
    GENERATOR,
    abstract_restorer,
    read_configs,
    read_meta,
    shapes,
    verify,
)
from osdhuman_jax.weights.torch_files import Tensor, WeightsError, load

OSEDIFF_ALPHA = 8.0  # peft's default, whatever the rank; OSEDiff's file does not say


@dataclass
class Generator:
    """What training changed: LoRA factors and, unless it is OSEDiff's, HFIE."""

    lora: LoRAConfig
    tensors: dict[str, Tensor]
    where: str
    model: ModelConfig | None = None  # of the base that it was trained on, where known
    prompt: str = "hfie"
    files: list[Path] = field(default_factory=list)
    merged: dict[str, Tensor] = field(default_factory=dict)  # kernels of the base that it changed
    remarks: Json = field(default_factory=dict)  # of what its files do not say; for provenance
    licences: list[str] = field(default_factory=list)


# Makes a generator for a base of these sizes and tensors, where its file says nothing of them.
Fit = Callable[[ModelConfig, Mapping[str, Tensor]], Generator]


def local_generator(generator: Path | str | Generator | Fit | None) -> Generator | Fit | None:
    """The generator, or of a file that does not tell its base what reads it once that is known."""
    if not isinstance(generator, Path | str):
        return generator
    # A folder tells its own base; OSEDiff's file is looked at, and read later.
    path = Path(generator)
    if path.is_dir():
        return generator_of_folder(path)
    osediff_table(path)
    return lambda model, base: read_osediff(path, model)


def fitted(
    generator: Generator | Fit | None, model: ModelConfig, base: Mapping[str, Tensor]
) -> Generator | None:
    """The generator, checked; HFIE's sizes and the timestep of `model` become its own."""
    if generator is None:
        return None
    if not isinstance(generator, Generator):
        generator = generator(model, base)
    # Training may have been at another timestep, and with another number of queries.
    model.hfie = check_generator(generator, model)
    model.timestep = generator.model.timestep if generator.model else model.timestep
    return generator


def generator_of_folder(folder: Path) -> Generator:
    """The generator of a model folder. Raises WeightsError where it has none."""
    meta = read_meta(folder)
    model, adapters = read_configs(folder, meta)
    # A model without adapters has nothing that could go onto another base.
    if adapters is None:
        raise WeightsError(f"{folder}: a base model, it holds no trained generator")
    verify(folder, meta, GENERATOR)
    files = [folder / CONFIG, folder / GENERATOR]
    prompt = meta.get("prompt", "hfie")
    tensors = load(folder / GENERATOR)
    return Generator(adapters, tensors, str(folder / GENERATOR), model, prompt, files)


def osediff_table(path: Path) -> Json:
    """What osediff.pkl holds, for the networks of whatever model. Raises WeightsError."""
    tree = load(path)
    # Anything may be in a foreign file: its keys and types are proved before they are used.
    lacking = [k for k in OSEDIFF_KEYS if not isinstance(tree, dict) or k not in tree]
    if lacking:
        raise WeightsError(f"{path}: not OSEDiff's (lacks {', '.join(lacking)})")
    rank, other = tree["rank_unet"], tree["rank_vae"]
    if type(rank) is not int or rank != other or not 0 < rank <= 1024:
        raise WeightsError(f"{path}: ranks {rank!r:.20} and {other!r:.20}; served is one for both")
    return tree


def read_osediff(path: Path, model: ModelConfig) -> Generator:
    """osediff.pkl for the networks of `model`.

    Three adapters of the U-Net, one of the VAE, and the U-Net's conv_in, trained in full.
    """
    tree = osediff_table(path)
    rank = tree["rank_unet"]
    # Which tensors there must be follows from a restorer of these sizes with these adapters.
    adapters = LoRAConfig(rank=rank, alpha=OSEDIFF_ALPHA, train_conv_in=True)
    restorer, trained = abstract_restorer(model, adapters)
    # Two tables in one file, each checked as a file of its own.
    every = shapes(restorer)
    tensors: dict[str, Tensor] = {}
    for network, table in (("unet", name_tables.OSEDIFF_UNET), ("vae", name_tables.OSEDIFF_VAE)):
        where = f"{path} ({network})"
        part = table_of_tensors(tree[f"state_dict_{network}"], where)
        targets = {n: every[n] for n in trained if n.startswith(f"{network}.")}
        tensors |= name_tables.convert(part, table, targets, where)
    return Generator(adapters, tensors, str(path), prompt="dape", files=[path])


OSEDIFF_KEYS = ("state_dict_unet", "state_dict_vae", "rank_unet", "rank_vae")


def check_generator(generator: Generator, model: ModelConfig) -> HFIEConfig:
    """Sizes of the HFIE that a generator was trained with.

    Raises WeightsError where the generator does not fit the base.
    """
    # OSEDiff's file does not say on which base it was trained: shapes have to do.
    trained = generator.model
    if trained is None:
        return model.hfie
    names = [n for n in ("vae", "unet", "swin") if getattr(trained, n) != getattr(model, n)]
    if names:
        raise WeightsError(f"{generator.where}: trained on another {' and '.join(names)}")
    return trained.hfie
