"""Models in, looked at, and out: osdhuman weights get|import|info|export

`get` fetches published weights and makes a model folder of them, `import` makes one of others'
files that are there, `info` says what one is, `export` writes what PyTorch's libraries load. Exit
status: 0 done, 2 bad input (one line), 130 interrupted.
"""

import argparse
import sys
from pathlib import Path
from typing import Any, NoReturn

from osdhuman_jax.cli import CommandError, Parser, end, some_path, some_text
from osdhuman_jax.commands.get import add_flags, get_model
from osdhuman_jax.config import ConfigError
from osdhuman_jax.training.checkpoint import CheckpointError, load_generator
from osdhuman_jax.weights.cleaners import PACKAGE
from osdhuman_jax.weights.exporter import FORMATS, export_model
from osdhuman_jax.weights.extractors import KINDS
from osdhuman_jax.weights.importer import import_cleaner, import_model
from osdhuman_jax.weights.info import describe
from osdhuman_jax.weights.torch_files import WeightsError


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = Parser("osdhuman weights", __doc__ or "")
    commands = top.add_subparsers(dest="command", required=True)

    # Models in.
    add_flags(commands.add_parser("get", help="published weights, fetched -> model folder"))
    make = commands.add_parser(
        "import", help="Stable Diffusion 2.1-base and RAM, or Real-ESRGAN -> model folder"
    )
    make.add_argument(
        "--sd", type=some_text, help="diffusers folder, single file or hub repository"
    )
    make.add_argument("--ram", type=some_text, help="ram_swin_large_14m.pth")
    make.add_argument(
        "--cleaner",
        type=some_text,
        help=f"RealESRGAN_x4plus.pth, .safetensors, ncnn's .param or .bin, or {PACKAGE}; alone",
    )
    make.add_argument("--dape", type=some_text, help="DAPE.pth: the tagger for degraded pictures")
    make.add_argument(
        "--lpips",
        type=some_text,
        nargs="+",
        default=[],
        help="vgg16-397923af.pth and lpips' vgg.pth",
    )
    make.add_argument(
        "--clip", type=some_text, help="text encoder: as --sd, or a text_encoder folder"
    )
    make.add_argument(
        "--tags", type=some_text, help="folder of ram_tag_list.txt and ram_tag_list_threshold.txt"
    )
    make.add_argument("--prompt", default="", choices=KINDS, help="default: the generator's, hfie")
    make.add_argument(
        "--prompt_file", type=some_text, help=".npy of tokens (N, width), instead of an extractor"
    )
    make.add_argument(
        "--generator", type=some_text, help="osediff.pkl, a model folder or a workdir of train.py"
    )
    make.add_argument("--output", required=True, type=some_path)
    make.add_argument("--seed", type=int, default=0, help="of HFIE, where no generator brings it")
    make.add_argument("--overwrite", action="store_true")

    # Models looked at, and out.
    tell = commands.add_parser("info", help="say what a model folder is")
    tell.add_argument("folder", type=some_path)
    give = commands.add_parser("export", help="model folder -> what PyTorch's libraries load")
    give.add_argument("folder", type=some_path)
    give.add_argument("--to", required=True, choices=tuple(FORMATS))
    give.add_argument("--output", required=True, type=some_path)
    return top


def run(arguments: argparse.Namespace) -> None:
    """Do what one command line asks. Raises WeightsError, ConfigError or CheckpointError."""
    options = {k: v for k, v in vars(arguments).items() if k != "command"}
    if arguments.command == "get":
        get_model(**options)
        return
    if arguments.command == "export":
        export_model(**options)
        return
    if arguments.command == "import":
        run_import(options)
    print(describe(arguments.output if arguments.command == "import" else arguments.folder))


def run_import(options: dict[str, Any]) -> None:
    """Import what was named. Raises WeightsError on too little, or on what does not go together."""
    cleaner = options.pop("cleaner")
    if cleaner:
        others = [k for k, v in options.items() if v and k not in ("output", "overwrite")]
        if others:
            raise WeightsError(f"--cleaner goes alone, without --{', --'.join(others)}")
        import_cleaner(cleaner, options["output"], overwrite=options["overwrite"])
        return
    if not (options["sd"] and options["ram"]):
        raise WeightsError("import needs --sd and --ram, or --cleaner")
    # A run's generator lies in a checkpoint, which Orbax reads; all else are files of weights.
    generator = options["generator"]
    if generator and (Path(generator) / "checkpoints").is_dir():
        options["generator"] = load_generator(generator)
    import_model(**options)


def main(argv: list[str] | None = None) -> int:
    """Exit code: 0, or 2 with one line on stderr."""
    arguments = parser().parse_args(argv)
    try:
        run(arguments)
    except (WeightsError, ConfigError, CheckpointError, CommandError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def command() -> NoReturn:
    """Run the command as the whole process."""
    end("weights", main)


if __name__ == "__main__":
    command()
