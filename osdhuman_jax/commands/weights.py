"""Models in, looked at, and out: osdhuman weights get|import|info|export|push

`get` fetches published weights and makes a model folder of them, `import` makes one of others'
files that are there, `info` says what one is, `export` writes what PyTorch's libraries load, `push`
puts one on the Hugging Face hub with a model card. Exit status: 0 done, 2 bad input (one line), 130
interrupted.
"""

import argparse
import sys
from pathlib import Path
from typing import NoReturn

from osdhuman_jax.cli import CommandError, Parser, end, some_path, some_text
from osdhuman_jax.config import Json
from osdhuman_jax.weights.choices import CONDITIONS, FROM_UNET, LAYOUTS, PACKAGE, PROMPTS, PUBLISHED


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = Parser("osdhuman weights", __doc__ or "")
    commands = top.add_subparsers(dest="command", required=True)

    # Models in.
    _get_flags(commands.add_parser("get", help="published weights, fetched -> model folder"))
    make = commands.add_parser(
        "import", help="Stable Diffusion 2.1-base and RAM, or Real-ESRGAN -> model folder"
    )
    _import_flags(make)

    # Models looked at, and out.
    tell = commands.add_parser("info", help="say what a model folder is")
    tell.add_argument("folder", type=some_path)
    give = commands.add_parser("export", help="model folder -> what PyTorch's libraries load")
    give.add_argument("folder", type=some_path)
    give.add_argument("--to", required=True, choices=LAYOUTS)
    give.add_argument("--output", required=True, type=some_path)
    push = commands.add_parser("push", help="model folder -> Hugging Face hub, with a model card")
    push.add_argument("folder", type=some_path)
    push.add_argument("name", type=some_text, help="repository, ORG/NAME; made if it is not there")
    push.add_argument("--private", action="store_true", help="make it for its owners alone")
    push.add_argument("--dry-run", action="store_true", help="say what would be pushed; no more")
    return top


