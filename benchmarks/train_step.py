"""python -m benchmarks.train_step --preset tiny --batch 2 [--peer] [--aot]

One step of the paper's training, of a stage of HAODiff's (`--preset haodiff_dpg` or `haodiff`), or
of DiffBody's (`diffbody`), each by its config, on random weights and pictures: seconds (the
median), pictures a second, peak memory, operations and utilisation. `--peer` times a PyTorch step
of the same arithmetic before it, alone in a process of its own: as it is, or with gradient
checkpointing, which computes every block twice; with `--peer_alone` nothing else. `--aot` compiles
without running anything: memory and operations of a size that the machine could not hold, on
`--target` even for a GPU or a TPU that is not here; on a TPU's slice over a mesh of all its chips,
with `--layers` layer by layer (train_ahead.py). `--figures` leaves the operations out, which
take long to count, and ends with a line of JSON.
"""

import argparse
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from benchmarks import absent, account, train_ahead
from configs import diffbody, diffbody_cleaner, haodiff, haodiff_dpg
from configs.models import nano, tiny, tiny_dual
from osdhuman_jax.config import Config, ModelConfig
from osdhuman_jax.inference.programs import footprint
from osdhuman_jax.methods.cleaner import build_cleaner
from osdhuman_jax.methods.diffbody import DiffBody
from osdhuman_jax.networks.configs import (
    CLIPConfig,
    ControlNetConfig,
    DISTSConfig,
    LPIPSConfig,
    SwinIRConfig,
)
from osdhuman_jax.networks.controlnet import ControlNet
from osdhuman_jax.networks.dists import DISTS
from osdhuman_jax.networks.lpips import LPIPS
from osdhuman_jax.networks.target import compiler_options
from osdhuman_jax.networks.types import LayerOptions
from osdhuman_jax.networks.unet import UNet2DConditionModel
from osdhuman_jax.networks.vae import AutoencoderKL
from osdhuman_jax.training import experiment, flops, sharding, train_step
from osdhuman_jax.weights.model_folder import DTYPES, abstract, abstract_restorer

# Sizes of the model, side of the pictures, and what divides VGG16's widths.
PRESETS = {"tiny": (tiny, 64, 16), "nano": (nano, 128, 4), "sd21": (ModelConfig, 512, 1)}
# Whole experiments, at their own sizes.
CONFIGS = {
    "haodiff_dpg": haodiff_dpg.get_config,
    "haodiff": haodiff.get_config,
    "diffbody": diffbody.get_config,
}


def small_haodiff() -> Config:
    """HAODiff's second stage with networks as small as they come, to try the command."""
    config = haodiff.get_config()
    config.model = replace(tiny(), dual=replace(tiny_dual(), upsamplers=True))
    config.data.crop = config.model.dual.image_size
    return config


POOL = 2**20 - 1  # random values; odd, so that no two rows of a matrix are the same
CONFIGS["haodiff_tiny"] = small_haodiff
# Presets whose VGG16 is as narrow as a tiny restorer's.
NARROW = {"haodiff_tiny": 16}


def experiment_of(args: argparse.Namespace) -> Config:
    """The paper's objective at a preset's size, or an experiment of its own."""
    if args.preset in CONFIGS:
        config = CONFIGS[args.preset]()
    else:
        model, side, _ = PRESETS[args.preset]
        config = Config(model=model())
        config.data.crop = side
    config.data.batch_size = args.batch
    config.run.precision, config.run.remat = args.precision, args.remat
    config.optim.accumulate = args.accumulate
    return config


def narrow_of(args: argparse.Namespace) -> int:
    """What VGG16's widths are divided by: a small model's losses are small as well."""
    return PRESETS[args.preset][2] if args.preset in PRESETS else NARROW.get(args.preset, 1)


