"""python -m curate.run --source coco=ANNOTATIONS,IMAGES --source folder=DIR ... --output OUT

Runs all stages, or one of them when it is named first:

    index crop score select report pack     in this order; each does only what is not done yet
    prune                                   remove the pictures of crops that are dropped
    forget IMAGE_ID ...                     take images out of everything below OUT
    gc                                      remove files of runs that were killed

What is not given is as in the last command on the same output, so that
`python -m curate.run select --output OUT --set select.musiq_min=65` is all it takes to try another
threshold.
"""

import argparse
import os
import shutil
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

from curate import config as settings
from curate import readers
from curate.config import ConfigError, CurateConfig
from curate.cropping import detect, litert
from curate.curation import STAGES, CurationPipeline
from curate.engine.engine import Engine
from curate.engine.ledger import ShardLedger
from curate.forget import check_known, forget
from curate.plan import CurationPlan, parse_sources, read_plan
from curate.publish.pack import check_container
from curate.publish.tags import check_model, read_tags
from curate.quality import scores
from curate.schema import InputError
from curate.selection.decisions import read_statistics
from curate.selection.manifest import ManifestError
from curate.selection.pool import SelectError
from curate.selection.reviews import read_review
from osdhuman_jax.cli import (
    CommandError,
    Parser,
    call_config,
    check_folder,
    check_input,
    some_path,
    some_text,
)
from osdhuman_jax.workers import EngineError, session

COMMANDS = ("run", *STAGES, "prune", "forget", "gc")
READING = ("run", "index", "crop")  # commands that read the pictures of sources
# Flags that stand for a setting which is often given.
SHORTHANDS = {
    "detector": "detect.kind",
    "detector_weights": "detect.weights",
    "body_weights": "body.weights",
    "iqa": "score.iqa",
    "iqa_weights": "score.weights",
    "niqe_params": "score.niqe_params",
    "persons_weights": "score.persons",
    "device": "score.device",
    "license_allow": "select.license_allow",
    "to": "pack.to",
    "codec": "pack.codec",
}


def load_profile(path: Path, profile: str | None) -> CurateConfig:
    """The settings that `get_config` of a Python file gives for a profile, or for none.

    Raises CommandError where the file gives nothing, ConfigError where it gives something else.
    """
    config = call_config(path, *([profile] if profile else []))
    if not isinstance(config, CurateConfig):
        raise ConfigError(f"--config {path}: its get_config() gives no curate.config.CurateConfig")
    return config


def make_plan(flags: argparse.Namespace) -> CurationPlan:
    """The plan of a command: its flags, else what the last command's plan says, else defaults.

    Raises InputError.
    """
    # The last command's plan is the default, and a profile goes over its settings.
    plan = read_plan(flags.output)
    if plan is None or flags.config or flags.profile:
        path = flags.config or Path(__file__).parent.parent / "configs" / "curate.py"
        config = load_profile(path, flags.profile)
        plan = CurationPlan(config, []) if plan is None else plan
        plan.config = config
    # Flags that stand for settings, then --set, which has the last word.
    for name, target in SHORTHANDS.items():
        if (value := getattr(flags, name)) is not None:
            settings.put(plan.config, target, value)
    if flags.detector in detect.RETIRED:
        raise ConfigError(detect.RETIRED_HELP)
    for assignment in flags.set:
        name, equals, value = assignment.partition("=")
        if not equals:
            raise ConfigError(f"--set {assignment}: write NAME=VALUE")
        settings.put(plan.config, name, value)
    settings.check(plan.config)
    settings.make_absolute(plan.config)
    # Inputs beside the settings; an empty value takes an earlier one back.
    plan.sources = parse_sources(flags.source) if flags.source else plan.sources
    for name in ("review", "stats"):
        if (value := getattr(flags, name)) is not None:
            setattr(plan, name, settings.absolute(value))
    # Tags are of a file or of a model: one takes the other's place.
    if flags.tags is not None or flags.tagger is not None:
        plan.tags = settings.absolute(flags.tags or "")
        plan.tagger = settings.absolute(flags.tagger or "")
    if flags.exclude is not None:
        plan.exclude = [os.path.abspath(path) for path in flags.exclude if path]
    check_plan(plan, flags.command)
    return plan


def check_plan(plan: CurationPlan, command: str) -> None:
    """Raises InputError on whatever can be known to be wrong before a command runs."""
    # Sources and what the stages need, such as weights.
    if not plan.sources:
        raise ConfigError("no sources: give --source KIND=PATH,... once for each")
    # What comes after cropping is of crops: the pictures may be elsewhere by then.
    if command in READING:
        for source in plan.sources:
            readers.check(source)
    detect.check(plan.config.detect, any(map(readers.needs_detector, plan.sources)))
    if wheel := plan.config.body.weights:
        litert.check(Path(wheel))
    scores.check(plan.config.score)
    check_container(plan.config.pack)
    # Files that are read late are looked for now, and those of the user's own making are read.
    for name in ("review", "stats", "tags"):
        if (path := getattr(plan, name)) and not os.path.isfile(path):
            raise ConfigError(f"--{name} {path}: no such file (--{name}= for none)")
    for path in plan.exclude:
        if not os.path.isdir(path):
            raise ConfigError(f"--exclude {path}: no such folder (--exclude= for none)")
    if plan.tagger:
        check_model(Path(plan.tagger))
    if plan.review:
        read_review(Path(plan.review))
    if plan.stats:
        read_statistics(Path(plan.stats))
    if plan.tags:
        read_tags(Path(plan.tags))


