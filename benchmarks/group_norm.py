"""python -m benchmarks.group_norm [--sweep | --networks | --aot h200]

Group norm and SiLU, XLA's program against our kernels, at the shapes that the full-size decoder and
U-Net have for a picture of 512 x 512, in bfloat16: forward, and forward with backward. On a GPU
both are timed in turns, in one process: the median of what one of several norms in a row takes,
and how far the two results and gradients are apart, as a share of the largest value (under a
minute). `--sweep` times kernels of other shapes in the place of those chosen (a minute);
`--networks` the decoder and the U-Net as wholes, with random weights (minutes, most of it
compiling).

Nearest resize and convolution as one are measured likewise: as nine taps of the enlarged map, as
four convolutions of the small one, and as one of four times the channels.

`--aot h200` (or a TPU's slice, `v5e:2x4`) compiles for a device that is not here, and nothing is
timed: told is what the program's top-level instructions read and write, in megabytes, how many
times the feature map that is, and how many instructions there are, each of them one kernel. Two
parts of a restorer come last, before and after. It is our own account of the compiled program,
since XLA's counts nothing of a kernel that it did not write. What a kernel reads twice, the second
time from the cache, it counts once.
"""

import argparse
import functools
import math
import re
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
from flax import nnx

from benchmarks import absent, restore_ahead
from osdhuman_jax.config import ModelConfig
from osdhuman_jax.networks import group_norm_kernels, layers, upsampling
from osdhuman_jax.networks.unet import UNet2DConditionModel
from osdhuman_jax.networks.vae import AutoencoderKL

GROUPS, EPSILON = 32, 1e-6
SHAPES = {
    "decoder": [(512, 128), (512, 256), (256, 256), (256, 512), (128, 512), (64, 512)],
    "U-Net": [(64, 320), (64, 960), (32, 640), (32, 1920), (16, 1280), (16, 2560), (8, 1280)],
}
# Norms in a row in one program: of a small map one takes less time than a call.
ROW = {"forward": 8, "backward": 4}
# Maps that decoder and U-Net enlarge.
ENLARGED = [(256, 256), (128, 512), (64, 512), (32, 640), (16, 1280), (8, 1280)]
SIZES = {"bf16": 2, "f32": 4, "f16": 2, "s32": 4, "u32": 4, "s8": 1, "u8": 1, "pred": 1}
# Of `--sweep`: maps, and values that a program of each kernel holds, with its warps.
SWEEP = {
    "whole": ([(128, 512), (64, 320), (32, 1280), (16, 1280)], "whole"),
    "statistics": ([(512, 128), (256, 256), (128, 512)], "reduced"),
    "whole_backward": ([(64, 320), (32, 640), (16, 1280)], "whole"),
    "sums": ([(512, 128), (256, 256)], "reduced"),
}
TILES = ((2048, 4), (4096, 4), (4096, 8), (8192, 8), (8192, 16), (16384, 16))
Compiled = Callable[[Any, Any], Any]  # (function, shapes) -> program
FREE = ("parameter", "get-tuple-element", "tuple", "bitcast", "constant")


@contextmanager
def only(way: str) -> Iterator[None]:
    """Context in which every group norm is traced to go one way."""
    with mock.patch.object(layers, "way", lambda *_: way):
        yield


@contextmanager
def before() -> Iterator[None]:
    """Context in which networks are traced as they are without what is measured here."""
    with only("plain"), mock.patch.object(upsampling, "GPUS", ()):
        yield


def program(channels: int, kind: str, count: int) -> Callable[..., Any]:
    """`count` norms in a row, with `backward` their gradients: of (map, gradient, scale, bias)."""
    make = lambda: layers.GroupNorm(  # noqa: E731
        channels, GROUPS, EPSILON, dtype=jnp.bfloat16, rngs=nnx.Rngs(0)
    )
    graphdef, _ = nnx.split(nnx.eval_shape(make))

    def norm(x: Any, scale: Any, bias: Any) -> Any:
        state = nnx.State({"scale": nnx.Param(scale), "bias": nnx.Param(bias)})
        return nnx.merge(graphdef, state)(x, silu=True)

    def run(x: Any, dy: Any, scale: Any, bias: Any) -> Any:
        found = []
        for _ in range(count):
            if kind == "forward":
                x = norm(x, scale, bias)
            else:
                # Results and gradients are both wanted, as in a training step.
                y, backward = jax.vjp(norm, x, scale, bias)
                y, (dy, *rest) = jax.lax.optimization_barrier((y, backward(dy)))
                x, found = y, [*found, *rest]
            # Convolutions lie between two norms: nothing of them is computed together.
            x, dy = jax.lax.optimization_barrier((x, dy))
        return x if kind == "forward" else (x, dy, found)

    return run


