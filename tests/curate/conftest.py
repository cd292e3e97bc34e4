"""A small curated set, made once: the demonstration's sources through all stages."""

import os
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from curate import demo, run
from curate.ledger import Ledger
from curate.manifest import manifest_parts, selected_rows

collect_ignore = [] if os.environ.get("ANNOTATIONS") else ["test_published.py"]
SETTINGS = [f"--set={setting}" for setting in demo.SETTINGS]


def curate(output: Path, *flags: str, sources: list[str] | None = None) -> int:
    """The command, in this process; returns its exit status."""
    named = [f"--source={source}" for source in sources or []]
    return run.main([*flags, f"--output={output}", "--workers=0", *named])


def manifest(output: Path) -> list[dict]:
    return [
        row for path in manifest_parts(Ledger(output)) for row in pq.read_table(path).to_pylist()
    ]


def kept(output: Path) -> dict[str, str]:
    """Split by crop."""
    rows = selected_rows(Ledger(output))
    return {row["crop_id"]: split for split, found in rows.items() for row in found}


def crop_of(output: Path, name: str) -> dict:
    """The one manifest row of an image."""
    (row,) = (row for row in manifest(output) if row["image_id"] == name)
    return row


@pytest.fixture(scope="session")
def sources(tmp_path_factory) -> list[str]:
    """Values of --source."""
    return demo.write_sources(tmp_path_factory.mktemp("sources"))


@pytest.fixture(scope="session")
def made(tmp_path_factory, sources) -> Path:
    """The finished output; not to be changed."""
    output = tmp_path_factory.mktemp("made") / "set"
    assert curate(output, *SETTINGS, sources=sources) == 0
    return output


@pytest.fixture
def copy(made, tmp_path) -> Path:
    """A copy of it to work on."""
    return Path(shutil.copytree(made, tmp_path / "set"))
