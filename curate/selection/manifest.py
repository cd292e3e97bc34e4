"""The manifest: every source image and candidate box, once, kept or with its reason.

Parquet, a part for each crop shard. A row with a `box_index` is a candidate; a row without one is
an image that had none. The counting law: an image is one row without candidates or has one row
for each of them; a candidate is kept or carries one reason of the closed list.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curate.engine.ledger import ShardLedger
from curate.engine.parquet import CANDIDATE_SCHEMA, CropFile, Row, read_rows, read_table
from curate.schema import is_reason, sorted_counts

DECISIONS = {
    "z": pa.float64(),
    "rank": pa.int64(),
    "group_id": pa.string(),
    "split": pa.string(),
}
# Crop files that are open at once; each holds a footer that grows with its crops.
OPEN = 32


class ManifestError(ValueError):
    """Rows that do not add up."""


def manifest_schema(metrics: Sequence[str], facts: Mapping[str, str]) -> pa.Schema:
    """Columns; `facts` (versions, digests) travel as the file's metadata."""
    scores = [pa.field(name, pa.float64()) for name in metrics]
    decisions = [pa.field(name, kind) for name, kind in DECISIONS.items()]
    kept = [pa.field("kept", pa.bool_())]
    return pa.schema([*CANDIDATE_SCHEMA, *scores, *decisions, *kept], metadata=dict(facts))


def join_decisions(rows: pa.Table, schema: pa.Schema, columns: Mapping[str, list]) -> pa.Table:
    """The crop job's rows with what was decided about the candidates that are left.

    Args:
        columns: a value for each row without a reason, in order: scores, `DECISIONS` and "reason".
    """
    reasons = rows["reason"].to_pylist()
    left = [at for at, reason in enumerate(reasons) if not reason]
    place = np.full(len(rows), -1)
    place[left] = np.arange(len(left))
    take = pa.array(place, mask=place < 0)
    for at, reason in zip(left, columns["reason"], strict=True):
        reasons[at] = reason
    joined = {name: rows[name] for name in CANDIDATE_SCHEMA.names}
    for name, values in columns.items():
        joined[name] = pa.array(values, schema.field(name).type).take(take)
    joined |= {"reason": pa.array(reasons), "kept": pa.array([not r for r in reasons])}
    return pa.table(joined, schema=schema)


def manifest_parts(ledger: ShardLedger) -> list[Path]:
    """The manifest's files. Raises LedgerError."""
    # This raises LedgerError where nothing has been selected.
    ledger.output("select", "all", "selected.parquet")
    marker = ledger.marker("select", "all") or {"outputs": {}}
    names = sorted(name for name in marker["outputs"] if name.startswith("part-"))
    return [ledger.output("select", "all", name) for name in names]


def read_manifest(ledger: ShardLedger, columns: Sequence[str] | None = None) -> pa.Table:
    """Some columns of the whole manifest. Raises LedgerError."""
    return pa.concat_tables([read_table(path, columns) for path in manifest_parts(ledger)])


def selected_rows(ledger: ShardLedger) -> dict[str, list[Row]]:
    """What is kept, by split, in the order in which it is packed. Raises LedgerError."""
    return _selected(ledger.output("select", "all", "selected.parquet"))


@functools.lru_cache(maxsize=1)
def _selected(path: Path) -> dict[str, list[Row]]:
    """A committed path names its content, so it may be read once."""
    rows: dict[str, list[Row]] = {}
    for row in read_rows(path):
        rows.setdefault(row["split"], []).append(row)
    return rows


@dataclass
class Funnel:
    """What became of a dataset's images and candidates."""

    images: int = 0
    with_candidates: int = 0
    image_reasons: dict[str, int] = field(default_factory=dict)
    candidates: int = 0
    kept: int = 0
    reasons: dict[str, int] = field(default_factory=dict)


def funnels(table: pa.Table) -> dict[str, Funnel]:
    """Funnels by dataset, from the manifest's columns dataset, image_id, box_index, reason."""
    found = {}
    for dataset in sorted(table["dataset"].unique().to_pylist()):
        part = table.filter(pc.field("dataset") == dataset)
        bare = pc.field("box_index").is_null()
        images, candidates = part.filter(bare), part.filter(~bare)
        reasons = sorted_counts(candidates["reason"].to_pylist())
        found[dataset] = Funnel(
            images=len(part["image_id"].unique()),
            with_candidates=len(candidates["image_id"].unique()),
            image_reasons=sorted_counts(images["reason"].to_pylist()),
            candidates=len(candidates),
            kept=reasons.pop("", 0),
            reasons=reasons,
        )
    return found


def check_counts(table: pa.Table) -> None:
    """The counting law. Raises ManifestError that names the dataset and the sums."""
    for name, funnel in funnels(table).items():
        bare = sum(funnel.image_reasons.values())
        if funnel.images != funnel.with_candidates + bare:
            raise ManifestError(
                f"{name}: {funnel.images} images are not {funnel.with_candidates} with "
                f"candidates and {bare} without"
            )
        dropped = sum(funnel.reasons.values())
        if funnel.candidates != funnel.kept + dropped:
            raise ManifestError(
                f"{name}: {funnel.candidates} candidates, {funnel.kept} kept, {dropped} dropped"
            )
        strange = [r for r in {*funnel.reasons, *funnel.image_reasons} if not is_reason(r)]
        if strange:
            raise ManifestError(f"{name}: unknown reasons {', '.join(sorted(strange))}")


def merge_funnels(parts: Sequence[Funnel]) -> Funnel:
    """The sum of the funnels of all datasets."""
    total = Funnel()
    for part in parts:
        for name in ("images", "with_candidates", "candidates", "kept"):
            setattr(total, name, getattr(total, name) + getattr(part, name))
        for name in ("image_reasons", "reasons"):
            merged: dict[str, Any] = getattr(total, name)
            for reason, number in getattr(part, name).items():
                merged[reason] = merged.get(reason, 0) + number
    return total


def funnel_text(parts: Mapping[str, Funnel]) -> str:
    """A table: a line for each count, a column for each dataset and, at the end, their sum."""
    columns = (
        {**parts, "all": merge_funnels(list(parts.values()))} if len(parts) > 1 else dict(parts)
    )
    lines: list[tuple[str, list[int]]] = [("images", [f.images for f in columns.values()])]
    for kind, title in (("image_reasons", ""), ("reasons", "candidates")):
        if title:
            lines.append((title, [f.candidates for f in columns.values()]))
        names = sorted({name for f in columns.values() for name in getattr(f, kind)})
        lines += [
            (f"  - {name}", [getattr(f, kind).get(name, 0) for f in columns.values()])
            for name in names
        ]
    lines.append(("kept", [f.kept for f in columns.values()]))
    width = max(len(name) for name, _ in lines) + 2
    head = " " * width + "".join(f"{name:>14}" for name in columns)
    body = (name.ljust(width) + "".join(f"{n:>14,}" for n in ns) for name, ns in lines)
    return "\n".join([head, *body])


class Crops:
    """Stored crops by manifest row."""

    def __init__(self, ledger: ShardLedger) -> None:
        @functools.lru_cache(OPEN)
        def opened(shard: str) -> CropFile:
            return CropFile(ledger.output("crop", shard, "crops.parquet"))

        self._opened = opened

    def png(self, row: Row) -> bytes:
        """The PNG of a row with crop_shard and crop_row. Raises LedgerError."""
        return self._opened(row["crop_shard"]).png(row["crop_row"])
