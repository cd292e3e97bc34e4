"""python -m benchmarks.restore --preset nano --sizes 512 1024 --batches 1 8 [--parts]

Restoring, here and by diffusers' PyTorch modules (channels_last; eager and torch.compile): the same
weights, machine and pictures, each side alone in a process of its own for each size and batch, on
a GPU where there is one. The prompt is given, but to HAODiff (`--sides ours`: diffusers has no such
restorer), which makes both of its own. Pictures are on the device before a run, and what is
restored is on the host after it. Told are milliseconds a picture (the best of all runs, and the
median), the peak of memory while running, and how far the outputs are apart, in levels of 255. Of
a GPU's memory JAX keeps one peak for a whole process, the trials of its compiler included: the
compiler's own account of the program is kept beside it. `--aot --target h200` (or a TPU's slice,
`v5e:2x4`) compiles the parts for a device that is not here, see restore_ahead.py.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import absent, restore_ahead
from configs.haodiff_dpg import haodiff
from configs.models import nano, tiny, tiny_dual
from osdhuman_jax.config import ModelConfig

PRESETS = {"tiny": tiny, "nano": nano, "sd21": ModelConfig, "haodiff": haodiff}
PRESETS["haodiff_tiny"] = lambda: replace(tiny(), dual=tiny_dual())
PARTS = ("encode", "denoise", "decode")
SIDES = ("ours", "eager", "compile")
PRECISIONS = ("fp32", "bf16")
NAMES = {"ours": "osdhuman_jax", "eager": "PyTorch, eager", "compile": "PyTorch, compiled"}
Parts = dict[str, Callable[[], Any]]


def config_of(preset: str) -> ModelConfig:
    """A preset with the smallest prompt extractor, which is not timed."""
    small = tiny()
    return replace(PRESETS[preset](), swin=small.swin, hfie=small.hfie)


def make(folder: Path, preset: str) -> None:
    """Random weights, as this project's folder `ours` and as diffusers' `theirs`."""
    import jax

    from osdhuman_jax.weights import random_restorer, save_model
    from osdhuman_jax.weights.exporter import export_model

    # A GPU is left to the sides, whose memory is told.
    jax.config.update("jax_platforms", "cpu")
    config = config_of(preset)
    save_model(folder / "ours", config, random_restorer(config, 0))
    if config.dual is None:
        export_model(folder / "ours", "diffusers", folder / "theirs")


def inputs(preset: str, size: int, batch: int) -> tuple[np.ndarray, np.ndarray]:
    """Pictures in [-1, 1] and tokens."""
    rng, config = np.random.default_rng(1), PRESETS[preset]()
    shape = (batch, config.hfie.num_queries, config.unet.cross_attention_dim)
    pictures = rng.uniform(-1, 1, (batch, size, size, 3))
    return pictures.astype(np.float32), rng.standard_normal(shape, np.float32)


def ours(
    folder: Path, precision: str, lq: np.ndarray, prompt: np.ndarray, parts: list[str]
) -> tuple[Parts, int]:
    """Calls to time, by name, and the bytes that the program of the whole takes by its compiler.

    Each call waits for its result and gives it.
    """
    import jax
    import jax.numpy as jnp
    from flax import nnx

    from osdhuman_jax.inference.programs import Programs
    from osdhuman_jax.networks.target import compiler_options
    from osdhuman_jax.weights import load_model

    model = load_model(folder / "ours", precision=precision)
    restorer, vae = model.restorer, model.config.vae
    picture, tokens = jnp.asarray(lq), jnp.asarray(prompt)
    if restorer.guidance is not None:
        return both_prompts(restorer, picture)
    restorer.prompter = None
    programs = Programs(restorer)
    whole = programs.whole(lq.shape, prompt.shape)
    calls: Parts = {"whole": lambda: np.asarray(whole(picture, tokens))}
    graphdef, weights = nnx.split(restorer)

    def part(name: str, *arguments: Any) -> Callable[[], Any]:
        def run(weights: Any, *arguments: Any) -> jax.Array:
            return getattr(nnx.merge(graphdef, weights), name)(*arguments)

        compiled = jax.jit(run).lower(weights, *arguments).compile(compiler_options())
        return lambda: jax.block_until_ready(compiled(weights, *arguments))

    # A latent of the right size: its values are no matter to a part's time.
    height, width = (side // vae.downscale for side in lq.shape[1:3])
    shape = (len(lq), height, width, vae.latent_channels)
    latent = jnp.asarray(np.random.default_rng(2).standard_normal(shape, np.float32))
    inputs = {"encode": (picture,), "denoise": (latent, tokens), "decode": (latent,)}
    calls |= {name: part(name, *inputs[name]) for name in parts}
    return calls, programs.memory("whole", lq.shape)


def both_prompts(restorer: Any, picture: Any) -> tuple[Parts, int]:
    """As `ours`, for HAODiff with its own prompts."""
    from osdhuman_jax.inference.programs import Programs

    programs, guidance = Programs(restorer), np.float32(restorer.guidance)
    prompts = programs.tokens(picture.shape)
    whole = programs.whole(picture.shape, programs.tokens_shape(picture.shape))

    def run() -> np.ndarray:
        tokens = prompts(picture).astype(np.float32)
        return np.asarray(whole(picture, tokens, guidance))

    # One after the other: the larger of them counts.
    used = max(programs.memory(kind, picture.shape) for kind in ("tokens", "whole"))
    return {"whole": run}, used


def theirs(
    folder: Path, precision: str, lq: np.ndarray, prompt: np.ndarray, timestep: int, compiled: bool
) -> Parts:
    """As `ours`, by diffusers."""
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel

    from benchmarks import references

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    device = references.fast_device()
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    like = {"device": device, "dtype": dtype, "memory_format": torch.channels_last}
    vae, unet = (
        kind.from_pretrained(folder / "theirs" / name, torch_dtype=dtype).to(**like).eval()
        for name, kind in (("vae", AutoencoderKL), ("unet", UNet2DConditionModel))
    )
    scale = vae.config.scaling_factor
    encode, decode, step = vae.encode, vae.decode, unet
    if compiled:
        encode, decode, step = (torch.compile(f) for f in (encode, decode, step))
    x = torch.from_numpy(lq).permute(0, 3, 1, 2).to(**like)
    tokens = torch.from_numpy(prompt).to(device, dtype)
    # On the device beforehand: a copy from the host would wait for what is computed there.
    t = torch.tensor(timestep, device=device)

    def denoise(z: torch.Tensor) -> torch.Tensor:
        eps = step(z, t, tokens).sample
        return references.one_step(eps.float(), z.float(), timestep).to(dtype)

    def run() -> np.ndarray:
        with torch.inference_mode():
            z = scale * encode(x).latent_dist.mode()
            picture = decode(denoise(z) / scale).sample.clamp(-1, 1)
            return picture.float().permute(0, 2, 3, 1).cpu().numpy()

    def part(function: Callable[[], Any]) -> Callable[[], Any]:
        def run() -> None:
            with torch.inference_mode():
                function()
            # What a GPU computes goes on after the call.
            if device.type == "cuda":
                torch.cuda.synchronize()

        return run

    z = torch.inference_mode()(lambda: scale * encode(x).latent_dist.mode())()
    return {
        "whole": run,
        "encode": part(lambda: encode(x)),
        "denoise": part(lambda: denoise(z)),
        "decode": part(lambda: decode(z / scale)),
    }


def peak(reset: bool = False) -> int:
    """Peak of the process's memory in bytes, or of the GPU's that PyTorch or JAX uses."""
    gpu = sys.modules["torch"].cuda if "torch" in sys.modules else None
    if gpu and gpu.is_available():
        if reset:
            gpu.reset_peak_memory_stats()
        return gpu.max_memory_allocated()
    found = sys.modules["jax"].devices()[0].memory_stats() if "jax" in sys.modules else None
    if found:
        return found["peak_bytes_in_use"]
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def work(args: argparse.Namespace, folder: Path, side: str, size: int, batch: int) -> None:
    """One side at one size and batch: its figures as a line of JSON, its output as a file."""
    lq, prompt = inputs(args.preset, size, batch)
    found: dict[str, Any] = {}
    start = time.perf_counter()
    if side == "ours":
        calls, found["program"] = ours(folder, args.precision, lq, prompt, args.parts)
    else:
        timestep = PRESETS[args.preset]().timestep
        calls = theirs(folder, args.precision, lq, prompt, timestep, side == "compile")
    np.save(folder / f"{side}.npy", calls["whole"]())
    found["first"] = time.perf_counter() - start
    peak(reset=True)
    for name in ("whole", *args.parts):
        if name != "whole":
            calls[name]()
        times = []
        for _ in range(args.runs):
            start = time.perf_counter()
            calls[name]()
            times.append((time.perf_counter() - start) / batch * 1e3)
        found |= {name: min(times), f"{name}_median": statistics.median(times)}
        if name == "whole":
            found["peak"] = peak()
    print(json.dumps(found))


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[2])
    add = parser.add_argument
    add("--preset", choices=PRESETS, default="nano")
    add("--sizes", type=int, nargs="+", default=[512])
    add("--batches", type=int, nargs="+", default=[1])
    add("--precision", choices=PRECISIONS, default="fp32")
    add("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    add("--runs", type=int, default=5, help="after one that warms up")
    add("--parts", nargs="*", choices=PARTS, help="time these alone, too; without a name: all")
    add("--weights", type=Path, help="folder to keep the weights in; default: a temporary one")
    add("--aot", action="store_true", help="compile the parts only; first size and batch")
    add("--target", type=absent.target, help="of --aot: h200, or a slice: v5e:2x4")
    # Side, size and batch of a side's process, or "make" for the one that makes the weights.
    add("--work", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    args.parts = list(PARTS) if args.parts == [] else args.parts or []
    if bool(args.aot) != bool(args.target):
        parser.error("--aot and --target go together")
    if "haodiff" in args.preset and not args.aot and (args.sides != ["ours"] or args.parts):
        parser.error("HAODiff goes with --sides ours or --aot: diffusers has no such restorer")
    return args


def run_side(argv: list[str], folder: Path, side: str, size: int, batch: int) -> dict[str, Any]:
    """A side's figures; {"failed": reason} where its process did not live."""
    flags = [*argv, "--weights", str(folder), "--work", side, str(size), str(batch)]
    command = [sys.executable, "-m", "benchmarks.restore", *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    return {"failed": (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]}


def row(side: str, size: int, batch: int, found: dict[str, Any], apart: float | None) -> str:
    """One line of the table."""
    if "failed" in found:
        return f"| {size} | {batch} | {NAMES[side]} | {found['failed'][:60]} | | | |"
    parts = [f"{k} {found[k]:,.1f}" for k in PARTS if k in found]
    gap = "" if apart is None else f"{apart:.2f}"
    best = f"{found['whole']:,.1f}" + (f" ({', '.join(parts)})" if parts else "")
    memory = f"{found['peak'] / 2**20:,.0f}"
    cells = (size, batch, NAMES[side], best, f"{found['whole_median']:,.1f}", memory, gap)
    return f"| {' | '.join(map(str, cells))} |"


def compare(args: argparse.Namespace, argv: list[str], folder: Path) -> None:
    """Print the table, row by row."""
    print("| side | batch | | ms a picture, best | median | peak MiB | apart |")
    print("| --- | --- | --- | --- | --- | --- | --- |", flush=True)
    for size in args.sizes:
        for batch in args.batches:
            first: np.ndarray | None = None
            for side in args.sides:
                found, apart = run_side(argv, folder, side, size, batch), None
                if "failed" not in found:
                    output = np.load(folder / f"{side}.npy")
                    if first is not None:
                        apart = float(np.abs(output - first).max()) * 127.5
                    first = output if first is None else first
                print(row(side, size, batch, found, apart), flush=True)


def main(argv: list[str] | None = None) -> None:
    """Make the weights if need be and compare."""
    argv = sys.argv[1:] if argv is None else argv
    args = parse(argv)
    if args.work and args.work[0] == "make":
        make(args.weights, args.preset)
        print("{}")
        return
    if args.work:
        work(args, args.weights, args.work[0], *map(int, args.work[1:]))
        return
    if args.aot:
        size, batch = args.sizes[0], args.batches[0]
        config = PRESETS[args.preset]()
        restore_ahead.describe(config, size, batch, args.precision, args.target)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.weights or Path(temporary)
        if not (folder / "ours").exists():
            made = run_side(argv, folder, "make", 0, 0)
            if "failed" in made:
                raise SystemExit(made["failed"])
        compare(args, argv, folder)


if __name__ == "__main__":
    main()
