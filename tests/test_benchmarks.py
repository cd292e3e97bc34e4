"""What benchmarks make of their values; that they run is for those who quote their figures."""

import json
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks import device_table, realsr, train_step
from osdhuman_jax.evaluation.metrics import psnr_y
from osdhuman_jax.images.codec import write_png


def flat(value: int) -> np.ndarray:
    return np.full((16, 16, 3), value, np.uint8)


@pytest.fixture
def published(tmp_path):
    for folder, value in {"restored": 90, "reference": 100}.items():
        (tmp_path / folder).mkdir()
        write_png(tmp_path / folder / "a.png", flat(value))
    return tmp_path


@pytest.mark.parametrize("gap, status", [(4e-5, 0), (6e-5, 1)])
def test_realsr_tells_agreement_from_disagreement(published, capsys, gap, status):
    value = psnr_y(flat(90), flat(100)) + gap
    (published / "published.csv").write_text(f"name,PSNR,NIQE\na.png,{value:.6f},3.0\n")
    argv = ["--data", str(published), "--output", str(published / "out")]
    assert realsr.main(argv) == status
    lines = capsys.readouterr().out.splitlines()[-2:]
    assert lines[0].endswith("DISAGREES" if status else "agrees")
    assert lines[1] == "niqe           not compared"


@pytest.mark.slow
def test_a_step_is_timed_beside_pytorchs(capfd):
    train_step.main(["--batch", "1", "--steps", "1", "--peer", "checkpointing"])
    said = capfd.readouterr().out
    assert "PyTorch, checkpointing" in said and said.count("s/step") == 2


def test_what_is_not_here_is_compiled_for_and_not_timed(capsys):
    assert train_step.parse(["--aot", "--target", "h200"]).target == "h200"
    for argv in (["--target", "h200"], ["--aot", "--target", "abacus"]):
        with pytest.raises(SystemExit):
            train_step.parse(argv)
    assert "--target goes with --aot" in capsys.readouterr().err


PLANNED = {part.name for part in device_table.plan(device_table.SMOKE, Path("weights"))}


@pytest.mark.slow
def test_the_table_of_a_device_has_its_rows(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("BUDGET", "900")
    device_table.main(["--smoke", str(tmp_path)])
    table = (tmp_path / "table.md").read_text()
    rows = json.loads((tmp_path / "table.json").read_text())["rows"]
    # PyTorch's step with checkpointing is for where the one without has no room.
    assert {row["name"] for row in rows} == PLANNED - {"train-checkpointing"}
    assert all(not row["failed"] and row["median_ms"] > 0 for row in rows)
    assert table.count("PyTorch, eager |") == 4 and table.count(" apart |") == 4
    assert table in capsys.readouterr().out


def test_a_part_that_hangs_or_fails_costs_no_other(tmp_path):
    def row(name: str, *command: str, limit: float = 60, left: float = 60) -> dict:
        part = device_table.Part(name, "x", "x", 1, "x", command, limit, 1)
        return device_table.measured(part, [], {}, tmp_path, time.monotonic() + left)

    hangs = row("hangs", "timeit", "-n1", "-r1", "import time; time.sleep(60)", limit=1)
    breaks = row("breaks", "benchmarks.no_such_module")
    late = row("late", "this", left=0)
    assert hangs["failed"] == "stopped after 1 s" and "No module" in breaks["failed"]
    assert late["failed"].startswith("not begun")
    rows = [hangs, breaks, late]
    assert all(device_table.line(row, rows).count("|") == 12 for row in rows)
