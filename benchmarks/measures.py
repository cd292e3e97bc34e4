"""What the tables in the READMEs measure, and how a table of methods is written.

A column is a number that a method earns with all its pictures, and the side on which it is better.
PSNR and SSIM are of luma. Edges are the mean luma gradient where the original's is steepest. Colour
is CIEDE2000 after a blur that leaves neither noise nor texture. Faces are those that a classical
detector finds in the originals and finds again. A clean picture that is put in should come out as
it was, which the PSNR between the two says.
"""

import os
import platform
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Float32, UInt8
from skimage.color import deltaE_ciede2000, rgb2lab

from osdhuman_jax.evaluation.metrics import psnr_y, ssim_y
from osdhuman_jax.evaluation.niqe import Niqe
from osdhuman_jax.evaluation.tables import DASH, MARKDOWN
from osdhuman_jax.networks.target import vectors

Pixels = UInt8[np.ndarray, "h w 3"]
Named = Mapping[str, Pixels]
Box = tuple[int, int, int, int]  # left, top, width, height

# All of these are choices of this file: what matters is that every method is measured alike.
STEEP = 0.9  # quantile of the original's gradient above which there are edges
BLUR = 4.0  # sigma in pixels, before colours are compared
CASCADE = "haarcascade_frontalface_default"  # comes with OpenCV
SCALE, NEIGHBOURS, SMALLEST = 1.1, 5, 24  # of the detector: step, hits a face, pixels of side
SAME = 0.3  # intersection over union of two boxes of one face

# What a number loses, by the arrow in its column's head; a column without arrow has no better side.
LOSS: dict[str, Callable[[float], float]] = {
    "↑": lambda value: -value,
    "↓": lambda value: value,
    "→ 1": lambda value: abs(value - 1),
}


@dataclass(frozen=True)
class Outcome:
    """What a method made of a set of pictures, which are kept by their names."""

    pictures: Named
    # The same names; empty where nobody knows what the pictures should look like.
    originals: Named = field(default_factory=dict)
    # The method's output where the original itself is put in; empty where that was not done.
    clean: Named = field(default_factory=dict)
    seconds: float | None = None  # a picture

    @property
    def faces(self) -> int:
        """The number of faces in the originals."""
        return sum(len(faces(original)) for original in self.originals.values())


@dataclass(frozen=True)
class Column:
    """A measure; `format` is given the value and the outcome."""

    title: str
    arrow: str
    format: str
    value: Callable[[Outcome], float | None]

    @property
    def head(self) -> str:
        """The title with the arrow to the better side."""
        return f"{self.title} {self.arrow}".rstrip()


def gradient(image: Pixels) -> Float32[np.ndarray, "h w"]:
    """Magnitude of the luma gradient, in grey levels per pixel."""
    gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
    return np.hypot(cv2.Sobel(gray, -1, 1, 0), cv2.Sobel(gray, -1, 0, 1)) / 8


def sharpness(image: Pixels) -> float:
    """Mean luma gradient, in grey levels per pixel."""
    return float(np.mean(gradient(image)))


def edges(image: Pixels, original: Pixels) -> float:
    """Gradient at the original's steepest tenth, as a multiple of the original's there."""
    true = gradient(original)
    steep = true > np.quantile(true, STEEP)
    return _multiple(gradient(image), true, steep)


def grain(image: Pixels, original: Pixels) -> float:
    """Gradient at the original's flattest half, as a multiple of the original's there."""
    true = gradient(original)
    return _multiple(gradient(image), true, true < np.median(true))


def _multiple(found: np.ndarray, true: np.ndarray, where: np.ndarray) -> float:
    if not where.any():
        # A picture of one level has no steepest tenth; it does not count in a mean.
        return float("nan")
    return float(found[where].mean() / max(true[where].mean(), 1e-3))


def colour_difference(image: Pixels, original: Pixels) -> float:
    """Mean CIEDE2000 between the two, both blurred."""

    def lab(pixels: Pixels) -> np.ndarray:
        return rgb2lab(cv2.GaussianBlur(pixels.astype(np.float32) / 255, (0, 0), BLUR))

    return float(np.mean(deltaE_ciede2000(lab(image), lab(original))))


@cache
def _detector() -> cv2.CascadeClassifier:
    return cv2.CascadeClassifier(str(Path(cv2.data.haarcascades) / f"{CASCADE}.xml"))


def faces(image: Pixels) -> list[Box]:
    """Boxes of the frontal faces that OpenCV's cascade finds, from left to right."""
    gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    least = (SMALLEST, SMALLEST)
    found = _detector().detectMultiScale(gray, SCALE, NEIGHBOURS, minSize=least)
    return sorted(tuple(int(n) for n in box) for box in found)


def overlap(a: Box, b: Box) -> float:
    """Intersection over union of two boxes."""
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    both = max(width, 0) * max(height, 0)
    return both / (a[2] * a[3] + b[2] * b[3] - both)


def found_again(image: Pixels, original: Pixels) -> int:
    """How many of the original's faces the detector finds in the picture at the same place."""
    # A face is the same one where the two boxes overlap enough, whatever it looks like.
    found = faces(image)
    return sum(any(overlap(face, other) >= SAME for other in found) for face in faces(original))


