"""Folders of restored pictures in, the paper's tables out.

    python -m osdhuman_jax.evaluate --restored OSDHuman=restored/ --reference hq/ --output scores/

Pictures are partners by relative path without suffix. The output has metrics.json (everything),
metrics.csv, table.md, table.tex, plots/ and worst/. Each value is kept in scores.jsonl as soon as
it is there, under the digests of its pictures and of all that the metric depends on: a command
that was interrupted goes on, and a second method costs only its own pictures.

Exit status: 0 all that was asked for, 1 a metric is missing (one line each), 2 nothing was begun,
130 interrupted.
"""

import argparse
import hashlib
import json
import math
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from jaxtyping import UInt8
from tqdm import tqdm

from osdhuman_jax import tables
from osdhuman_jax.compare import Row, named_folder, sheet
from osdhuman_jax.images import (
    ImageError,
    decode,
    named_images,
    read_image,
    write_file,
    write_png,
)
from osdhuman_jax.iqa import MissingMetric, Scorer, open_scorer
from osdhuman_jax.metrics import METRICS, Metric
from osdhuman_jax.plots import plot

REFERENCE = "reference"  # its name among the folders
LISTED = 20  # names in one refusal
Values = dict[str, float | None]  # by picture


@dataclass(frozen=True)
class File:
    """A picture on disk that was decoded once, whole."""

    path: Path
    digest: str
    size: tuple[int, int]  # height, width


@dataclass
class Pictures:
    """What is compared: {method: {name: file}}, the same names in all, and their references."""

    methods: dict[str, dict[str, File]]
    reference: dict[str, File] | None
    left_out: dict[str, str] = field(default_factory=dict)  # why, by name

    @property
    def names(self) -> list[str]:
        return sorted(next(iter(self.methods.values())))


# Pairing -----------------------------------------------------------------------------------------


def gather(folders: dict[str, Path], reference: Path | None, allow_missing: bool) -> Pictures:
    """Files that every folder has, checked.

    Raises ValueError with the names of pictures that a folder lacks or cannot give (unless
    `allow_missing`, which leaves them out of all folders) or whose sizes disagree.
    """
    both = {**folders, **({REFERENCE: reference} if reference else {})}
    found = {label: named_images(folder) for label, folder in both.items()}
    names = sorted(set().union(*found.values()))
    left_out = {
        name: f"not in {both[label]}"
        for name in names
        for label in both
        if name not in found[label]
    }
    files: dict[str, dict[str, File]] = {label: {} for label in both}
    for name in tqdm([n for n in names if n not in left_out], "reading", file=sys.stderr):
        try:
            opened = {label: _open(found[label][name]) for label in both}
        except ImageError as error:
            left_out[name] = str(error)
            continue
        for label, file in opened.items():
            files[label][name] = file
    if left_out and not allow_missing:
        _refuse("pictures without a partner (--allow_missing leaves them out)", left_out)
    if not files[next(iter(folders))]:
        raise ValueError(f"no picture is in all of {', '.join(map(str, both.values()))}")
    _refuse("pictures of unequal size", _unequal(files))
    return Pictures({m: files[m] for m in folders}, files.get(REFERENCE), left_out)


def _open(path: Path) -> File:
    """Raises ImageError, with the path, where the file is no picture or cannot be read."""
    try:
        data = path.read_bytes()
        return File(path, hashlib.sha256(data).hexdigest(), decode(data).size)
    except (ImageError, OSError) as error:
        raise ImageError(f"{path}: {error}") from error


def _unequal(files: dict[str, dict[str, File]]) -> dict[str, str]:
    """Sizes of pictures that differ from their partners, by name."""
    by_name = {
        name: {label: f"{f[name].size[1]} x {f[name].size[0]}" for label, f in files.items()}
        for name in next(iter(files.values()))
    }
    return {
        name: ", ".join(f"{label} {size}" for label, size in sizes.items())
        for name, sizes in by_name.items()
        if len(set(sizes.values())) > 1
    }


