"""DiffBody's ControlNet and its parser of parts by the one trainer: losses, steps, folders."""

import json
from dataclasses import replace
from pathlib import Path

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import tiny_control
import tiny_diffbody
from convert import call, filled, normal

from osdhuman_jax.commands import restore
from osdhuman_jax.config import Config, ConfigError, SampleConfig
from osdhuman_jax.methods import body_parts
from osdhuman_jax.methods.diffbody import reduced
from osdhuman_jax.methods.diffbody_training import draw_control, left_out
from osdhuman_jax.methods.schedule import Schedule
from osdhuman_jax.networks.configs import PartParserConfig
from osdhuman_jax.networks.part_parser import PartParser
from osdhuman_jax.networks.skeleton import draw_skeleton
from osdhuman_jax.training import experiment, train_step
from osdhuman_jax.training.checkpoint import (
    CheckpointError,
    Checkpoints,
    load_run,
    record_run,
)
from osdhuman_jax.training.loop import train, write_model
from osdhuman_jax.training.prompting import Prompts
from osdhuman_jax.weights import encode_text, load_diffbody, load_part, random_restorer, save_model
from osdhuman_jax.weights.cleaners import save_cleaner
from osdhuman_jax.weights.model_folder import read_meta


@pytest.fixture(scope="module")
def batch() -> dict:
    return {k: jnp.asarray(v) for k, v in tiny_control.batch().items()}


@pytest.fixture(scope="module")
def ran(batch):
    """Thirty steps: the trainer, its step, all states, what is frozen, the losses."""
    trainer, state, frozen = tiny_control.start(tiny_control.config())
    step, states, values = jax.jit(trainer.step), [state], []
    for _ in range(30):
        state, scalars = step(state, frozen, batch)
        states.append(state)
        values.append(float(scalars["loss"]))
    return trainer, step, states, frozen, values


def test_thirty_steps_lower_the_loss_of_the_controlnet_alone_and_go_on_to_the_bit(
    ran, batch, tmp_path
):
    trainer, step, states, frozen, values = ran
    assert np.mean(values[-8:]) < 0.9 * np.mean(values[:8])
    assert set(states[0].params) == {"control"}
    names = set(tiny.arrays(states[0].params))
    assert tiny.changed(states[0].params, states[-1].params) == names
    assert {"vae", "unet", "cleaner", "prompter"} == set(frozen.restorer)
    # At the first step, behind zeros, only the zeros and what stands before them alone move.
    moved = tiny.changed(states[0].params, states[1].params)
    assert moved and all(".controlnet_" in name for name in moved)
    # The loss of fixed draws falls as well: what decides which checkpoint is the best.
    measure = jax.jit(trainer.measures)
    one = {k: v[:1] for k, v in batch.items()}
    image = train_step.to_images(one)["hq"]
    first, last = (
        float(measure(s.params, frozen, image, one)["val_loss"][0]) for s in (states[0], states[-1])
    )
    assert last < first
    # From a checkpoint in the middle.
    checkpoints = Checkpoints(tmp_path, keep=1, best="val_loss")
    checkpoints.save(15, states[15], {"position": 15})
    assert checkpoints.latest() == 15
    again, _ = checkpoints.restore(15, states[0])
    checkpoints.close()
    for _ in range(15):
        again, _ = step(again, frozen, batch)
    assert not tiny.changed(states[-1].params, again.params)


def test_the_first_loss_is_eq4_of_the_unet_alone(ran, batch):
    """Told by the parts: cleaner, drawing, VAE and U-Net one after the other."""
    trainer, _, states, frozen, values = ran
    config, model = trainer.config, tiny_control.model()
    images = train_step.to_images(batch)
    key = jax.random.fold_in(jax.random.key(config.run.seed), 0)
    drawn = draw_control(config.control, (2, 16, 16, 4), 4, key)
    reg = np.asarray(call(model, images["lq"], method="clean"))
    prompt = call(model.prompter, reg)
    mean, logvar = call(model.vae, images["hq"], method="encode")
    z0 = mean + np.exp(0.5 * np.asarray(logvar)) * drawn["posterior"]
    z = Schedule().add_noise(z0, drawn["noise"], drawn["t"])
    eps = np.asarray(call(model.unet, z, drawn["t"], prompt))
    weight = 1 + np.asarray(batch["attention"])
    noise = np.asarray(drawn["noise"])
    assert values[0] == pytest.approx(np.mean((weight * (eps - noise)) ** 2), rel=1e-4)
    # Without the weight it is the plain error.
    plain = tiny_control.config()
    plain.loss.attention = 0.0
    found = jax.jit(train_step.Trainer(plain, plain.model, model).step)(states[0], frozen, batch)
    assert float(found[1]["loss"]) == pytest.approx(np.mean((eps - noise) ** 2), rel=1e-4)


