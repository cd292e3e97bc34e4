"""python -m curate.run --source coco=ANNOTATIONS,IMAGES --source folder=DIR ... --output OUT

Runs all stages, or one of them when it is named first:

    index crop score select report pack     in this order; each does only what is not done yet
    forget IMAGE_ID ...                     take images out of everything below OUT
    gc                                      remove files of runs that were killed

What is not given is as in the last command on the same output, so that
`python -m curate.run select --output OUT --set select.musiq_min=65` is all it takes to try another
threshold.
"""

import argparse
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from curate import config as settings
from curate import readers
from curate.config import ConfigError, CurateConfig
from curate.cropping import detect
from curate.cropping.index import IndexJob, crop_shards, survey_line
from curate.cropping.job import CropJob, index_file
from curate.engine.cluster import session
from curate.engine.engine import Engine
from curate.engine.ledger import ShardLedger
from curate.engine.parquet import open_parquet, read_rows
from curate.engine.progress import Screen
from curate.engine.worker import EngineError
from curate.forget import check_known, forget
from curate.plan import CurationPlan, parse_sources, read_plan
from curate.publish.pack import check_container, pack
from curate.quality import scores
from curate.quality.score_job import ScoreJob
from curate.schema import InputError
from curate.selection.barred import barred_files
from curate.selection.decisions import read_statistics
from curate.selection.manifest import (
    ManifestError,
    check_counts,
    funnel_text,
    funnels,
    read_manifest,
)
from curate.selection.pool import SelectError
from curate.selection.reviews import read_review
from curate.selection.select_job import SelectJob
from osdhuman_jax.cli import (
    CommandError,
    Parser,
    call_config,
    check_folder,
    check_input,
    some_path,
    some_text,
)
from osdhuman_jax.filenames import spelled

