"""Sheets that show what the tables of `benchmarks.quality` count: pictures, faces, harm done.

A number that nobody looks behind may be earned by what nobody would want. Pictures go in by the
name of their method, in the order of the columns, and come out as one uint8 RGB sheet.
"""

from collections.abc import Mapping

import numpy as np

from benchmarks.measures import Box, Named, Pixels, faces
from osdhuman_jax.commands.compare import Row, sheet

FACE = 1.6  # side of what is cut out around a face, of the face's own
LEAST = 160  # pixels that a column of faces is wide at least
HARM = 8  # times that a difference is enlarged


def side_by_side(shown: Mapping[str, Named], count: int, cell: int) -> Pixels:
    """The first pictures, a column for each method."""
    names = list(next(iter(shown.values())))[:count]
    rows = [Row([pictures[name] for pictures in shown.values()], (name,)) for name in names]
    return sheet(rows, tuple(shown), cell, box=None)


def around(face: Box, image: Pixels) -> tuple[slice, slice]:
    """Rows and columns of a square around a face, moved inside the picture."""
    left, top, width, height = face
    side = min(round(FACE * max(width, height)), *image.shape[:2])
    row = min(max(top + (height - side) // 2, 0), image.shape[0] - side)
    column = min(max(left + (width - side) // 2, 0), image.shape[1] - side)
    return slice(row, row + side), slice(column, column + side)


def faces_sheet(shown: Mapping[str, Named], originals: Named) -> Pixels | None:
    """Every face of the originals, cut at one place from all columns; None without any face."""
    rows = []
    for name, original in originals.items():
        for face in faces(original):
            place = around(face, original)
            rows.append(Row([pictures[name][place] for pictures in shown.values()], (name,)))
    if not rows:
        return None
    # No face is shown smaller than it is.
    cell = max(LEAST, *(row.images[0].shape[1] for row in rows))
    return sheet(rows, tuple(shown), cell, box=None)


def clean_sheet(originals: Named, clean: Mapping[str, Named], count: int) -> Pixels:
    """The first originals; for each method its output and the difference, enlarged."""
    made = {method: pictures for method, pictures in clean.items() if pictures}
    columns = ["clean"]
    for method in made:
        columns += [method, f"difference x {HARM}"]
    rows = []
    for name in list(originals)[:count]:
        original = originals[name]
        images = [original]
        for pictures in made.values():
            images += [pictures[name], enlarged_difference(pictures[name], original)]
        rows.append(Row(images, (name,)))
    return sheet(rows, columns, box=None)


def enlarged_difference(image: Pixels, original: Pixels) -> Pixels:
    """What was changed, enlarged, in whatever direction."""
    gap = np.abs(image.astype(np.int16) - original.astype(np.int16))
    return np.clip(HARM * gap, 0, 255).astype(np.uint8)
