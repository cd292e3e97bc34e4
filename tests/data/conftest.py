"""The pictures that the tests of the data pipeline read."""

from pathlib import Path

import pytest
from photo_sources import COUNT, picture, png


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten pictures in two folders, and files that are none."""
    root = tmp_path / "photos"
    (root / "b").mkdir(parents=True)
    (root / ".cache").mkdir()
    for i in range(COUNT):
        (root / (f"b/{i}.png" if i % 2 else f"{i}.PNG")).write_bytes(png(picture(i)))
    for other in ("notes.txt", "._0.png", ".cache/9.png"):
        (root / other).write_bytes(b"not a picture")
    return root
