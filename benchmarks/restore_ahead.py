"""What restoring takes on an accelerator that is not here, by its compiler (`--aot --target`).

Each part of a restorer is a program of its own, since the compilers take far longer for the whole:
the prompt of a picture, the encoder, the U-Net's one step, the decoder. Told are its operations,
its memory, the seconds in which the device's peak would do the operations, and, of a TPU, those
that its compiler estimates and what takes them (account.py). Nothing was measured: no program can
be faster than the first.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from benchmarks import absent, account
from osdhuman_jax.config import ModelConfig
from osdhuman_jax.training import flops
from osdhuman_jax.weights.model_folder import abstract_restorer

HEAD = (
    f"| part | TFLOP | weights, GB | computed, GB | at the peak, ms | {account.HEAD} "
    "| compiled in, s |\n" + "|---" * 11 + "|"
)


def parts_of(config: ModelConfig, size: int, batch: int, precision: str) -> dict[str, Any]:
    """(network, abstract inputs, function of both) of each part, by name."""
    restorer, _ = abstract_restorer(config, None, precision)
    picture = jax.ShapeDtypeStruct((batch, size, size, 3), jnp.float32)

    def part(name: str, *inputs: Any) -> tuple[Any, tuple[Any, ...], Callable[..., Any]]:
        # A part holds the weights that it uses, as a program of the whole would hold them all.
        kept = {"tokens": "prompter", "encode": "vae", "denoise": "unet", "decode": "vae"}[name]
        graphdef, own, rest = nnx.split(restorer, nnx.PathContains(kept), ...)
        return own, inputs, lambda own, *x: getattr(nnx.merge(graphdef, own, rest), name)(*x)

    # Shapes of what one part gives the next; a prompter sees squares of its own side.
    found = {"encode": part("encode", picture)}
    latent = jax.eval_shape(found["encode"][2], found["encode"][0], picture)
    side = getattr(restorer.prompter, "input_size", size)
    view = jax.ShapeDtypeStruct((batch, side, side, 3), jnp.float32)
    found = {"tokens": part("tokens", view), **found}
    tokens = jax.eval_shape(found["tokens"][2], found["tokens"][0], view)
    return found | {"denoise": part("denoise", latent, tokens), "decode": part("decode", latent)}


def row(name: str, program: Any, inputs: tuple[Any, ...], device: Any, options: Any) -> str:
    """Compile a part and tell what it takes."""
    compiled, work, seconds = absent.compile_for(program, inputs, device, options)
    memory = compiled.memory_analysis()
    peak = flops.peak(device.device_kind)
    least = work / peak if peak else 0.0
    return " | ".join(
        (
            f"| {name}",
            f"{work / 1e12:.3g}",
            f"{memory.argument_size_in_bytes / 1e9:.2f}",
            f"{memory.temp_size_in_bytes / 1e9:.2f}",
            f"{least * 1e3:.2f}" if peak else "",
            account.cells(account.account(compiled.as_text()), device.device_kind, least),
            f"{seconds:.0f} |",
        )
    )


def describe(config: ModelConfig, size: int, batch: int, precision: str, target: str) -> None:
    """Print the table of all parts, row by row."""
    with absent.devices(target) as ((device, *_), options):
        parts = parts_of(config, size, batch, precision)
        print(f"{size} x {size}, batch {batch}, {precision}, for {device.device_kind}\n\n{HEAD}")
        for name, (own, inputs, function) in parts.items():
            print(row(name, function, (own, *inputs), device, options), flush=True)
