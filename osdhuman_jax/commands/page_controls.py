"""What can be set on the page: one control for each setting that a model takes.

Goes in: a pipeline, or the fields of a form by the settings' names, as text. Comes out: controls,
which the page draws and docs/inference.md lists, or settings (inference/settings.py), read and
proved.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

from osdhuman_jax.config import COLOR_FIXES
from osdhuman_jax.images.formats import LOSSLESS, SUFFIXES
from osdhuman_jax.inference.finishing import check_options
from osdhuman_jax.inference.pipeline import Pipeline
from osdhuman_jax.inference.settings import GUIDANCE, Sampling, Settings, sampled
from osdhuman_jax.weights.abilities import Abilities

LARGEST = 4.0  # times; beyond it nothing of a person is left that more pixels could show


@dataclass(frozen=True)
class Control:
    """One control; its bounds are those of a slider or a number, its choices a list's."""

    name: str  # of the setting
    label: str
    default: float | int | str
    help: str = ""
    least: float | int = 0
    most: float | int = 1
    step: float | int = 0.05
    choices: tuple[str, ...] = ()
    kind: str = "slider"  # or number, choice, text

    def as_json(self) -> dict[str, object]:
        """Its fields, as the page reads them."""
        return asdict(self)

    def read(self, text: str) -> float | str:
        """The value that a form states. Raises ValueError where it is none of this control."""
        if self.kind == "text":
            return text
        if self.kind == "choice":
            if text not in self.choices:
                raise ValueError(f"{self.name} must be one of {', '.join(self.choices)}")
            return text
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        # NaN is in no range.
        if not self.least <= value <= self.most or (self.step == 1 and value != int(value)):
            whole = "a whole number " if self.step == 1 else ""
            raise ValueError(f"{self.name} must be {whole}from {self.least:g} to {self.most:g}")
        return value


def controls(pipeline: Pipeline) -> list[Control]:
    """Controls of what the pipeline's model takes, each at the model's own value."""
    use, own = pipeline.model.use, pipeline.model.restorer.guidance
    made = [
        Control("blend", "Strength", use.blend, "0: the picture as it is, 1: all of the restored."),
        Control("upscale", "Enlarge", 1.0, "Times as wide and high.", 1, LARGEST, 0.5),
        Control(
            "color_fix",
            "Colours of the original",
            use.color_fix,
            "none: as restored; adain: all statistics; wavelet: the low frequencies.",
            choices=COLOR_FIXES,
            kind="choice",
        ),
    ]
    # Others have nothing to guide.
    if own is not None:
        text = "How far from what is wrong with the picture; the model's own is best."
        made.append(Control("guidance", "Guidance", own, text, *GUIDANCE, 0.5))
    if pipeline.abilities is not None:
        made += _sampling(pipeline.abilities)
    kept = "PNG loses nothing and keeps 16 bits."
    return [
        *made,
        Control("format", "Format", Settings.format, kept, choices=(*SUFFIXES,), kind="choice"),
        Control(
            "quality",
            "Quality",
            Settings.quality,
            f"Of JPEG and WebP; {LOSSLESS} is lossless WebP.",
            least=1,
            most=LOSSLESS,
            step=1,
        ),
    ]


def _sampling(can: Abilities) -> list[Control]:
    """Controls of a model of many steps: how many, the seed, and the text where it takes one."""
    most = 2**32 - 1
    made = [
        Control("steps", "Steps", can.sample.steps, "More take longer.", 1, 100, 1),
        Control("seed", "Seed", 0, "Another one, another result.", 0, most, 1, kind="number"),
    ]
    text = "What the picture shows, in words, such as: young woman, red hair, green coat"
    return made + ([Control("prompt", "Prompt", "", text, kind="text")] if can.text else [])


def read_settings(form: Mapping[str, str], pipeline: Pipeline) -> Settings:
    """Settings of a form's fields, those that are not there being the model's own.

    Raises ValueError on a field that is no control's, or on its value.
    """
    known = {control.name: control for control in controls(pipeline)}
    if strange := sorted(set(form) - set(known)):
        raise ValueError(f"{strange[0]} is no setting; settings are {', '.join(known)}")
    values = {name: known[name].read(form.get(name, str(known[name].default))) for name in known}
    # A model's own steps are its config's, of any number.
    ours = {name: values.pop(name) for name in ("steps", "seed", "prompt") if name in values}
    settings = replace(Settings(), **{**values, "quality": int(float(values["quality"]))})
    check_options(settings.color_fix, settings.blend)
    if pipeline.abilities is None:
        return settings
    # An empty text is none: the picture's tags may follow.
    asked = Sampling(
        steps=int(float(ours["steps"])),
        seed=int(float(ours["seed"])),
        prompt=str(ours.get("prompt", "")) or None,
    )
    own = pipeline.model.restorer.guidance
    return replace(settings, sampling=sampled(own, pipeline.abilities, None, asked)[1])
