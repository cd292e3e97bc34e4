"""Folders of restored pictures in, the papers' tables out.

    osdhuman evaluate --restored OSDHuman=restored/ --reference hq/ --output scores/

The output has metrics.json (everything), metrics.csv, table.md, table.tex, plots/ and worst/, and
scores.jsonl, the ledger from which an interrupted command goes on.

Exit status: 0 all that was asked for, 1 a metric is missing (one line each) or a file could not be
written, 2 nothing was begun, 130 interrupted.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from osdhuman_jax.cli import (
    CommandError,
    Parser,
    check_folder,
    check_input,
    check_input_file,
    end,
    some_path,
)
from osdhuman_jax.commands.compare import named_folder
from osdhuman_jax.evaluation import ntire
from osdhuman_jax.evaluation.metrics import FACES_ONLY, METRICS, SETS, Metric
from osdhuman_jax.images.listing import named_images, real

if TYPE_CHECKING:
    from osdhuman_jax.evaluation.scoring import Values


# As in evaluation/quoted.csv, which `--help` does without.
QUOTED_SETS = ("persona-val", "persona-test", "mpii-test")


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Flags; exits with status 2 on a bad one."""
    parser = Parser("evaluate", "The paper's tables from folders.")
    add = parser.add_argument
    # What is compared.
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
    add("--degraded", type=some_path, help="what was restored; shown in worst/, and for hmb-area")
    # What is measured, and with which weights.
    names = f"all, a paper's columns ({', '.join(SETS)}), or some of {','.join(METRICS)}"
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--metrics", default="all", help=names)
    which.add_argument(
        "--preset",
        dest="metrics",
        default=argparse.SUPPRESS,
        choices=SETS,
        help="one paper's columns; the same as --metrics NAME",
    )
    add("--output", required=True, type=some_path, help="folder for tables, plots and sheets")
    add("--weights", type=some_path, help="folder below which metrics' weight files lie")
    add("--model", type=some_path, help="model folder with LPIPS, for lpips-vgg")
    add("--detector", type=some_path, help="model folder of HAODiff's stage 1, for hmb-area")
    add(
        "--identity",
        action="append",
        default=[],
        type=named_folder,
        metavar="NAME=CSV",
        help="similarities of a method's faces, as NTIRE's eval.py writes them, for ntire2026",
    )
    # How.
    add("--quoted", choices=QUOTED_SETS, help="published rows below the methods, marked so")
    add("--allow_missing", action="store_true", help="leave out what has no partner")
    add("--batch_size", type=int, default=8, help="pictures at once (%(default)s)")
    add("--worst", type=int, default=4, help="rows of the sheets in worst/ (%(default)s)")
    args = parser.parse_args(argv)
    if args.batch_size < 1 or args.worst < 1:
        parser.error("--batch_size and --worst take at least 1")
    return args


def wanted(
    text: str,
    reference: bool,
    model: bool,
    degraded: bool = False,
    detector: bool = False,
) -> list[Metric]:
    """Metrics of the flag in the tables' order; of `all` and of a set, what the folders allow.

    Raises ValueError on an unknown name or one that needs pictures that are not there.
    """
    # SciPy, which tables need, takes a second to load.
    from osdhuman_jax.evaluation import tables

    # What JAX measures needs a folder, which holds the metric's weights.
    no_reference = {n for n, m in METRICS.items() if m.reference and not reference}
    no_degraded = {n for n, m in METRICS.items() if m.relative and not degraded}
    there = {"jax": model, "detector": detector}
    has_weights = [name for name, metric in METRICS.items() if there.get(metric.engine, True)]
    allowed = {*has_weights} - no_reference - no_degraded
    # A name that stands for several brings those that can be computed, another is asked for.
    sets = {"all": tuple(name for name in METRICS if name not in FACES_ONLY), **SETS}
    names = []
    for part in text.split(","):
        names += [name for name in sets[part] if name in allowed] if part in sets else [part]
    if unknown := [name for name in names if name not in METRICS]:
        known = ", ".join([*METRICS, *sets])
        raise ValueError(f"no metric {', '.join(unknown)}; there are {known}")
    for flag, without in (("--reference", no_reference), ("--degraded", no_degraded)):
        if lacking := [name for name in names if name in without]:
            raise ValueError(f"{flag} is needed for {', '.join(lacking)}")
    return tables.in_order(names)


def _folders(args: argparse.Namespace) -> dict[str, Path]:
    """Method to folder. Raises ValueError where names clash or the output would be an input."""
    from osdhuman_jax.evaluation.pairs import REFERENCE

    # Method by method, as they were given: the first one is what others are compared with.
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


