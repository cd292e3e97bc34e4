"""A training step on a TPU that is not here, layer by layer (`--aot --layers`).

The compiler takes hours on a small machine for the full-size step, and seconds for a layer with its
gradient. Every layer that the step runs is compiled once for each shape that it has there, for one
chip and that chip's share of the batch, and counted as often as it runs. The sum of their estimates
is called the sum: the optimizer, losses, what lies between layers, and what chips tell each other
are not in it.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from benchmarks import absent, account
from osdhuman_jax.config import Config
from osdhuman_jax.methods.lora import LoRA, LoRAParam
from osdhuman_jax.methods.objectives import Frozen, draw
from osdhuman_jax.methods.prompts import HFIE
from osdhuman_jax.networks.layers import (
    Downsample2D,
    GroupNorm,
    LayerNorm,
    ResnetBlock2D,
    SpatialAttention,
    Transformer2DModel,
    Upsample2D,
)
from osdhuman_jax.networks.lpips import LPIPS
from osdhuman_jax.networks.swin import PatchEmbed, PatchMerging, SwinTransformerBlock
from osdhuman_jax.training import flops
from osdhuman_jax.training.train_step import Trainer, TrainState

# What is compiled as one; a layer inside another is that one's.
LAYERS = (
    *(ResnetBlock2D, Transformer2DModel, SpatialAttention, Downsample2D, Upsample2D),
    *(SwinTransformerBlock, PatchEmbed, PatchMerging, HFIE, LPIPS),
    *(LoRA, nnx.Conv, nnx.Linear, GroupNorm, LayerNorm),
)
COLUMNS = (
    f"network | layer | times | GFLOP each | at the peak, ms | {account.HEAD} | compiled in, s"
)
HEAD = f"| {COLUMNS} |\n" + "|---" * 11 + "|"


@dataclass
class Call:
    """A layer as a network runs it: its graph, the shapes of its weights and inputs, how often."""

    name: str
    graphdef: nnx.GraphDef
    state: nnx.State
    inputs: tuple[Any, ...]
    static: tuple[Any, ...] = ()
    times: int = 1


def abstract(tree: Any) -> Any:
    """Shapes and types of what may be traced."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


@contextmanager
def recording(found: dict[Any, Call]) -> Iterator[None]:
    """Context in which every call of one of `LAYERS`, but for those inside another, is noted."""
    own = {kind: kind.__dict__["__call__"] for kind in LAYERS if "__call__" in kind.__dict__}
    depth = [0]

    def noting(call: Callable[..., Any]) -> Callable[..., Any]:
        def run(layer: nnx.Module, *inputs: Any) -> Any:
            if not depth[0]:
                graphdef, state = nnx.split(layer)
                arrays = tuple(x for x in inputs if isinstance(x, jax.Array))
                state, shapes = abstract(state), abstract(arrays)
                leaves, tree = jax.tree.flatten((state, shapes))
                # What is no array, as the size to enlarge to, comes last.
                static = inputs[len(arrays) :]
                key = (graphdef, tree, static, tuple((x.shape, x.dtype) for x in leaves))
                if key in found:
                    found[key].times += 1
                else:
                    found[key] = Call(type(layer).__name__, graphdef, state, shapes, static)
            depth[0] += 1
            try:
                return call(layer, *inputs)
            finally:
                depth[0] -= 1

        return run

    for kind, call in own.items():
        kind.__call__ = noting(call)
    try:
        yield
    finally:
        for kind, call in own.items():
            kind.__call__ = call


def calls_of(function: Callable[..., Any], *inputs: Any) -> list[Call]:
    """The layers that a function of abstract inputs runs, each once with its count."""
    found: dict[Any, Call] = {}
    with recording(found):
        jax.eval_shape(lambda *x: function(*x), *inputs)
    return list(found.values())


