"""Both stages of HAODiff by the one trainer: what they change, and that runs go on to the bit."""

import shutil
from dataclasses import replace

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from convert import filled
from flax import nnx

from osdhuman_jax.config import ConfigError
from osdhuman_jax.data.part_maps import write_part_map
from osdhuman_jax.images.codec import write_png
from osdhuman_jax.methods.build import build_restorer
from osdhuman_jax.training import experiment, loop, train_step
from osdhuman_jax.training.checkpoint import Checkpoints
from osdhuman_jax.training.status import DONE
from osdhuman_jax.weights import add_lora, load_base, load_part, save_part
from osdhuman_jax.weights.model_folder import read_meta


def test_the_first_stage_learns_three_targets_in_the_extractor_alone():
    trainer, state, frozen, batch = tiny.haodiff(tiny.haodiff_config(1))
    step = jax.jit(trainer.step)
    after, first = step(state, frozen, batch)
    for _ in range(30):
        after, last = step(after, frozen, batch)
    for name in ("restored", "residual", "dice"):
        assert float(last[name]) < float(first[name]), name
    total = float(first["restored"] + first["residual"] + 0.5 * first["dice"])
    assert float(first["loss"]) == pytest.approx(total, rel=1e-5)
    names = set(tiny.arrays(after.params))
    assert names == tiny.changed(state.params, after.params)
    assert all(name.startswith("prompter.feature_extractor.") for name in names)
    shown = trainer.images(after.params, frozen, batch)
    assert shown.shape == (2, 64, 64, 3) and np.abs(shown).max() <= 1


@pytest.fixture(scope="module")
def second():
    trainer, state, frozen, batch = tiny.haodiff(tiny.haodiff_config(2))
    step = jax.jit(trainer.step)
    states, scalars = [state], []
    for _ in range(4):
        state, values = step(state, frozen, batch)
        states.append(state)
        scalars.append({k: float(v) for k, v in values.items()})
    return trainer, step, frozen, batch, states, scalars


def test_the_second_stage_trains_lora_embedders_and_a_critic(second):
    trainer, _, frozen, _, states, scalars = second
    assert {"mse", "ea", "gan", "critic_loss", "critic_right"} <= set(scalars[0])
    total = scalars[0]["mse"] + 0.5 * scalars[0]["ea"] + 0.1 * scalars[0]["gan"]
    assert scalars[0]["loss"] == pytest.approx(total, rel=1e-5)
    # A critic without an opinion: softplus(0) of each, log 2.
    assert scalars[0]["critic_loss"] == pytest.approx(2 * np.log(2), rel=1e-5)
    assert scalars[0]["gan"] == pytest.approx(np.log(2), rel=1e-5)
    assert scalars[-1]["critic_loss"] != pytest.approx(2 * np.log(2), rel=1e-4)
    moved = tiny.changed(states[0].params, states[-1].params)
    assert {tuple(n.split(".")[:2]) for n in moved if n.startswith("prompter")} == {
        ("prompter", "main_performer"),
        ("prompter", "aux_performer"),
    }
    assert not any("projection_matrix" in name for name in tiny.arrays(states[0].params))
    assert any("projection_matrix" in name for name in tiny.arrays(frozen.restorer))
    assert any("lora_B" in name for name in tiny.changed(states[0].critic, states[-1].critic))
    assert "head.conv_out.kernel" in tiny.changed(states[0].critic, states[-1].critic)


@pytest.mark.slow
def test_the_critic_stays_out_of_the_first_gradient(second):
    # It begins at zero, so the generator's first step is that of a run without it.
    _, _, _, _, states, _ = second
    trainer, state, frozen, batch = tiny.haodiff(tiny.haodiff_config(2))
    trainer.config.loss.gan = 0.0
    plain = train_step.Trainer(
        trainer.config, tiny.RECONSTRUCTING, filled(lambda r: lora_model(r), 1)
    )
    plain.lpips, plain.dists = trainer.lpips, trainer.dists
    state.critic = state.critic_opt = None
    after, _ = jax.jit(plain.step)(state, frozen, batch)
    ours, theirs = tiny.arrays(states[1].params), tiny.arrays(after.params)
    assert set(ours) == set(theirs)
    for name, value in theirs.items():
        np.testing.assert_allclose(ours[name], value, atol=2e-4, err_msg=name)


def lora_model(rngs):
    model = build_restorer(tiny.RECONSTRUCTING, rngs=rngs)
    add_lora(model, tiny.haodiff_config(2).lora, np.random.default_rng(0))
    return model


