"""What a model folder holds and can do, told from config.json alone: no weight is read.

A command refuses by it what the model does not take before anything is loaded.
"""

from typing import NamedTuple

from osdhuman_jax.config import (
    ConfigError,
    Json,
    ModelConfig,
    SampleConfig,
    UseConfig,
    read_folder_table,
)
from osdhuman_jax.weights.choices import POSE_FILES, PROMPTS


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


def model_of(meta: Json) -> ModelConfig:
    """Sizes of the restorer of a folder's config.json.

    Raises ConfigError where they, or the kind of prompts beside them, cannot be.
    """
    model = read_folder_table(ModelConfig, meta["model"], "model")
    # Folders of version 0.1 do not say; all of them were HFIE's.
    kind = meta.get("prompt", "hfie")
    if kind not in PROMPTS:
        raise ConfigError(f"prompt is {kind!r:.40}, none of {', '.join(PROMPTS)}")
    if (kind == "dual") != (model.dual is not None):
        has = "sizes" if model.dual else "no sizes"
        raise ConfigError(f"prompt is {kind!r}, but model.dual has {has} of two prompts")
    if model.text and kind == "hfie":
        raise ConfigError(f"prompt is {kind!r}, but the model is prompted by texts alone")
    return model


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


def strength_of(use: UseConfig, own: float | None, can: Abilities | None) -> str:
    """Which setting of a model its strength is, of STRENGTHS.

    Of a model of many steps the scale of its ControlNet, of one of two prompts its guidance, of any
    other the blend; unless the model says by `use` that something else is what helps.
    """
    method = "control_scale" if can else "blend" if own is None else "guidance"
    return use.strength_of or method
