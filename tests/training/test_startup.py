"""What a run says before its first step, of trees whose sizes are known."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax import nnx

from configs.models import tiny_dual
from configs.small import get_config as small_run
from osdhuman_jax.config import Config
from osdhuman_jax.methods.objectives import Frozen
from osdhuman_jax.training.sharding import make_mesh
from osdhuman_jax.training.startup import startup_lines
from osdhuman_jax.training.train_step import TrainState

WORKDIR = Path("runs/small")


def network(size: int) -> dict:
    return {"a": nnx.Param(np.zeros(size - 1)), "b": {"c": nnx.Param(np.zeros(1))}}


def lines(config: Config, done: int = 0) -> list[str]:
    params = nnx.State({"unet": network(30_000), "vae": network(4_500)})
    state = TrainState(jnp.int32(done), params, ())
    state.reg = nnx.State({"unet": network(25_000)})
    frozen = Frozen(
        nnx.State({"prompter": network(1_234_000)}), lpips=nnx.State({"w": np.zeros(70_000)})
    )
    base = Path(config.run.init or WORKDIR / "init")
    return startup_lines(config, make_mesh(1, 1), state, frozen, workdir=WORKDIR, base=base)


def test_a_run_says_what_it_is_about_to_do():
    config = Config()
    config.data.batch_size, config.optim.accumulate, config.run.steps = 4, 2, 30
    assert lines(config) == [
        "devices: 1 x cpu in 1 process, as a mesh of data 1 x fsdp 1",
        "trained: 0.0595 million parameters (unet 0.03, vae 0.0045, regularizer 0.025)",
        "frozen: 1.3 million parameters (prompter 1.23, lpips 0.07)",
        "batch: 4 pictures of 512 x 512, in 2 parts one after the other",
        "steps: 30, of which 30 are to do, from the first step",
        "base model: runs/small/init (random weights of seed 123)",
        "written to: runs/small",
        "settings that differ from the defaults:",
        "  optim: accumulate 2",
        "  data: batch_size 4",
        "  run: steps 30",
    ]


def test_a_term_that_is_taken_of_each_part_is_named():
    config = Config()
    config.optim.accumulate, config.loss.dice = 2, 0.02
    said = "batch: 16 pictures of 512 x 512, in 2 parts one after the other, of each of which"
    assert f"{said} `dice` is taken" in lines(config)


def test_a_resumed_run_says_where_it_goes_on():
    config = Config()
    config.run.init = "models/sd21"
    found = lines(config, done=20_000)
    assert "batch: 16 pictures of 512 x 512" in found
    where = "from step 20000 in runs/small/checkpoints"
    assert f"steps: 35000, of which 15000 are to do, {where}" in found
    assert "base model: models/sd21" in found and found[-1] == "  run: init 'models/sd21'"


def test_the_papers_own_settings_are_not_listed():
    assert lines(Config())[-1] == "settings: all as the paper has them"


def test_all_of_many_settings_are_named_by_section_and_sizes_last():
    config = Config()
    changed = 0
    for part in (config.loss, config.data.degradation):
        for name, value in vars(part).items():
            if isinstance(value, float):
                setattr(part, name, value + 0.125)
                changed += 1
    config.model.timestep, config.optim.eps = 399, 1e-9
    head, *named = lines(config)[7:]
    assert head == "settings that differ from the defaults:"
    sections = [line.split(":")[0].strip() for line in named]
    assert sections == ["loss", "optim", "data.degradation", "model"]
    assert named[-1] == "  model: timestep 399" and named[1] == "  optim: eps 1e-09"
    assert sum(line.count(", ") + 1 for line in named) == changed + 2


def test_the_bundled_models_settings_fit_on_a_screen():
    """A terminal shows some forty lines, of which the bars and the compiler take a few."""
    assert len(lines(small_run())) <= 22


def test_two_prompts_and_what_they_begin_with_are_said():
    config = Config()
    config.run.init, config.model.dual = "models/nano", tiny_dual()
    state = TrainState(jnp.int32(0), nnx.State({"unet": network(30)}), ())
    frozen = Frozen(nnx.State({"vae": network(40)}))
    places = {"workdir": WORKDIR, "base": WORKDIR / "init"}
    found = startup_lines(config, make_mesh(1, 1), state, frozen, **places)
    drawn = "(VAE and U-Net of models/nano, a random prompter of seed 123)"
    assert f"base model: runs/small/init {drawn}" in found
    assert found[-1].startswith("  model.dual: image_size 64, upscale 4, embed_dim 8")