def _get_flags(parser: argparse.ArgumentParser) -> None:
    """Whose weights are fetched, and where they go."""
    parser.add_argument("model", choices=PUBLISHED, help="whose published weights")
    parser.add_argument("--output", required=True, type=some_path, help="model folder to make")
    parser.add_argument(
        "--from", dest="found_in", type=some_path, help="folder of files that are there already"
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would be fetched; no more")
    parser.add_argument("--yes", action="store_true", help="agree to the list without being asked")
    parser.add_argument("--homes", type=some_path, help="table of homes; default: the package's")


def _import_flags(make: argparse.ArgumentParser) -> None:
    """Whose files become a model folder, and where it goes."""
    make.add_argument(
        "--sd", type=some_text, help="diffusers folder, single file or hub repository"
    )
    make.add_argument("--ram", type=some_text, help="ram_swin_large_14m.pth")
    make.add_argument(
        "--cleaner",
        type=some_text,
        help="RealESRGAN_x4plus.pth, a SwinIR (DiffBIR's general_swinir_v1.ckpt), .safetensors, "
        f"ncnn's .param or .bin, or {PACKAGE}; alone, or as a part with --sd and --ram",
    )
    make.add_argument(
        "--haodiff",
        type=some_text,
        help="folder of img_encoder_weights.pth and pytorch_lora_weights.safetensors; with --sd",
    )
    _part_flags(make)
    make.add_argument(
        "--generator", type=some_text, help="osediff.pkl, a model folder or a workdir of train.py"
    )
    make.add_argument(
        "--osdhuman",
        type=some_text,
        help="folder of OSDHuman's own files (LoRA and HFIE), instead of --generator",
    )
    make.add_argument(
        "--hfie_heads", type=int, help="of --osdhuman, where its files do not say; 16 unless given"
    )
    make.add_argument(
        "--lora_alpha",
        type=float,
        help="of --osdhuman, where its files do not say (docs/weights.md)",
    )
    # Where it goes.
    make.add_argument("--output", required=True, type=some_path)
    make.add_argument("--seed", type=int, default=0, help="of HFIE, where no generator brings it")
    make.add_argument("--overwrite", action="store_true")


def _part_flags(make: argparse.ArgumentParser) -> None:
    """What is imported beside the restorer, and where its prompt comes from."""
    make.add_argument("--dape", type=some_text, help="DAPE.pth: the tagger for degraded pictures")
    make.add_argument(
        "--lpips",
        type=some_text,
        nargs="+",
        default=[],
        help="vgg16-397923af.pth and lpips' vgg.pth",
    )
    make.add_argument("--dists", type=some_text, help="DISTS-pytorch's weights.pt; with --lpips")
    make.add_argument(
        "--clip", type=some_text, help="text encoder: as --sd, or a text_encoder folder"
    )
    make.add_argument(
        "--tags", type=some_text, help="folder of ram_tag_list.txt and ram_tag_list_threshold.txt"
    )
    make.add_argument(
        "--prompt", default="", choices=PROMPTS, help="default: the generator's, hfie"
    )
    make.add_argument(
        "--prompt_file", type=some_text, help=".npy of tokens (N, width), instead of an extractor"
    )
    make.add_argument(
        "--control",
        type=some_text,
        help="DiffBIR's v1_general.pth or v2.pth, a ControlNet of diffusers whose conditions are "
        f"latents, or {FROM_UNET}: begin one with the U-Net's weights",
    )
    make.add_argument(
        "--control_without",
        choices=CONDITIONS,
        nargs="+",
        default=[],
        help="conditions that the ControlNet is not to have",
    )
    make.add_argument(
        "--pose",
        type=some_path,
        help="with --control: wheel of mediapipe 0.10, or folder of BlazePose's two .tflite files",
    )
    make.add_argument(
        "--parser",
        type=some_text,
        help="with --control: model folder of a run of kind parts, for guidance by parts",
    )


def run(arguments: argparse.Namespace) -> str:
    """Do what one command line asks; returns what it has to say. Raises ValueError or OSError."""
    options = {k: v for k, v in vars(arguments).items() if k != "command"}
    if arguments.command == "get":
        from osdhuman_jax.commands.get import get_model  # with httpx, which `--help` does without

        get_model(**options)
        return ""
    if arguments.command == "push":
        from osdhuman_jax.weights.hub import push_model  # with huggingface_hub, likewise

        return push_model(**options)
    # With JAX and Flax, which `--help` does without.
    from osdhuman_jax.weights.exporter import export_model
    from osdhuman_jax.weights.info import describe

    if arguments.command == "export":
        export_model(**options)
        return ""
    if arguments.command == "import":
        run_import(options)
    return describe(arguments.output if arguments.command == "import" else arguments.folder)


# What goes with --cleaner where it is a part; DiffBody has no generator of one step.
BESIDE_CLEANER = ("sd", "ram", "clip", "lpips", "seed")
BESIDE_CONTROL = (
    *(*BESIDE_CLEANER, "dape", "tags", "prompt"),
    *("control", "control_without", "pose", "parser"),
)


def run_import(options: Json) -> None:
    """Import what was named. Raises a ValueError on too little, or what does not go together."""
    from osdhuman_jax.training.checkpoint import load_generator
    from osdhuman_jax.weights.haodiff import import_haodiff
    from osdhuman_jax.weights.importer import import_cleaner, import_model
    from osdhuman_jax.weights.osdhuman_files import read_osdhuman

    # A cleaner is a network of its own, or a part of what DiffBody restores with.
    cleaner = options["cleaner"]
    beside = [k for k, v in options.items() if v and k not in ("cleaner", "output", "overwrite")]
    if cleaner and not beside:
        import_cleaner(cleaner, options["output"], overwrite=options["overwrite"])
        return
    allowed = BESIDE_CONTROL if options["control"] else BESIDE_CLEANER
    if cleaner and (others := [k for k in beside if k not in allowed]):
        text = f"--cleaner goes alone, without --{', --'.join(others)}"
        raise CommandError(f"{text}, or with --sd and --ram")
    # HAODiff brings its own prompts, or begins with random ones.
    sd, haodiff, dists = options["sd"], options.pop("haodiff"), options.pop("dists")
    if haodiff or (options["prompt"] == "dual" and not options["ram"]):
        own = ("sd", "lpips", "seed", "prompt", "output", "overwrite")
        others = [k for k, v in options.items() if v and k not in own]
        if others or not options["sd"]:
            also = f", without --{', --'.join(others)}" if others else ""
            raise CommandError(f"--haodiff and --prompt dual go with --sd{also}")
        options = {name: options[name] for name in own if name not in ("sd", "prompt")}
        import_haodiff(sd, haodiff, options.pop("output"), dists=dists, **options)
        return
    if dists:
        raise CommandError(
            "--dists is for the training of HAODiff: with --haodiff or --prompt dual"
        )
    _make_diffbody(options)
    if not (sd and (options["ram"] or options["prompt"] == "text")):
        raise CommandError("import needs --sd and --ram, --sd and --haodiff, or --cleaner")
    # OSDHuman's own files are a generator, of which two numbers may have to be told.
    osdhuman = options.pop("osdhuman")
    told = {name: options.pop(name) for name in ("hfie_heads", "lora_alpha")}
    if osdhuman and options["generator"]:
        raise CommandError("--osdhuman is a generator itself: it goes without --generator")
    if not osdhuman and (given := [name for name, value in told.items() if value is not None]):
        raise CommandError(f"--{given[0]} goes with --osdhuman")
    if osdhuman:
        options["generator"] = read_osdhuman(osdhuman, **told)
    # A run's generator lies in a checkpoint, which Orbax reads; all else are files of weights.
    generator = options["generator"]
    if isinstance(generator, str) and (Path(generator) / "checkpoints").is_dir():
        options["generator"] = load_generator(generator)
    import_model(**options)


def _make_diffbody(options: Json) -> None:
    """What DiffBody has beside a restorer: files are looked at, and options become what they are.

    Raises a ValueError on what does not go together, or a file that is another.
    """
    from osdhuman_jax.inference.poses import checked_files
    from osdhuman_jax.weights.controls import local_control

    control, without = options.pop("control"), options.pop("control_without")
    pose, prompt = options.pop("pose"), options["prompt"]
    given = (("--control_without", without), ("--pose", pose), ("--parser", options["parser"]))
    given += (("--prompt text", prompt == "text"),)
    if not control:
        for flag, is_given in given:
            if is_given:
                raise CommandError(f"{flag} goes with --control")
        return
    if prompt not in ("", "hfie", "text"):
        raise CommandError(f"--control goes with --prompt hfie or text, not {prompt}")
    if prompt == "text" and not options["cleaner"]:
        raise CommandError("--prompt text goes with --control and --cleaner")
    # A ControlNet is looked at here, and made once the U-Net is known.
    options["control"] = local_control(control, without)
    options["pose"] = checked_files(pose) if pose else None


def main(argv: list[str] | None = None) -> int:
    """Exit code: 0, or 2 with one line on stderr."""
    arguments = parser().parse_args(argv)
    # What weights, configs, checkpoints and flags have wrong are ValueErrors, each in one line.
    try:
        said = run(arguments)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if said:
        print(said)
    return 0


def command() -> NoReturn:
    """Run the command as the whole process."""
    end("weights", main)


if __name__ == "__main__":
    command()