def diffbody_shapes(config: Config) -> DiffBody:
    """All networks of DiffBody without their arrays."""
    model, told = config.model, config.control
    control = ControlNetConfig(model.unet, pose=told.pose, attention=told.attention)
    cleaner = diffbody_cleaner.get_config().cleaner.sizes or SwinIRConfig.diffbir()

    def make(rngs: nnx.Rngs) -> DiffBody:
        kw: LayerOptions = {"dtype": DTYPES[config.run.precision], "rngs": rngs}
        networks = AutoencoderKL(model.vae, **kw), UNet2DConditionModel(model.unet, **kw)
        return DiffBody(*networks, ControlNet(control, **kw), build_cleaner(cleaner, **kw))

    return abstract(make)


def control_shapes(config: Config, mesh: Mesh | None) -> tuple[train_step.Trainer, Any, Any]:
    """What `shapes_of` gives, for DiffBody's ControlNet."""
    body = diffbody_shapes(config)
    trainer = train_step.Trainer(config, config.model, body, mesh)
    graphdef, state = nnx.split(body)

    def start(state: Any) -> Any:
        model = nnx.merge(graphdef, state)
        experiment.store_as_computed(model, experiment.trainable(config))
        begun, frozen = trainer.start(model)
        text = CLIPConfig.sd21()
        frozen.blank = jnp.zeros((1, text.max_position_embeddings, text.hidden_size))
        return begun, frozen

    return trainer, *jax.eval_shape(start, state)


def shapes_of(
    config: Config, narrow: int, mesh: Mesh | None = None
) -> tuple[train_step.Trainer, Any, Any]:
    """The trainer for a mesh, and the shapes of its state and frozen weights."""
    if config.run.kind == "control":
        return control_shapes(config, mesh)
    adapters = config.lora if config.run.kind == "restorer" else None
    restorer, _ = abstract_restorer(config.model, adapters, config.run.precision)
    plan, dtype = LPIPSConfig.vgg16(narrow), DTYPES[config.run.precision]
    lpips = abstract(lambda rngs: LPIPS(plan, dtype=dtype, rngs=rngs))
    dists = abstract(lambda rngs: DISTS(DISTSConfig.of(plan), rngs=rngs))
    trainer = train_step.Trainer(config, config.model, restorer, mesh)
    networks = (restorer, lpips, dists)
    graphdefs, states = zip(*(nnx.split(network) for network in networks), strict=True)

    def start(states: Any) -> Any:
        model, perceptual, distance = map(nnx.merge, graphdefs, states)
        experiment.store_as_computed(model, experiment.trainable(config))
        experiment.store_as_computed(perceptual, False)
        # What the objective does not ask for is not there.
        weights = config.loss
        vgg = perceptual if weights.lpips or weights.ea else None
        return trainer.start(model, vgg, distance if weights.ea else None)

    return trainer, *jax.eval_shape(start, states)


def on(mesh: Mesh, state: Any, frozen: Any, batch: Any) -> tuple[Any, Any, Any]:
    """The same shapes, placed on all devices of a mesh as a run places its arrays."""

    def put(shapes: Any, where: Callable[[tuple[int, ...]], Any]) -> Any:
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where(x.shape)), shapes
        )

    return (
        put(state, lambda _: sharding.replicated(mesh)),
        put(frozen, lambda shape: sharding.weight_sharding(mesh, shape)),
        put(batch, lambda _: sharding.batch_sharding(mesh)),
    )


def filled(shapes: Any, seed: int) -> Any:
    """Small random weights; counters and moments are zero."""
    # Drawn once and repeated: to draw a thousand million values takes longer than to time steps.
    pool = 0.02 * np.random.default_rng(seed).standard_normal(POOL, np.float32)
    pools = {dtype: pool.astype(dtype) for dtype in {x.dtype for x in jax.tree.leaves(shapes)}}

    def leaf(path: Any, shape: jax.ShapeDtypeStruct) -> jax.Array:
        zero = "opt" in jax.tree_util.keystr(path) or shape.dtype == jnp.int32
        if zero:
            return jnp.asarray(np.zeros(shape.shape, shape.dtype))
        return jnp.asarray(np.resize(pools[shape.dtype], shape.shape))

    return jax.tree_util.tree_map_with_path(leaf, shapes)