def _refuse(why: str, names: dict[str, str]) -> None:
    """Raise ValueError with the first names and reasons, if there are any."""
    if names:
        lines = [f"\n  {name}: {reason}" for name, reason in list(names.items())[:LISTED]]
        more = f"\n  and {len(names) - LISTED} more" if len(names) > LISTED else ""
        raise ValueError(f"{why}:{''.join(lines)}{more}")


# Scoring -----------------------------------------------------------------------------------------


class Ledger:
    """Values that were computed, in a file that only grows; a torn last line is lost, no more."""

    def __init__(self, path: Path) -> None:
        self._values: dict[str, float] = {}
        text = path.read_text() if path.exists() else ""
        for line in text.splitlines():
            try:
                entry = json.loads(line)
                self._values[entry["key"]] = float(entry["value"])
            except (ValueError, KeyError, TypeError):
                continue
        self._file: TextIO = open(path, "a", encoding="utf-8")
        if text and not text.endswith("\n"):
            self._file.write("\n")

    def get(self, key: str) -> float | None:
        return self._values.get(key)

    def put(self, key: str, value: float, **notes: str) -> None:
        self._values[key] = value
        print(json.dumps({**notes, "key": key, "value": value}), file=self._file, flush=True)

    def close(self) -> None:
        self._file.close()


