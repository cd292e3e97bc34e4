"""What makes one input one output: a model, a precision, and settings of a run.

Commands read their flags' values here, and compare a finished picture's record with what is asked
for, before any network or array library is loaded: this module needs the standard library alone.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

from osdhuman_jax.config import SAMPLERS, TIMESTEPS, ConfigError, Json, UseConfig, use_of
from osdhuman_jax.disk import file_digest, parse_json
from osdhuman_jax.weights.abilities import Abilities, abilities_of, model_of, strength_of

# What a flag can choose of.
PRECISIONS = ("fp32", "bf16")
GUIDANCE = (1, 10)  # scales that are taken; 1 is the positive prompt alone
NOBODY, BLAZEPOSE = "off", "blazepose"  # where people are found, beside a file of poses


@dataclass(frozen=True)
class Sampling:
    """What is asked of a model of many steps (DiffBody); None is what it is best used with.

    The scale of the text and what leads away from it follow the text, where they are None: without
    a text there is neither.
    """

    steps: int | None = None
    sampler: str | None = None  # of SAMPLERS
    cfg: float | None = None  # scale by which the text is followed
    control_scale: float | None = None  # of what ControlNet adds
    part_guidance: float | None = None  # scale s of Eq. 6
    prompt: str | None = None  # of all pictures
    negative: str | None = None
    seed: int | None = None
    pose: str | None = None  # NOBODY, BLAZEPOSE or the digest of a file and its maps
    captions: str | None = None  # the digest of a file


@dataclass(frozen=True)
class Restraint:
    """What a restoration must leave as it was; None is what is not asked for.

    Files stand for what is in them: kinds and digests.
    """

    mask: str | None = None
    people_only: str | None = None
    keep_faces: float | None = None  # least similarity of a face that is not given back
    face_detector: str | None = None
    face_embedding: str | None = None


@dataclass(frozen=True)
class Settings:
    """What, beside the model, makes one input one output."""

    upscale: float = 1.0
    color_fix: str = "none"
    blend: float = 1.0
    format: str = "png"
    quality: int = 95
    guidance: float | None = None  # of a model of two prompts, which others lack
    sampling: Sampling | None = None  # of a model of many steps, which others lack
    restraint: Restraint | None = None


class ModelIdentity(NamedTuple):
    """What tells one model from any other, and how it is best used."""

    digest: str  # SHA-256 of config.json, which holds the digests of the weights
    use: UseConfig
    guidance: float | None  # its own, of a model of two prompts
    abilities: Abilities | None = None  # of a model of many steps


def read_identity(folder: Path) -> ModelIdentity | None:
    """The identity of a model folder, without reading its weights; None where config.json is odd.

    What is wrong with such a folder is said by the loader of models, which looks at all of it.
    """
    path = folder / "config.json"
    try:
        # The digest of config.json stands for the weights, whose digests are in it: gigabytes need
        # not be read to see that a folder is finished.
        meta = parse_json(path.read_text(encoding="utf-8-sig"))
        # A cleaner's sizes are no restorer's, and none of them is a setting.
        dual = model_of(meta).dual if meta.get("kind", "restorer") == "restorer" else None
        guidance, use = dual.guidance if dual else None, use_of(meta)
        return ModelIdentity(file_digest(path), use, guidance, abilities_of(meta, use))
    except (OSError, ValueError, TypeError, AttributeError, LookupError, ConfigError):
        return None


def chosen(use: UseConfig, color_fix: str | None, blend: float | None) -> tuple[str, float]:
    """Colour fix and blend that are asked for, or (None) with which a model is best used."""
    # What a person asks for counts before what the model is best used with.
    color_fix = use.color_fix if color_fix is None else color_fix
    return color_fix, use.blend if blend is None else blend


def strong(
    use: UseConfig, own: float | None, can: Abilities | None, strength: float
) -> dict[str, float]:
    """The setting that a strength in [0, 1] is of a model, by its name, and its value.

    Blend and the scale of the ControlNet are the strength itself. Guidance goes from 1 to 10 by
    equal factors, so that a published model's 3.5 is about the middle. Raises ValueError.
    """
    if not 0 <= strength <= 1:
        raise ValueError(f"strength must be between 0 and 1, got {strength}")
    name = strength_of(use, own, can)
    if name != "guidance":
        return {name: strength}
    least, most = GUIDANCE
    return {name: round(least * (most / least) ** strength, 4)}


def without_strength(
    use: UseConfig,
    own: float | None,
    can: Abilities | None,
    strength: float | None,
    settings: Mapping[str, float | None],
) -> dict[str, float | None]:
    """The settings of STRENGTHS that are asked for, with the one that a strength stands for.

    Raises ValueError where both are asked for.
    """
    if strength is None:
        return dict(settings)
    made = strong(use, own, can, strength)
    if twice := [name for name in made if settings.get(name) is not None]:
        raise ValueError(f"strength is this model's {twice[0]}: give one of them")
    return dict(settings) | made


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


def sampled(
    own: float | None, can: Abilities | None, guidance: float | None, asked: Sampling
) -> tuple[float | None, Sampling | None]:
    """Guidance and sampling of a model, of what is asked for or of its own.

    `own` is the guidance of a model of two prompts, `can` what a model of many steps can do: there
    `guidance` is that by parts. Raises ValueError on what a model does not take.
    """
    if can is None:
        _refuse([name for name, value in asdict(asked).items() if value is not None], STEPS)
        return guided(own, guidance), None
    if not can.text:
        texts = ("cfg", "prompt", "negative", "captions")
        _refuse([name for name in texts if getattr(asked, name) is not None], TEXTS)
    if asked.pose not in (None, NOBODY) and not can.structure:
        _refuse(["pose"], "a ControlNet that is shown people; this one is shown none")
    # What is not asked for is the model's own; but scale and negative text follow the text.
    best = can.sample
    found = BLAZEPOSE if can.people and can.structure else NOBODY
    made = replace(
        asked,
        steps=best.steps if asked.steps is None else asked.steps,
        sampler=asked.sampler or best.sampler,
        control_scale=best.control_scale if asked.control_scale is None else asked.control_scale,
        part_guidance=best.guidance if guidance is None else guidance,
        seed=asked.seed or 0,
        pose=asked.pose or found,
        captions=asked.captions if asked.prompt is None else None,
    )
    # The model's own scale of the text stays open, and is proved like one that is asked for.
    _check_ranges(replace(made, cfg=best.cfg if made.cfg is None else made.cfg))
    if made.part_guidance and not (can.parser or made.pose == BLAZEPOSE):
        raise ValueError(
            "guidance by parts needs the part parser in the model's folder, or BlazePose there and "
            "no --pose"
        )
    return None, made


STEPS = "models of many steps (DiffBody); this one takes one step"
TEXTS = "models that are prompted by texts; this one is prompted by its pictures"


def _refuse(names: list[str], why: str) -> None:
    """Raise ValueError where there are names."""
    if names:
        raise ValueError(f"{', '.join(names)}: for {why}")


def _check_ranges(made: Sampling) -> None:
    """Raise ValueError on a setting that is out of its range."""
    if made.sampler not in SAMPLERS:
        raise ValueError(f"sampler must be one of {', '.join(SAMPLERS)}, got {made.sampler!r:.40}")
    for name in ("prompt", "negative"):
        try:
            (getattr(made, name) or "").encode()
        except UnicodeEncodeError:
            raise ValueError(f"{name} must be text in UTF-8") from None
    ranges: Mapping[str, tuple[float, float]] = {
        "steps": (1, TIMESTEPS),
        "seed": (0, 2**32 - 1),
        "cfg": (0, math.inf),
        "control_scale": (0, math.inf),
        "part_guidance": (0, math.inf),
    }
    for name, (least, most) in ranges.items():
        value = getattr(made, name)
        # NaN is in no range, nor is infinity.
        if value is not None and not (least <= value <= most and math.isfinite(value)):
            bound = f"at least {least}" if most == math.inf else f"between {least} and {most}"
            shown = name.replace("part_", "")
            raise ValueError(f"{shown} must be {bound}, got {value}")


def identity(digest: str, precision: str, settings: Settings) -> Json:
    """What a provenance line must say for its output to be this model's with these settings."""
    # A setting that a model lacks is not in its record, nor is it in records of earlier versions.
    made = {name: value for name, value in asdict(settings).items() if value is not None}
    # All of sampling's, those that were not asked for too: asked or not is another output.
    made |= made.pop("sampling", {})
    made |= {name: value for name, value in made.pop("restraint", {}).items() if value is not None}
    return {"model_digest": digest, "precision": precision} | made
