"""Meshes and placements, measured in one process that simulates eight devices.

Run as a script, this file prints the measurements as JSON.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import pytest

from osdhuman_jax.training import sharding

HERE = Path(__file__)
MESHES = [(-1, 1), (8, 1), (4, 2), (2, -1), (-1, 4), (1, 8)]
MISFITS = [(-1, 3), (3, -1), (2, 2), (16, 1), (0, 8), (-1, 0), (-1, -1), (-2, -4), (9, -1)]
SHAPES = {  # of weights on a mesh with fsdp = 4 -> the axis that is split
    (512, 512): 0,
    (3, 3, 320, 640): 3,
    (3, 3, 640, 320): 2,
    (256, 258): 0,
    (257, 300): 1,
    (255, 257 * 2): None,  # nothing that 4 divides
    (65_536,): 0,
    (65_532,): None,  # small
    (128, 128): None,
    (): None,
}
LEARNING_RATE = 1e-2


@pytest.fixture(scope="module")
def measured() -> dict:
    return in_eight_devices("hfie")


def in_eight_devices(method: str) -> dict:
    """What this file measures as a script: all that there is to OSDHuman's, a step of others'."""
    count = "--xla_force_host_platform_device_count=8"
    paths = os.pathsep.join(map(str, (HERE.parents[2], HERE.parents[1])))
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": count, "PYTHONPATH": paths}
    argv = [sys.executable, str(HERE), method]
    result = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=1800)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def test_a_mesh_takes_all_devices_or_is_refused(measured):
    sizes = {"-1,1": [8, 1], "8,1": [8, 1], "4,2": [4, 2], "2,-1": [2, 4], "-1,4": [2, 4]}
    assert measured["meshes"] == {**sizes, "1,8": [1, 8]}
    assert measured["misfits"] == {
        f"{data},{fsdp}": f"mesh: data={data}, fsdp={fsdp} do not fit 8 device(s)"
        for data, fsdp in MISFITS
    }


def test_weights_are_split_along_the_largest_axis_that_fits(measured):
    assert measured["axes"] == {str(shape): axis for shape, axis in SHAPES.items()}
    assert measured["axis_without_fsdp"] is None  # then they are copied
    assert measured["halved"] == measured["even"] > 50


def test_a_batch_is_split_over_every_device(measured):
    assert measured["batch_parts"] == {name: [[1, 16, 16, 3]] * 8 for name in ("hq", "lq")}


def test_trained_state_is_on_every_device_and_stays_bit_equal(measured):
    assert measured["replicated"] and measured["replicated_after"]
    assert (measured["steps"], measured["replicas_differ"]) == (10, 0)


def test_step_on_eight_devices_is_the_step_on_one(measured):
    the_same(*measured["one_and_eight"], {"grad_norm", "reg_grad_norm", "critic_grad_norm"})


def test_parts_one_after_the_other_on_slices_are_the_whole_batch(measured):
    assert measured["accumulated"] == {"mean": [1.0, 2.0], "kept": True}


def test_a_step_on_two_slices_is_the_step_on_one_device(measured):
    found = measured["slices"]
    the_same(*found["one_and_eight"], {"grad_norm", "reg_grad_norm", "critic_grad_norm"})
    # Between slices go all gradients of an optimizer as one vector, scalars for the log in it too;
    # XLA may join the three.
    assert 1 <= len(found["between"]) <= 3
    assert 0 < sum(found["between"]) - found["weights"] < 50


@pytest.mark.parametrize("way", ["whole", "reduced"])
def test_kernels_leave_a_split_batch_where_it_is(measured, way):
    found = measured["norms"][way]
    assert found["split"] and not found["gathered"]
    assert found["apart"] < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "norms"),
    [("haodiff", {"grad_norm", "critic_grad_norm"}), ("diffbody", {"grad_norm"})],
)
def test_a_step_of_another_method_on_eight_devices_is_that_on_one(method, norms):
    the_same(*in_eight_devices(method)["one_and_eight"], norms)


def the_same(one: dict, eight: dict, norms: set[str]) -> None:
    assert eight["loss"] == pytest.approx(one["loss"], rel=1e-5)
    assert {name for name in one if name.endswith("grad_norm")} == norms
    for name in norms:
        assert eight[name] == pytest.approx(one[name], rel=1e-4)
    assert one["moved"] > 0.1 * LEARNING_RATE
    assert eight["apart"] < 1e-3 * one["moved"]


# Measurements, in a process with eight devices.


def axis_of(placed) -> int | None:
    """The axis that a sharding splits over `fsdp`."""
    return next((i for i, name in enumerate(placed.spec) if name == "fsdp"), None)


def rejections(sizes: Iterable[tuple[int, int]]) -> dict[str, str]:
    found = {}
    for data, fsdp in sizes:
        try:
            sharding.make_mesh(data, fsdp)
        except ValueError as error:
            found[f"{data},{fsdp}"] = str(error)
    return found


def measure_meshes() -> dict:
    meshes = {f"{d},{f}": list(sharding.make_mesh(d, f).shape.values()) for d, f in MESHES}
    mesh = sharding.make_mesh(2, 4)
    return {
        "meshes": meshes,
        "misfits": rejections(MISFITS),
        "axes": {str(shape): axis_of(sharding.weight_sharding(mesh, shape)) for shape in SHAPES},
        "axis_without_fsdp": axis_of(
            sharding.weight_sharding(sharding.make_mesh(8, 1), (512, 512))
        ),
    }


def measure_other(method: str) -> dict:
    """One step of HAODiff's second stage, with its critic of latents, or of DiffBody's."""
    import tiny
    import tiny_control

    sharding.SMALLEST_SPLIT = 16  # the tests' weights are small
    mesh = sharding.make_mesh(4, 2)
    if method == "haodiff":
        begun = tiny.haodiff(comparable(tiny.haodiff_config(2)), 8)
    else:
        begun = *tiny_control.start(comparable(tiny_control.config())), tiny_control.batch(8)
    return {"one_and_eight": on_mesh(mesh, *begun, on_one(*begun))[-1]}


def measure_steps() -> dict:
    """OSDHuman's training in all parts on one device and on a mesh of 4 x 2."""
    import jax
    import tiny

    sharding.SMALLEST_SPLIT = 16
    mesh = sharding.make_mesh(4, 2)
    config = tiny.config("restorer")
    config.loss.vsd, config.optim.ema = 1.0, 0.9
    config.loss.adversarial, config.loss.critic_width = 0.1, 8
    comparable(config)
    begun = *tiny.start(config), tiny.pictures(8)
    alone = on_one(*begun)
    run, start, later, found = on_mesh(mesh, *begun, alone)
    placed, weights, pictures = start
    replicated = {"replicated": everywhere(placed), "replicated_after": everywhere(later)}
    for _ in range(9):
        later, _ = run(later, weights, pictures)
    halves = [2 * x.addressable_shards[0].data.size == x.size for x in jax.tree.leaves(weights)]
    even = [x.size >= 16 and any(s % 2 == 0 for s in x.shape) for x in jax.tree.leaves(weights)]
    parts = {k: [list(s.data.shape) for s in v.addressable_shards] for k, v in pictures.items()}
    return {
        "one_and_eight": found,
        "batch_parts": parts,
        "halved": sum(halves),
        "even": sum(even),
        **replicated,
        "replicas_differ": differing_replicas(later),
        "steps": int(later.step),
        "slices": measure_slices(config, begun, alone),
        "accumulated": measure_accumulated(),
    }


