"""A restorer as a file that runs without this package.

    osdhuman export --size 512 --output nano.npz
    osdhuman export --size 512 --output nano.onnx
    osdhuman export --size 512 --output nano.onnx --int8

Both take and give uint8 pictures (batch, size, size, 3). An .npz holds a StableHLO program of
jax.export beside its weights and needs JAX and NumPy alone:

    file = np.load("nano.npz")
    program = jax.export.deserialize(bytearray(file["program"]))
    restored = program.call([file[f"weight_{i}"] for i in range(file["weights"])], pictures)

An .onnx (extra `export`) holds its weights as constants; from nearly 2 GiB on they lie beside it,
as NAME.onnx.data, and both files are needed, under these names.
With --int8 its U-Net computes in 8 bits, in ranges that degraded photographs show (int8.py).
"""

import argparse
import logging
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from osdhuman_jax.cli import Parser, check_file, end, some_path
from osdhuman_jax.disk import staged_files
from osdhuman_jax.inference.settings import PRECISIONS
from osdhuman_jax.models import BUNDLED

if TYPE_CHECKING:
    from flax import nnx

    from osdhuman_jax.inference.int8 import Square
    from osdhuman_jax.methods.osdhuman import OneStepRestorer

SUFFIXES = (".npz", ".onnx")
CLOSE = 40  # dB: 8 bits that are further from 32 than this are named
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Flags as a namespace; exits with status 2 on a bad one."""
    parser = Parser("export", "Export a restorer.")
    add = parser.add_argument
    add("--model", type=some_path, default=BUNDLED, help="folder; default: the bundled one")
    add(
        "--output",
        type=some_path,
        required=True,
        help="file to write, .npz or .onnx; weights of nearly 2 GiB and more become a second file, "
        "NAME.onnx.data",
    )
    add("--overwrite", action="store_true", help="replace files that exist")
    add("--size", type=int, default=512, help="side of the pictures, in pixels")
    add("--batch_size", type=int, default=1, help="pictures at a time")
    add("--precision", choices=PRECISIONS, default="fp32", help="arithmetic of the networks")
    add("--platform", choices=PLATFORMS, default=None, help="of an .npz; default: this machine's")
    add("--int8", action="store_true", help="the U-Net of an .onnx in 8 bits")
    add(
        "--calibrate",
        type=some_path,
        help="pictures as the model will be given them, for --int8; default: photographs that "
        "dependencies ship, degraded",
    )
    args = parser.parse_args(argv)
    if args.int8 and (args.output.suffix != ".onnx" or args.precision != "fp32"):
        parser.error("--int8 goes with an .onnx in --precision fp32")
    if args.calibrate and not args.int8:
        parser.error("--calibrate goes with --int8")
    return args


def places(output: Path) -> list[Path]:
    """The file to write, and the one that its weights may take."""
    from osdhuman_jax.inference.standalone import weights_beside

    return [output, weights_beside(output)] if output.suffix == ".onnx" else [output]


def load(args: argparse.Namespace) -> "OneStepRestorer":
    """The restorer to export. Raises ValueError or OSError where it cannot be."""
    from osdhuman_jax.inference.standalone import ExportError
    from osdhuman_jax.methods.prompts import TagPrompter
    from osdhuman_jax.weights import DIFFBODY, kind_of, load_model, load_prompter

    # What is asked for, refused before a model is read.
    if args.output.suffix not in SUFFIXES:
        raise ExportError(f"--output must end in {' or '.join(SUFFIXES)}: {args.output}")
    check_file("output", args.output)
    for path in places(args.output):
        if path.exists() and not args.overwrite:
            raise ExportError(f"{path}: exists; give --overwrite to replace it")
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
    return restorer


def calibration(args: argparse.Namespace) -> "list[Square]":
    """Pictures of the file's size that show the ranges of 8 bits. Raises ValueError or OSError."""
    from osdhuman_jax.inference.int8 import pictures_of, shipped

    return pictures_of(args.calibrate, args.size) if args.calibrate else shipped(args.size)


def write(
    args: argparse.Namespace, restorer: "OneStepRestorer", pictures: "list[Square]", path: Path
) -> None:
    """Write what the flags ask for to `path`. Raises ValueError or OSError."""
    # JAX and the networks, which `--help` does without.
    import jax

    from osdhuman_jax.inference import standalone

    shape = (args.batch_size, args.size, args.size, 3)
    if path.suffix == ".npz":
        default = {"gpu": "cuda"}.get(jax.default_backend(), jax.default_backend())
        standalone.write_npz(restorer, shape, args.platform or default, path)
    elif args.int8:
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            exact = Path(folder, "exact.onnx")
            standalone.write_onnx(restorer, shape, exact)
            write_int8(exact, path, restorer.unet, pictures)
    else:
        standalone.write_onnx(restorer, shape, path)


def write_int8(exact: Path, path: Path, unet: "nnx.Module", pictures: "list[Square]") -> None:
    """Write an ONNX file with its U-Net in 8 bits; says how close it is. Raises ValueError."""
    from osdhuman_jax.inference.int8 import quantise

    decibels = quantise(exact, path, unet, pictures)
    print(f"int8 is {decibels:.1f} dB from fp32, at the worst of {len(pictures)} pictures")
    if decibels < CLOSE:
        print(f"export: warning: that is less than {CLOSE}; look at what it makes", file=sys.stderr)


def export(args: argparse.Namespace) -> list[Path]:
    """Make the files that the flags ask for; gives their paths. Raises ValueError or OSError."""
    restorer = load(args)
    # A folder that cannot be read is told of before a minute's conversion.
    pictures = calibration(args) if args.int8 else []
    args.output.parent.mkdir(parents=True, exist_ok=True)
    with staged_files(args.output) as made:
        write(args, restorer, pictures, made)
        names = {path.name for path in places(made) if path.exists()}
    written = [path for path in places(args.output) if path.name in names]
    # Weights of the file that was replaced.
    for path in places(args.output):
        if path not in written:
            path.unlink(missing_ok=True)
    return written


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    args = parse_args(argv)
    # The converter tells at length what it does without, and the quantiser what it would rather.
    for name in ("jax2onnx", "onnx_ir", "root"):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        made = export(args)
    except (ValueError, OSError) as error:
        print(f"export: {error}", file=sys.stderr)
        return 2
    for path in made:
        print(f"{path}: {path.stat().st_size / 2**20:.1f} MiB")
    return 0


def command() -> NoReturn:
    """Run the command as the whole process."""
    end("export", main)


if __name__ == "__main__":
    command()
