"""What makes one input one output: a model, a precision, and settings of a run.

Commands read their flags' values here, and compare a finished picture's record with what is asked
for, before any network or array library is loaded: this module needs the standard library alone.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

from osdhuman_jax.config import ConfigError, Json, UseConfig, use_of
from osdhuman_jax.disk import file_digest

# What a flag can choose of.
PRECISIONS = ("fp32", "bf16")
COLOR_FIXES = ("none", "adain", "wavelet")


@dataclass(frozen=True)
class Settings:
    """What, beside the model, makes one input one output."""

    upscale: float = 1.0
    color_fix: str = "none"
    blend: float = 1.0
    format: str = "png"
    quality: int = 95


class ModelIdentity(NamedTuple):
    """What tells one model from any other, and how it is best used."""

    digest: str  # SHA-256 of config.json, which holds the digests of the weights
    use: UseConfig


def read_identity(folder: Path) -> ModelIdentity | None:
    """The identity of a model folder, without reading its weights; None where config.json is odd.

    What is wrong with such a folder is said by the loader of models, which looks at all of it.
    """
    path = folder / "config.json"
    try:
        # The digest of config.json stands for the weights, whose digests are in it: gigabytes need
        # not be read to see that a folder is finished.
        meta = json.loads(path.read_text(encoding="utf-8-sig"))
        return ModelIdentity(file_digest(path), use_of(meta))
    except (OSError, ValueError, TypeError, ConfigError):
        return None


def chosen(use: UseConfig, color_fix: str | None, blend: float | None) -> tuple[str, float]:
    """Colour fix and blend that are asked for, or (None) with which a model is best used."""
    # What a person asks for counts before what the model is best used with.
    color_fix = use.color_fix if color_fix is None else color_fix
    return color_fix, use.blend if blend is None else blend


def identity(digest: str, precision: str, settings: Settings) -> Json:
    """What a provenance line must say for its output to be this model's with these settings."""
    return {"model_digest": digest, "precision": precision} | asdict(settings)