def enlarging(channels: int, kind: str) -> Callable[..., Any]:
    """Nearest resize by two and a 3x3 convolution: (map, kernel, bias) -> map."""
    make = lambda: layers.Conv3x3(channels, channels, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))  # noqa: E731
    graphdef, _ = nnx.split(nnx.eval_shape(make))

    def run(x: Any, kernel: Any, bias: Any) -> Any:
        state = nnx.State({"kernel": nnx.Param(kernel), "bias": nnx.Param(bias)})
        conv = nnx.merge(graphdef, state)
        if kind == "nine taps":
            return conv(upsampling.nearest(x, (2 * x.shape[1], 2 * x.shape[2])))
        with mock.patch.object(upsampling, "GPUS", upsampling.GPUS if kind == "at once" else ()):
            return upsampling.upsampled(conv, x)

    return run


def enlargements(batch: int) -> Iterator[tuple[str, dict[str, Any], list[jax.ShapeDtypeStruct]]]:
    """Name, functions by kind and arguments of each enlarged map."""
    for side, channels in ENLARGED:
        kernel = jax.ShapeDtypeStruct((3, 3, channels, channels), jnp.float32)
        x, _, _, bias = arguments(side, channels, batch)
        kinds = {k: enlarging(channels, k) for k in ("nine taps", "four", "at once")}
        yield f"{side}^2 x {channels}", kinds, [x, kernel, bias]


def arguments(side: int, channels: int, batch: int) -> list[jax.ShapeDtypeStruct]:
    """Shapes of what `program` takes."""
    big = jax.ShapeDtypeStruct((batch, side, side, channels), jnp.bfloat16)
    small = jax.ShapeDtypeStruct((channels,), jnp.float32)
    return [big, big, small, small]


def traffic(text: str) -> tuple[int, int]:
    """Bytes that the instructions of a compiled program read and write, and their number."""

    def size(kind: str) -> int:
        found = re.findall(r"\b(\w+)\[([\d,]*)\]", kind)
        return sum(SIZES[t] * math.prod(int(n) for n in d.split(",") if n) for t, d in found)

    sizes: dict[str, int] = {}
    total = count = 0
    for line in text[text.index("ENTRY") :].splitlines()[1:]:
        match = re.match(r"\s*(?:ROOT )?(%\S+) = (\(.*?\)|\S+) ([\w-]+)\((.*?)\)", line)
        if not match:
            continue
        name, kind, operation, operands = match.groups()
        # Layouts and memory spaces, in braces, are no sizes.
        sizes[name] = size(re.sub(r"\{[^}]*\}", "", kind))
        if operation not in FREE:
            total += sizes[name] + sum(sizes.get(x, 0) for x in re.findall(r"%[\w.-]+", operands))
            count += 1
    return total, count


def account(target: str, batch: int) -> None:
    """Print the tables of what programs for a device that is not here read and write."""
    with absent.device(target) as (device, options):
        placed = jax.sharding.SingleDeviceSharding(device)

        def compiled(function: Any, shapes: Any) -> Any:
            given = jax.tree.map(
                lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=placed), shapes
            )
            return jax.jit(function).lower(*given).compile(options)

        account_of_norms(compiled, batch, "cuda" if target in absent.GPUS else "tpu")
        account_of_enlargements(compiled, batch)
        account_of_parts(compiled, batch)


def account_of_norms(compiled: Compiled, batch: int, platform: str) -> None:
    """Print the table of group norms."""
    print("| map | | plain, MB | times the map | kernels | ours, MB | times the map | kernels |")
    print("|---|---|---|---|---|---|---|---|")
    for side, channels in (shape for shapes in SHAPES.values() for shape in shapes):
        shapes = arguments(side, channels, batch)
        size = math.prod(shapes[0].shape) * 2
        for kind in ROW:
            cells = []
            for way in ("plain", layers.way(platform, shapes[0].shape, GROUPS)):
                with only(way):
                    total, count = traffic(compiled(program(channels, kind, 1), shapes).as_text())
                cells += [f"{total / 1e6:.1f}", f"{total / size:.1f}", str(count)]
            print(f"| {side}^2 x {channels} | {kind} | {' | '.join(cells)} |", flush=True)


