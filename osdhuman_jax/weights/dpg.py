"""Folders of what HAODiff's stage 1 trains: SwinIR with branches, by itself (kind "dpg").

    config.json        format, kind, sizes (a DualPromptConfig's), digests, provenance
    base.safetensors   the network's tensors, upsamplers included, by nnx path

Stage 2 makes prompts of its features and needs no upsamplers (methods/dual_prompts.py); evaluation
takes its third branch as a detector of motion blur (evaluation/motion.py).
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from osdhuman_jax.config import ConfigError, Json, from_dict, to_dict
from osdhuman_jax.disk import file_digest, write_json
from osdhuman_jax.networks.configs import DualPromptConfig
from osdhuman_jax.networks.swinir import BranchedSwinIR, Reconstruction
from osdhuman_jax.weights.model_folder import (
    BASE,
    CONFIG,
    DPG,
    DTYPES,
    FORMAT,
    IMPOSSIBLE,
    abstract,
    fill,
    parameters,
    read_meta,
    shapes,
    verify,
)
from osdhuman_jax.weights.torch_files import Tensor, WeightsError, load, write_safetensors

# Restored picture, residual and motion blur: a branch and an upsampler for each.
TARGETS = len(Reconstruction._fields)


@dataclass
class Extractor:
    """A loaded network of stage 1, which can reconstruct, and what it is."""

    network: BranchedSwinIR
    config: DualPromptConfig
    digest: str  # sha256 of config.json, which holds the digest of the weights
    name: str


def save_dpg(
    folder: Path | str,
    config: DualPromptConfig,
    network: BranchedSwinIR,
    *,
    provenance: Json | None = None,
) -> None:
    """Write a folder of a network that reconstructs. Raises WeightsError for one of other sizes."""
    # What a loader would refuse is not written.
    tensors = {name: np.asarray(p.get_value()) for name, p in parameters(network).items()}
    if {n: v.shape for n, v in tensors.items()} != shapes(abstract_dpg(config, str(folder))):
        raise WeightsError(f"{folder}: these are not the tensors of a network of such sizes")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    # Tensors first: a folder without a description is no model yet.
    write_safetensors(folder / BASE, {n: Tensor.of(array) for n, array in tensors.items()})
    meta = {
        "format": FORMAT,
        "kind": DPG,
        "model": to_dict(config),
        "digests": {BASE: file_digest(folder / BASE)},
        "provenance": provenance or {},
    }
    write_json(folder / CONFIG, meta)


def load_dpg(folder: Path | str, *, precision: str = "fp32") -> Extractor:
    """The network of a folder, computing in `precision`.

    Raises WeightsError where the folder is not a whole, untouched one of this kind.
    """
    folder = Path(folder)
    # The description first, then the bytes against it, then a network to put them into.
    meta = read_meta(folder, DPG)
    verify(folder, meta, BASE)
    config = read_dpg_sizes(folder, meta)
    network = abstract_dpg(config, str(folder / CONFIG), precision)
    tensors = {name: tensor.read() for name, tensor in load(folder / BASE).items()}
    fill(network, tensors, set(shapes(network)), str(folder / BASE))
    return Extractor(network, config, file_digest(folder / CONFIG), folder.resolve().name)


def read_dpg_sizes(folder: Path, meta: Json) -> DualPromptConfig:
    """Sizes of a folder's network. Raises WeightsError where they are not described."""
    try:
        return from_dict(DualPromptConfig, meta["model"])
    except ConfigError as error:
        raise WeightsError(f"{folder / CONFIG}: {error}") from error


def abstract_dpg(config: DualPromptConfig, where: str, precision: str = "fp32") -> BranchedSwinIR:
    """The network with shapes for arrays. Raises WeightsError on sizes that make none."""
    try:
        # Upsamplers are of three targets, whatever the number of branches is.
        if config.num_branches != TARGETS:
            raise ValueError(f"{config.num_branches} branches for {TARGETS} targets")
        dtype = DTYPES[precision]
        return abstract(
            lambda rngs: BranchedSwinIR(config, reconstructs=True, dtype=dtype, rngs=rngs)
        )
    except IMPOSSIBLE as error:
        raise WeightsError(f"{where}: sizes that make no network: {error!s:.200}") from error
