"""A restorer as one file that runs without this package.

    osdhuman export --size 512 --output nano.npz
    osdhuman export --size 512 --output nano.onnx

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
from typing import NoReturn

from osdhuman_jax.cli import Parser, check_file, end, some_path
from osdhuman_jax.disk import write_bytes
from osdhuman_jax.inference.settings import PRECISIONS
from osdhuman_jax.models import BUNDLED

SUFFIXES = (".npz", ".onnx")
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Flags as a namespace; exits with status 2 on a bad one."""
    parser = Parser("export", "Export a restorer.")
    add = parser.add_argument
    add("--model", type=some_path, default=BUNDLED, help="folder; default: the bundled one")
    add("--output", type=some_path, required=True, help="file to write, .npz or .onnx")
    add("--size", type=int, default=512, help="side of the pictures, in pixels")
    add("--batch_size", type=int, default=1, help="pictures at a time")
    add("--precision", choices=PRECISIONS, default="fp32", help="arithmetic of the networks")
    add("--platform", choices=PLATFORMS, default=None, help="of an .npz; default: this machine's")
    return parser.parse_args(argv)


def export(args: argparse.Namespace) -> bytes:
    """The file that the flags ask for. Raises ValueError or OSError."""
    # JAX and the networks, which `--help` does without.
    import jax

    from osdhuman_jax.inference.standalone import ExportError, to_npz, to_onnx
    from osdhuman_jax.methods.prompts import TagPrompter
    from osdhuman_jax.weights import DIFFBODY, kind_of, load_model, load_prompter

    # What is asked for, refused before a model is read.
    if args.output.suffix not in SUFFIXES:
        raise ExportError(f"--output must end in {' or '.join(SUFFIXES)}: {args.output}")
    check_file("output", args.output)
    if kind_of(args.model) == DIFFBODY:
        raise ExportError(f"{args.model}: takes many steps (DiffBody), which no program here holds")

    # The model, and whether it and the size go together.
    restorer = load_model(args.model, precision=args.precision).restorer
    if restorer.prompter is None:
        prompter = load_prompter(args.model, precision=args.precision)
        if isinstance(prompter, TagPrompter):
            raise ExportError(f"{args.model}: prompts from tags are text, which no program holds")
        restorer.prompter = prompter
    multiple = restorer.multiple
    if args.size < 1 or args.size % multiple or args.batch_size < 1:
        raise ExportError(f"--size must be a multiple of {multiple}, --batch_size at least 1")

    # The file.
    shape = (args.batch_size, args.size, args.size, 3)
    if args.output.suffix == ".onnx":
        return to_onnx(restorer, shape)
    default = {"gpu": "cuda"}.get(jax.default_backend(), jax.default_backend())
    return to_npz(restorer, shape, args.platform or default)


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    args = parse_args(argv)
    # The converter tells at length what it does without.
    for name in ("jax2onnx", "onnx_ir"):
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