class Examiner:
    """Computes what the ledger does not have; `faults` says what could not be, by metric."""

    def __init__(self, pictures: Pictures, ledger: Ledger, batch_size: int) -> None:
        self.pictures, self.ledger, self.batch_size = pictures, ledger, batch_size
        self.faults: dict[str, str] = {}

    def values(self, scorer: Scorer, method: str, bar: tqdm) -> Values:
        """A value for each picture; None, and a fault, where there is none."""
        keys = {name: self._key(scorer, method, [name]) for name in self.pictures.names}
        todo = [name for name, key in keys.items() if self.ledger.get(key) is None]
        bar.update(len(keys) - len(todo))
        files = self.pictures.methods[method]
        for _, group in groupby(todo, key=lambda name: files[name].size):
            same_size = list(group)
            for start in range(0, len(same_size), self.batch_size):
                batch = same_size[start : start + self.batch_size]
                for name, value in zip(batch, self._batch(scorer, method, batch), strict=True):
                    if value is not None:
                        notes = {"metric": scorer.metric.name, "method": method, "image": name}
                        self.ledger.put(keys[name], value, **notes)
                bar.update(len(batch))
        return {name: self.ledger.get(key) for name, key in keys.items()}

    def set_value(self, scorer: Scorer, method: str) -> float | None:
        """The one value of a metric that compares sets."""
        metric, files, reference = scorer.metric, *self._files(method)
        key = self._key(scorer, method, self.pictures.names)
        if self.ledger.get(key) is None and len(files) < 2:
            self.faults[metric.name] = "needs two pictures or more"
        elif self.ledger.get(key) is None:
            with _folder(files) as one, _folder(reference) as two:
                value = self._attempt(scorer, method, one, two)
            if value:
                self.ledger.put(key, value[0], metric=metric.name, method=method)
        return self.ledger.get(key)

    def _files(self, method: str) -> tuple[dict[str, File], dict[str, File]]:
        return self.pictures.methods[method], self.pictures.reference or {}

    def _key(self, scorer: Scorer, method: str, names: Sequence[str]) -> str:
        """Digest of the metric's identity and of the pictures it looks at."""
        restored, reference = self._files(method)
        digests = [restored[name].digest for name in names]
        if scorer.metric.reference:
            digests += [reference[name].digest for name in names]
        text = json.dumps([scorer.identity, digests], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def _batch(self, scorer: Scorer, method: str, names: list[str]) -> list[float | None]:
        """Values of pictures of one size; if they fail together, one by one."""
        restored, reference = self._files(method)
        batches = [_stack(restored, names)]
        batches.append(_stack(reference, names) if scorer.metric.reference else None)
        if len(names) == 1:
            found = self._attempt(scorer, f"{method}, {names[0]}", *batches)
            return list(found) if found else [None]
        try:
            found = scorer.score(*batches)
            if all(map(math.isfinite, found)):
                return list(found)
        except Exception:  # of any of these libraries; told of when a single picture fails
            pass
        return [self._batch(scorer, method, [name])[0] for name in names]

    def _attempt(self, scorer: Scorer, where: str, *what: Any) -> list[float] | None:
        """Finite values, or None and a fault."""
        try:
            found = scorer.score(*what)
            if all(map(math.isfinite, found)):
                return found
            reason = "the value is not finite"
        except Exception as error:  # of any of these libraries, which raise nearly anything
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        self.faults.setdefault(scorer.metric.name, f"{where}: {reason}")
        return None


def _stack(files: dict[str, File], names: Sequence[str]) -> UInt8[np.ndarray, "b h w 3"]:
    return np.stack([read_image(files[name].path).rgb for name in names])


@contextmanager
def _folder(files: dict[str, File]) -> Iterator[Path]:
    """A flat folder of just these pictures, as PNG, in their order."""
    with tempfile.TemporaryDirectory() as folder:
        for i, (_, file) in enumerate(sorted(files.items())):
            target = Path(folder) / f"{i:06d}.png"
            if file.path.suffix.lower() == ".png":
                target.symlink_to(file.path.resolve())
            else:
                write_png(target, read_image(file.path).rgb)
        yield Path(folder)


@dataclass
class Results:
    """All values: {method: {metric: {name: value}}}, means, and why a metric is missing."""

    values: dict[str, dict[str, Values]]
    means: dict[str, Values]
    scorers: dict[str, Scorer]
    missing: dict[str, str]


def examine(
    pictures: Pictures, metrics: Sequence[Metric], ledger: Ledger, args: argparse.Namespace
) -> Results:
    """Score every method by every metric, one metric in memory at a time."""
    found = Results({m: {} for m in pictures.methods}, {m: {} for m in pictures.methods}, {}, {})
    examiner = Examiner(pictures, ledger, args.batch_size)
    total = len(metrics) * len(pictures.methods) * len(pictures.names)
    with tqdm(total=total, unit="picture", file=sys.stderr) as bar:
        for done, metric in enumerate(metrics, start=1):
            bar.set_description(metric.name)
            try:
                scorer = open_scorer(metric, args.weights, args.model)
            except MissingMetric as reason:
                found.missing[metric.name] = str(reason)
                for means in found.means.values():
                    means[metric.name] = None
            else:
                found.scorers[metric.name] = scorer
                _fill(found, examiner, scorer, bar)
            bar.update(done * total // len(metrics) - bar.n)
    found.missing |= examiner.faults
    return found


def _fill(found: Results, examiner: Examiner, scorer: Scorer, bar: tqdm) -> None:
    """Add one metric's values and means; a mean is there only if every picture has a value."""
    name = scorer.metric.name
    for method in examiner.pictures.methods:
        if scorer.metric.whole_set:
            found.means[method][name] = examiner.set_value(scorer, method)
            continue
        values = examiner.values(scorer, method, bar)
        found.values[method][name] = values
        known = [value for value in values.values() if value is not None]
        whole = len(known) == len(values)
        found.means[method][name] = math.fsum(known) / len(known) if whole else None


# Results -----------------------------------------------------------------------------------------


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
        "settings": {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()},
        "images": images,
    }
    text = {
        "metrics.json": json.dumps(whole, indent=2, default=str) + "\n",
        "metrics.csv": tables.csv_text(images, found.means, columns),
        "table.md": tables.markdown(found.means, columns, f"n = {len(pictures.names)}"),
        "table.tex": tables.latex(found.means, columns),
    }
    for name, content in text.items():
        write_file(args.output / name, content.encode())
    for metric in columns:
        values = {method: _complete(found, method, metric) for method in found.values}
        if all(values.values()):
            _write(args.output / "plots" / f"{metric.name}.png", plot(metric, values))
            _write_worst(found, pictures, metric, args)


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, data)


