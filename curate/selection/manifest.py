"""The manifest: every source image and candidate box, once, kept or with its reason.

Parquet, a part for each crop shard. A row with a `box_index` is a candidate; a row without one is
an image that had none. The counting law: an image is one row without candidates or has one row
for each of them; a candidate is kept or carries one reason of the closed list. The select job
writes the manifest. The report, the packs and people read it.
"""

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curate.engine.ledger import ShardLedger
from curate.engine.parquet import CANDIDATE_SCHEMA, CropFile, Row, read_rows, read_table
from curate.schema import is_reason, sorted_counts

# The columns that the selection adds, besides scores, "reason" and "kept".
DECISIONS = {
    "z": pa.float64(),
    "rank": pa.int64(),
    "group_id": pa.string(),
    "split": pa.string(),
}
# The columns that the counting law is about.
FUNNEL_COLUMNS = ("dataset", "image_id", "box_index", "reason")
# What packs need of the crops that are kept; every worker holds these.
SELECTED_COLUMNS = (
    *("crop_id", "image_id", "dataset", "license", "x0", "y0", "s", "split"),
    *("crop_sha256", "crop_shard", "crop_row", "rank"),
)
# Crop files that are open at once; each holds a footer that grows with its crops.
OPEN = 32


class ManifestError(ValueError):
    """Rows that do not add up."""


def manifest_schema(metrics: Sequence[str], facts: Mapping[str, str]) -> pa.Schema:
    """The manifest's columns; `facts` (versions, digests) travel as the files' metadata."""
    scores = [pa.field(name, pa.float64()) for name in metrics]
    decisions = [pa.field(name, kind) for name, kind in DECISIONS.items()]
    kept = [pa.field("kept", pa.bool_())]
    return pa.schema([*CANDIDATE_SCHEMA, *scores, *decisions, *kept], metadata=dict(facts))


def join_decisions(rows: pa.Table, schema: pa.Schema, columns: Mapping[str, list]) -> pa.Table:
    """The crop job's rows with what was decided about the candidates that are left.

    Args:
        columns: a value for each row without a reason, in order: scores, `DECISIONS` and "reason".
    """
    # The rows that the values of `columns` belong to.
    reasons = rows["reason"].to_pylist()
    left = [at for at, reason in enumerate(reasons) if not reason]
    place = np.full(len(rows), -1)
    place[left] = np.arange(len(left))
    # Taking from a column at a null place gives null: so have rows that were dropped earlier.
    take = pa.array(place, mask=place < 0)
    for at, reason in zip(left, columns["reason"], strict=True):
        reasons[at] = reason
    joined = {name: rows[name] for name in CANDIDATE_SCHEMA.names}
    for name, values in columns.items():
        joined[name] = pa.array(values, schema.field(name).type).take(take)
    joined |= {"reason": pa.array(reasons), "kept": pa.array([not r for r in reasons])}
    return pa.table(joined, schema=schema)


def manifest_parts(ledger: ShardLedger) -> list[Path]:
    """The manifest's files. Raises LedgerError where nothing has been selected."""
    # A selection may have no parts, so that it is asked for a file that it always has.
    ledger.output("select", "all", "selected.parquet")
    outputs = ledger.outputs("select", "all")
    names = sorted(name for name in outputs if name.startswith("part-"))
    return [ledger.output("select", "all", name) for name in names]


def read_manifest(ledger: ShardLedger, columns: Sequence[str] | None = None) -> pa.Table:
    """All of the manifest, or some columns of it. Raises LedgerError before a selection."""
    return pa.concat_tables([read_table(path, columns) for path in manifest_parts(ledger)])


def selected_rows(ledger: ShardLedger) -> dict[str, list[Row]]:
    """SELECTED_COLUMNS of what is kept, by split, in the order in which it is packed.

    Raises LedgerError before a selection.
    """
    return _selected(ledger.output("select", "all", "selected.parquet"))


