"""The command `train.py`, as a user runs it."""

import os
import signal
import time
from pathlib import Path

import pytest
import skimage.data
import training_runs
from PIL import Image
from refusals import status
from training_runs import DEADLINE, assert_same_model, losses, saved, wait_for

from osdhuman_jax.commands import restore
from osdhuman_jax.training import loop as training_loop
from osdhuman_jax.training.checkpoint import SaveError

SMALL = f"--config={Path(__file__).parents[1] / 'tiny_run.py'}"


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture(scope="module")
def undisturbed(cache: Path, tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("run") / "w"
    result = training_runs.run(workdir, SMALL, "--profile=2", cache=cache)
    assert result.returncode == 0, result.stderr
    assert f"done; the result is {workdir / 'model'}\n" in result.stderr
    return workdir


def test_run_leaves_what_the_readme_says(undisturbed):
    assert sorted(losses(undisturbed)) == [5, 10, 15, 20]
    lines = training_runs.scalars(undisturbed)
    assert [x["step"] for x in lines if "val_psnr_y" in x] == [10, 20]
    assert (undisturbed / "samples" / "0000020.png").stat().st_size > 1000
    assert list((undisturbed / "tensorboard").glob("events*"))
    assert list((undisturbed / "profile").rglob("*.xplane.pb"))
    names = ["base.safetensors", "config.json", "generator.safetensors"]
    assert sorted(path.name for path in (undisturbed / "model").iterdir()) == names


def test_a_run_that_is_stopped_and_then_killed_ends_as_the_undisturbed_one(
    undisturbed, tmp_path, cache
):
    # The signal goes to the loader's worker too, as from a batch system.
    workdir = tmp_path / "w"
    flags = [SMALL, "--config.run.checkpoint_every=1000", "--config.data.workers=1"]
    with training_runs.start(workdir, *flags, cache=cache) as process:
        assert wait_for(process, lambda: losses(workdir))
        os.killpg(process.pid, signal.SIGTERM)
        said = process.communicate(timeout=DEADLINE)[1]
    assert process.returncode == 75
    (step,) = saved(workdir)
    assert 5 <= step < 20 and f"step {step} is saved" in said and "Traceback" not in said

    with training_runs.start(workdir, SMALL, cache=cache) as process:
        assert wait_for(process, lambda: saved(workdir)[-1] > step)
        os.kill(process.pid, signal.SIGKILL)
        said = process.communicate(timeout=DEADLINE)[1]
    assert process.returncode == -signal.SIGKILL and not (workdir / "model").exists()
    assert f"to do, from step {step} in {workdir / 'checkpoints'}\n" in said

    result = training_runs.run(workdir, SMALL, cache=cache)
    assert result.returncode == 0, result.stderr
    assert_same_model(workdir, undisturbed)
    assert training_runs.scalars(workdir)[-1] == training_runs.scalars(undisturbed)[-1]


def test_a_signal_ends_the_first_compilation(tmp_path):
    """Nothing is in the cache; nothing was saved yet."""
    workdir = tmp_path / "w"
    with training_runs.start(workdir, SMALL, cache=tmp_path / "empty") as process:
        assert process.stderr is not None
        assert any("compiling the training step for 32 x 32 ..." in x for x in process.stderr)
        process.send_signal(signal.SIGTERM)
        before = time.monotonic()
        rest = process.communicate(timeout=DEADLINE)[1].splitlines()
    assert process.returncode == 75 and time.monotonic() - before < 10
    assert rest[-1] == "train.py: stopped at once; the same command goes on from the beginning"
    assert not any("Traceback" in line for line in rest) and not saved(workdir)


def test_files_that_fail_while_training_are_one_line(tmp_path):
    where = f"{tmp_path}/w/checkpoints"
    for made, said in ((None, "the beginning"), (5, f"step 5 in {where}")):
        if made:
            (tmp_path / "w" / "checkpoints" / str(made)).mkdir(parents=True)
        with pytest.raises(SaveError) as caught, training_loop.files_needed(tmp_path / "w"):
            raise PermissionError(13, "Permission denied", "/photos/a.png")
        assert str(caught.value) == (
            "[Errno 13] Permission denied: '/photos/a.png'; the same command goes on from " + said
        )


def test_checkpoint_restores_like_the_exported_model(undisturbed, tmp_path):
    Image.fromarray(skimage.data.astronaut()[:64, 200:296]).save(tmp_path / "a.png")
    outputs = []
    for flag, folder in (("--checkpoint", undisturbed), ("--model", undisturbed / "model")):
        places = ("--input", tmp_path / "a.png", "--output", tmp_path / flag)
        assert status(restore.main, *places, flag, folder) == 0
        outputs.append((tmp_path / flag / "a.png").read_bytes())
    assert outputs[0] == outputs[1]


def test_resuming_with_another_config_is_refused(undisturbed, cache):
    other = "--config.optim.learning_rate=1e-3"
    result = training_runs.run(undisturbed, SMALL, other, cache=cache)
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert "optim.learning_rate: 5e-05 -> 0.001" in result.stderr


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--config.optim.lr=1", "--config.optim.lr: no such setting: 'lr'"),
        ("speed", "'speed' is no flag"),
        ("--workdir=", "--workdir is empty"),
        ("--workdir=train.py/run", "train.py is no folder"),
        ("--config.run.eval_sources=('/nowhere',)", "run.eval_sources: /nowhere"),
    ],
)
def test_bad_config_is_one_line_and_leaves_nothing(tmp_path, cache, flag, said):
    """One of each kind: a setting, a word, the workdir, what is read late."""
    result = training_runs.run(tmp_path / "w", flag, cache=cache)
    assert result.returncode == 2 and said in result.stderr, result.stderr
    assert len(result.stderr.splitlines()) == 1 and not (tmp_path / "w").exists()
