"""What can be set on the page: one control for each thing that a model takes.

Goes in: a pipeline, or the fields of a form by the flags' names, as text. Comes out: controls,
which the page draws and /api/model lists, or what a form asks for, read and proved.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache

from osdhuman_jax.config import COLOR_FIXES
from osdhuman_jax.images.formats import LOSSLESS, SUFFIXES
from osdhuman_jax.inference.pipeline import Pipeline
from osdhuman_jax.inference.poses import read_files
from osdhuman_jax.inference.settings import BLAZEPOSE, GUIDANCE, Sampling, Settings
from osdhuman_jax.weights.abilities import Abilities, strength_of

LARGEST = 4.0  # times; beyond it there is nothing of a person left that more pixels could show
EVERYWHERE = "everywhere"


@dataclass(frozen=True)
class Wish:
    """What a form asks for; None is what the model is best used with."""

    upscale: float
    format: str
    quality: int
    color_fix: str | None = None
    strength: float | None = None
    keep_faces: float | None = None
    people_only: str | None = None
    sampling: Sampling | None = None  # of a model of many steps


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
    use = pipeline.model.use
    strength = "How much is done: 0 little or nothing, 1 all that the model can."
    faces = "A face that comes out less like itself than this is put back as it was; 0: none is."
    colours = "none: as restored; adain: all statistics; wavelet: the low frequencies."
    made = [
        Control("strength", "Strength", round(own_strength(pipeline), 2), strength, step=0.01),
        Control("keep_faces", "Keep faces", use.keep_faces, faces),
        Control("upscale", "Enlarge", 1.0, "Times as wide and high.", 1, LARGEST, 0.5),
        _choice("color_fix", "Colours of the original", use.color_fix, COLOR_FIXES, colours),
    ]
    if _people_can_be_found():
        text = "Only people are restored, and all beside them stays as it is."
        made.insert(2, _choice("people_only", "Where", EVERYWHERE, (EVERYWHERE, "people"), text))
    if pipeline.abilities is not None:
        made += _sampling(pipeline.abilities)
    kept, packed = "PNG loses nothing and keeps 16 bits.", f"{LOSSLESS} is lossless WebP."
    own, most = Settings.quality, LOSSLESS
    return [
        *made,
        _choice("format", "Format", Settings.format, (*SUFFIXES,), kept),
        Control("quality", "Quality", own, f"Of JPEG and WebP; {packed}", 1, most, 1),
    ]


def _choice(name: str, label: str, own: str, choices: tuple[str, ...], text: str) -> Control:
    return Control(name, label, own, text, choices=choices, kind="choice")


def own_strength(pipeline: Pipeline) -> float:
    """The strength with which a model is best used: what `settings.strong` makes its own of."""
    use, own, can = pipeline.model.use, pipeline.model.restorer.guidance, pipeline.abilities
    name = strength_of(use, own, can)
    if name == "guidance" and own:
        least, most = GUIDANCE
        return math.log(own / least) / math.log(most / least)
    return min(can.sample.control_scale, 1.0) if name != "blend" and can else use.blend


@cache
def _people_can_be_found() -> bool:
    """Whether there are networks for it on this machine."""
    try:
        return bool(read_files(None))
    except (ValueError, OSError):
        return False


def _sampling(can: Abilities) -> list[Control]:
    """Controls of a model of many steps: how many, the seed, and the text where it takes one."""
    most = 2**32 - 1
    made = [
        Control("steps", "Steps", can.sample.steps, "More take longer.", 1, 100, 1),
        Control("seed", "Seed", 0, "Another one, another result.", 0, most, 1, kind="number"),
    ]
    text = "What the picture shows, in words, such as: young woman, red hair, green coat"
    return made + ([Control("prompt", "Prompt", "", text, kind="text")] if can.text else [])


def read_wish(form: Mapping[str, str], pipeline: Pipeline) -> Wish:
    """What a form's fields ask for. Raises ValueError on one that is no control's, or its value."""
    known = {control.name: control for control in controls(pipeline)}
    if strange := sorted(set(form) - set(known)):
        raise ValueError(f"{strange[0]} is no setting; settings are {', '.join(known)}")
    values = {name: known[name].read(text) for name, text in form.items()}
    sampling = None
    if pipeline.abilities is not None:
        # An empty text is none: the picture's tags may follow.
        steps, seed = (values.pop(name, None) for name in ("steps", "seed"))
        sampling = Sampling(
            steps=None if steps is None else int(steps),
            seed=None if seed is None else int(seed),
            prompt=str(values.pop("prompt", "")) or None,
        )
    people = BLAZEPOSE if values.pop("people_only", EVERYWHERE) != EVERYWHERE else None
    plain = {"upscale": 1.0, "format": Settings.format, "quality": Settings.quality} | values
    plain["quality"] = int(plain["quality"])
    return Wish(**plain, people_only=people, sampling=sampling)  # type: ignore[arg-type]