def _write_worst(
    found: Results, pictures: Pictures, metric: Metric, args: argparse.Namespace
) -> None:
    """A sheet for each method: degraded (if given), restored, reference of its worst pictures."""
    degraded = named_images(args.degraded) if args.degraded else {}
    for method, files in pictures.methods.items():
        values = {k: v for k, v in found.values[method][metric.name].items() if v is not None}
        ranked = sorted(values, key=lambda name: values[name], reverse=not metric.higher)
        rows = []
        for name in ranked[: args.worst]:
            paths = [degraded.get(name), files[name].path]
            paths.append(pictures.reference[name].path if pictures.reference else None)
            caption = f"{metric.title} {tables.shown(metric, values[name])}: {name}"
            rows.append(Row([read_image(path).rgb for path in paths if path], (caption,)))
        heads = [*(["degraded"] if degraded else []), method]
        heads += [REFERENCE] if pictures.reference else []
        path = args.output / "worst" / method / f"{metric.name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_png(path, sheet(rows, heads, box=None))


# The command -------------------------------------------------------------------------------------


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Flags; exits with status 2 on a bad one."""
    parser = argparse.ArgumentParser(
        prog="evaluate", description="The paper's tables from folders.", allow_abbrev=False
    )
    add = parser.add_argument
    folder = "[NAME=]DIR"
    add("--restored", required=True, action="append", metavar=folder, help="once for each method")
    add("--reference", type=Path, help="the pictures as they should be")
    add("--degraded", type=Path, help="what was restored; shown in worst/, not measured")
    add("--metrics", default="all", help=f"all, or some of {','.join(METRICS)}")
    add("--output", required=True, type=Path)
    add("--weights", type=Path, help="folder below which pyiqa's weight files lie")
    add("--model", type=Path, help="model folder with LPIPS, for lpips-vgg")
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
    folders = dict(map(named_folder, args.restored))
    if len(folders) < len(args.restored) or REFERENCE in folders:
        raise ValueError("two folders have one name: give them as --restored NAME=DIR")
    if odd := [name for name in folders if not name or name in (".", "..") or "/" in name]:
        raise ValueError(f"{odd[0]!r} is no name for a method")
    inputs = [*folders.values(), *filter(None, (args.reference, args.degraded))]
    for path in inputs:
        if args.output.resolve().is_relative_to(path.resolve()):
            raise ValueError(f"--output {args.output} lies in {path}")
    return folders


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    args = parse_args(argv)
    try:
        folders = _folders(args)
        metrics = wanted(args.metrics, args.reference is not None, args.model is not None)
        if args.weights and not args.weights.is_dir():
            raise ValueError(f"--weights {args.weights}: no such folder")
        if args.degraded:
            named_images(args.degraded)
        pictures = gather(folders, args.reference, args.allow_missing)
        args.output.mkdir(parents=True, exist_ok=True)
        ledger = Ledger(args.output / "scores.jsonl")
    except (OSError, ValueError) as error:
        print(f"evaluate: {error}", file=sys.stderr)
        return 2
    try:
        found = examine(pictures, metrics, ledger, args)
        report(found, pictures, metrics, args)
    finally:
        ledger.close()
    print((args.output / "table.md").read_text(), end="")
    for name, reason in {**pictures.left_out, **found.missing}.items():
        print(f"evaluate: {name}: {reason}", file=sys.stderr)
    return 1 if found.missing else 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("evaluate: interrupted; the same command goes on", file=sys.stderr)
        sys.exit(130)