def times(step: Any, count: int, warm: Any = None) -> list[float]:
    """Seconds of each of `count` calls, after one more that warms up; `warm` is called then."""
    # The first call finds nothing in any cache.
    found = []
    for index in range(count + 1):
        before = time.perf_counter()
        step()
        found.append(time.perf_counter() - before)
        if index == 0 and warm:
            warm()
    return found[1:]


def time_ours(compiled: Any, state: Any, frozen: Any, config: Config, count: int) -> list[float]:
    rng = np.random.default_rng(0)
    batch = {
        k: jnp.asarray(rng.integers(0, 256, v.shape, np.uint8), v.dtype)
        for k, v in flops.batch_shapes(config.data).items()
    }
    held = [jax.tree.leaves(filled(state, 0))]
    weights = jax.tree.leaves(filled(frozen, 1))

    def step() -> None:
        held[0], scalars = compiled(held[0], weights, batch)
        jax.block_until_ready((held[0], scalars))

    return times(step, count)


def time_peer(args: argparse.Namespace) -> tuple[list[float], float]:
    """Seconds of each step, and the peak of CUDA's memory in bytes (0 on a CPU)."""
    import torch

    from benchmarks import references
    from benchmarks.peer_step import PeerStep

    device = references.fast_device()
    config, narrow = experiment_of(args), narrow_of(args)
    # Made where it is used: a CPU takes a minute for the full size.
    with device:
        step = PeerStep(config, device, narrow, args.peer == "checkpointing")
    side, batch = config.data.crop, config.data.batch_size
    lq, hq = (2 * torch.rand(batch, 3, side, side, device=device) - 1 for _ in range(2))
    if device.type == "cpu":
        return times(lambda: step(lq, hq), args.steps), 0
    # As a GPU's convolutions want it; what was tried for the first step is no part of its peak.
    for network in (step.vae, step.unet, step.reg, step.fixed):
        network.to(memory_format=torch.channels_last)
    found = times(lambda: step(lq, hq), args.steps, torch.cuda.reset_peak_memory_stats)
    return found, torch.cuda.max_memory_allocated()


def row(name: str, seconds: list[float], batch: int) -> str:
    """One line of the table."""
    each = statistics.median(seconds)
    return f"{name:22} {each:.3f} s/step  {batch / each:.2f} images/s"


def rate(seconds: list[float], work: float, peak: float | None) -> str:
    """Operations a second, by the count of those that are not repeated."""
    speed = work / statistics.median(seconds)
    return f"  {speed / 1e12:.3f} TFLOP/s" + (f", {speed / peak:.1%} of peak" if peak else "")


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", choices=(*PRESETS, *CONFIGS), default="tiny")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--precision", choices=DTYPES, default="fp32")
    parser.add_argument("--remat", choices=experiment.remat.POLICIES, default="products")
    parser.add_argument("--accumulate", type=int, default=1)
    parser.add_argument("--steps", type=int, default=5)
    kinds = {"nargs": "?", "const": "plain", "choices": ("plain", "checkpointing")}
    parser.add_argument("--peer", **kinds, help="time PyTorch's step too")
    parser.add_argument("--peer_alone", action="store_true", help="with --peer: not our step")
    parser.add_argument("--figures", action="store_true", help="end with a line of JSON")
    parser.add_argument("--aot", action="store_true", help="compile only")
    parser.add_argument("--target", type=absent.target, help="of --aot: h200, or a slice: v5e:2x4")
    parser.add_argument("--fsdp", type=int, default=1, help="of --target: devices of that axis")
    parser.add_argument("--layers", action="store_true", help="of --target: layer by layer")
    args = parser.parse_args(argv)
    if args.layers and not args.target:
        parser.error("--layers goes with --target")
    if args.peer and args.preset in CONFIGS:
        parser.error("--peer is a step of the paper's: of a preset that is not a config")
    if args.peer_alone and not args.peer:
        parser.error("--peer_alone goes with --peer")
    if args.target and not args.aot:
        parser.error("--target goes with --aot: what is not here runs nothing")
    if args.fsdp != 1 and not args.target:
        parser.error("--fsdp goes with --target: what is here is one device")
    return args


