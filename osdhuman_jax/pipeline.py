"""Photographs in, photographs out: what infer.py, a web page and a Python program share.

    pipeline = Pipeline.from_folder("models/nano")
    restored = pipeline.restore([read_image("photo.jpg")], upscale=2)

Each picture is enlarged if asked, padded by reflection to one of few sizes, restored in batches,
cropped back and colour-corrected. Arrays are uint8 (height, width, 3) at the edges.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import Float32, UInt8
from PIL import Image

from osdhuman_jax import colour
from osdhuman_jax.checkpoint import load_run, load_run_prompter
from osdhuman_jax.images import Picture, to_float, to_uint8
from osdhuman_jax.prompts import FixedPrompter, TagPrompter
from osdhuman_jax.types import Tokens
from osdhuman_jax.weights import Model, load_model, load_prompter

Pixels = UInt8[np.ndarray, "h w 3"]
Prompter = Callable[[Float32[np.ndarray, "b h w 3"]], Tokens]
Size = tuple[int, int]  # height, width

COLOR_FIXES = ("none", "adain", "wavelet")
PRECISIONS = ("fp32", "bf16")


class RestoreError(RuntimeError):
    """The model gave no usable picture."""


class Pipeline:
    """A model made ready to restore pictures; compiled once for each padded size."""

    def __init__(
        self,
        model: Model,
        precision: str = "fp32",
        batch_size: int = 1,
        bucket: int = 64,
        prompter: Prompter | None = None,
    ) -> None:
        """Keep `model`, which was loaded in `precision`.

        Sides are padded to multiples of `bucket` pixels (and of the model's own multiple): a larger
        bucket compiles fewer programs and computes more padding. Batches have always `batch_size`
        pictures, the last one filled up by repetition. A `prompter` (tags, for one) gets a batch of
        padded pictures in [-1, 1] and gives its tokens; without it the model has its own.
        """
        if batch_size < 1 or bucket < 1:
            raise ValueError("batch_size and bucket must be at least 1")
        self.model, self.precision, self.batch_size = model, precision, batch_size
        self._prompter = prompter
        self.multiple = math.lcm(model.restorer.multiple, bucket)
        self._graphdef, self._state = nnx.split(model.restorer)

    @classmethod
    def from_folder(cls, folder: str | Path, precision: str = "fp32", **options: Any) -> "Pipeline":
        """Pipeline of a model folder. Raises ValueError or FileNotFoundError on a bad one."""
        model = load_model(folder, precision=precision)
        return cls._with(load_prompter(folder, precision=precision), model, precision, options)

    @classmethod
    def _with(
        cls,
        prompter: FixedPrompter | TagPrompter | None,
        model: Model,
        precision: str,
        options: dict[str, Any],
    ) -> "Pipeline":
        if isinstance(prompter, FixedPrompter):
            model.restorer.prompter, prompter = prompter, None
        return cls(model, precision, prompter=prompter, **options)

    @classmethod
    def from_run(
        cls,
        workdir: str | Path,
        step: int | None = None,
        precision: str = "fp32",
        **options: Any,
    ) -> "Pipeline":
        """Pipeline of a training run's checkpoint, the latest by default. Raises as above."""
        model = load_run(workdir, step, precision=precision)
        return cls._with(load_run_prompter(workdir, precision), model, precision, options)

    def padded_size(self, size: Size) -> Size:
        """The (height, width) at which a picture of `size` is computed."""
        height, width = (-(-side // self.multiple) * self.multiple for side in size)
        return height, width

    def restore(
        self, pictures: Sequence[Picture], upscale: float = 1.0, color_fix: str = "none"
    ) -> list[Picture]:
        """Restored pictures in the order given, each `scaled_size(size, upscale)` large.

        Transparency is resized with its picture, the colour profile kept. Raises RestoreError if
        the model's output is not finite, ValueError on an unknown `color_fix`.
        """
        if color_fix not in COLOR_FIXES:
            raise ValueError(f"color_fix must be one of {', '.join(COLOR_FIXES)}")
        inputs = [enlarge(picture, upscale) for picture in pictures]
        restored: list[Picture | None] = [None] * len(inputs)
        for indices in self._batches([picture.size for picture in inputs]):
            for i, output in zip(indices, self._run([inputs[i].rgb for i in indices]), strict=True):
                rgb = fix_colour(output, inputs[i].rgb, color_fix)
                restored[i] = Picture(rgb, inputs[i].alpha, inputs[i].icc)
        return [picture for picture in restored if picture is not None]

    def _batches(self, sizes: list[Size]) -> list[list[int]]:
        """Indices of pictures of one padded size, at most `batch_size` together."""
        groups: dict[Size, list[int]] = {}
        for i, size in enumerate(sizes):
            groups.setdefault(self.padded_size(size), []).append(i)
        n = self.batch_size
        return [group[k : k + n] for group in groups.values() for k in range(0, len(group), n)]

    def _run(self, batch: list[UInt8[np.ndarray, "_ _ 3"]]) -> list[Float32[np.ndarray, "_ _ 3"]]:
        """Model outputs in [-1, 1] at the pictures' own sizes; one padded size in the batch."""
        padded = [pad_reflect(rgb, self.padded_size(rgb.shape[:2])) for rgb in batch]
        padded += [padded[-1]] * (self.batch_size - len(padded))
        lq = to_float(np.stack(padded))
        prompt = self._prompter(lq) if self._prompter else None
        outputs = np.asarray(_forward(self._graphdef, self._state, lq, prompt))
        if not np.isfinite(outputs).all():
            raise RestoreError("the model's output is not finite")
        return [outputs[i, : rgb.shape[0], : rgb.shape[1]] for i, rgb in enumerate(batch)]


@partial(jax.jit, static_argnums=0)
def _forward(
    graphdef: nnx.GraphDef, state: nnx.State, lq: jax.Array, prompt: Tokens | None
) -> jax.Array:
    """The restorer with its weights as arguments: closed over, they would become constants."""
    restorer = nnx.merge(graphdef, state)
    return restorer(lq) if prompt is None else restorer(lq, prompt=prompt)


def scaled_size(size: Size, factor: float) -> Size:
    """Sides times `factor`, to the nearest pixel."""
    return round(size[0] * factor), round(size[1] * factor)


def enlarge(picture: Picture, factor: float) -> Picture:
    """The picture scaled by `factor` >= 1, bicubic. Raises ValueError on any other factor."""
    if not 1 <= factor < math.inf:
        raise ValueError(f"upscale must be at least 1, got {factor}")
    height, width = scaled_size(picture.size, factor)
    if (height, width) == picture.size:
        return picture

    def resize(plane: np.ndarray) -> np.ndarray:
        return np.asarray(Image.fromarray(plane).resize((width, height), Image.Resampling.BICUBIC))

    alpha = None if picture.alpha is None else resize(picture.alpha)
    return Picture(resize(picture.rgb), alpha, picture.icc)


def pad_reflect(pixels: Pixels, size: Size) -> UInt8[np.ndarray, "H W 3"]:
    """Grown to `size` at the bottom and right by mirroring without repeating the edge.

    Mirrors to and fro where the margin exceeds the picture; a side of one pixel is repeated.
    """
    rows, columns = (_mirror(have, want) for have, want in zip(pixels.shape[:2], size, strict=True))
    return pixels[rows][:, columns]


def _mirror(have: int, want: int) -> np.ndarray:
    """Indices 0, 1, .., have-1, have-2, .., 1, 0, 1, .. of length `want`."""
    period = max(2 * (have - 1), 1)
    steps = np.arange(want) % period
    return np.minimum(steps, period - steps) if have > 1 else steps


def fix_colour(output: Float32[np.ndarray, "h w 3"], source: Pixels, method: str) -> Pixels:
    """Model output in [-1, 1] as uint8, with the colours of `source` unless `method` is none."""
    if method == "none":
        return to_uint8(output)
    fix = {"adain": colour.adain, "wavelet": colour.wavelet}[method]
    content = np.clip(output / 2 + np.float32(0.5), 0, 1)
    return to_uint8(fix(content, source.astype(np.float32) / np.float32(255)) * 2 - 1)
