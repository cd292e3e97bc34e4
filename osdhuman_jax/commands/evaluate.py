"""Folders of restored pictures in, the paper's tables out.

    osdhuman evaluate --restored OSDHuman=restored/ --reference hq/ --output scores/

The output has metrics.json (everything), metrics.csv, table.md, table.tex, plots/ and worst/, and
scores.jsonl, the ledger from which an interrupted command goes on.

Exit status: 0 all that was asked for, 1 a metric is missing (one line each) or a file could not be
written, 2 nothing was begun, 130 interrupted.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from osdhuman_jax.cli import Parser, check_folder, check_input, end, some_path
from osdhuman_jax.commands.compare import Row, named_folder, sheet
from osdhuman_jax.disk import write_bytes, write_text
from osdhuman_jax.evaluation import tables
from osdhuman_jax.evaluation.metrics import METRICS, Metric
from osdhuman_jax.evaluation.pairs import REFERENCE, Pictures, gather
from osdhuman_jax.evaluation.plots import plot
from osdhuman_jax.evaluation.scoring import Ledger, Results, examine
from osdhuman_jax.filenames import spelled
from osdhuman_jax.images.codec import read_rgb, write_png
from osdhuman_jax.images.listing import named_images, real


def differences(found: Results, columns: Sequence[Metric]) -> dict[str, dict[str, Any]]:
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
    # The same as texts: for programs, spreadsheets, web pages and papers.
    text = {
        "metrics.json": json.dumps(whole, indent=2, default=str) + "\n",
        "metrics.csv": tables.csv_text(images, found.means, columns),
        "table.md": tables.markdown(found.means, columns, f"n = {len(pictures.names)}"),
        "table.tex": tables.latex(found.means, columns),
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
        heads = [*(["degraded"] if degraded else []), method]
        heads += [REFERENCE] if pictures.reference else []
        path = args.output / "worst" / method / f"{metric.name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_png(path, sheet(rows, heads, box=None))


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Flags; exits with status 2 on a bad one."""
    parser = Parser("evaluate", "The paper's tables from folders.")
    add = parser.add_argument
    folder = "[NAME=]DIR"
    add(
        "--restored",
        required=True,
        action="append",
        type=named_folder,
        metavar=folder,
        help="once for each method",
    )
    add("--reference", type=some_path, help="the pictures as they should be")
    add("--degraded", type=some_path, help="what was restored; shown in worst/, not measured")
    add("--metrics", default="all", help=f"all, or some of {','.join(METRICS)}")
    add("--output", required=True, type=some_path, help="folder for tables, plots and sheets")
    add("--weights", type=some_path, help="folder below which metrics' weight files lie")
    add("--model", type=some_path, help="model folder with LPIPS, for lpips-vgg")
    add("--allow_missing", action="store_true", help="leave out what has no partner")
    add("--batch_size", type=int, default=8, help="pictures at once (%(default)s)")
    add("--worst", type=int, default=4, help="rows of the sheets in worst/ (%(default)s)")
    args = parser.parse_args(argv)
    if args.batch_size < 1 or args.worst < 1:
        parser.error("--batch_size and --worst take at least 1")
    return args


def wanted(text: str, reference: bool, model: bool) -> list[Metric]:
    """Metrics of the flag in the table's order; `all` is all that the folders allow.

    Raises ValueError on an unknown name or one that needs a reference that is not there.
    """
    if text == "all":
        names = [m.name for m in METRICS.values() if reference or not m.reference]
        return tables.in_order([n for n in names if model or METRICS[n].engine != "jax"])
    names = text.split(",")
    if unknown := [name for name in names if name not in METRICS]:
        raise ValueError(f"no metric {', '.join(unknown)}; there are {', '.join(METRICS)}")
    if lacking := [name for name in names if METRICS[name].reference and not reference]:
        raise ValueError(f"--reference is needed for {', '.join(lacking)}")
    return tables.in_order(names)


def _folders(args: argparse.Namespace) -> dict[str, Path]:
    """Method to folder. Raises ValueError where names clash or the output would be an input."""
    folders = dict(args.restored)
    if len(folders) < len(args.restored) or REFERENCE in folders:
        raise ValueError("two folders have one name: give them as --restored NAME=DIR")
    if odd := [name for name in folders if not name or name in (".", "..") or "/" in name]:
        raise ValueError(f"{odd[0]!r} is no name for a method")
    inputs = [*folders.values(), *filter(None, (args.reference, args.degraded))]
    for path in inputs:
        if real(args.output).is_relative_to(real(path)):
            raise ValueError(f"--output {args.output} lies in {path}")
    return folders


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    args = parse_args(argv)
    # What is asked for, refused before anything is measured or made.
    try:
        folders = _folders(args)
        metrics = wanted(args.metrics, args.reference is not None, args.model is not None)
        check_folder("output", args.output)
        for flag in ("reference", "degraded", "weights", "model"):
            if folder := getattr(args, flag):
                check_input(flag, folder)
        if args.degraded:
            named_images(args.degraded)
        pictures = gather(folders, args.reference, args.allow_missing)
        args.output.mkdir(parents=True, exist_ok=True)
        ledger = Ledger(args.output / "scores.jsonl")
    except (OSError, ValueError) as error:
        print(f"evaluate: {error}", file=sys.stderr)
        return 2
    # Measured values are in the ledger at once, so that the same command goes on.
    options = {"batch_size": args.batch_size, "weights": args.weights, "model": args.model}
    try:
        found = examine(pictures, metrics, ledger, **options)
        report(found, pictures, metrics, args)
    except OSError as error:
        print(f"evaluate: {error}; the same command goes on", file=sys.stderr)
        return 1
    # What a person wants to see, and what is missing of it.
    print((args.output / "table.md").read_text(), end="")
    for name, reason in {**pictures.left_out, **found.missing}.items():
        print(f"evaluate: {name}: {reason}", file=sys.stderr)
    return 1 if found.missing else 0


def command() -> NoReturn:
    """Run the command as the whole process."""
    end("evaluate", main, "the same command goes on")


if __name__ == "__main__":
    command()
