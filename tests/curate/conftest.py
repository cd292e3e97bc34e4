"""A small curated set, made once: the demonstration's sources through all stages."""

import shutil
from pathlib import Path

import pytest
from curation_runs import SETTINGS, curate

from curate import demo


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
