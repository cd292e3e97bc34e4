"""Values of methods by metrics, picture by picture, computed once.

Each value is kept in a file under the digests of its pictures and of all that the metric depends
on: what was interrupted goes on, and a second method costs only its own pictures. A metric that
fails on a picture is told of and has no mean; the others are computed all the same.
"""

import hashlib
import json
import math
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
from tqdm import tqdm

from osdhuman_jax.cli import bar
from osdhuman_jax.disk import append_line, json_lines
from osdhuman_jax.evaluation.metrics import Metric
from osdhuman_jax.evaluation.motion_area import remaining_area
from osdhuman_jax.evaluation.pairs import DEGRADED, File, Pictures
from osdhuman_jax.evaluation.scorers import MissingMetric, PixelBatch, Scorer, open_scorer
from osdhuman_jax.images.codec import read_rgb, write_png
from osdhuman_jax.images.listing import real

Values = dict[str, float | None]  # by picture


class ScoreFile:
    """Values that were computed, in a file that only grows, a line for each.

    Where a process was killed while it wrote, the last line is lost and no other.
    """

    def __init__(self, path: Path) -> None:
        # A line that holds no value, whoever wrote it, costs computing that value again.
        self._values: dict[str, float] = {}
        for entry in json_lines(path.read_bytes() if path.exists() else b""):
            try:
                self._values[entry["key"]] = float(entry["value"])
            except (ValueError, KeyError, TypeError):
                continue
        self._path = path
        # Raises OSError now where nothing can be written, not after the first value.
        path.open("ab").close()

    def get(self, key: str) -> float | None:
        """The value of a key, if it is known."""
        return self._values.get(key)

    def put(self, key: str, value: float, **notes: str) -> None:
        """Keep a value; `notes` say in its line what it is of, for people who read the file."""
        self._values[key] = value
        append_line(self._path, json.dumps({**notes, "key": key, "value": value}))