@functools.lru_cache(maxsize=1)
def _selected(path: Path) -> dict[str, list[Row]]:
    """The rows of a file, which is read once: a committed path names its content."""
    rows: dict[str, list[Row]] = {}
    for row in read_rows(path, SELECTED_COLUMNS):
        rows.setdefault(row["split"], []).append(row)
    return rows


@dataclass
class Funnel:
    """What became of a dataset's images and candidates, in numbers."""

    images: int = 0
    with_candidates: int = 0
    image_reasons: dict[str, int] = field(default_factory=dict)
    candidates: int = 0
    kept: int = 0
    reasons: dict[str, int] = field(default_factory=dict)


def funnels(table: pa.Table) -> dict[str, Funnel]:
    """The funnel of each dataset, by its name.

    Args:
        table: FUNNEL_COLUMNS of the manifest, or of whole images of it.
    """
    found = {}
    for dataset in sorted(table["dataset"].unique().to_pylist()):
        part = table.filter(pc.field("dataset") == dataset)
        # Rows without a candidate stand for their image.
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


def read_funnels(ledger: ShardLedger) -> dict[str, Funnel]:
    """The funnel of each dataset, counted part by part. Raises LedgerError before a selection.

    An image is dealt to one shard, and so is in one part with all of its candidates.
    """
    found: dict[str, list[Funnel]] = {}
    for path in manifest_parts(ledger):
        for name, funnel in funnels(read_table(path, FUNNEL_COLUMNS)).items():
            found.setdefault(name, []).append(funnel)
    return {name: merge_funnels(parts) for name, parts in sorted(found.items())}


def check_counts(table: pa.Table) -> None:
    """Raises ManifestError, with the dataset and the sums, if the counting law does not hold."""
    check_funnels(funnels(table))


def check_funnels(found: Mapping[str, Funnel]) -> None:
    """`check_counts` of what has been counted."""
    for name, funnel in found.items():
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
    """The sum of several datasets' funnels."""
    return Funnel(
        images=sum(part.images for part in parts),
        with_candidates=sum(part.with_candidates for part in parts),
        image_reasons=_summed(part.image_reasons for part in parts),
        candidates=sum(part.candidates for part in parts),
        kept=sum(part.kept for part in parts),
        reasons=_summed(part.reasons for part in parts),
    )


def _summed(counts: Iterable[dict[str, int]]) -> dict[str, int]:
    """Counts of the same names added up, sorted by name."""
    total: dict[str, int] = {}
    for count in counts:
        for name, number in count.items():
            total[name] = total.get(name, 0) + number
    return dict(sorted(total.items()))


def funnel_text(parts: Mapping[str, Funnel]) -> str:
    """A table as text: a line for each count, a column for each dataset and for their sum."""
    columns = (
        {**parts, "all": merge_funnels(list(parts.values()))} if len(parts) > 1 else dict(parts)
    )
    # Images with the reasons that drop them, then candidates with theirs, then what is kept.
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
    # Names on the left, numbers right-aligned below the names of the datasets.
    width = max(len(name) for name, _ in lines) + 2
    head = " " * width + "".join(f"{name:>14}" for name in columns)
    body = (name.ljust(width) + "".join(f"{n:>14,}" for n in ns) for name, ns in lines)
    return "\n".join([head, *body])


class Crops:
    """Stored crops by manifest row."""

    def __init__(self, ledger: ShardLedger) -> None:
        # Of each instance its own cache, which goes with it.
        @functools.lru_cache(OPEN)
        def opened(shard: str) -> CropFile:
            return CropFile(ledger.output("crop", shard, "crops.parquet"))

        self._opened = opened

    def png(self, row: Row) -> bytes:
        """The PNG of a manifest row that has a crop.

        Raises LedgerError where the shard is gone, PrunedError where the picture is.
        """
        return self._opened(row["crop_shard"]).png(row["crop_row"])

    def stored(self, row: Row) -> bool:
        """Whether the PNG of a row is there, and was not pruned."""
        return self._opened(row["crop_shard"]).find(row["crop_row"]) is not None
