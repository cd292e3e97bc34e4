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
GUIDANCE = (1, 10)  # scales that are taken; 1 is the positive prompt alone


@dataclass(frozen=True)
class Settings:
    """What, beside the model, makes one input one output."""

    upscale: float = 1.0
    color_fix: str = "none"
    blend: float = 1.0
    format: str = "png"
    quality: int = 95
    guidance: float | None = None  # of a model of two prompts, which others lack


class ModelIdentity(NamedTuple):
    """What tells one model from any other, and how it is best used."""

    digest: str  # SHA-256 of config.json, which holds the digests of the weights
    use: UseConfig
    guidance: float | None  # its own, of a model of two prompts


def read_identity(folder: Path) -> ModelIdentity | None:
    """The identity of a model folder, without reading its weights; None where config.json is odd.

    What is wrong with such a folder is said by the loader of models, which looks at all of it.
    """
    path = folder / "config.json"
    try:
        # The digest of config.json stands for the weights, whose digests are in it: gigabytes need
        # not be read to see that a folder is finished.
        meta = json.loads(path.read_text(encoding="utf-8-sig"))
        guidance = (meta.get("model", {}).get("dual") or {}).get("guidance")
        return ModelIdentity(file_digest(path), use_of(meta), guidance)
    except (OSError, ValueError, TypeError, AttributeError, ConfigError):
        return None


def chosen(use: UseConfig, color_fix: str | None, blend: float | None) -> tuple[str, float]:
    """Colour fix and blend that are asked for, or (None) with which a model is best used."""
    # What a person asks for counts before what the model is best used with.
    color_fix = use.color_fix if color_fix is None else color_fix
    return color_fix, use.blend if blend is None else blend


def guided(own: float | None, asked: float | None) -> float | None:
    """Scale of the guidance that is asked for, or the model's own.

    Raises ValueError where a model has none, and outside GUIDANCE.
    """
    if asked is None:
        return own
    if own is None:
        raise ValueError("guidance is for models of two prompts (HAODiff); this one has none")
    if not GUIDANCE[0] <= asked <= GUIDANCE[1]:
        raise ValueError(f"guidance must be between {GUIDANCE[0]} and {GUIDANCE[1]}, got {asked}")
    return asked


def identity(digest: str, precision: str, settings: Settings) -> Json:
    """What a provenance line must say for its output to be this model's with these settings."""
    # A setting that a model lacks is not in its record, nor is it in records of earlier versions.
    made = {name: value for name, value in asdict(settings).items() if value is not None}
    return {"model_digest": digest, "precision": precision} | made
