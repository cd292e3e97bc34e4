"""Runs of the whole pipeline for the tests, and what they decided, as plain values."""

from pathlib import Path

import pyarrow.parquet as pq

from curate import demo, run
from curate.engine.ledger import ShardLedger
from curate.selection.manifest import manifest_parts, selected_rows

SETTINGS = [f"--set={setting}" for setting in demo.SETTINGS]


def curate(output: Path, *flags: str, sources: list[str] | None = None) -> int:
    """The command, in this process; returns its exit status."""
    named = [f"--source={source}" for source in sources or []]
    return run.main([*flags, f"--output={output}", "--workers=0", *named])


def manifest(output: Path) -> list[dict]:
    return [
        row
        for path in manifest_parts(ShardLedger(output))
        for row in pq.read_table(path).to_pylist()
    ]


def kept(output: Path) -> dict[str, str]:
    """Split by crop."""
    rows = selected_rows(ShardLedger(output))
    return {row["crop_id"]: split for split, found in rows.items() for row in found}


def crop_of(output: Path, name: str) -> dict:
    """The one manifest row of an image."""
    (row,) = (row for row in manifest(output) if row["image_id"] == name)
    return row