def account_of_enlargements(compiled: Compiled, batch: int) -> None:
    """Print the table of enlarged maps."""
    print("\n| enlarged map | nine taps, MB | four convolutions, MB | one convolution, MB |")
    print("|---|---|---|---|")
    for name, kinds, shapes in enlargements(batch):
        totals = [traffic(compiled(function, shapes).as_text())[0] for function in kinds.values()]
        print(f"| {name} | {' | '.join(f'{total / 1e6:.1f}' for total in totals)} |", flush=True)


def account_of_parts(compiled: Compiled, batch: int) -> None:
    """Print the table of a full-size restorer's encoder and decoder, before and after."""
    print("\n| part | plain, GB | kernels | memory, GB | ours, GB | kernels | memory, GB |")
    print("|---|---|---|---|---|---|---|")
    parts = restore_ahead.parts_of(ModelConfig(), 512, batch, "bf16")
    for name in ("encode", "decode"):
        own, inputs, function = parts[name]
        cells = []
        for context in (before, nullcontext):
            with context():
                # A function of its own, or JAX would take what it traced in the other context.
                done = compiled(functools.partial(function), (own, *inputs))
            total, count = traffic(done.as_text())
            memory = done.memory_analysis().temp_size_in_bytes
            cells += [f"{total / 1e9:.2f}", str(count), f"{memory / 1e9:.2f}"]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def compile_all(programs: dict[Any, Any]) -> dict[Any, Any]:
    """Compiled programs by key, several at a time."""
    with ThreadPoolExecutor(8) as pool:
        return dict(zip(programs, pool.map(lambda x: x.compile(), programs.values()), strict=True))


def timed(programs: dict[Any, Any], inputs: Any, count: int, runs: int = 15) -> dict[Any, float]:
    """Median milliseconds of one norm, by key; all programs in turns."""
    seconds: dict[Any, list[float]] = {key: [] for key in programs}
    for turn in range(runs + 3):
        for key, compiled in programs.items():
            before = time.perf_counter()
            # Several calls at once, so that the host's part of one is hidden by another.
            results = [compiled(*inputs) for _ in range(4)]
            jax.block_until_ready(results)
            if turn >= 3:
                seconds[key].append((time.perf_counter() - before) / 4)
    return {key: 1e3 * statistics.median(found) / count for key, found in seconds.items()}


def values(shapes: list[jax.ShapeDtypeStruct]) -> list[jax.Array]:
    """Random arguments; timesteps are 999."""
    keys = jax.random.split(jax.random.key(0), len(shapes))
    made = []
    for key, x in zip(keys, shapes, strict=True):
        whole = jnp.issubdtype(x.dtype, jnp.integer)
        made.append(jnp.full(x.shape, 999) if whole else jax.random.normal(key, x.shape, x.dtype))
    return made


def apart(a: Any, b: Any) -> float:
    """The largest difference of two trees of arrays, as a share of an array's largest value."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    wide = [(x.astype(jnp.float32), y.astype(jnp.float32)) for x, y in pairs]
    return max(float(jnp.abs(x - y).max() / jnp.abs(x).max()) for x, y in wide)


def measure(batch: int) -> None:
    """Print the table of all shapes, timed on this machine's GPU."""
    print("| map | | plain, ms | whole, ms | reduced, ms | chosen | times faster | apart |")
    print("|---|---|---|---|---|---|---|---|")
    for side, channels in (shape for shapes in SHAPES.values() for shape in shapes):
        shapes = arguments(side, channels, batch)
        inputs, chosen = values(shapes), layers.way("cuda", shapes[0].shape, GROUPS)
        lowered = {}
        for kind, count in ROW.items():
            for way in ("plain", "whole", "reduced"):
                if way == "reduced" and side * side % 512:
                    continue
                with only(way):
                    for number in (1, count):
                        run = jax.jit(program(channels, kind, number))
                        lowered[kind, way, number] = run.lower(*shapes)
        compiled = compile_all(lowered)
        for kind, count in ROW.items():
            row = {w: f for (k, w, n), f in compiled.items() if k == kind and n == count}
            found = timed(row, inputs, count)
            times = [
                f"{found[way]:.4f}" if way in found else "" for way in ("plain", "whole", "reduced")
            ]
            one = [compiled[kind, way, 1](*inputs) for way in ("plain", chosen)]
            cells = [f"{side}^2 x {channels}", kind, *times, chosen]
            cells += [f"{found['plain'] / found[chosen]:.2f}", f"{apart(*one):.1e}"]
            print(f"| {' | '.join(cells)} |", flush=True)
    print(
        "\n| enlarged map | nine taps, ms | four convolutions, ms | one convolution, ms | apart |"
    )
    print("|---|---|---|---|---|")
    for name, kinds, shapes in enlargements(batch):
        compiled = compile_all({k: jax.jit(f).lower(*shapes) for k, f in kinds.items()})
        inputs = values(shapes)
        found, results = timed(compiled, inputs, 1), [f(*inputs) for f in compiled.values()]
        cells = [
            name,
            *(f"{x:.4f}" for x in found.values()),
            f"{apart(results[0], results[2]):.1e}",
        ]
        print(f"| {' | '.join(cells)} |", flush=True)


