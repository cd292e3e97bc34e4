"""Plots and contact sheets of the report, after Figures 1, 6 and 7 of the paper.

Numbers and pictures go in, PNG files come out; the same numbers give the same bytes. The report
decides what is shown.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypedDict

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from curate.schema import Pixels

# Colours that colour-blind people can tell apart (Okabe and Ito).
BLUE, ORANGE, GRAY = "#0072B2", "#D55E00", "#999999"
# A contact sheet: pixels of a tile's side, tiles a line, pixels of the line below for captions.
TILE, SHEET_COLUMNS, CAPTION = 256, 8, 18
# How many of the most frequent tags Figure 7 names.
TAGS_SHOWN = 40


class MarkStyle(TypedDict):
    """How the watermark is written, as matplotlib's text properties."""

    color: str
    alpha: float
    fontsize: int
    rotation: int


# Faint and slanted, so that it covers no number, and goes along when the figure is copied.
MARK_STYLE: MarkStyle = {"color": GRAY, "alpha": 0.35, "fontsize": 32, "rotation": 20}


def save(path: Path, rgb: Pixels) -> None:
    """Write a picture as PNG."""
    Image.fromarray(rgb).save(path)


def _figure(panels: int, columns: int, mark: str) -> tuple[Figure, list[Axes]]:
    """An empty figure of so many panels, `columns` a line, with a watermark if there is one."""
    # A canvas of its own: pyplot would keep the figure, and look for a screen.
    rows = -(-panels // columns)
    figure = Figure(figsize=(3.2 * columns, 2.6 * rows), layout="constrained", dpi=100)
    FigureCanvasAgg(figure)
    axes = [figure.add_subplot(rows, columns, n + 1) for n in range(panels)]
    if mark:
        figure.text(0.5, 0.5, mark, ha="center", va="center", **MARK_STYLE)
    return figure, axes


def _write(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, without matplotlib's version in it and whatever a user's settings."""
    with matplotlib.rc_context({"savefig.dpi": 100}):
        figure.savefig(path, metadata={"Software": None})


def bars(
    path: Path,
    table: Mapping[str, Mapping[str, Mapping[str, float]]],
    directions: Mapping[str, int],
    mark: str,
) -> None:
    """Figure 1: a panel for each metric, in it a bar for each dataset; the last one is accented.

    Args:
        table: "mean" by dataset and metric; the last dataset is what is kept.
        directions: 1 where higher values of a metric are better, -1 where lower ones are.
        mark: the watermark; "" = none.
    """
    # The panels of all metrics are alike, but each has a scale of its own.
    names = list(table)
    metrics = list(next(iter(table.values())))
    figure, axes = _figure(len(metrics), min(3, len(metrics)), mark)
    for axis, metric in zip(axes, metrics, strict=True):
        means = [table[name][metric]["mean"] for name in names]
        colours = [BLUE] * (len(names) - 1) + [ORANGE]
        patches = axis.bar(range(len(names)), means, color=colours)
        axis.bar_label(patches, fmt="%.3g", fontsize=7)
        # As in the paper, an arrow says which way is better.
        arrow = {1: " ↑", -1: " ↓"}.get(directions.get(metric, 0), "")
        axis.set_title(metric + arrow, fontsize=9)
        axis.set_xticks(range(len(names)), names, rotation=30, ha="right", fontsize=7)
        axis.margins(y=0.15)
    _write(figure, path)


def histograms(path: Path, data: Mapping[str, tuple[np.ndarray, np.ndarray]], mark: str) -> None:
    """A histogram of each column's values over the pool, and over what is kept in front of it.

    Args:
        data: by name the values over the pool and over what is kept.
    """
    figure, axes = _figure(len(data), 4, mark)
    for axis, (name, (pool, kept)) in zip(axes, data.items(), strict=True):
        pool, kept = pool[np.isfinite(pool)], kept[np.isfinite(kept)]
        # Both have the bins of the pool, so that bars can be compared.
        edges = np.histogram_bin_edges(pool, 30) if len(pool) else np.linspace(0, 1, 31)
        axis.hist(pool, edges.tolist(), color=BLUE, label="pool")
        axis.hist(kept, edges.tolist(), color=ORANGE, label="kept")
        axis.set_title(name, fontsize=9)
        axis.tick_params(labelsize=7)
    axes[0].legend(fontsize=7)
    _write(figure, path)


def tags(
    path: Path, counts: Mapping[str, int], categories: Mapping[str, Mapping[str, int]]
) -> None:
    """Figure 7: shares of the categories, and the most frequent tags.

    Args:
        counts: occurrences by tag.
        categories: "occurrences" and "tags" (how many distinct ones) by category.
    """
    # Equal numbers in the order of names, so that the figure is the same each time.
    top = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))[:TAGS_SHOWN]
    figure, (pie, axis) = _figure(2, 1, "")
    figure.set_size_inches(10, 9)
    counts_by = [category["occurrences"] for category in categories.values()]
    colours = [matplotlib.colormaps["tab20"](place) for place in range(len(counts_by))]
    # Names stand in a legend: small wedges have no room for them.
    wedges = pie.pie(counts_by, colors=colours, startangle=90, counterclock=False)[0]
    labels = [
        f"{name} {n / sum(counts_by):.1%} ({category['tags']} tags)"
        for (name, category), n in zip(categories.items(), counts_by, strict=True)
    ]
    pie.legend(wedges, labels, loc="center left", bbox_to_anchor=(1, 0.5), fontsize=9)
    axis.bar(range(len(top)), [n for _, n in top], color=BLUE)
    axis.set_xticks(range(len(top)), [name for name, _ in top], rotation=90, fontsize=7)
    axis.set_title(f"tags: {len(top)} most frequent of {len(counts)}", fontsize=9)
    _write(figure, path)


def tile_pictures(tiles: Sequence[tuple[Pixels, str]]) -> Pixels:
    """A contact sheet: pictures of one size with captions below, SHEET_COLUMNS a line."""
    columns = min(SHEET_COLUMNS, len(tiles))
    rows = -(-len(tiles) // columns)
    canvas = Image.new("RGB", (columns * TILE, rows * (TILE + CAPTION)), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(12)
    for at, (rgb, caption) in enumerate(tiles):
        x, y = at % columns * TILE, at // columns * (TILE + CAPTION)
        # Box filter: the sheet shows the crops' own sharpness without ringing.
        # Upright crops are as high as a tile, and as narrow as they are.
        size = TILE * rgb.shape[1] // max(rgb.shape), TILE * rgb.shape[0] // max(rgb.shape)
        canvas.paste(Image.fromarray(rgb).resize(size, Image.Resampling.BOX), (x, y))
        draw.text((x + 4, y + TILE + 2), caption, fill="black", font=font)
    return np.asarray(canvas)