class Examiner:
    """Computes the values that the ledger does not have.

    `faults` says by metric, in one line, why a value could not be computed.
    """

    def __init__(self, pictures: Pictures, ledger: ScoreFile, batch_size: int) -> None:
        self.pictures, self.ledger, self.batch_size = pictures, ledger, batch_size
        self.faults: dict[str, str] = {}

    def values(self, scorer: Scorer, method: str, progress: tqdm) -> Values:
        """The value of each picture of a method; where there is none, None and a fault."""
        # What is known costs nothing; the rest goes in batches of pictures of one size.
        keys = {name: self._key(scorer, method, [name]) for name in self.pictures.names}
        todo = [name for name, key in keys.items() if self.ledger.get(key) is None]
        progress.update(len(keys) - len(todo))
        files, _ = self._files(method)
        for _, group in groupby(todo, key=lambda name: files[name].size):
            same_size = list(group)
            for start in range(0, len(same_size), self.batch_size):
                batch = same_size[start : start + self.batch_size]
                for name, value in zip(batch, self._batch(scorer, method, batch), strict=True):
                    if value is not None:
                        notes = {"metric": scorer.metric.name, "method": method, "image": name}
                        self.ledger.put(keys[name], value, **notes)
                progress.update(len(batch))
        return {name: self.ledger.get(key) for name, key in keys.items()}

    def relative_values(self, scorer: Scorer, method: str, progress: tqdm) -> Values:
        """The same, divided by the mean of the degraded pictures' values."""
        # The ledger has the latter after the first method.
        values = self.values(scorer, method, progress)
        base = [*self.values(scorer, DEGRADED, progress).values()]
        known = {name: value for name, value in values.items() if value is not None}
        nothing: Values = dict.fromkeys(values)
        if None in base or not known:
            return nothing
        try:
            ratios = remaining_area(np.array([*known.values()]), np.array(base))
        except ValueError as error:
            self.faults[scorer.metric.name] = str(error)
            return nothing
        return nothing | dict(zip(known, ratios.tolist(), strict=True))

    def set_value(self, scorer: Scorer, method: str) -> float | None:
        """The one value of a metric that compares sets."""
        # A set is a folder to pyiqa, so that its pictures are gathered in one.
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
        """Files of a method (or DEGRADED) and of the references, by name; these may be none."""
        degraded = {DEGRADED: self.pictures.degraded or {}}
        return (self.pictures.methods | degraded)[method], self.pictures.reference or {}

    def _key(self, scorer: Scorer, method: str, names: Sequence[str]) -> str:
        """Digest of the metric's identity and of the pictures it looks at."""
        restored, reference = self._files(method)
        # Where a file lies does not count: a picture that was moved is still known.
        digests = [restored[name].digest for name in names]
        if scorer.metric.reference:
            digests += [reference[name].digest for name in names]
        text = json.dumps([scorer.identity, digests], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def _batch(self, scorer: Scorer, method: str, names: list[str]) -> list[float | None]:
        """Values of pictures of one size; if they fail together, one by one."""
        restored, reference = self._files(method)
        batches = (
            _stack(restored, names),
            _stack(reference, names) if scorer.metric.reference else None,
        )
        # A picture that fails alone is told of.
        if len(names) == 1:
            found = self._attempt(scorer, f"{method}, {names[0]}", *batches)
            return list(found) if found else [None]
        try:
            found = scorer.score(*batches)
            if all(map(math.isfinite, found)):
                return list(found)
        except Exception:
            # These libraries raise nearly anything. What it was shows where a picture fails alone.
            pass
        return [self._batch(scorer, method, [name])[0] for name in names]

    def _attempt(self, scorer: Scorer, where: str, *what: object) -> list[float] | None:
        """The scorer's values of `what`, if all are finite; else None and a fault."""
        try:
            found = scorer.score(*what)
            if all(map(math.isfinite, found)):
                return found
            reason = "the value is not finite"
        except Exception as error:
            # These libraries raise nearly anything, and the first line says enough.
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        self.faults.setdefault(scorer.metric.name, f"{where}: {reason}")
        return None


def _stack(files: dict[str, File], names: Sequence[str]) -> PixelBatch:
    """Pictures of one size as one array."""
    return np.stack([read_rgb(files[name].path) for name in names])


@contextmanager
def _folder(files: dict[str, File]) -> Iterator[Path]:
    """A flat folder of just these pictures, as PNG, in their order."""
    with tempfile.TemporaryDirectory() as folder:
        for i, (_, file) in enumerate(sorted(files.items())):
            target = Path(folder) / f"{i:06d}.png"
            # A link is enough for what is a PNG already.
            if file.path.suffix.lower() == ".png":
                target.symlink_to(real(file.path))
            else:
                write_png(target, read_rgb(file.path))
        yield Path(folder)


@dataclass
class Results:
    """All values: {method: {metric: {name: value}}}, means, and why a metric is missing."""

    values: dict[str, dict[str, Values]]
    means: dict[str, Values]
    scorers: dict[str, Scorer]
    missing: dict[str, str]


def examine(
    pictures: Pictures,
    metrics: Sequence[Metric],
    ledger: ScoreFile,
    *,
    batch_size: int,
    weights: Path | None = None,
    model: Path | None = None,
    detector: Path | None = None,
) -> Results:
    """Score every method by every metric, one metric in memory at a time."""
    # Every metric counts as many pictures in the bar, whether it is computed, known or missing.
    found = Results({m: {} for m in pictures.methods}, {m: {} for m in pictures.methods}, {}, {})
    examiner = Examiner(pictures, ledger, batch_size)
    total = len(metrics) * len(pictures.methods) * len(pictures.names)
    # What cannot be computed here is told of once, and has no mean in any method's row.
    with bar(total, "picture") as progress:
        for done, metric in enumerate(metrics, start=1):
            progress.set_description(metric.name)
            try:
                scorer = open_scorer(metric, weights, model, detector)
            except MissingMetric as reason:
                found.missing[metric.name] = str(reason)
                for means in found.means.values():
                    means[metric.name] = None
            else:
                found.scorers[metric.name] = scorer
                _fill(found, examiner, scorer, progress)
            progress.update(done * total // len(metrics) - progress.n)
    found.missing |= examiner.faults
    return found


def _fill(found: Results, examiner: Examiner, scorer: Scorer, progress: tqdm) -> None:
    """Add one metric's values and means to `found`."""
    # A mean over fewer pictures than the others' would look better or worse than it is.
    name = scorer.metric.name
    for method in examiner.pictures.methods:
        if scorer.metric.whole_set:
            found.means[method][name] = examiner.set_value(scorer, method)
            continue
        measure = examiner.relative_values if scorer.metric.relative else examiner.values
        values = measure(scorer, method, progress)
        found.values[method][name] = values
        known = [value for value in values.values() if value is not None]
        whole = len(known) == len(values)
        found.means[method][name] = math.fsum(known) / len(known) if whole else None
