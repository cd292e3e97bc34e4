"""How commands begin and end as processes: what they load for help, and what ends them early."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from osdhuman_jax.commands import compare, degrade
from osdhuman_jax.images.codec import write_png

ROOT = Path(__file__).parents[2]
NANO = ROOT / "models" / "nano"
COMMANDS = "restore app degrade evaluate compare train label weights export".split()
ENTRIES = [["train.py"], ["infer.py"], ["-m", "osdhuman_jax.weights"]]
ENTRIES += [["-m", "curate.run"], *(["-m", "osdhuman_jax", name] for name in COMMANDS)]
# What the commands that people wait for leave unloaded besides.
AT_ONCE = {"restore": {"numpy", "absl", "cv2"}}
AT_ONCE |= {"app": AT_ONCE["restore"], "export": AT_ONCE["restore"]}


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry[-1])
def test_help_loads_no_jax(entry: list[str]) -> None:
    words = [sys.executable, "-X", "importtime", *entry, "--help"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "--" in done.stdout
    loaded = set(re.findall(r"\| +(\w+)$", done.stderr, re.MULTILINE))
    heavy = {"jax", "flax", "grain", "orbax", "matplotlib"} | AT_ONCE.get(entry[-1], set())
    assert "argparse" in loaded and not loaded & heavy


@pytest.mark.parametrize(
    "words", [["weights", "info", str(NANO)], ["train", "--help"], ["--help"], ["--version"]]
)
def test_output_that_nobody_reads_ends_a_command_in_silence(words: list[str]) -> None:
    """Status 141 is 128 + SIGPIPE, as of a program that the signal ends."""
    reader, writer = os.pipe()
    os.close(reader)
    words = [sys.executable, "-m", "osdhuman_jax", *words]
    done = subprocess.run(words, cwd=ROOT, stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.parametrize(
    ("entry", "name"),
    [
        (["train.py"], "train.py"),
        (["infer.py"], "infer.py"),
        (["-m", "osdhuman_jax", "weights"], "osdhuman weights"),
    ],
)
def test_an_interrupted_import_is_one_line(tmp_path: Path, entry: list[str], name: str) -> None:
    (tmp_path / "argparse.py").write_text("raise KeyboardInterrupt\n")  # in the library's place
    env = os.environ | {"PYTHONPATH": str(tmp_path)}
    words = [sys.executable, *entry, "--help"]
    done = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, f"{name}: interrupted\n")


def test_pictures_that_are_done_move_a_bar(tmp_path: Path, capsys) -> None:
    for name in "ab":
        (tmp_path / "photos").mkdir(exist_ok=True)
        write_png(tmp_path / "photos" / f"{name}.png", np.full((64, 64, 3), 90, np.uint8))
    places = [str(tmp_path / name) for name in ("photos", "lq")]
    assert degrade.main(["--seed", "0", "--input", places[0], "--output", places[1]]) == 0
    assert "2/2" in capsys.readouterr().err
    columns = ["--columns", f"HQ={places[0]}", f"LQ={places[1]}"]
    assert compare.main([*columns, "--output", str(tmp_path / "sheet.png")]) == 0
    assert "2/2" in capsys.readouterr().err


@pytest.mark.parametrize(("before", "status"), [("SIG_DFL", 130), ("SIG_IGN", 0)])
def test_a_closed_terminal_is_an_interruption_but_for_nohup(before: str, status: int) -> None:
    code = f"""
import os, signal
from osdhuman_jax.cli import end
signal.signal(signal.SIGHUP, signal.{before})
end("infer.py", lambda: os.kill(os.getpid(), signal.SIGHUP) or 0)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    said = "infer.py: interrupted; give the same command again\n" if status else ""
    assert (done.returncode, done.stderr) == (status, said)
