"""python -m benchmarks.restore --preset nano --sizes 512 1024 --batches 1 8 [--parts]

Restoring, here and by diffusers' PyTorch modules (channels_last; eager and torch.compile): the same
weights, machine and pictures, each side alone in a process of its own for each size and batch. The
prompt is given. Told are milliseconds a picture (the best of all runs, and the median), the peak
of memory while running, and how far the outputs are apart, in levels of 255. `--aot --target h200`
(or a TPU's slice, `v5e:2x4`) compiles the parts for a device that is not here, see
restore_ahead.py.
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
from configs.models import nano, tiny
from osdhuman_jax.config import ModelConfig

PRESETS = {"tiny": tiny, "nano": nano, "sd21": ModelConfig, "haodiff": haodiff}
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
    from osdhuman_jax.weights import random_restorer, save_model
    from osdhuman_jax.weights.exporter import export_model

    config = config_of(preset)
    save_model(folder / "ours", config, random_restorer(config, 0))
    export_model(folder / "ours", "diffusers", folder / "theirs")


def inputs(preset: str, size: int, batch: int) -> tuple[np.ndarray, np.ndarray]:
    """Pictures in [-1, 1] and tokens."""
    rng, config = np.random.default_rng(1), PRESETS[preset]()
    shape = (batch, config.hfie.num_queries, config.unet.cross_attention_dim)
    pictures = rng.uniform(-1, 1, (batch, size, size, 3))
    return pictures.astype(np.float32), rng.standard_normal(shape, np.float32)


def ours(folder: Path, precision: str, lq: np.ndarray, prompt: np.ndarray, parts: bool) -> Parts:
    """Calls to time, by name; each waits for its result and gives it."""
    import jax
    import jax.numpy as jnp
    from flax import nnx

    from osdhuman_jax.inference.programs import Programs
    from osdhuman_jax.weights import load_model

    restorer = load_model(folder / "ours", precision=precision).restorer
    restorer.prompter = None
    whole = Programs(restorer).whole(lq.shape, prompt.shape)
    calls: Parts = {"whole": lambda: np.asarray(whole(lq, prompt))}
    if not parts:
        return calls
    graphdef, weights = nnx.split(restorer)

    def part(name: str, *arguments: Any) -> Callable[[], Any]:
        def run(weights: Any, *arguments: Any) -> jax.Array:
            return getattr(nnx.merge(graphdef, weights), name)(*arguments)

        compiled = jax.jit(run).lower(weights, *arguments).compile()
        return lambda: jax.block_until_ready(compiled(weights, *arguments))

    picture, tokens = jnp.asarray(lq), jnp.asarray(prompt)
    calls["encode"] = part("encode", picture)
    latent = calls["encode"]()
    calls["denoise"] = part("denoise", latent, tokens)
    return calls | {"decode": part("decode", latent)}


def theirs(
    folder: Path, precision: str, lq: np.ndarray, prompt: np.ndarray, timestep: int, compiled: bool
) -> Parts:
    """As `ours`, by diffusers."""
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel

    from benchmarks import references

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
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

    def denoise(z: torch.Tensor) -> torch.Tensor:
        eps = step(z, torch.tensor(timestep, device=device), tokens).sample
        return references.one_step(eps.float(), z.float(), timestep).to(dtype)

    def run() -> np.ndarray:
        with torch.inference_mode():
            z = scale * encode(x).latent_dist.mode()
            picture = decode(denoise(z) / scale).sample.clamp(-1, 1)
            return picture.float().permute(0, 2, 3, 1).cpu().numpy()

    def part(function: Callable[[], Any]) -> Callable[[], Any]:
        return torch.inference_mode()(function)

    z = torch.inference_mode()(lambda: scale * encode(x).latent_dist.mode())()
    return {
        "whole": run,
        "encode": part(lambda: encode(x)),
        "denoise": part(lambda: denoise(z)),
        "decode": part(lambda: decode(z / scale)),
    }


def peak(reset: bool = False) -> int:
    """Peak of the process's memory in bytes, or of the GPU's that PyTorch or JAX uses."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    if "torch" in sys.modules and sys.modules["torch"].cuda.is_available():
        return sys.modules["torch"].cuda.max_memory_allocated()
    statistics_ = sys.modules["jax"].devices()[0].memory_stats() if "jax" in sys.modules else None
    if statistics_:
        return statistics_["peak_bytes_in_use"]
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def work(args: argparse.Namespace, folder: Path, side: str, size: int, batch: int) -> None:
    """One side at one size and batch: its figures as a line of JSON, its output as a file."""
    lq, prompt = inputs(args.preset, size, batch)
    if side == "ours":
        calls = ours(folder, args.precision, lq, prompt, args.parts)
    else:
        timestep = PRESETS[args.preset]().timestep
        calls = theirs(folder, args.precision, lq, prompt, timestep, side == "compile")
    calls = calls if args.parts else {"whole": calls["whole"]}
    start = time.perf_counter()
    np.save(folder / f"{side}.npy", calls["whole"]())
    found: dict[str, Any] = {"first": time.perf_counter() - start}
    peak(reset=True)
    for name, call in calls.items():
        if name != "whole":
            call()
        times = []
        for _ in range(args.runs):
            start = time.perf_counter()
            call()
            times.append((time.perf_counter() - start) / batch * 1e3)
        found[name] = min(times)
        if name == "whole":
            found |= {"median": statistics.median(times), "peak": peak()}
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
    add("--parts", action="store_true", help="time encoder, U-Net and decoder alone, too")
    add("--weights", type=Path, help="folder to keep the weights in; default: a temporary one")
    add("--aot", action="store_true", help="compile the parts only; first size and batch")
    add("--target", type=absent.target, help="of --aot: h200, or a slice: v5e:2x4")
    add("--work", nargs=3, help=argparse.SUPPRESS)  # side, size, batch: of a side's process
    args = parser.parse_args(argv)
    if bool(args.aot) != bool(args.target):
        parser.error("--aot and --target go together")
    if args.preset == "haodiff" and not args.aot:
        parser.error("--preset haodiff goes with --aot: diffusers has no such restorer")
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
    parts = [f"{k} {found[k]:,.0f}" for k in ("encode", "denoise", "decode") if k in found]
    gap = "" if apart is None else f"{apart:.2f}"
    best = f"{found['whole']:,.1f}" + (f" ({', '.join(parts)})" if parts else "")
    memory = f"{found['peak'] / 2**20:,.0f}"
    return (
        f"| {size} | {batch} | {NAMES[side]} | {best} | {found['median']:,.1f} | {memory} | {gap} |"
    )


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
        if not (folder / "theirs").exists():
            make(folder, args.preset)
        compare(args, argv, folder)


if __name__ == "__main__":
    main()
