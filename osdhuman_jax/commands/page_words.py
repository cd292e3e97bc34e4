"""The model in words for whoever restores a picture, and its card for whoever knows models.

Goes in: a pipeline, or the Markdown of a model's README.md. Comes out: sentences, or HTML.
"""

import re

import jax
from markdown_it import MarkdownIt

from osdhuman_jax.inference.pipeline import Pipeline

DEVICES = {"cpu": "this machine's processor", "gpu": "this machine's GPU", "tpu": "a TPU"}


def model_words(pipeline: Pipeline) -> list[str]:
    """What a person should know of a model before using it, a sentence or two each."""
    model, use = pipeline.model, pipeline.model.use
    where = DEVICES.get(jax.default_backend(), jax.default_backend())
    how = _how(pipeline)
    words = [f"The model is called {model.name}. {how} It is computed on {where}."]
    least, most = use.sides
    if least or most:
        sizes = f"from {least} to {most}" if most else f"at least {least}"
        words.append(f"It is made for pictures whose shorter side has {sizes} pixels.")
    if use.work_side:
        size = f"{use.work_side} pixels"
        words.append(f"Pictures of less than {size} are enlarged to that while it works on them.")
    if use.blend < 1 and not pipeline.abilities:
        words.append(f"The result is {use.blend:.0%} restored and {1 - use.blend:.0%} your own.")
    if use.keep_faces:
        words.append("Faces that would be lost are put back as they were in your picture.")
    words.append(
        "It draws what is probable, not what was there: do not take a restored face or text for "
        "evidence."
    )
    return [*words, "Your pictures stay on the machine that serves this page, and none is kept."]


def _how(pipeline: Pipeline) -> str:
    """What kind of model it is."""
    if pipeline.abilities is not None:
        steps = pipeline.abilities.sample.steps
        return f"It draws people again in many steps ({steps} unless you set others)."
    if pipeline.scale > 1:
        return f"It cleans pictures of anything and makes them {pipeline.scale} times as large."
    return "It restores photographs of people in one step."


def card_html(card: str) -> str:
    """A card's Markdown as HTML; its own HTML is shown as text, but for marks of tables."""
    # Comments where programs put a table, and lines under the second best of its figures.
    plain = re.sub(r"<!--.*?-->|</?u>", "", card, flags=re.DOTALL)
    return MarkdownIt("commonmark", {"html": False}).enable("table").render(plain)