def two_slices():
    import jax
    import numpy as np
    from jax.sharding import Mesh

    return Mesh(np.array(jax.devices()).reshape(2, 2, 2), (sharding.SLICE, "data", "fsdp"))


def measure_accumulated() -> dict:
    """The mean of a batch of 16 in two parts on two slices, and what was kept of each sample."""
    import jax
    import numpy as np

    from osdhuman_jax.training.optimizer import accumulate, split_microbatches

    def of(factor, part):
        return {"m": factor * part.mean(0)}, part + 1

    batch = np.stack([np.arange(16) % 3, np.full(16, 4)], 1).astype(np.float32)
    batch[:, 0] += 2 - batch[:, 0].mean()
    parts = split_microbatches(batch, 2)
    run = lambda *x: sharding.over_slices(two_slices(), partial(accumulate, of), *x)  # noqa: E731
    mean, kept = jax.jit(run)(np.float32(0.5), parts)
    return {"mean": mean["m"].tolist(), "kept": bool(np.array_equal(kept, parts + 1))}


def measure_slices(config, begun, alone) -> dict:
    """The same step on what stands for two slices, and what its program tells between them."""
    import jax
    import tiny

    mesh = two_slices()
    _, state, frozen, batch = begun
    trainer, _, _ = tiny.start(config)
    trainer.mesh = mesh
    run, start, _, found = on_mesh(mesh, trainer, state, frozen, batch, alone)
    program = run.lower(*start).compile().as_text()
    trained = state.params, state.reg, state.critic
    weights = sum(x.size for part in trained for x in jax.tree.leaves(part))
    return {"one_and_eight": found, "between": between(program, 4), "weights": weights}