def one_flag(argv: Sequence[str]) -> list[str]:
    """The words of a command line, with `--tags ram MODEL` as the one flag `--tagger=MODEL`.

    argparse has no flag of one word or two: it would take a command that follows for the second.
    """
    words = list(argv)
    for at in range(len(words) - 2):
        if words[at : at + 2] == ["--tags", "ram"] and not words[at + 2].startswith("-"):
            return [*words[:at], f"--tagger={words[at + 2]}", *words[at + 3 :]]
    return words


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; `argv` is that of the process if None."""
    # The module's docstring is the help text, with its lines as they are.
    plain = argparse.RawDescriptionHelpFormatter
    parser = Parser("python -m curate.run", __doc__ or "", formatter_class=plain)
    parser.add_argument("command", nargs="?", default="run", choices=COMMANDS)
    parser.add_argument("names", nargs="*", metavar="IMAGE_ID", help="of `forget`")
    parser.add_argument(
        "--output", type=some_path, required=True, help="folder of all that is made"
    )
    # Where pictures come from, and the settings.
    source = "[NAME:]KIND[@EXIF]=PATH[,PATH]"
    kinds = f"once for each; KIND is one of {', '.join(readers.SOURCE_FORMATS)}"
    parser.add_argument("--source", action="append", default=[], metavar=source, help=kinds)
    parser.add_argument("--config", type=some_path, help="default: configs/curate.py")
    parser.add_argument("--profile", help="default, strict, paper, test or diffbody")
    setting = "a setting of curate/config.py, as select.musiq_min=65"
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help=setting)
    for name, target in SHORTHANDS.items():
        parser.add_argument(f"--{name}", help=f"the same as --set {target}=...")
    # Decisions and other sets.
    parser.add_argument("--review", help="csv of a review page's decisions; '' = none")
    parser.add_argument(
        "--stats", type=some_text, help="stats.json of the run whose pool is the measure"
    )
    parser.add_argument(
        "--exclude",
        type=some_text,
        action="append",
        help="folder of pictures, or output of another run, to have no photograph in common with",
    )
    tags = "for the report: Parquet with crop_id and tags, or the words `ram MODEL`, a model folder"
    parser.add_argument("--tags", help=f"{tags}; '' = none")
    parser.add_argument("--tagger", type=some_text, help=argparse.SUPPRESS)
    # How it runs, which changes no byte of the result.
    parser.add_argument("--engine", choices=("local", "ray"), default="local")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="0 = no processes")
    parser.add_argument("--verify", action="store_true", help="compare digests of all that is done")
    flags = parser.parse_args(one_flag(sys.argv[1:] if argv is None else argv))
    # Ray's workers run in another folder, so the path must be absolute.
    flags.output = flags.output.absolute()
    if flags.names and flags.command != "forget":
        parser.error(f"{flags.command} takes no names")
    if flags.workers < 0:
        parser.error(f"--workers {flags.workers} is negative")
    return flags


@contextmanager
def folder_for(flags: argparse.Namespace) -> Iterator[CurationPlan]:
    """Gives the plan, and makes the output folder.

    A folder that was made is removed again if the block raises InputError before anything is done:
    a wrong flag leaves nothing behind.
    """
    check_folder("output", flags.output)
    try:
        made = [path for path in (flags.output, *flags.output.parents) if not path.exists()]
        plan = make_plan(flags)
        flags.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CommandError(f"{error}; name what can be read, and an --output to write to") from None
    try:
        yield plan
    except InputError:
        if made and not (flags.output / "done").exists():
            shutil.rmtree(flags.output)
            for folder in made[1:]:
                folder.rmdir()
        raise


def execute(flags: argparse.Namespace) -> None:
    """Do what the command line says. Raises what `main` turns into exit statuses."""
    # `gc` needs no plan and no sources.
    if flags.command == "gc":
        check_input("output", flags.output)
        freed = ShardLedger(flags.output).collect_garbage()
        print(f"removed {freed / 1e6:,.1f} MB")
        return
    with folder_for(flags) as plan:
        carry_out(plan, flags)


def carry_out(plan: CurationPlan, flags: argparse.Namespace) -> None:
    """Run the stages that the command line names, after `forget` those that it made stale."""
    ShardLedger(flags.output).clean()
    engine = Engine(flags.output, flags.engine, flags.workers, plan.config.limit, flags.verify)
    if flags.command == "forget":
        if not flags.names:
            raise ConfigError("forget: name the images (see image_id in the manifest)")
        # The plan has the names before anything is touched, so that the same command can go on.
        check_known(ShardLedger(flags.output), plan.forgotten, flags.names)
        plan.forgotten = sorted({*plan.forgotten, *flags.names})
        plan.write(flags.output)
        forget(engine, plan, flags.names)
        made = {"select": "select", "report": "report", "pack": "packed"}
        stages = [stage for stage, folder in made.items() if (flags.output / folder).exists()]
    else:
        stages = list(STAGES) if flags.command == "run" else [flags.command]
        plan.write(flags.output)
    # One session of Ray for all stages, since starting one takes a while.
    pipeline = CurationPipeline(plan, engine)
    with session(flags.workers) if flags.engine == "ray" else nullcontext():
        for stage in stages:
            getattr(pipeline, stage)()
    if pipeline.unranked:
        raise SelectError(pipeline.unranked)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns the exit status: 0 done, 1 stopped by a failure (what is done stays done), 2 bad input,
    130 interrupted.
    """
    flags = parse(argv)
    # A service that ends a job sends SIGTERM: what cleans up after Ctrl-C serves both.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        execute(flags)
    except (InputError, CommandError) as error:
        print(f"curate: {error}", file=sys.stderr)
        return 2
    except (EngineError, ManifestError, OSError) as error:
        print(f"curate: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("curate: stopped; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