STAGES = ("index", "crop", "score", "select", "report", "pack")
COMMANDS = ("run", *STAGES, "forget", "gc")
PAPER_METRICS = ("brisque", "niqe", "clipiqa", "maniqa", "musiq")  # Table 1
SHORTHANDS = {  # shorthands of settings
    "detector": "detect.kind",
    "detector_weights": "detect.weights",
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
    """`get_config` of a Python file, given the profile. Raises CommandError or ConfigError."""
    config = call_config(path, *([profile] if profile else []))
    if not isinstance(config, CurateConfig):
        raise ConfigError(f"--config {path}: its get_config() gives no curate.config.CurateConfig")
    return config


def make_plan(flags: argparse.Namespace) -> CurationPlan:
    """Flags over the last command's plan over the defaults. Raises InputError."""
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
    for assignment in flags.set:
        name, equals, value = assignment.partition("=")
        if not equals:
            raise ConfigError(f"--set {assignment}: write NAME=VALUE")
        settings.put(plan.config, name, value)
    settings.check(plan.config)
    settings.make_absolute(plan.config)
    # Inputs beside the settings; an empty value takes an earlier one back.
    plan.sources = parse_sources(flags.source) if flags.source else plan.sources
    for name in ("review", "stats", "tags"):
        if (value := getattr(flags, name)) is not None:
            setattr(plan, name, settings.absolute(value))
    if flags.exclude is not None:
        plan.exclude = [os.path.abspath(path) for path in flags.exclude if path]
    check_plan(plan)
    return plan


def check_plan(plan: CurationPlan) -> None:
    """Whatever can be known to be wrong before anything runs. Raises InputError."""
    if not plan.sources:
        raise ConfigError("no sources: give --source KIND=PATH,... once for each")
    for source in plan.sources:
        readers.check(source)
    detect.check(plan.config.detect, any(map(readers.needs_detector, plan.sources)))
    scores.check(plan.config.score)
    check_container(plan.config.pack)
    for name in ("review", "stats", "tags"):
        if (path := getattr(plan, name)) and not os.path.isfile(path):
            raise ConfigError(f"--{name} {path}: no such file (--{name}= for none)")
    for path in plan.exclude:
        if not os.path.isdir(path):
            raise ConfigError(f"--exclude {path}: no such folder (--exclude= for none)")
    if plan.review:
        read_review(Path(plan.review))
    if plan.stats:
        read_statistics(Path(plan.stats))


class CurationPipeline:
    """The stages over one output folder."""

    def __init__(self, plan: CurationPlan, engine: Engine) -> None:
        self.plan, self.engine = plan, engine
        self.ledger = ShardLedger(engine.root)
        # Becomes the reason, if the selection can rank nothing.
        self.unranked = ""

    def index(self) -> None:
        """Labels to rows; prints what each source has."""
        per_shard = self.plan.config.shard_images
        job = IndexJob(tuple(self.plan.sources), per_shard, tuple(self.plan.forgotten))
        with Screen("index", None) as screen:
            self.engine.run(job, [source.name for source in self.plan.sources], screen)
        for source in self.plan.sources:
            marker = self.ledger.marker("index", source.name)
            if marker is not None:
                print(survey_line(source.name, marker["facts"]))

    def crop(self) -> None:
        """Pictures to crops."""
        if self.plan.config.detect.kind == "boxes" and (unlabelled := self.unlabelled()):
            detect.check_listed(self.plan.config.detect, unlabelled)
        job = CropJob(self.plan.config, tuple(self.plan.sources))
        self._sharded(job, lambda name: rows_of(index_file(self.ledger, name)))

    def unlabelled(self) -> set[str]:
        """Names of the pictures that need a detector, or would if they were not forgotten."""
        sources = [source for source in self.plan.sources if readers.needs_detector(source)]
        files = (index_file(self.ledger, shard) for shard in crop_shards(self.ledger, sources))
        starts = tuple(f"{source.name}/" for source in sources)
        forgotten = {name for name in self.plan.forgotten if name.startswith(starts)}
        return forgotten | {row["image_id"] for f in files for row in read_rows(f, ["image_id"])}

    def score(self) -> None:
        """Crops to numbers."""
        for group in scores.groups(self.plan.config.score):
            crops = lambda name: rows_of(self.ledger.output("crop", name, "crops.parquet"))  # noqa: E731
            self._sharded(ScoreJob(group, self.plan.config.score), crops, "crops")

    def _sharded(self, job: Any, size: Callable[[str], int], unit: str = "images") -> None:
        shards = crop_shards(self.ledger, self.plan.sources)
        left = sum(size(name) for name in self.engine.todo(job, shards))
        with Screen(job.name, left, unit) as screen:
            self.engine.run(job, shards, screen)

    def select(self) -> None:
        """Numbers to decisions; prints the funnel."""
        plan = self.plan
        shards = tuple(crop_shards(self.ledger, plan.sources))
        barred = tuple(map(str, barred_files(self.engine, plan.exclude)))
        job = SelectJob(plan.config, shards, plan.review, plan.stats, barred, bool(plan.forgotten))
        self.engine.here().run(job, ["all"])
        table = read_manifest(self.ledger, ["dataset", "image_id", "box_index", "reason"])
        check_counts(table)
        print(funnel_text(funnels(table)))
        facts = json.loads(self.ledger.output("select", "all", "stats.json").read_text())
        print("\n".join(notes(facts, [s.name for s in plan.sources if readers.needs_detector(s)])))
        self.unranked = facts.get("unranked", "")

    def pack(self) -> None:
        """Decisions to files for training."""
        config = self.plan.config
        with Screen("pack", None, "crops") as screen:
            sizes = pack(self.engine, config.pack, config.split.seed, screen)
        for split, size in sizes.items():
            print(f"{split}: {size:,} crops in {spelled(self.engine.root / 'packed' / split)}")
        if set(sizes) == {"val"}:
            print(f"train: none left, split.val is {config.split.val:,} (--set split.val=N)")

    def report(self) -> None:
        """Tables and figures."""
        # Matplotlib is slow to import, and worker processes do not need it.
        from curate.publish.report import write_report

        write_report(self.ledger, self.plan.tags)
        print(f"report: {spelled(self.engine.root / 'report' / 'report.md')}")


def notes(facts: dict[str, Any], detected: Sequence[str]) -> list[str]:
    """What a selection rests on and what it does without, a line each.

    Args:
        facts: stats.json.
        detected: names of the sources that have no labels.
    """
    settings = facts["settings"]
    # Metrics, and which of the paper's are not among them.
    missing = [name for name in PAPER_METRICS if name not in facts["metrics"]]
    lines = [f"scores: {', '.join(facts['metrics'])}"]
    if missing:
        lines += [f"not computed: {', '.join(missing)} (--iqa pyiqa --iqa_weights DIR)"]
    # The detector, where a source needs one.
    kind = settings["detect"]["kind"] + (
        ", a fallback" if settings["detect"]["kind"] == "hog" else ""
    )
    lines += [
        f"detector: {kind}, of {', '.join(detected)}" if detected else "detector: none needed"
    ]
    # Thresholds, which the paper does not publish.
    limits = ", ".join(f"{name} {limit:.4g}" for name, limit in facts["thresholds"].items())
    lines += [f"thresholds: {limits or 'none, rank only'}"]
    if limits and (share := settings["select"]["calibrate"]):
        bounds = {k: v for k, v in settings["select"].items() if k.endswith(("_min", "_max"))}
        usual = ", ".join(f"{name[:-4]} {bound:g}" for name, bound in bounds.items())
        lines += [f"found to keep {share:.1%} of the top share, in place of: {usual}"]
    if "blur_min" in facts:
        lines += [f"blur threshold of the sources: {facts['blur_min']:.1f}"]
    # What went wrong without being an error.
    if "unranked" in facts:
        lines += [f"nothing is ranked: {facts['unranked']}"]
    if "review_unknown" in facts:
        lines += [f"review: {facts['review_unknown']} crops of it are not there (any more)"]
    return lines


def rows_of(path: Path) -> int:
    """Rows of a Parquet file, from its footer."""
    return pq.ParquetFile(open_parquet(path)).metadata.num_rows


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Command line."""
    plain = argparse.RawDescriptionHelpFormatter
    parser = Parser("python -m curate.run", __doc__ or "", formatter_class=plain)
    parser.add_argument("command", nargs="?", default="run", choices=COMMANDS)
    parser.add_argument("names", nargs="*", metavar="IMAGE_ID", help="of `forget`")
    parser.add_argument(
        "--output", type=some_path, required=True, help="folder of all that is made"
    )
    # Where pictures come from, and the settings.
    source = "[NAME:]KIND=PATH[,PATH]"
    kinds = f"once for each; KIND is one of {', '.join(readers.SOURCE_FORMATS)}"
    parser.add_argument("--source", action="append", default=[], metavar=source, help=kinds)
    parser.add_argument("--config", type=some_path, help="default: configs/curate.py")
    parser.add_argument("--profile", help="default, strict, paper or test")
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
    parser.add_argument(
        "--tags", type=some_text, help="Parquet with crop_id and tags, for the report"
    )
    # How it runs, which changes no byte of the result.
    parser.add_argument("--engine", choices=("local", "ray"), default="local")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="0 = no processes")
    parser.add_argument("--verify", action="store_true", help="compare digests of all that is done")
    flags = parser.parse_args(argv)
    # Ray's workers run in another folder, so the path must be absolute.
    flags.output = flags.output.absolute()
    if flags.names and flags.command != "forget":
        parser.error(f"{flags.command} takes no names")
    if flags.workers < 0:
        parser.error(f"--workers {flags.workers} is negative")
    return flags


@contextmanager
def folder_for(flags: argparse.Namespace) -> Iterator[CurationPlan]:
    """The plan, and OUT made; one that was made goes again where the first input is at fault."""
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
    """Do what the command line says."""
    if flags.command == "gc":
        check_input("output", flags.output)
        freed = ShardLedger(flags.output).collect_garbage()
        print(f"removed {freed / 1e6:,.1f} MB")
        return
    with folder_for(flags) as plan:
        carry_out(plan, flags)


def carry_out(plan: CurationPlan, flags: argparse.Namespace) -> None:
    """Run the stages that the command line names."""
    ShardLedger(flags.output).clean()
    engine = Engine(flags.output, flags.engine, flags.workers, plan.config.limit, flags.verify)
    if flags.command == "forget":
        if not flags.names:
            raise ConfigError("forget: name the images (see image_id in the manifest)")
        check_known(ShardLedger(flags.output), plan.forgotten, flags.names)
        plan.forgotten = sorted({*plan.forgotten, *flags.names})
        plan.write(flags.output)
        forget(engine, plan, flags.names)
        made = {"select": "select", "report": "report", "pack": "packed"}
        stages = [stage for stage, folder in made.items() if (flags.output / folder).exists()]
    else:
        stages = list(STAGES) if flags.command == "run" else [flags.command]
        plan.write(flags.output)
    pipeline = CurationPipeline(plan, engine)
    with session(flags.workers) if flags.engine == "ray" else nullcontext():
        for stage in stages:
            getattr(pipeline, stage)()
    if pipeline.unranked:
        raise SelectError(pipeline.unranked)


def main(argv: Sequence[str] | None = None) -> int:
    """0 done; 1 stopped by a failure, what is done stays done; 2 bad input; 130 interrupted."""
    flags = parse(argv)
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
