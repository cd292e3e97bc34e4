"""Plots and contact sheets of the report; the same numbers give the same bytes.

Numbers and pictures go in, PNG files come out. The report decides what is shown.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from curate.schema import Pixels

# Colours that colour-blind people can tell apart (Okabe and Ito).
BLUE, ORANGE, GRAY = "#0072B2", "#D55E00", "#999999"
TILE, SHEET_COLUMNS, CAPTION = 256, 8, 18  # pixels of a contact sheet
TAGS_SHOWN = 40  # most frequent ones shown


def save(path: Path, rgb: Pixels) -> None:
    """A picture as PNG."""
    Image.fromarray(rgb).save(path)


def _figure(panels: int, columns: int, mark: str) -> tuple[Figure, list[Any]]:
    rows = -(-panels // columns)
    figure = Figure(figsize=(3.2 * columns, 2.6 * rows), layout="constrained", dpi=100)
    FigureCanvasAgg(figure)
    axes = [figure.add_subplot(rows, columns, n + 1) for n in range(panels)]
    if mark:
        style = {"color": GRAY, "alpha": 0.35, "fontsize": 32, "rotation": 20}
        figure.text(0.5, 0.5, mark, ha="center", va="center", **style)
    return figure, axes


def _write(figure: Figure, path: Path) -> None:
    with matplotlib.rc_context({"savefig.dpi": 100}):
        figure.savefig(path, metadata={"Software": None})


def bars(
    path: Path,
    table: Mapping[str, Mapping[str, Mapping[str, float]]],
    directions: Mapping[str, int],
    mark: str,
) -> None:
    """Figure 1: a panel each metric, a bar each dataset, the last (what is kept) accented."""
    names = list(table)
    metrics = list(next(iter(table.values())))
    figure, axes = _figure(len(metrics), min(3, len(metrics)), mark)
    for axis, metric in zip(axes, metrics, strict=True):
        means = [table[name][metric]["mean"] for name in names]
        colours = [BLUE] * (len(names) - 1) + [ORANGE]
        patches = axis.bar(range(len(names)), means, color=colours)
        axis.bar_label(patches, fmt="%.3g", fontsize=7)
        arrow = {1: " ↑", -1: " ↓"}.get(directions.get(metric, 0), "")
        axis.set_title(metric + arrow, fontsize=9)
        axis.set_xticks(range(len(names)), names, rotation=30, ha="right", fontsize=7)
        axis.margins(y=0.15)
    _write(figure, path)


def histograms(path: Path, data: Mapping[str, tuple[np.ndarray, np.ndarray]], mark: str) -> None:
    """A histogram of each column, over the pool and over what is kept."""
    figure, axes = _figure(len(data), 4, mark)
    for axis, (name, (pool, kept)) in zip(axes, data.items(), strict=True):
        pool, kept = pool[np.isfinite(pool)], kept[np.isfinite(kept)]
        edges = np.histogram_bin_edges(pool, 30) if len(pool) else np.linspace(0, 1, 31)
        axis.hist(pool, edges, color=BLUE, label="pool")
        axis.hist(kept, edges, color=ORANGE, label="kept")
        axis.set_title(name, fontsize=9)
        axis.tick_params(labelsize=7)
    axes[0].legend(fontsize=7)
    _write(figure, path)


def tags(
    path: Path, counts: Mapping[str, int], categories: Mapping[str, Mapping[str, int]]
) -> None:
    """Figure 7: occurrences by category, with its number of tags, and the most frequent tags."""
    top = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))[:TAGS_SHOWN]
    figure, (pie, axis) = _figure(2, 1, "")
    figure.set_size_inches(10, 9)
    counts_by = [category["occurrences"] for category in categories.values()]
    colours = [matplotlib.colormaps["tab20"](place) for place in range(len(counts_by))]
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
    """Pictures of one size with captions, eight a line."""
    columns = min(SHEET_COLUMNS, len(tiles))
    rows = -(-len(tiles) // columns)
    canvas = Image.new("RGB", (columns * TILE, rows * (TILE + CAPTION)), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(12)
    for at, (rgb, caption) in enumerate(tiles):
        x, y = at % columns * TILE, at // columns * (TILE + CAPTION)
        canvas.paste(Image.fromarray(rgb).resize((TILE, TILE), Image.Resampling.BOX), (x, y))
        draw.text((x + 4, y + TILE + 2), caption, fill="black", font=font)
    return np.asarray(canvas)