def test_what_is_left_out_is_drawn_for_each_and_hides_no_more(batch):
    config = tiny_control.config().control
    drawn = draw_control(config, (4000, 1, 1, 1), 4, jax.random.key(0))
    shares = {k: float(np.mean(v)) for k, v in drawn.items() if k.startswith("drop_")}
    want = {"drop_joints": 0.1, "drop_pose": 0.1, "drop_attention": 0.1, "drop_text": 0.2}
    assert shares == pytest.approx(want, abs=0.02)
    assert {int(drawn["t"].min()) // 10, int(drawn["t"].max()) // 10} == {0, 99}
    never, blank = jnp.zeros(2, bool), jnp.asarray(normal(1, 3, 8))
    one = never.at[1].set(True)
    joints = jnp.zeros((2, 4, 18), bool).at[0, 0, 4].set(True)
    draws = {"drop_joints": joints, "drop_pose": one, "drop_attention": one, "drop_text": one}
    prompt = jnp.asarray(normal(2, 3, 8, seed=1))
    left = left_out({**batch, **draws, "prompt": prompt}, blank)
    people = np.asarray(batch["people"]).copy()
    people[0, 0, 4, 2] = people[1, :, :, 2] = 0
    np.testing.assert_array_equal(left["people"], people)
    assert (draw_skeleton(left["people"], (16, 16))[1] == -1).all()
    np.testing.assert_array_equal(left["attention"][0], batch["attention"][0])
    assert not left["attention"][1].any()
    np.testing.assert_array_equal(left["prompt"], np.stack([prompt[0], blank[0]]))


def test_microbatches_and_texts_and_fewer_conditions(batch):
    """A step in two parts is the step in one; a ControlNet that sees no people, told texts."""
    config = tiny_control.config(pose=False, attention=False)
    config.loss.attention, config.optim.ema, config.optim.eps = 0.0, 0.5, 1e-2
    config.prompt.kind, config.model = "text", replace(config.model, text=True)
    given = {k: batch[k] for k in ("hq", "lq")} | {"prompt": jnp.asarray(normal(2, 3, 8))}
    found = []
    for parts in (1, 2):
        config.optim.accumulate = parts
        trainer, state, frozen = tiny_control.start(config)
        frozen.blank = jnp.asarray(normal(1, 3, 8, seed=2))
        found.append(jax.jit(trainer.step)(state, frozen, given))
    (one, scalars), (two, halves) = found
    assert float(halves["loss"]) == pytest.approx(float(scalars["loss"]), rel=1e-5)
    assert "prompter" not in frozen.restorer
    for name, value in tiny.arrays(one.params).items():
        np.testing.assert_allclose(value, tiny.arrays(two.params)[name], atol=1e-6)
    assert tiny.changed(one.params, one.ema)


def test_the_parser_learns_its_labels(batch):
    config = tiny_control.parts_config()
    parser = filled(lambda rngs: PartParser(config.parser, rngs=rngs))
    trainer = train_step.Trainer(config, config.model, parser)
    state, frozen = trainer.start(parser)
    step, values = jax.jit(trainer.step), []
    for _ in range(20):
        state, scalars = step(state, frozen, batch)
        values.append(float(scalars["loss"]))
    assert values[-1] < 0.8 * values[0] and 0 <= float(scalars["right"]) <= 1
    labels = body_parts.part_labels(batch["people"], reduced(batch["attention"], 4))
    assert len(np.unique(labels)) > 2
    logits = call(parser, train_step.to_images(batch)["hq"])
    assert values[0] == pytest.approx(float(body_parts.parsing_loss(logits, labels)), rel=1e-5)
    shown = jax.jit(trainer.images)(state.params, frozen, batch)
    assert shown.shape == (2, 16, 16, 3) and abs(np.asarray(shown)).max() <= 1


# Whole runs --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """Photographs with poses, a prior and a cleaner, each a folder."""
    home = tmp_path_factory.mktemp("home")
    (home / "photos").mkdir()
    cv2.imwrite(str(home / "photos/a.png"), tiny.PHOTO[..., ::-1])
    tiny_control.write_poses(home / "poses", "a", tiny.PHOTO.shape[:2])
    save_model(home / "prior", tiny.DEEP, random_restorer(tiny.DEEP, 0))
    cleaner = filled(tiny_control.cleaner)
    save_cleaner(home / "cleaner", tiny_control.CLEANER, cleaner)
    return home


def run_config(made: Config, home: Path) -> Config:
    made.model = tiny.DEEP
    made.data.sources, made.data.poses = (str(home / "photos"),), (str(home / "poses"),)
    made.run.init = str(home / "prior")
    made.data.crop = made.run.eval_crop = 32
    made.data.batch_size, made.data.workers = 2, 0
    made.run.steps, made.run.sample_every, made.run.eval_images, made.run.eval_steps = 2, 1, 1, 2
    made.run.best = "val_loss"
    return made


@pytest.mark.slow
def test_two_runs_make_a_diffbody_of_a_prior_and_a_cleaner(home, tmp_path, capsys):
    first = run_config(tiny_control.parts_config(), home)
    assert train(first, tmp_path / "parts", 0) == 0
    second = run_config(tiny_control.config(), home)
    second.run.init, second.run.cleaner = str(tmp_path / "parts/model"), str(home / "cleaner")
    second.use.color_fix = "wavelet"
    assert train(second, tmp_path / "control", 0) == 0
    out = capsys.readouterr().err
    assert "trained: 0.0" in out and "(parser " in out and "(control " in out
    assert f"base model: {tmp_path / 'control/init'} ({second.run.init}, with the cleaner" in out
    for name, metrics in (("parts", {"val_loss", "val_right"}), ("control", {"val_psnr_y"})):
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        found = [x for x in map(json.loads, lines) if "val_loss" in x]
        assert [x["step"] for x in found] == [1, 2] and metrics <= set(found[0])
    # The folder has the prior's bytes, the cleaner's, and what either run learnt.
    made = tmp_path / "control/model"
    meta = read_meta(made)
    assert set(meta["parts"]) == {"parser", "cleaner", "control"}
    assert meta["use"]["color_fix"] == "wavelet"
    assert meta["provenance"]["control"] == {"kind": "control", "steps": 2, "seed": 123}
    base = (home / "prior/base.safetensors").read_bytes()
    assert (made / "base.safetensors").read_bytes() == base
    assert (made / "parser.safetensors").read_bytes() == (
        tmp_path / "parts/model/parser.safetensors"
    ).read_bytes()
    begun = load_part(tmp_path / "control/init", "control")
    learnt = load_part(made, "control")
    assert not begun.controlnet_mid_block.kernel[...].any()
    assert learnt.controlnet_mid_block.kernel[...].any()
    image = jnp.asarray(normal(1, 8, 8, 3))
    cleaned = call(filled(tiny_control.cleaner), image)
    np.testing.assert_array_equal(call(load_part(made, "cleaner"), image), cleaned)
    with pytest.raises(CheckpointError, match="a run of kind 'control'; use .*model"):
        load_run(tmp_path / "control")
    # A further run begins where this one ended, in that very folder; other conditions do not fit.
    second.run.init, second.run.cleaner = str(made), ""
    assert experiment.base_folder(second, tmp_path / "third") == made
    _, _, state, _ = train_step.build(second, made)
    kernel = state.params["control"]["conv_in"]["kernel"][...]
    np.testing.assert_array_equal(kernel, learnt.conv_in.kernel[...])
    second.control.pose = False
    with pytest.raises(ConfigError, match="control: pose or attention differ from those of"):
        experiment.check_sources(second)
    first.run.init, first.parser = str(made), PartParserConfig(5, (2, 2), 2)
    with pytest.raises(ConfigError, match="parser: its sizes differ from those of"):
        train_step.build(first, made)


def test_texts_become_tokens_before_the_step(home, tmp_path):
    """Of a folder that has CLIP; what is trained of it is loaded as what it was."""
    base = tiny_diffbody.save(tmp_path / "base")
    config = run_config(tiny_control.config(), home)
    config.model, config.prompt.kind = tiny_diffbody.TEXTS, "text"
    config.run.init, config.use.sample = str(base), SampleConfig(steps=3)
    experiment.check_sources(config)
    assert experiment.base_folder(config, tmp_path) == base
    prompts = Prompts(config, base)
    found = prompts({"caption": np.array(["dog", "go, dog", ""])}, "lq")["prompt"]
    want = [np.asarray(encode_text(base, text))[0] for text in ("dog", "go, dog", "")]
    np.testing.assert_allclose(found, want, atol=1e-6)
    assert prompts({"lq": np.zeros((1, 8, 8, 3), np.uint8)}, "lq") == {}
    _, _, state, frozen = train_step.build(config, base)
    np.testing.assert_allclose(frozen.blank[0], want[2], atol=1e-6)
    params = jax.tree.map(lambda x: x + 1.0, state.params)
    write_model(config, tmp_path, base, params, {})
    made = load_diffbody(tmp_path / "model")
    kernel = made.restorer.control.conv_in.kernel[...]
    np.testing.assert_array_equal(kernel, params["control"]["conv_in"]["kernel"][...])
    assert made.abilities.text and made.abilities.sample.steps == 3 and made.parser is not None


def test_a_checkpoint_restores_as_the_folder_that_is_made_of_it(home, tmp_path, capsys):
    base, workdir = tiny_diffbody.save(tmp_path / "base", people=False), tmp_path / "run"
    config = run_config(tiny_control.config(), home)
    config.model, config.prompt.kind = tiny_diffbody.TEXTS, "text"
    config.run.init, config.use.sample = str(base), SampleConfig(steps=3)
    _, _, state, _ = train_step.build(config, base)
    state = replace(state, params=jax.tree.map(lambda x: x + 0.1, state.params))
    write_model(config, workdir, base, state.params, {})
    record_run(workdir, config, base)
    words = ["--input", str(home / "photos"), "--pose", "off", "--output"]
    assert restore.main([*words, str(tmp_path / "none"), "--checkpoint", str(workdir)]) == 2
    assert "no checkpoint  (saved: none)" in capsys.readouterr().err
    checkpoints = Checkpoints(workdir, keep=1, best="val_loss")
    checkpoints.save(4, state, {"position": 4})
    checkpoints.close()
    made = []
    for number, flags in enumerate((("--checkpoint", workdir), ("--model", workdir / "model"))):
        out = tmp_path / str(number)
        assert restore.main([*words, str(out), *map(str, flags)]) == 0
        (line,) = map(json.loads, (out / "provenance.jsonl").read_text().splitlines())
        made.append((line["model"], line["steps"], (out / "a.png").read_bytes()))
    assert made[0][0] == "run@4" and made[0][1:] == made[1][1:] and made[0][1] == 3
    # The base's own ControlNet makes another picture; a step that is not there is named.
    assert restore.main([*words, str(tmp_path / "3"), "--model", str(base)]) == 0
    assert (tmp_path / "3/a.png").read_bytes() != made[0][2]
    capsys.readouterr()
    assert restore.main([*words, str(tmp_path / "4"), "--checkpoint", f"{workdir}@5"]) == 2
    assert "no checkpoint 5 (saved: 4)" in capsys.readouterr().err


REFUSALS = {
    "no poses": (lambda c: setattr(c.data, "poses", ()), "data.poses: nothing is known"),
    "no base": (lambda c: setattr(c.run, "init", ""), "run.init: a run of kind 'control'"),
    "clean pictures": (lambda c: setattr(c.data, "degrade", False), "data.degrade"),
    "tags": (lambda c: setattr(c.prompt, "kind", "ram"), "prompt.kind: of a control run"),
    "texts": (lambda c: setattr(c.run, "kind", "vae") or setattr(c.prompt, "kind", "text"),
        "prompt.kind: 'text' is of runs of kind 'control'"),
    "loss of another": (lambda c: setattr(c.run, "kind", "restorer"), "run.best: 'val_loss'"),
    "a cleaner of another": (lambda c: setattr(c.run, "kind", "restorer")
        or setattr(c.run, "best", "val_lpips") or setattr(c.run, "cleaner", "x"), "run.cleaner"),
    "share": (lambda c: setattr(c.control, "drop_pose", 1.5), "control.drop_pose: 1.5 is more"),
    "labels without joints": (lambda c: setattr(c.run, "kind", "parts")
        or setattr(c.run, "eval_sources", ("val",)), "run.eval_poses"),
    "odd sides": (lambda c: setattr(c.run, "kind", "parts") or setattr(c.data, "crop", 30),
        "data.crop: sides are to be multiples of 4"),
    "parts": (lambda c: setattr(c.run, "kind", "parts")
        or setattr(c, "parser", PartParserConfig(4, (4,), 2)), "parser.num_parts: labels are"),
}  # fmt: skip
IN_FOLDERS = {
    "no cleaner": (lambda c: None, "run.cleaner: .*prior has no part 'cleaner'"),
    "no text encoder": (lambda c: setattr(c.prompt, "kind", "text"), "prompt.kind: 'text', that"),
    "no such poses": (lambda c: setattr(c.data, "poses", ("nowhere",)), "data: nowhere"),
}


@pytest.mark.parametrize("name", [*REFUSALS, *IN_FOLDERS])
def test_what_no_run_can_do_is_refused_in_one_line(name, home):
    config = run_config(tiny_control.config(), home)
    experiment.check(config)
    change, reason = (REFUSALS | IN_FOLDERS)[name]
    change(config)
    with pytest.raises(ConfigError, match=reason) as error:
        experiment.check(config)
        experiment.check_sources(config)
    assert "\n" not in str(error.value)