def between(program: str, size: int) -> list[int]:
    """Elements of each collective of a program that joins slices of `size` devices."""
    import numpy as np

    found = []
    pattern = r"= (\(?.*?) (?:all-\w+|reduce-scatter|collective-permute)\(.*"
    for match in re.finditer(pattern, program):
        line = match.group()
        if listed := re.search(r"(?:replica_groups|source_target_pairs)=\{(\{[\d,{}]*\})\}", line):
            groups = [numbers_of(group) for group in re.findall(r"[\d,]*\d", listed[1])]
        else:
            told = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", line)
            shape, dims, order = (numbers_of(text or "") for text in told.groups())
            places = np.arange(np.prod(dims)).reshape(dims)
            groups = places.transpose(order or range(len(dims))).reshape(shape).tolist()
        if any(len({device // size for device in group}) > 1 for group in groups):
            shapes = re.findall(r"\w+\[([\d,]*)\]", match[1])
            found.append(sum(int(np.prod(numbers_of(shape))) for shape in shapes))
    return found


def numbers_of(text: str) -> list[int]:
    """What "4,2" says."""
    return [int(number) for number in re.findall(r"\d+", text)]


def measure_norms() -> dict:
    """Kernels of a group norm and of its gradients, on a mesh of 4 x 2 and on one device."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from osdhuman_jax.networks.group_norm import Norm
    from osdhuman_jax.networks.group_norm_kernels import group_norm

    mesh = sharding.make_mesh(4, 2)
    split, copied = sharding.batch_sharding(mesh), sharding.replicated(mesh)
    rng = np.random.default_rng(0)
    inputs = [rng.normal(size=shape).astype(np.float32) for shape in ((8, 512, 16), (16,), (16,))]
    found = {}
    for way in ("whole", "reduced"):
        norm = Norm(4, 1e-5, silu=True, dtype=jnp.float32)

        def both(*inputs, norm=norm, way=way):
            y, backward = jax.vjp(lambda *v: group_norm(*v, norm, way), *inputs)
            return y, *backward(y)

        want = jax.jit(both)(*inputs)
        run = jax.jit(both, in_shardings=(split, copied, copied))
        got = run(*inputs)
        pairs = [(np.asarray(a), np.asarray(b)) for a, b in zip(got, want, strict=True)]
        found[way] = {
            "split": all(len(x.addressable_shards[0].data) == 1 for x in got[:2]),
            "gathered": "all-gather" in run.lower(*inputs).compile().as_text(),
            "apart": max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in pairs),
        }
    return {"norms": found}


def comparable(config):
    """The same settings, such that rounding in a gradient does not decide a weight's step."""
    config.lora.vae_encoder = False  # a shorter way back, to compile twice
    config.optim.learning_rate = LEARNING_RATE
    config.optim.eps = 1e-2  # else Adam's first step is the sign of each gradient, noise too
    return config


def farthest(a, b) -> float:
    """How far the trained weights of two states are apart."""
    import jax
    import numpy as np

    pairs = zip(*(jax.tree.leaves((x.params, x.reg, x.critic)) for x in (a, b)), strict=True)
    return max(float(np.abs(np.asarray(x) - np.asarray(y)).max()) for x, y in pairs)


def numbers(scalars) -> dict[str, float]:
    names = ("loss", "grad_norm", "reg_grad_norm", "critic_grad_norm")
    return {name: float(scalars[name]) for name in names if name in scalars}


def on_one(trainer, state, frozen, batch) -> tuple:
    """The state after a step on one device, and the step in numbers."""
    import jax

    after, scalars = jax.jit(trainer.step)(state, frozen, batch)
    return after, {**numbers(scalars), "moved": farthest(after, state)}


def on_mesh(mesh, trainer, state, frozen, batch, alone) -> tuple:
    """A step on a mesh: as a program, what it took, its state; and both steps in numbers."""
    import jax

    start = (
        sharding.put_everywhere(mesh, state),
        sharding.put_weights(mesh, frozen),
        sharding.put_batch(mesh, batch),
    )
    run = jax.jit(trainer.step, out_shardings=sharding.replicated(mesh))
    after, scalars = run(*start)
    expected, one = alone
    return run, start, after, (one, {**numbers(scalars), "apart": farthest(after, expected)})


def everywhere(tree) -> bool:
    import jax

    arrays = [x for x in jax.tree.leaves(tree) if isinstance(x, jax.Array)]
    return all(x.is_fully_replicated and len(x.devices()) == 8 for x in arrays)


def differing_replicas(tree) -> int:
    """How many leaves are not the same, bit for bit, on all devices."""
    import jax
    import numpy as np

    copies = [[np.asarray(s.data) for s in x.addressable_shards] for x in jax.tree.leaves(tree)]
    return sum(any(not np.array_equal(c, own[0]) for c in own[1:]) for own in copies)


if __name__ == "__main__":
    import conftest  # noqa: F401  the settings of every test

    method = sys.argv[1]
    own = method == "hfie"
    parts = (measure_meshes, measure_norms, measure_steps) if own else ()
    print(json.dumps({k: v for part in parts for k, v in part().items()} or measure_other(method)))
