"""How fast and how far from float32 an 8-bit file is: the same picture by every engine, in turns.

    osdhuman export --output nano.onnx --size 512
    osdhuman export --output nano8.onnx --size 512 --int8
    python -m benchmarks.int8 nano.onnx nano8.onnx [--model DIR] [--input PICTURES] [--runs 9]

XLA runs the restorer of `--model` (the bundled one) as the files have it, onnxruntime and, where it
is installed, OpenVINO the files; each on all cores that the process may use. Told are seconds by
the clock and of all cores together, and of the 8-bit file the peak signal-to-noise ratio to the
other one: of each picture of `--input`, or of the degraded photographs that it was calibrated by.
"""

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import jax
import numpy as np
import onnxruntime
from jaxtyping import UInt8

from benchmarks.measures import machine
from osdhuman_jax.evaluation.metrics import psnr_rgb
from osdhuman_jax.inference import int8, standalone
from osdhuman_jax.models import BUNDLED
from osdhuman_jax.networks.target import compiler_options
from osdhuman_jax.weights import load_model, load_prompter

Run = Callable[[UInt8[np.ndarray, "b h w 3"]], np.ndarray]


def by_xla(folder: Path, shape: tuple[int, ...]) -> Run:
    """The restorer of a folder with its own prompts, as `osdhuman export` writes it down."""
    restorer = load_model(folder, precision="fp32").restorer
    if restorer.prompter is None:
        restorer.prompter = load_prompter(folder, precision="fp32")
    restore, weights = standalone.program(restorer)
    pictures = jax.ShapeDtypeStruct(shape, np.uint8)
    made = jax.jit(restore).lower(weights, pictures).compile(compiler_options())
    return lambda x: np.asarray(made(weights, x))


def by_onnxruntime(file: Path, threads: int) -> tuple[Run, tuple[int, ...]]:
    """A file by onnxruntime, and the shape of the pictures that it takes."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    (wanted,) = session.get_inputs()
    return lambda x: session.run(None, {wanted.name: x})[0], tuple(wanted.shape)


def by_openvino(file: Path, threads: int) -> Run | None:
    """A file by OpenVINO, or None where that is not installed."""
    try:
        import openvino  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None
    made = openvino.compile_model(str(file), "CPU", {"INFERENCE_NUM_THREADS": threads})
    return lambda x: made([x])[0]


def in_turns(runs: dict[str, Run], picture: np.ndarray, count: int) -> dict[str, list[Any]]:
    """(seconds, seconds of all cores) of every run, each run once before the next has its turn."""
    found: dict[str, list[Any]] = {name: [] for name in runs}
    for index in range(count + 1):
        for name, run in runs.items():
            wall, cores = time.perf_counter(), time.process_time()
            run(picture)
            if index:  # the first finds nothing in any cache
                found[name].append((time.perf_counter() - wall, time.process_time() - cores))
    return found


def main(argv: list[str] | None = None) -> None:
    """Print the table and the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("exact", type=Path, help=".onnx in float32")
    parser.add_argument("small", type=Path, help=".onnx of the same by --int8")
    parser.add_argument("--model", type=Path, default=BUNDLED, help="folder that both are of")
    parser.add_argument("--input", type=Path, help="folder of pictures as a model is given them")
    parser.add_argument("--runs", type=int, default=9, help="of each engine, after one more")
    args = parser.parse_args(argv)

    onnxruntime.set_default_logger_severity(3)  # it tells of each constant that it leaves out
    # Every engine, on as many threads as it may have cores.
    threads = len(os.sched_getaffinity(0))
    runs: dict[str, Run] = {}
    shape: tuple[int, ...] = ()
    for what, file in (("float32", args.exact), ("8 bits", args.small)):
        runs[f"onnxruntime, {what}"], shape = by_onnxruntime(file, threads)
        if openvino := by_openvino(file, threads):
            runs[f"OpenVINO, {what}"] = openvino
    runs = {"osdhuman_jax (XLA), float32": by_xla(args.model, shape), **runs}

    # Times of one batch.
    batch, side = shape[:2]
    pictures = int8.pictures_of(args.input, side) if args.input else int8.shipped(side)
    batches = [np.repeat(picture[None], batch, 0) for picture in pictures]
    print(f"{batch} of {side} x {side}, {machine()}\n")
    print("| | s, median | best | s of all cores, median | best |\n" + "|---" * 5 + "|")
    for name, found in in_turns(runs, batches[0], args.runs).items():
        wall, cores = zip(*found, strict=True)
        cells = (median(wall), min(wall), median(cores), min(cores))
        print(f"| {name} | " + " | ".join(f"{cell:.2f}" for cell in cells) + " |")

    # Closeness of all.
    exact = runs["onnxruntime, float32"]
    for name in ("onnxruntime, 8 bits", "OpenVINO, 8 bits"):
        if name in runs:
            apart = [psnr_rgb(runs[name](x)[0], exact(x)[0]) for x in batches]
            print(f"\n{name}: {min(apart):.1f} dB from float32 at the worst of {len(apart)}")


if __name__ == "__main__":
    main()
