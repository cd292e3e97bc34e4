"""What benchmarks make of their values; that they run is for those who quote their figures."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from refusals import status

from benchmarks import device_table, group_norm, realsr, train_step
from osdhuman_jax.evaluation.metrics import psnr_y
from osdhuman_jax.images.codec import write_png
from osdhuman_jax.networks import layers, upsampling
from osdhuman_jax.networks.target import traced_for


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


def test_what_norms_and_enlarging_gain_is_told_against_programs_without_them():
    lines = [jax.ShapeDtypeStruct((1, 64, 64, 32), jnp.bfloat16)]

    def kernels() -> str:
        norm = layers.GroupNorm(32, 8, 1e-6, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
        enlarge = layers.Conv3x3(32, 32, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
        run = lambda x: upsampling.upsampled(enlarge, norm(x, silu=True))  # noqa: E731
        with traced_for("cuda"):
            return str(jax.make_jaxpr(run)(*lines))

    ours = kernels()
    with group_norm.before():
        plain = kernels()
    assert "pallas_call" in ours and "pallas_call" not in plain
    # One convolution of four times the channels, and four of them.
    assert (ours.count("conv_general_dilated["), plain.count("conv_general_dilated[")) == (1, 4)


PLANNED = {part.name for part in device_table.plan(device_table.SMOKE, Path("weights"))}


@pytest.mark.slow
def test_the_table_of_a_device_has_its_rows(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("BUDGET", "900")
    assert device_table.main(["--smoke", str(tmp_path)]) == 0
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


def test_too_little_time_is_told_and_no_success(tmp_path, monkeypatch):
    monkeypatch.setenv("BUDGET", "0")
    assert device_table.main(["--smoke", str(tmp_path)]) == 1
    rows = json.loads((tmp_path / "table.json").read_text())["rows"]
    assert {row["name"] for row in rows} == PLANNED
    assert {row["failed"] for row in rows} == {"not begun: 0 s were left"}
    # Nor are weights made that nobody has time for.
    assert sorted(path.name for path in tmp_path.iterdir()) == ["table.json", "table.md"]


def test_weights_that_come_too_late_are_no_failure_of_theirs(tmp_path):
    part = device_table.Part("x-ours", "x", "x", 1, "x", ("y", "--weights", "w"), 60, 1)
    with (tmp_path / "log").open("w") as log:
        maker = device_table.started(("timeit", "-n1", "-r1", "import time; time.sleep(60)"), log)
    try:
        row = device_table.measured(part, [], {"w": maker}, tmp_path, time.monotonic() + 2)
    finally:
        device_table.stop(maker)
    assert row and row["failed"] == "not begun: 1 s were left, its weights not made"


@pytest.mark.parametrize(
    ("budget", "out", "said"),
    [
        ("abc", "out", "BUDGET: 'abc' is no number of seconds"),
        ("nan", "out", "BUDGET: 'nan' is no number of seconds"),
        ("-1", "out", "BUDGET: '-1' is no number of seconds"),
        ("5", "file", "file: no folder to write into (File exists)"),
        ("5", "file/out", "out: no folder to write into (Not a directory)"),
    ],
)
def test_what_cannot_be_measured_is_one_line(budget, out, said, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("BUDGET", budget)
    (tmp_path / "file").touch()
    assert status(device_table.main, tmp_path / out) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


SCRIPT = Path(device_table.__file__).with_name("device.sh")


def test_the_script_names_its_variables_and_writes_below_the_callers_folder(tmp_path):
    env = os.environ | {"PYTHON": sys.executable, "BUDGET": "0"}
    told = subprocess.run([SCRIPT, "--help"], env=env, cwd=tmp_path, capture_output=True, text=True)
    assert told.returncode == 0 and "PYTHON" in told.stdout and "BUDGET" in told.stdout
    ended = subprocess.run([SCRIPT, "mine", "dpg"], env=env, cwd=tmp_path, capture_output=True)
    assert ended.returncode == 1 and (tmp_path / "mine" / "table.md").is_file()


SLEEPER = """
import sys
from benchmarks import device_table
from osdhuman_jax.cli import end
work = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
command = ("timeit", "-n1", "-r1", work)
device_table.plan = lambda *_: [device_table.Part("x", "train", "x", 1, "x", command, 600, 1)]
device_table.ROOM = float("inf")
end("x", lambda: device_table.main(sys.argv[1:]))
"""


def test_a_run_that_is_ended_leaves_no_process_and_no_folder(tmp_path):
    (tmp_path / "temporary").mkdir()
    env = os.environ | {"TMPDIR": str(tmp_path / "temporary")}
    command = [sys.executable, "-c", SLEEPER, str(tmp_path / "out")]
    log = tmp_path / "out" / "x.log"
    with subprocess.Popen(command, env=env, stderr=subprocess.DEVNULL) as process:
        until = time.monotonic() + 60
        # Its second line is the number of the process that it began.
        while not log.exists() or log.read_text().count("\n") < 2:
            assert time.monotonic() < until and process.poll() is None
            time.sleep(0.05)
        begun = int(log.read_text().splitlines()[1])
        assert list((tmp_path / "temporary").iterdir())
        process.terminate()
        assert process.wait(30) == 130
    with pytest.raises(ProcessLookupError):
        os.kill(begun, 0)
    assert not list((tmp_path / "temporary").iterdir())
