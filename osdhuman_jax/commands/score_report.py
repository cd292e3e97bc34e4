"""What `osdhuman evaluate` writes: tables, plots, and sheets of the pictures that came out worst.

Goes in: the pictures, and every value that was measured of them. Comes out: files in the output
folder, beside the ledger of measurements, which is not this module's.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from osdhuman_jax.commands.compare import Row, sheet
from osdhuman_jax.config import Json
from osdhuman_jax.disk import write_bytes, write_text
from osdhuman_jax.evaluation import tables
from osdhuman_jax.evaluation.metrics import Metric
from osdhuman_jax.evaluation.pairs import REFERENCE, Pictures
from osdhuman_jax.evaluation.plots import plot
from osdhuman_jax.evaluation.scoring import Results
from osdhuman_jax.filenames import spelled
from osdhuman_jax.images.codec import read_rgb, write_png
from osdhuman_jax.images.listing import named_images


def differences(found: Results, columns: Sequence[Metric]) -> dict[str, Json]:
    """Paired differences of each further method from the first, by metric."""
    first, *others = found.values
    return {
        method: {
            metric.name: tables.as_json(tables.difference(mine, base))
            for metric in columns
            if (mine := _complete(found, method, metric))
            and (base := _complete(found, first, metric))
        }
        for method in others
    }


def _complete(found: Results, method: str, metric: Metric) -> list[float]:
    """Values in the order of names, or none if one is missing."""
    # A mean or a difference over fewer pictures would compare unlike sets.
    values = list(found.values[method].get(metric.name, {}).values())
    known = [value for value in values if value is not None]
    return known if len(known) == len(values) else []


def report(
    found: Results, pictures: Pictures, columns: Sequence[Metric], args: argparse.Namespace
) -> None:
    """Write every file of the output folder but the ledger."""
    # Everything that was measured, by method, picture and metric.
    images = {
        method: {
            name: {metric: values[name] for metric, values in by_metric.items()}
            for name in pictures.names
        }
        for method, by_metric in found.values.items()
    }
    whole = {
        "n": len(pictures.names),
        "means": found.means,
        "differences_from_the_first": differences(found, columns),
        "metrics": {name: scorer.identity for name, scorer in found.scorers.items()},
        "missing": found.missing,
        "left_out": pictures.left_out,
        "settings": {k: spelled(v) if isinstance(v, Path) else v for k, v in vars(args).items()},
        "images": images,
    }
    quoted = tables.quoted_sets().get(args.quoted)
    # The same as texts: for programs, spreadsheets, web pages and papers.
    text = {
        "metrics.json": json.dumps(whole, indent=2, default=str) + "\n",
        "metrics.csv": tables.csv_text(images, found.means, columns),
        "table.md": tables.markdown(found.means, columns, f"n = {len(pictures.names)}", quoted),
        "table.tex": tables.latex(found.means, columns, quoted),
    }
    for name, content in text.items():
        write_text(args.output / name, content)
    # Pictures, of metrics that every picture has: a mean over fewer would compare unlike things.
    for metric in columns:
        values = {method: _complete(found, method, metric) for method in found.values}
        if all(values.values()):
            _write(args.output / "plots" / f"{metric.name}.png", plot(metric, values))
            _write_worst(found, pictures, metric, args)


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, data)


def _write_worst(
    found: Results, pictures: Pictures, metric: Metric, args: argparse.Namespace
) -> None:
    """A sheet for each method: degraded (if given), restored, reference of its worst pictures."""
    degraded = named_images(args.degraded) if args.degraded else {}
    for method, files in pictures.methods.items():
        values = {k: v for k, v in found.values[method][metric.name].items() if v is not None}
        # The worst first, whichever way the metric points.
        ranked = sorted(values, key=lambda name: values[name], reverse=not metric.higher)
        rows = []
        for name in ranked[: args.worst]:
            paths = [degraded.get(name), files[name].path]
            paths.append(pictures.reference[name].path if pictures.reference else None)
            caption = f"{metric.title} {tables.shown(metric, values[name])}: {name}"
            rows.append(Row([read_rgb(path) for path in paths if path], (caption,)))
        # Heads in the order of the pictures in a row.
        heads = [*(["degraded"] if degraded else []), method]
        heads += [REFERENCE] if pictures.reference else []
        path = args.output / "worst" / method / f"{metric.name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_png(path, sheet(rows, heads, box=None))
