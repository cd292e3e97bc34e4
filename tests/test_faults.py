"""What a run survives: kills at any moment, other devices, numbers that are not, a full disk."""

import os
import random
import resource
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest
import training_runs
from training_runs import DEADLINE, losses, saved, wait_for

KILLS = 20
EVERY_STEP = ("--config.run.checkpoint_every=1", "--config.run.keep=2", "--config.run.steps=60")
PLAIN = ("--config.loss.vsd=0", "--config.lora.vae_encoder=False")  # half to compile
EIGHT = ("--config.data.batch_size=8", "--config.run.log_every=20", "--config.run.sample_every=0")


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("compiled")


def half_saved(workdir: Path) -> list[Path]:
    return list((workdir / "checkpoints").glob("*.orbax-checkpoint-tmp"))


@pytest.mark.chaos
def test_twenty_kills_change_nothing(tmp_path, cache):
    """Half of them while a checkpoint is being written, the rest at any moment of two steps."""
    calm, wild = tmp_path / "calm", tmp_path / "wild"
    result = training_runs.run(calm, *EVERY_STEP, cache=cache)
    assert result.returncode == 0, result.stderr
    rng, kills, inside = random.Random(0), 0, 0
    while kills < KILLS:
        with training_runs.start(wild, *EVERY_STEP, cache=cache) as process:
            before = saved(wild)
            in_save = kills % 2 == 0
            happened = (lambda: half_saved(wild)) if in_save else (lambda: saved(wild) != before)  # noqa: B023
            assert wait_for(process, happened), "the run ended before its kills: give it more steps"
            time.sleep(rng.uniform(0.0, 0.05 if in_save else 0.5))
            os.kill(process.pid, signal.SIGKILL)
        kills, inside = kills + 1, inside + bool(half_saved(wild))
    assert inside >= KILLS // 4
    result = training_runs.run(wild, *EVERY_STEP, cache=cache)
    assert result.returncode == 0, result.stderr
    training_runs.assert_same_model(wild, calm)
    assert not half_saved(wild)
    assert [x["step"] for x in training_runs.scalars(wild)] == [
        x["step"] for x in training_runs.scalars(calm)
    ]


def two_processes(workdir: Path, cache: Path) -> list[subprocess.Popen]:
    """A run of two processes with a device each, over the loopback."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        where = f"127.0.0.1:{free.getsockname()[1]}"
    flags = [f"--coordinator={where}", "--processes=2", *EIGHT]
    return [training_runs.start(workdir, *flags, f"--process={i}", cache=cache) for i in range(2)]


@pytest.mark.slow
def test_every_topology_trains_the_same(tmp_path, cache, capsys):
    found: dict[str, float] = {}
    for devices in (1, 2, 4, 8):
        workdir = tmp_path / str(devices)
        result = training_runs.run(workdir, *EIGHT, cache=cache, devices=devices)
        assert result.returncode == 0, result.stderr
        found[f"{devices} device(s)"] = losses(workdir)[20]
    workdir = tmp_path / "two"
    pair = two_processes(workdir, cache)
    said = [process.communicate(timeout=DEADLINE)[1] for process in pair]
    assert [process.returncode for process in pair] == [0, 0], said
    assert saved(workdir)[-1] == 20 and (workdir / "model/generator.safetensors").exists()
    found["2 processes"] = losses(workdir)[20]
    with capsys.disabled():
        print(*(f"\n{name:12} {loss:.7f}" for name, loss in found.items()))
    assert max(found.values()) - min(found.values()) < 1e-4 * min(found.values())


@pytest.mark.slow
def test_a_run_goes_on_with_other_devices(tmp_path, cache):
    """Four devices for 10 steps, then two processes; a signal to one of them stops both."""
    workdir, alone = tmp_path / "w", tmp_path / "alone"
    assert training_runs.run(alone, *EIGHT, cache=cache).returncode == 0
    with training_runs.start(workdir, *EIGHT, cache=cache, devices=4) as process:
        assert wait_for(process, lambda: 10 in saved(workdir))
        os.kill(process.pid, signal.SIGKILL)
    pair = two_processes(workdir, cache)
    assert wait_for(pair[1], lambda: saved(workdir)[-1] > 10)
    pair[1].send_signal(signal.SIGINT)
    said = [process.communicate(timeout=DEADLINE)[1] for process in pair]
    assert [process.returncode for process in pair] == [75, 75], said
    result = training_runs.run(workdir, *EIGHT, cache=cache)
    assert result.returncode == 0, result.stderr
    assert losses(workdir)[20] == pytest.approx(losses(alone)[20], rel=1e-4)


@pytest.mark.slow
def test_numbers_that_are_not_finite_stop_the_run(tmp_path, cache):
    """A rate of 1e30 ruins the weights in the first step; the second one's loss shows it."""
    flags = [*PLAIN, "--config.optim.learning_rate=1e30", "--config.optim.max_nonfinite=3"]
    result = training_runs.run(tmp_path / "w", *flags, cache=cache)
    assert result.returncode == 3, result.stderr
    (step,) = saved(tmp_path / "w")
    assert f"step {step}" in result.stderr.splitlines()[-1] and "Traceback" not in result.stderr
    assert not (tmp_path / "w" / "model").exists()
    again = training_runs.run(tmp_path / "w", *flags, cache=cache)
    assert again.returncode == 3 and saved(tmp_path / "w") == [step]


@pytest.mark.slow
def test_a_full_disk_stops_the_run_and_loses_nothing(tmp_path, cache):
    """No file may grow beyond 100 kB after step 5, as if there were no room."""
    workdir = tmp_path / "w"
    with training_runs.start(workdir, *PLAIN, cache=cache) as process:
        assert wait_for(process, lambda: 5 in saved(workdir))
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (100_000, 100_000))
        said = process.communicate(timeout=DEADLINE)[1]
    assert process.returncode == 4, said
    last = saved(workdir)[-1]
    assert f"step {last}" in said.splitlines()[-1], said
    assert not half_saved(workdir)
    result = training_runs.run(workdir, *PLAIN, cache=cache)
    assert result.returncode == 0 and saved(workdir)[-1] == 20, result.stderr