def sweep(batch: int) -> None:
    """Print the times of kernels of other shapes."""
    head = [f"{values} / {warps}" for values, warps in TILES]
    print(f"ms by values a program / warps\n\n| kernel | map | {' | '.join(head)} | chosen |")
    print("|---" * (len(TILES) + 3) + "|")
    for name, (maps, way) in SWEEP.items():
        kind = "backward" if name in ("whole_backward", "sums") else "forward"
        for side, channels in maps:
            shapes, lowered = arguments(side, channels, batch), {}
            for tile in TILES:
                shape = {name: group_norm_kernels.Shape(*tile)}
                with mock.patch.dict(group_norm_kernels.SHAPES, shape), only(way):
                    run = jax.jit(program(channels, kind, ROW[kind]))
                    lowered[tile] = run.lower(*shapes)
            found = timed(compile_all(lowered), values(shapes), ROW[kind])
            cells = [name, f"{side}^2 x {channels}", *(f"{found[x]:.4f}" for x in TILES)]
            cells.append(" / ".join(str(x) for x in group_norm_kernels.SHAPES[name]))
            print(f"| {' | '.join(cells)} |", flush=True)


def networks(batch: int) -> None:
    """Print the times of decoder and U-Net: with XLA's norms and four convolutions, and as is."""
    config, kind = ModelConfig(), jnp.bfloat16
    latent = jax.ShapeDtypeStruct((batch, 64, 64, config.vae.latent_channels), jnp.float32)
    width = config.unet.cross_attention_dim
    prompt = jax.ShapeDtypeStruct((batch, 78, width), jnp.bfloat16)
    steps = jax.ShapeDtypeStruct((batch,), jnp.int32)
    parts = {
        "decoder": (
            lambda: AutoencoderKL(config.vae, dtype=kind, rngs=nnx.Rngs(0)),
            lambda m, z: m.decode(z),
            (latent,),
        ),
        "U-Net": (
            lambda: UNet2DConditionModel(config.unet, dtype=kind, rngs=nnx.Rngs(0)),
            lambda m, *x: m(*x),
            (latent, steps, prompt),
        ),
    }
    print("| | plain, ms | ours, ms | times faster | apart |\n|---|---|---|---|---|")
    for name, (make, call, shapes) in parts.items():
        graphdef, state = nnx.split(nnx.eval_shape(make))
        lowered = {}
        for way in ("plain", ""):
            run = jax.jit(lambda s, *x, g=graphdef, c=call: c(nnx.merge(g, s), *x))
            with before() if way else nullcontext():
                lowered[way] = run.lower(state, *shapes)
        compiled = compile_all(lowered)
        inputs = [weights(state), *values(list(shapes))]
        found = timed(compiled, inputs, 1)
        one = [compiled[way](*inputs) for way in ("plain", "")]
        faster = f"{found['plain'] / found['']:.3f}"
        print(f"| {name} | {found['plain']:.3f} | {found['']:.3f} | {faster} | {apart(*one):.1e} |")


def weights(state: nnx.State) -> nnx.State:
    """Random weights of a network: scales are ones, kernels keep the size of what they see."""

    def leaf(path: Any, x: jax.ShapeDtypeStruct) -> jax.Array:
        flat = jax.random.normal(jax.random.key(1), (math.prod(x.shape),), x.dtype)
        if len(x.shape) > 1:
            return flat.reshape(x.shape) / math.sqrt(math.prod(x.shape[:-1]))
        return jnp.full(x.shape, float("scale" in jax.tree_util.keystr(path)), x.dtype)

    return jax.jit(lambda: jax.tree_util.tree_map_with_path(leaf, state))()


def main() -> None:
    """Print one of the tables."""
    parser = argparse.ArgumentParser("benchmarks.group_norm")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--aot", type=absent.target, metavar="TARGET")
    parser.add_argument("--sweep", action="store_true")
    parser.add_argument("--networks", action="store_true")
    args = parser.parse_args()
    if args.aot:
        account(args.aot, args.batch)
        return
    print(f"batch {args.batch}, {jax.devices()[0].device_kind}, JAX {jax.__version__}\n")
    (sweep if args.sweep else networks if args.networks else measure)(args.batch)


if __name__ == "__main__":
    main()