def networks(
    trainer: Trainer, state: TrainState, frozen: Frozen, config: Config
) -> dict[str, list[tuple[Call, bool]]]:
    """Layers of every network of the generator's step, and whether their gradient is taken.

    The encoder, the U-Net and the regularizer have adapters, whose gradient is taken as well.
    """
    model = nnx.merge(trainer.graphdef, state.params, frozen.restorer)
    graphdef, weights = nnx.split(model)
    count, size = config.data.batch_size, config.data.size
    drawn = jax.eval_shape(lambda: draw(config, model, count, size, jax.random.key(0)))
    picture = jax.ShapeDtypeStruct((count, *size, 3), jnp.float32)

    def method(name: str, *inputs: Any) -> tuple[list[Call], Any]:
        def run(weights: Any, *inputs: Any) -> Any:
            return getattr(nnx.merge(graphdef, weights), name)(*inputs)

        return calls_of(run, weights, *inputs), jax.eval_shape(run, weights, *inputs)

    prompt, tokens = method("tokens", picture)
    encoder, latent = method("encode", picture, drawn["posterior"])
    unet, _ = method("denoise", latent, tokens)
    decoder, _ = method("decode", latent)
    # RAM's encoder is frozen and looks at pictures: nothing is asked of its gradient.
    found = {"prompt": [(call, call.name == "HFIE") for call in prompt]}
    found |= {"encoder": [(call, True) for call in encoder]}
    found |= {"U-Net": [(call, True) for call in unet]}
    found |= {"decoder": [(call, True) for call in decoder]}
    if trainer.lpips is not None:
        perceptual = nnx.merge(trainer.lpips, frozen.lpips)
        graph, own = nnx.split(perceptual)
        run = lambda own, *x: nnx.merge(graph, own)(*x)  # noqa: E731
        found["LPIPS"] = [(call, True) for call in calls_of(run, own, picture, picture)]
    if trainer.regularizer is not None:
        # Both estimates of Eq. 6 have no gradient; the regularizer's own update is a U-Net's.
        found["VSD, two estimates"] = [(call, False) for call in unet for _ in range(2)]
        found["regularizer"] = found["U-Net"]
    return found


def program(call: Call, backward: bool) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """A layer as a function with its abstract arguments, with its gradient where it is asked."""
    trained = nnx.Param if call.name in ("HFIE",) else LoRAParam
    graphdef, own, rest = nnx.split(nnx.merge(call.graphdef, call.state), trained, ...)

    def forward(own: Any, inputs: Any, rest: Any) -> Any:
        return nnx.merge(graphdef, own, rest)(*inputs, *call.static)

    if not backward:
        return forward, (own, call.inputs, rest)
    out = jax.eval_shape(forward, own, call.inputs, rest)

    def both(own: Any, inputs: Any, rest: Any, cotangent: Any) -> Any:
        made, back = jax.vjp(lambda *x: forward(*x, rest), own, inputs)
        return made, back(cotangent)

    return both, (own, call.inputs, rest, out)


@dataclass(frozen=True)
class Figures:
    """What a compiled layer takes: operations, the compiler's account, seconds to compile."""

    work: int
    found: account.Account
    compiled_in: float


def compiled(call: Call, backward: bool, device: Any, options: Any) -> Figures:
    """Compile a layer for a device."""
    function, inputs = program(call, backward)
    made, work, seconds = absent.compile_for(function, inputs, device, options)
    return Figures(work, account.account(made.as_text()), seconds)


def describe(
    config: Config,
    trainer: Trainer,
    state: TrainState,
    frozen: Frozen,
    device: Any,
    options: Any,
) -> None:
    """Print a row for every layer, as each is compiled, and one for each network's sum."""
    peak, chip = flops.peak(device.device_kind), absent.chip(device.device_kind)
    if peak is None or chip is None:
        raise SystemExit(f"no account of layers for {device.device_kind}: name a slice of TPUs")
    print(f"batch {config.data.batch_size} on one {device.device_kind}\n\n{HEAD}")
    known: dict[Any, Figures] = {}
    for name, calls in networks(trainer, state, frozen, config).items():
        work = cycles = 0
        for call, backward in calls:
            # The regularizer's layers are the U-Net's.
            key = (id(call), backward)
            known[key] = known.get(key) or compiled(call, backward, device, options)
            found = known[key]
            least = found.work / peak
            cells = account.cells(found.found, device.device_kind, least)
            shape = "x".join(str(n) for n in call.inputs[0].shape)
            print(
                f"| {name} | {call.name} {shape} | {call.times} | {found.work / 1e9:.1f} "
                f"| {least * 1e3:.2f} | {cells} | {found.compiled_in:.0f} |",
                flush=True,
            )
            work, cycles = work + call.times * found.work, cycles + call.times * found.found.total
        least, seconds = 1e3 * work / peak, 1e3 * cycles / chip.clock
        print(f"| {name} | the sum | | {work / 1e9:.1f} | {least:.2f} | {seconds:.2f} | | | | | |")