def describe(
    args: argparse.Namespace, compiled: Any, device: Any, work: float, seconds: float
) -> str:
    """What is known before anything runs."""
    memory = compiled.memory_analysis()
    temporary = memory.temp_size_in_bytes / 1e9
    total = memory.argument_size_in_bytes / 1e9 + temporary
    said = account.account(compiled.as_text()).collectives
    told = "".join(f"\n{k}: {n}, {size / 1e6:.1f} MB" for k, (n, size) in said.items())
    counted = f"a step: {work / 1e12:.4g} TFLOP, {work / args.batch / 1e12:.4g} a picture\n"
    return (
        f"{args.preset}, batch {args.batch}, {args.precision}, remat {args.remat}, "
        f"for {device.device_kind}\n"
        f"{counted if work else ''}"
        f"memory: {total:.3f} GB, of which {temporary:.3f} for what is computed\n"
        f"compiled in {seconds:.0f} s{told}"
    )


def peer(args: argparse.Namespace) -> None:
    """Time PyTorch's step and print its line."""
    # In a process that ends: JAX takes most of a GPU's memory.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as alone:
        seconds, used = alone.submit(time_peer, args).result()
    line = row(f"PyTorch, {args.peer}", seconds, args.batch)
    print(line + (f"  peak on the device: {used / 1e9:.2f} GB" if used else ""), flush=True)
    if args.figures:
        print(json.dumps({"seconds": seconds, "peak": used}), flush=True)


def here() -> Any:
    """What `absent.devices` gives, of the first device that is here."""
    # Not for a target: with `libtpu` installed JAX would look for a TPU here, too.
    return nullcontext((jax.devices()[:1], compiler_options()))


def main(argv: list[str] | None = None) -> None:
    """Compile, describe, and (without --aot) time."""
    args = parse(argv)
    if args.peer:
        peer(args)
    if args.peer_alone:
        return
    # Our step: compiled from shapes alone, and described.
    config, narrow = experiment_of(args), narrow_of(args)
    with absent.devices(args.target) if args.target else here() as (devices, options):
        if args.layers:
            config.data.batch_size //= len(devices)
            train_ahead.describe(config, *shapes_of(config, narrow), devices[0], options)
            return
        mesh = sharding.make_mesh(-1, args.fsdp, devices)
        trainer, state, frozen = shapes_of(config, narrow, mesh)
        work = 0 if args.figures else flops.step_flops(trainer, state, frozen)
        before = time.perf_counter()
        device = devices[0]
        *inputs, batch = on(mesh, state, frozen, flops.batch_shapes(config.data))
        step, arrays, weights, _ = train_step.in_lists(trainer.step, *inputs)
        program = jax.jit(step, donate_argnums=0).lower(arrays, weights, batch)
        compiled = program.compile(options)
    compiled_in = time.perf_counter() - before
    print(describe(args, compiled, device, work, compiled_in), flush=True)
    if args.aot:
        return
    # Then timed, on random weights and pictures.
    peak = flops.peak(device.device_kind)
    seconds = time_ours(compiled, state, frozen, config, args.steps)
    told = rate(seconds, work, peak) if work else ""
    print(row("ours", seconds, args.batch) + told, flush=True)
    used = (device.memory_stats() or {}).get("peak_bytes_in_use", 0)
    if used:
        print(f"peak on the device: {used / 1e9:.2f} GB")
    if args.figures:
        told = {"seconds": seconds, "peak": used, "program": footprint(compiled)}
        print(json.dumps(told | {"first": compiled_in}))


if __name__ == "__main__":
    main()
