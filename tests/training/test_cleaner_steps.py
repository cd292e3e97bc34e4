"""DiffBody's cleaner by the one trainer: its loss, its steps, resumption, its folder, its use."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from convert import call, filled

from osdhuman_jax.commands import restore
from osdhuman_jax.config import Config, ConfigError
from osdhuman_jax.images.codec import read_image, to_float, to_uint8
from osdhuman_jax.images.sizes import pad_reflect
from osdhuman_jax.networks.configs import RRDBNetConfig, SwinIRConfig
from osdhuman_jax.networks.swinir_restorer import SwinIR
from osdhuman_jax.training import experiment, train_step
from osdhuman_jax.training.checkpoint import CheckpointError, Checkpoints, load_run
from osdhuman_jax.training.loop import train
from osdhuman_jax.weights import load_cleaner

SIZES = replace(
    SwinIRConfig.diffbir(),
    embed_dim=8,
    depths=(2,),
    num_heads=(2,),
    window_size=4,
    upscale=2,
    unshuffle=2,
    num_feat=4,
)
ROOT = Path(__file__).parents[2]


def config_of() -> Config:
    config = tiny.config("cleaner")
    config.cleaner.swinir = SIZES
    config.loss.chroma = 0.0
    config.optim.clip_norm = 1e9
    return config


def start(config: Config) -> tuple:
    model = filled(lambda rngs: SwinIR(SIZES, rngs=rngs))
    trainer = train_step.Trainer(config, config.model, model)
    return trainer, *trainer.start(model)


def test_twenty_steps_lower_the_loss_of_every_weight_and_go_on_to_the_bit(tmp_path):
    trainer, state, frozen = start(config_of())
    batch = {k: jnp.asarray(v) for k, v in tiny.pictures().items()}
    step, states, values = jax.jit(trainer.step), [state], []
    for _ in range(20):
        state, scalars = step(state, frozen, batch)
        states.append(state)
        values.append(float(scalars["loss"]))
    assert values[-1] < 0.5 * values[0]
    assert tiny.changed(states[0].params, state.params) == set(tiny.arrays(state.params))
    # Eq. 2, of what is not clamped.
    images = train_step.to_images(batch)
    model = filled(lambda rngs: SwinIR(SIZES, rngs=rngs))
    out = np.asarray(call(model, images["lq"], method="unclamped"))
    assert np.abs(out).max() > 1
    assert values[0] == pytest.approx(np.square(out - images["hq"]).mean(), rel=1e-5)
    # From a checkpoint in the middle.
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(10, states[10], {"position": 10})
    assert checkpoints.latest() == 10
    again, _ = checkpoints.restore(10, states[0])
    checkpoints.close()
    for _ in range(10):
        again, _ = step(again, frozen, batch)
    assert not tiny.changed(state.params, again.params)


@pytest.mark.slow  # last run on 2026-11-26
def test_a_step_on_eight_devices_is_the_step_on_one():
    """In a process that simulates them; see the end of this file."""
    count = "--xla_force_host_platform_device_count=8"
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "tests")))
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": count, "PYTHONPATH": paths}
    argv = [sys.executable, __file__]
    result = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=900)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout.splitlines()[-1])
    assert found["moved"] > 1e-3 and found["apart"] < 1e-3 * found["moved"]
    assert found["eight"] == pytest.approx(found["one"], rel=1e-5)


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    cv2.imwrite(str(folder / "a.png"), tiny.PHOTO[..., ::-1])
    return folder


def test_a_run_leaves_a_folder_that_restores(photos, tmp_path, capsys):
    """Begun, stopped by its count of steps, gone on with, validated, exported, used."""
    config = config_of()
    config.data.sources = (str(photos),)
    config.data.crop = config.run.eval_crop = 36  # no whole windows
    config.data.batch_size, config.data.workers = 2, 0
    config.run.steps, config.run.sample_every, config.use.blend = 4, 2, 0.9
    assert train(config, tmp_path / "run", 0) == 0
    said = [json.loads(x) for x in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [x["step"] for x in said if "val_psnr_y" in x] == [2, 4]
    with pytest.raises(CheckpointError, match="a run of kind 'cleaner'; use .*model"):
        load_run(tmp_path / "run")
    # What was learnt is what the folder holds, and what it restores with.
    model = tmp_path / "run/model"
    loaded = load_cleaner(model)
    assert loaded.config == SIZES and loaded.use.blend == 0.9
    flags = ["--model", str(model), "--input", str(photos), "--output", str(tmp_path / "out")]
    assert restore.main([*flags, "--blend", "1"]) == 0
    grown = to_float(pad_reflect(tiny.PHOTO, (128, 128)))[None]
    want = to_uint8(np.asarray(call(loaded.restorer, grown)))[0, :60, :48]
    assert np.abs(read_image(tmp_path / "out/a.png").rgb.astype(int) - want).max() <= 1
    # A further run may start from it, with the same sizes alone.
    config.run.init, config.run.steps = str(model), 1
    trainer, _, state, _ = train_step.build(config, model)
    kernel = loaded.restorer.conv_hr.kernel[...]
    np.testing.assert_array_equal(state.params["conv_hr"]["kernel"][...], kernel)
    config.cleaner.swinir = replace(SIZES, num_feat=8)
    with pytest.raises(ConfigError, match="its sizes differ from those of"):
        train_step.build(config, model)


REFUSALS = {
    "none": (lambda c: setattr(c.cleaner, "swinir", None), "has swinir or rrdbnet"),
    "two": (
        lambda c: setattr(c.cleaner, "rrdbnet", RRDBNetConfig(4, 2, 1, 1)),
        "has swinir or rrdbnet",
    ),
    "another kind": (lambda c: setattr(c.run, "kind", "vae"), "no other has"),
    "enlarges": (
        lambda c: setattr(c.cleaner, "swinir", replace(SIZES, unshuffle=1)),
        "cleaner: enlarges 2 times",
    ),
    "no network": (
        lambda c: setattr(c.cleaner, "swinir", replace(SIZES, upsampler="cubic")),
        "cleaner: sizes that make no network",
    ),
    "clean pictures": (lambda c: setattr(c.data, "degrade", False), "data.degrade"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_no_run_can_do_is_refused_in_one_line(name):
    config = config_of()
    experiment.check(config)
    change, reason = REFUSALS[name]
    change(config)
    with pytest.raises(ConfigError, match=reason) as error:
        experiment.check(config)
    assert "\n" not in str(error.value)


def measure() -> dict[str, float]:
    """One step on one device and on a mesh of 4 x 2."""
    from osdhuman_jax.training import sharding

    config = config_of()
    config.optim.eps = 1e-2  # else Adam's first step is the sign of each gradient, noise too
    trainer, state, frozen = start(config)
    batch = tiny.pictures(8)

    def farthest(a, b) -> float:
        pairs = zip(jax.tree.leaves(a.params), jax.tree.leaves(b.params), strict=True)
        return max(float(np.abs(np.asarray(x) - np.asarray(y)).max()) for x, y in pairs)

    alone, one = jax.jit(trainer.step)(state, frozen, batch)
    mesh = sharding.make_mesh(4, 2)
    placed = sharding.put_everywhere(mesh, state), sharding.put_weights(mesh, frozen)
    run = jax.jit(trainer.step, out_shardings=sharding.replicated(mesh))
    after, eight = run(*placed, sharding.put_batch(mesh, batch))
    numbers = {"one": float(one["loss"]), "eight": float(eight["loss"])}
    return numbers | {"moved": farthest(alone, state), "apart": farthest(after, alone)}


if __name__ == "__main__":
    import conftest  # noqa: F401  the settings of every test

    print(json.dumps(measure()))
