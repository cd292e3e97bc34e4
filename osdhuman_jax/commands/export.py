"""A restorer as one file that runs without this package.

    osdhuman export --model models/nano --size 512 --output nano.npz
    osdhuman export --model models/nano --size 512 --output nano.onnx

Both take and give uint8 pictures (batch, size, size, 3). An .npz holds a StableHLO program of
jax.export beside its weights and needs JAX and NumPy alone:

    file = np.load("nano.npz")
    program = jax.export.deserialize(bytearray(file["program"]))
    restored = program.call([file[f"weight_{i}"] for i in range(file["weights"])], pictures)

An .onnx (extra `export`) holds its weights as constants, so models of 2 GB and more do not fit.
"""

import argparse
import logging
import sys
from collections.abc import Callable
from io import BytesIO
from typing import Any, NoReturn

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
from flax import nnx

from osdhuman_jax.cli import Parser, check_file, end, some_path
from osdhuman_jax.disk import write_bytes
from osdhuman_jax.inference.pipeline import PRECISIONS
from osdhuman_jax.methods.osdhuman import OneStepRestorer
from osdhuman_jax.methods.prompts import TagPrompter
from osdhuman_jax.networks.target import traced_for
from osdhuman_jax.networks.types import Image8
from osdhuman_jax.weights import load_model, load_prompter

SUFFIXES = (".npz", ".onnx")
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
ONNX_LIMIT = 2**31  # bytes of one protocol buffer


class ExportError(ValueError):
    """A model or a request that cannot be exported, in one line."""


def program(restorer: OneStepRestorer) -> tuple[Callable[[list[Any], Any], Any], list[jax.Array]]:
    """What is exported, (weights, uint8 pictures) -> uint8 pictures, and the weights."""
    graphdef, state = nnx.split(restorer)
    weights, tree = jax.tree.flatten(state)

    def restore(weights: list[jax.Array], pictures: Image8) -> Image8:
        network = nnx.merge(graphdef, jax.tree.unflatten(tree, weights))
        restored = network(pictures.astype(jnp.float32) / 127.5 - 1.0)
        return jnp.round((jnp.clip(restored, -1.0, 1.0) + 1.0) * 127.5).astype(jnp.uint8)

    return restore, weights


def to_npz(restorer: OneStepRestorer, shape: tuple[int, ...], platform: str) -> bytes:
    """File of a StableHLO program for pictures of `shape`, with its weights."""
    restore, weights = program(restorer)
    abstract = [jax.ShapeDtypeStruct(weight.shape, weight.dtype) for weight in weights]
    pictures = jax.ShapeDtypeStruct(shape, jnp.uint8)
    plain = "cpu" if platform == "cpu" else "gpu"  # cuDNN's attention is not for a file
    with traced_for(plain):
        exported = jax.export.export(jax.jit(restore), platforms=[platform])(abstract, pictures)
    arrays: dict[str, Any] = {f"weight_{i}": np.asarray(w) for i, w in enumerate(weights)}
    arrays["program"] = np.frombuffer(exported.serialize(), np.uint8)
    arrays["weights"] = np.int64(len(weights))
    buffer = BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def to_onnx(restorer: OneStepRestorer, shape: tuple[int, ...]) -> bytes:
    """ONNX file for pictures of `shape`. Raises ExportError where that cannot be."""
    try:
        from jax2onnx import to_onnx as convert
    except ImportError:
        raise ExportError("ONNX needs the extra: pip install 'osdhuman-jax[export]'") from None
    restore, weights = program(restorer)
    if sum(weight.nbytes for weight in weights) >= ONNX_LIMIT:
        raise ExportError("an ONNX file holds less than 2 GiB of weights: export to .npz")
    pictures = jax.ShapeDtypeStruct(shape, jnp.uint8)
    # Traced beforehand: the converter has rules of its own for Flax's layers, which refuse ours.
    with traced_for("cpu"):
        traced = jax.make_jaxpr(lambda pictures: restore(weights, pictures))(pictures)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        model = convert(jax.extend.core.jaxpr_as_fun(traced), inputs=[pictures], opset=18)
    return model.SerializeToString()


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Flags as a namespace; exits with status 2 on a bad one."""
    parser = Parser("export", "Export a restorer.")
    add = parser.add_argument
    add("--model", type=some_path, required=True, help="model folder")
    add("--output", type=some_path, required=True, help="file to write, .npz or .onnx")
    add("--size", type=int, default=512, help="side of the pictures, in pixels")
    add("--batch_size", type=int, default=1, help="pictures at a time")
    add("--precision", choices=PRECISIONS, default="fp32", help="arithmetic of the networks")
    add("--platform", choices=PLATFORMS, default=None, help="of an .npz; default: this machine's")
    return parser.parse_args(argv)


def export(args: argparse.Namespace) -> bytes:
    """The file that the flags ask for. Raises ValueError or OSError."""
    if args.output.suffix not in SUFFIXES:
        raise ExportError(f"--output must end in {' or '.join(SUFFIXES)}: {args.output}")
    check_file("output", args.output)
    restorer = load_model(args.model, precision=args.precision).restorer
    if restorer.prompter is None:
        prompter = load_prompter(args.model, precision=args.precision)
        if isinstance(prompter, TagPrompter):
            raise ExportError(f"{args.model}: prompts from tags are text, which no program holds")
        restorer.prompter = prompter
    multiple = restorer.multiple
    if args.size < 1 or args.size % multiple or args.batch_size < 1:
        raise ExportError(f"--size must be a multiple of {multiple}, --batch_size at least 1")
    shape = (args.batch_size, args.size, args.size, 3)
    if args.output.suffix == ".onnx":
        return to_onnx(restorer, shape)
    default = {"gpu": "cuda"}.get(jax.default_backend(), jax.default_backend())
    return to_npz(restorer, shape, args.platform or default)


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    args = parse_args(argv)
    for name in ("jax2onnx", "onnx_ir"):  # the converter tells at length what it does without
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        data = export(args)
        args.output.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(args.output, data)
    except (ValueError, OSError) as error:
        print(f"export: {error}", file=sys.stderr)
        return 2
    print(f"{args.output}: {len(data) / 2**20:.1f} MiB")
    return 0


def command() -> NoReturn:
    """Run the command as the whole process."""
    end("export", main)


if __name__ == "__main__":
    command()
