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
    skeleton: bool  # its ControlNet sees a drawing of their skeletons
    attention: bool  # and a map of where they are

    @property
    def structure(self) -> bool:
        """Whether it matters where people are."""
        return self.skeleton or self.attention


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
        skeleton=bool(control.get("pose")),
        attention=bool(control.get("attention")),
    )
