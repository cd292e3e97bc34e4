"""What the training loop saves when something fails, with a step that costs nothing."""

import signal
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from damage import raising
from flax import nnx

from osdhuman_jax.data.loader import Loader
from osdhuman_jax.interruption import Stopped
from osdhuman_jax.methods.objectives import Frozen
from osdhuman_jax.training import hosts
from osdhuman_jax.training import loop as training_loop
from osdhuman_jax.training.checkpoint import Checkpoints
from osdhuman_jax.training.sharding import make_mesh
from osdhuman_jax.training.speed import ProfilerTrace
from osdhuman_jax.training.train_step import Trainer, TrainState

STEPS = 20


class Pictures(Loader):
    """A loader that fails before a given batch."""

    def __init__(self, fails_at: int) -> None:
        self.position, self.fails_at = 0, fails_at

    def __next__(self) -> dict[str, np.ndarray]:
        if self.position + 1 == self.fails_at:
            raise RuntimeError("the loader failed")
        self.position += 1
        empty = np.zeros((1, 8, 8, 3), np.uint8)
        return {"hq": empty, "lq": empty, "skipped": np.array([2])}

    def get_state(self) -> dict[str, int]:
        return {"position": self.position}


class Ruin(Trainer):
    """Steps that add one, until they are not finite."""

    def __init__(self, last_good: int) -> None:
        self.last_good, self.lpips = last_good, None

    def step(self, state: TrainState, frozen: Any, batch: Any) -> tuple[TrainState, Any]:
        good = state.step < self.last_good
        new = TrainState(
            state.step + 1, jax.tree.map(lambda x: x + good.astype(x.dtype), state.params), ()
        )
        new.nonfinite = jnp.where(good, 0, state.nonfinite + 1)
        loss = sum((x.sum() for x in jax.tree.leaves(frozen)), new.step.astype(jnp.float32))
        found = {"loss": loss, "nonfinite": new.nonfinite, "stop": jnp.max(batch["stop"])}
        return new, {k: v.astype(jnp.float32) for k, v in found.items()}


def loop(
    folder: Any, loader: Any, validate: Any = None, last_good: int = STEPS
) -> training_loop.Loop:
    config = tiny.config("restorer")
    config.run.steps, config.run.log_every, config.run.checkpoint_every = STEPS, 2, 1000
    config.run.sample_every = 4 if validate else 0
    config.optim.max_nonfinite = 3
    parts: dict[str, Any] = {
        "prompts": lambda batch, source: {},
        "checkpoints": Checkpoints(folder, keep=3),
        "signals": hosts.Signals(),
    }
    rest = {
        "loader": loader,
        "monitor": None,
        "validate": validate,
        "frozen": Frozen(nnx.State({})),
    }
    return training_loop.Loop(config, make_mesh(1, 1), Ruin(last_good), **parts, **rest)


def start() -> TrainState:
    params = nnx.State({"w": nnx.Param(jnp.float32(0))})
    return TrainState(jnp.int32(0), params, (), nonfinite=jnp.int32(0))


def saved(folder: Any) -> list[int]:
    return sorted(int(path.name) for path in (folder / "checkpoints").iterdir())


def run(
    made: training_loop.Loop, folder: Any, state: TrainState, first: int = 0
) -> tuple[int, TrainState]:
    found = made(state, first, ProfilerTrace(folder, first, 0))
    made.checkpoints.close()
    return found


def test_a_loader_that_fails_loses_no_step(tmp_path):
    with pytest.raises(RuntimeError, match="the loader failed"):
        run(loop(tmp_path, Pictures(4)), tmp_path, start())
    assert saved(tmp_path) == [3]


def test_a_validation_that_fails_loses_no_step(tmp_path):
    fail = raising(MemoryError("of the validation"))
    with pytest.raises(MemoryError, match="of the validation"):
        run(loop(tmp_path, Pictures(0), fail), tmp_path, start())
    assert saved(tmp_path) == [4]


def test_a_signal_while_validation_is_compiled_ends_the_run_in_order(tmp_path):
    """No metric, but no step is lost."""
    made = loop(tmp_path, Pictures(0), lambda step, params: stop())

    def stop() -> None:
        made.signals.received = signal.SIGTERM
        raise Stopped

    status, state = run(made, tmp_path, start())
    assert status == training_loop.STOPPED
    assert saved(tmp_path) == [int(state.step)] and 4 <= int(state.step) <= 6


def test_what_a_failed_step_has_consumed_is_not_saved(tmp_path):
    """The first failure is what is told, not that there is nothing to save."""

    def fail(step: int, params: nnx.State) -> None:
        params["w"][...].delete()
        raise MemoryError("of the device")

    with pytest.raises(MemoryError, match="of the device"):
        run(loop(tmp_path, Pictures(0), fail), tmp_path, start())
    assert not saved(tmp_path)


def test_trying_again_pushes_no_good_checkpoint_out(tmp_path):
    """Steps 5, 6, 7 are not finite: what was before them is saved once, however often tried."""
    status, state = run(loop(tmp_path, Pictures(0), last_good=4), tmp_path, start())
    assert status == training_loop.NOT_FINITE and float(state.params["w"][...]) == 4
    (step,) = saved(tmp_path)
    for _ in range(4):
        again = loop(tmp_path, Pictures(0), last_good=4)
        state, _ = again.checkpoints.restore(step, start())
        status, state = run(again, tmp_path, state, step)
        assert status == training_loop.NOT_FINITE and int(state.step) > step
        assert saved(tmp_path) == [step]


def test_pictures_that_were_passed_over_are_counted_from_the_start(tmp_path):
    lines: list[dict] = []

    class Log:
        def advance(self) -> None:
            pass

        def say(self, line: str) -> None:
            assert "compil" in line

        def scalars(self, step: int, values: dict) -> None:
            lines.append(values)

    made = loop(tmp_path, Pictures(0))
    made.monitor = Log()  # type: ignore[assignment]
    assert run(made, tmp_path, start())[0] == training_loop.DONE
    assert [line["skipped"] for line in lines] == list(range(4, 41, 4))


def test_a_transfer_that_nobody_wrote_down_raises(tmp_path):
    """In the loop itself: a new array's fill value comes from the host. No step is lost."""

    def careless(step: int, params: nnx.State) -> dict[str, float]:
        return {"val_psnr_y": float(jnp.full(1, step)[0])}

    with pytest.raises(RuntimeError, match="Disallowed host-to-device transfer"):
        run(loop(tmp_path, Pictures(0), careless), tmp_path, start())
    assert saved(tmp_path) == [4]


def test_weights_left_on_the_host_raise(tmp_path):
    """In the thread of the step that compiles: at every step they would be sent again."""
    made = loop(tmp_path, Pictures(0))
    made.frozen = Frozen(nnx.State({"w": nnx.Param(np.ones(3, np.float32))}))
    with pytest.raises(RuntimeError, match="Disallowed host-to-device transfer"):
        run(made, tmp_path, start())
