"""A folder of photographs, its run killed over and over and started again."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tiny
from PIL import Image

ROOT = Path(__file__).parents[2]
KILLS = 3
SUFFIXES = (".png", ".jpg", ".webp")


def fill(folder: Path, count: int, longest: int) -> None:
    """Noise of mixed sizes and formats, in subfolders."""
    rng = np.random.default_rng(0)
    for i in range(count):
        height, width = rng.integers(8, longest + 1, 2)
        path = folder / f"part{i % 7}" / f"{i:04}{SUFFIXES[i % 3]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(path)


def start(folder: Path, output: Path) -> subprocess.Popen:
    """infer.py on the folder; programs are kept beside it, since each run needs the same."""
    flags = ["--input", folder / "in", "--output", output, "--model", folder / "model"]
    kept = {"JAX_COMPILATION_CACHE_DIR": str(folder / "programs")}
    kept["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    command = [sys.executable, ROOT / "infer.py", *flags, "--batch_size", "4"]
    environment = {**os.environ, **kept, "PYTHONPATH": str(ROOT)}
    quiet = subprocess.DEVNULL
    return subprocess.Popen(command, env=environment, stdout=quiet, stderr=quiet)


def finished(output: Path) -> int:
    """Lines of the record."""
    record = output / "provenance.jsonl"
    return record.read_bytes().count(b"\n") if record.exists() else 0


def kill_at(process: subprocess.Popen, output: Path, lines: int) -> None:
    """SIGKILL as soon as the record has so many lines."""
    while process.poll() is None and finished(output) < lines:
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -9, "it ended before it was killed"


def outputs(folder: Path) -> dict[str, bytes]:
    """All that lies in a folder, but for the record."""
    found = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
    return {name: p.read_bytes() for name, p in found.items() if p.name != "provenance.jsonl"}


@pytest.mark.parametrize(
    ("count", "longest"), [(20, 64), pytest.param(1000, 140, marks=pytest.mark.slow)]
)
def test_T13_a_folder_killed_three_times_ends_as_if_undisturbed(tmp_path, count, longest):
    fill(tmp_path / "in", count, longest)
    tiny.save(tmp_path / "model")
    broken, whole = tmp_path / "broken", tmp_path / "whole"
    for kill in range(KILLS):
        kill_at(start(tmp_path, broken), broken, (kill + 1) * count // (KILLS + 1))
        assert len(outputs(broken)) < count
    assert start(tmp_path, broken).wait() == 0
    assert start(tmp_path, whole).wait() == 0
    assert outputs(broken) == outputs(whole) and len(outputs(whole)) == count
    lines = (broken / "provenance.jsonl").read_bytes().splitlines()
    parsed = [json.loads(line) for line in lines if line.endswith(b"}")]
    assert len({line["output"] for line in parsed}) == count
    assert count <= len(parsed) <= count + KILLS  # what was being written is done again, no more
