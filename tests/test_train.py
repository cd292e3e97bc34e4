"""The command `train.py`, as a user runs it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.numpy import load_file

ROOT = Path(__file__).parent.parent
DEADLINE = 900  # seconds


def command(workdir: Path, *overrides: str) -> list[str]:
    base = [sys.executable, str(ROOT / "train.py"), "--config", str(ROOT / "configs/debug.py")]
    return [*base, "--workdir", str(workdir), *overrides]


def run(workdir: Path, *overrides: str) -> subprocess.CompletedProcess:
    argv = command(workdir, *overrides)
    return subprocess.run(argv, capture_output=True, text=True, timeout=DEADLINE)


def kill_after(workdir: Path, step: int) -> None:
    """Start a run and SIGKILL it as soon as the checkpoint of `step` is there."""
    with subprocess.Popen(command(workdir), stderr=subprocess.DEVNULL) as process:
        end = time.monotonic() + DEADLINE
        while not (workdir / "checkpoints" / str(step)).exists():
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("run") / "w"
    result = run(workdir)
    assert result.returncode == 0, result.stderr
    return workdir


def test_run_leaves_what_the_readme_says(undisturbed: Path) -> None:
    lines = [json.loads(x) for x in (undisturbed / "metrics.jsonl").read_text().splitlines()]
    losses = {x["step"]: x["loss"] for x in lines if "loss" in x}
    assert sorted(losses) == [5, 10, 15, 20]
    assert [x["step"] for x in lines if "val_psnr_y" in x] == [10, 20]
    assert (undisturbed / "samples" / "0000020.png").stat().st_size > 1000
    assert list((undisturbed / "tensorboard").glob("events*"))
    assert sorted(p.name for p in (undisturbed / "model").iterdir()) == [
        "base.safetensors",
        "config.json",
        "generator.safetensors",
    ]


def test_killed_run_ends_as_the_undisturbed_one(undisturbed: Path, tmp_path: Path) -> None:
    workdir = tmp_path / "w"
    kill_after(workdir, 10)
    assert not (workdir / "model").exists()
    result = run(workdir)
    assert result.returncode == 0, result.stderr
    for name in ("generator.safetensors", "base.safetensors"):
        ours, theirs = (load_file(w / "model" / name) for w in (workdir, undisturbed))
        assert sorted(ours) == sorted(theirs)
        assert all((ours[k] == theirs[k]).all() for k in ours)
    last = [(w / "metrics.jsonl").read_text().splitlines()[-1] for w in (workdir, undisturbed)]
    assert last[0] == last[1]


def test_checkpoint_restores_like_the_exported_model(undisturbed: Path, tmp_path: Path) -> None:
    import skimage.data
    from PIL import Image

    Image.fromarray(skimage.data.astronaut()[:64, 200:296]).save(tmp_path / "a.png")
    outputs = []
    for name, source in (("run", ["--checkpoint", str(undisturbed)]), ("model", [])):
        source = source or ["--model", str(undisturbed / "model")]
        argv = [sys.executable, str(ROOT / "infer.py"), *source]
        argv += ["--input", str(tmp_path / "a.png"), "--output", str(tmp_path / name)]
        subprocess.run(argv, check=True, timeout=DEADLINE, capture_output=True)
        outputs.append((tmp_path / name / "a.png").read_bytes())
    assert outputs[0] == outputs[1]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("--config.optim.learning_rate=1e-3", "optim.learning_rate: 5e-05 -> 0.001"),
        ("--config.data.sources=('/nowhere',)", "data.sources"),
    ],
)
def test_resuming_with_another_config_is_refused(
    undisturbed: Path, override: str, said: str
) -> None:
    result = run(undisturbed, override)
    assert result.returncode == 2
    assert said in result.stderr and "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--config.run.kind=painter", "painter"),
        ("--config.optim.lr=1", "lr not found"),
        ("--config.optim.learning_rate=fast", "'fast'"),
        ("--speed=1", "'speed'"),
    ],
)
def test_bad_config_is_one_line_and_leaves_nothing(tmp_path: Path, flag: str, said: str) -> None:
    result = run(tmp_path / "w", flag)
    assert result.returncode == 2 and said in result.stderr
    assert len(result.stderr.splitlines()) == 1 and not (tmp_path / "w").exists()