def test_a_run_with_a_critic_goes_on_to_the_bit(second, tmp_path):
    _, step, frozen, batch, states, _ = second
    checkpoints = Checkpoints(tmp_path, 2, "val_psnr_y")
    checkpoints.save(2, states[2], {"seen": 4})
    checkpoints.close()
    checkpoints = Checkpoints(tmp_path, 2, "val_psnr_y")
    restored, position = checkpoints.restore(2, states[0])
    checkpoints.close()
    assert position == {"seen": 4}
    # Bound to no device, as a fresh state is: the step is not compiled for it anew.
    restored = jax.tree.map(lambda x: jnp.asarray(np.asarray(x)), restored)
    for _ in range(2):
        restored, _ = step(restored, frozen, batch)
    for part in ("params", "critic"):
        assert not tiny.changed(getattr(states[4], part), getattr(restored, part))
    equal = jax.tree.map(np.array_equal, states[4].critic_opt, restored.critic_opt)
    assert all(jax.tree.leaves(equal))


@pytest.mark.slow
def test_two_microbatches_are_one_batch(second):
    trainer, _, frozen, batch, states, scalars = second
    trainer, state, frozen, batch = tiny.haodiff(tiny.haodiff_config(2))
    trainer.config.optim.accumulate = 2
    after, values = jax.jit(trainer.step)(state, frozen, batch)
    assert float(values["loss"]) == pytest.approx(scalars[0]["loss"], rel=1e-4)
    assert float(values["critic_loss"]) == pytest.approx(scalars[0]["critic_loss"], rel=1e-4)


REFUSED = {
    "crop": ("data.crop", lambda c: setattr(c.data, "crop", 32)),
    "eval_crop": ("run.eval_crop", lambda c: setattr(c.run, "eval_crop", 32)),
    "mask": ("data.mask", lambda c: setattr(c.data, "mask", False)),
    "upsamplers": (
        "upsamplers",
        lambda c: setattr(c.model, "dual", replace(tiny.RECONSTRUCTING.dual, upsamplers=False)),
    ),
    "prompt": ("prompt.kind", lambda c: setattr(c.prompt, "kind", "hfie")),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_a_first_stage_that_cannot_be(fault):
    said, damage = REFUSED[fault]
    config = tiny.haodiff_config(1)
    config.model = replace(tiny.RECONSTRUCTING, dual=replace(tiny.RECONSTRUCTING.dual))
    damage(config)
    with pytest.raises(ConfigError, match=said):
        experiment.check(config)


def test_two_critics_are_refused():
    config = tiny.haodiff_config(2)
    config.loss.adversarial = 0.1
    with pytest.raises(ConfigError, match="one critic"):
        experiment.check(config)


@pytest.fixture
def photos(tmp_path):
    """Folders of two photographs and of their part maps, in which an arm is large."""
    labels = np.zeros((80, 80), np.uint8)
    labels[10:70, 20:60] = 2
    (tmp_path / "photos").mkdir()
    (tmp_path / "parts").mkdir()
    for name in "ab":
        write_png(tmp_path / "photos" / f"{name}.png", cv2.resize(tiny.PHOTO, (80, 80)))
        write_part_map(tmp_path / "parts" / f"{name}.png", labels)
    return tmp_path


@pytest.mark.slow
def test_the_stages_follow_each_other_from_a_model_of_one_prompt(folder, photos):
    # As `train.py` runs them, from the folder of one to the folder of the other.
    base = photos / "base"
    shutil.copytree(folder, base)
    save_part(base, "lpips", tiny.LPIPS_SIZES, tiny.lpips())
    for stage, start in ((1, base), (2, photos / "1" / "model")):
        config = tiny.haodiff_config(stage)
        config.model = replace(tiny.RECONSTRUCTING)
        config.data.sources, config.data.parts = (str(photos / "photos"),), (str(photos / "parts"),)
        config.data.degradation.first_order = (0.1, 0.8, 0.1)
        config.data.batch_size, config.data.workers = 2, 0
        config.loss.ea = config.loss.gan = 0.0
        config.run.steps, config.run.sample_every, config.run.init = 1, 0, str(start)
        if stage == 2:
            config.run.train, config.data.crop = "all", 32
        assert loop.train(config, photos / str(stage), 0) == DONE
    # The second stage's losses went through the first one, and no further.
    parts = [read_meta(photos / name / "model")["parts"] for name in "12"]
    assert list(parts[0]) == ["lpips"] and not parts[1]
    load_part(photos / "1" / "model", "lpips")
    first, second = (load_base(photos / stage / "model")[0] for stage in "12")
    base = nnx.state(load_base(folder)[0].unet, nnx.Param)
    assert not tiny.changed(base, nnx.state(first.unet, nnx.Param))
    moved = tiny.changed(*(nnx.state(model, nnx.Param) for model in (first, second)))
    assert any(name.startswith("unet.") for name in moved)
    assert any(name.startswith("prompter.aux_performer.") for name in moved)
    assert not any("feature_extractor" in name for name in moved)
