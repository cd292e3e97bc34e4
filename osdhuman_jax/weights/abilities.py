"""What a DiffBody of a model folder can do, told from config.json alone: no weight is read.

A command refuses by it what the model does not take before anything is loaded.
"""

from typing import NamedTuple

from osdhuman_jax.config import Json, SampleConfig, UseConfig
from osdhuman_jax.weights.choices import POSE_FILES


class Abilities(NamedTuple):
    """What beside the picture a model takes, and what it finds by itself."""

    sample: SampleConfig  # with which it is best used
    text: bool  # texts describe the pictures; else HFIE does
    tags: bool  # it can find a text for a picture
    people: bool  # it can find people: BlazePose is in the folder
    parser: bool  # it tells the parts of a body apart
    structure: bool  # its ControlNet sees a skeleton or an attention map


def abilities_of(meta: Json, use: UseConfig) -> Abilities | None:
    """Those of a folder's config.json, whose `use` was read; None of other models."""
    parts, digests = meta.get("parts", {}), meta.get("digests", {})
    if "control" not in parts:
        return None
    control = parts["control"]
    return Abilities(
        sample=use.sample or SampleConfig(),
        text=meta.get("prompt", "hfie") == "text",
        tags="tagger" in parts and "tags/ram_tag_list.txt" in digests,
        people=all(name in digests for name in POSE_FILES),
        parser="parser" in parts,
        structure=bool(control.get("pose") or control.get("attention")),
    )