def mean(values: Sequence[float]) -> float | None:
    """The mean of those that are numbers; None without any."""
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else None


def compared(measure: Callable[[Pixels, Pixels], float]) -> Callable[[Outcome], float | None]:
    """The mean of a measure of a picture and its original."""
    return lambda made: mean(
        [measure(made.pictures[n], original) for n, original in made.originals.items()]
    )


def looked_at(measure: Callable[[Pixels], float]) -> Callable[[Outcome], float | None]:
    """The mean of a measure of a picture alone."""
    return lambda made: mean([measure(image) for image in made.pictures.values()])


def unharmed(made: Outcome) -> float | None:
    """PSNR of what became of the clean originals."""
    return mean([psnr_y(image, made.originals[name]) for name, image in made.clean.items()])


def with_originals(natural: Niqe | None, originals: Named) -> list[Column]:
    """The columns of pictures whose originals are known; NIQE only where there are parameters."""
    columns = [
        Column("PSNR", "↑", "{0:.2f}", compared(psnr_y)),
        Column("SSIM", "↑", "{0:.4f}", compared(ssim_y)),
        Column("edges", "→ 1", "{0:.3f}", compared(edges)),
    ]
    if natural:
        true = looked_at(natural)(Outcome(originals))
        title = natural.name.upper() + (f" (original {true:.2f})" if true is not None else "")
        columns.append(Column(title, "↓", "{0:.2f}", looked_at(natural)))
    return [
        *columns,
        Column("colour ΔE", "↓", "{0:.2f}", compared(colour_difference)),
        Column("faces", "↑", "{0:.0f} of {1.faces}", _sum_of_faces),
        Column("clean in", "↑", "{0:.2f}", unharmed),
        Column("seconds", "↓", "{0:.2f}", lambda made: made.seconds),
    ]


def _sum_of_faces(made: Outcome) -> float:
    return sum(found_again(made.pictures[n], original) for n, original in made.originals.items())


def without_originals(natural: Niqe | None) -> list[Column]:
    """The columns of pictures that nobody has better."""
    # Sharpness has no better side: noise is sharp too.
    columns = [Column(natural.name.upper(), "↓", "{0:.2f}", looked_at(natural))] if natural else []
    return [
        *columns,
        Column("sharpness", "", "{0:.2f}", looked_at(sharpness)),
        Column("faces", "↑", "{0:.0f}", lambda made: sum(map(_count, made.pictures.values()))),
    ]


def _count(image: Pixels) -> int:
    return len(faces(image))


def marks(column: Column, values: Sequence[float | None], shown: Sequence[str]) -> list[str]:
    """A key of MARKDOWN for each value; what is shown alike is marked alike."""
    known = [(value, text) for value, text in zip(values, shown, strict=True) if value is not None]
    if column.arrow not in LOSS or len(known) < 2:
        return [""] * len(values)
    # Equal digits share a mark, as in `evaluation.tables`.
    ranked = [text for _, text in sorted(known, key=lambda pair: LOSS[column.arrow](pair[0]))]
    places = dict(zip(dict.fromkeys(ranked), ("best", "second"), strict=False))
    return [places.get(text, "") for text in shown]


def table(corner: str, outcomes: Mapping[str, Outcome], columns: Sequence[Column]) -> str:
    """A row for each method in Markdown: best bold, second best underlined, unknown a dash."""
    rows = [[name.replace("|", "\\|")] for name in outcomes]
    for column in columns:
        values = [column.value(made) for made in outcomes.values()]
        shown = [
            DASH if value is None else column.format.format(value, made)
            for value, made in zip(values, outcomes.values(), strict=True)
        ]
        for row, text, mark in zip(rows, shown, marks(column, values, shown), strict=True):
            row.append(MARKDOWN[mark].format(text))
    lines = [[corner, *(column.head for column in columns)], ["---"] * (len(columns) + 1), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def legend(natural: Niqe | None) -> str:
    """The sentences below a table of pictures with originals."""
    lines = [
        "PSNR (dB) and SSIM are of luma. Edges: mean luma gradient at the original's steepest",
        "tenth, over the original's. Colour: mean CIEDE2000 after a Gaussian blur of",
        f"sigma {BLUR:g}. Faces of the originals found again (intersection over union at least",
        f"{SAME}) by OpenCV's `{CASCADE}` (scaleFactor {SCALE}, minNeighbors {NEIGHBOURS},",
        f"minSize {SMALLEST}). Clean in: PSNR of the output when the input is the original itself.",
        f"Seconds: the median of a picture, one at a time, once compiled, on {machine()}.",
    ]
    return paragraph(lines + no_niqe(natural))


def paragraph(lines: Sequence[str]) -> str:
    """Sentences below a table, wrapped as Markdown is here."""
    return "\n" + textwrap.fill(" ".join(lines), 110, break_on_hyphens=False) + "\n"


def no_niqe(natural: Niqe | None) -> list[str]:
    """Why a table has no NIQE, if it has none."""
    return [] if natural else ["NIQE is left out: no file of its parameters was given (`--niqe`)."]


def machine() -> str:
    """The cores that this process may use and their widest instructions."""
    cores, wide = len(os.sched_getaffinity(0)), vectors()
    return f"{cores} cores, {platform.machine()}{f' with {wide}' if wide else ''}"