def _gates(
    args: argparse.Namespace, folders: Mapping[str, Path], metrics: Sequence[Metric]
) -> dict[str, ntire.Gate]:
    """NTIRE's gate of each method that has one. Raises ValueError or OSError."""
    for name, times in Counter(name for name, _ in args.identity).items():
        if name not in folders:
            raise CommandError(f"--identity {name}: no method of that name")
        if times > 1:
            raise CommandError(f"--identity {name}: given {times} times; a method has one table")
    for _, path in args.identity:
        check_input_file("identity", path)
    if args.identity and ntire.NAME not in [metric.name for metric in metrics]:
        raise CommandError(f"--identity goes with {ntire.NAME}, which --metrics does not name")
    # eval.py's table is of the method's whole folder.
    return {name: ntire.read_gate(p, named_images(folders[name])) for name, p in args.identity}


def _check_quoted(args: argparse.Namespace, metrics: Sequence[Metric]) -> None:
    """Raise CommandError where the rows that are to be quoted have none of the metrics."""
    from osdhuman_jax.evaluation import tables

    if args.quoted is None:
        return
    rows = tables.quoted_sets()[args.quoted].values()
    known = [metric.name for metric in tables.in_order([*set().union(*rows)])]
    if not {*known} & {metric.name for metric in metrics}:
        raise CommandError(
            f"--quoted {args.quoted} has none of these metrics; it has {', '.join(known)}"
        )


def _add_score(means: dict[str, "Values"], gates: dict[str, ntire.Gate]) -> tuple[str, str]:
    """Add NTIRE's score to each method's means; returns who failed and who was not looked at."""
    failed, unknown = [], []
    for method, found in means.items():
        gate = gates.get(method)
        found[ntire.NAME] = ntire.score(found) if gate is None or gate.passed else None
        if gate is None:
            # Where there is no score, nothing hangs on its gate.
            unknown += [method] if found[ntire.NAME] is not None else []
        elif not gate.passed:
            most = ntire.MOST_BELOW
            failed.append(
                f"{method}: {gate.below} of {gate.faces} faces are less similar than their set "
                f"asks for, and {most} may be, so it has no score"
            )
    return "; ".join(failed), ", ".join(unknown)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    args = parse_args(argv)
    # SciPy, Matplotlib and JAX, which `--help` does without.
    from osdhuman_jax.commands.score_report import report
    from osdhuman_jax.evaluation.pairs import gather
    from osdhuman_jax.evaluation.scoring import ScoreFile, examine

    # What is asked for, refused before anything is measured or made.
    try:
        folders = _folders(args)
        given = ("reference", "model", "degraded", "detector")
        metrics = wanted(args.metrics, **{k: getattr(args, k) is not None for k in given})
        _check_quoted(args, metrics)
        check_folder("output", args.output)
        for flag in ("reference", "degraded", "weights", "model", "detector"):
            if folder := getattr(args, flag):
                check_input(flag, folder)
        if args.degraded:
            named_images(args.degraded)
        before = args.degraded if any(metric.relative for metric in metrics) else None
        gates = _gates(args, folders, metrics)
        pictures = gather(folders, args.reference, args.allow_missing, before)
        args.output.mkdir(parents=True, exist_ok=True)
        ledger = ScoreFile(args.output / "scores.jsonl")
    except (OSError, ValueError) as error:
        print(f"evaluate: {error}", file=sys.stderr)
        return 2
    # Measured values are in the ledger at once, so that the same command goes on.
    sources = {k: getattr(args, k) for k in ("weights", "model", "detector")}
    measured = [metric for metric in metrics if metric.engine != "means"]
    unknown = ""
    try:
        found = examine(pictures, measured, ledger, batch_size=args.batch_size, **sources)
        if len(measured) < len(metrics):
            failed, unknown = _add_score(found.means, gates)
            found.missing |= {ntire.NAME: failed} if failed else {}
        report(found, pictures, metrics, args)
    except OSError as error:
        print(f"evaluate: {error}; the same command goes on", file=sys.stderr)
        return 1
    # What a person wants to see, and what is missing of it.
    print((args.output / "table.md").read_text(), end="")
    for name, reason in {**pictures.left_out, **found.missing}.items():
        print(f"evaluate: {name}: {reason}", file=sys.stderr)
    if unknown:
        line = f"no --identity of {unknown}: whether it keeps its persons was not looked at"
        print(f"evaluate: {ntire.NAME}: {line}", file=sys.stderr)
    return 1 if found.missing else 0


def command() -> NoReturn:
    """Run the command as the whole process."""
    end("evaluate", main, "the same command goes on")


if __name__ == "__main__":
    command()
