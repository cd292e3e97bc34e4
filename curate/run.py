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
import importlib.util
import json
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from curate import config as settings
from curate import detect, readers, scores
from curate.barred import barred_files
from curate.cluster import session
from curate.config import ConfigError, CurateConfig
from curate.crop import Crop, index_file
from curate.engine import Engine, EngineError
from curate.forget import check as check_known
from curate.forget import forget
from curate.jobs import Index, Score, Source, crop_shards, survey_line
from curate.ledger import Ledger
from curate.manifest import ManifestError, check, funnel_text, funnels, read_manifest
from curate.pack import check as check_container
from curate.pack import pack
from curate.pool import SelectError
from curate.progress import Screen
from curate.schema import InputError
from curate.selection import Select, read_review, read_statistics
from curate.tables import read_rows
from osdhuman_jax.disk import write_json

STAGES = ("index", "crop", "score", "select", "report", "pack")
COMMANDS = ("run", *STAGES, "forget", "gc")
PAPER_METRICS = ("brisque", "niqe", "clipiqa", "maniqa", "musiq")  # Table 1
NAME = re.compile(r"[A-Za-z0-9][\w.-]*", re.ASCII)  # of a source: part of file names
RESERVED = ("all", "kept")  # columns and rows of the report beside the sources'
FLAGS = {  # shorthands of settings
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


@dataclass
class Plan:
    """What is run: kept as OUT/plan.json."""

    config: CurateConfig
    sources: list[Source]
    review: str = ""
    stats: str = ""
    exclude: list[str] = field(default_factory=list)
    tags: str = ""
    forgotten: list[str] = field(default_factory=list)

    def write(self, root: Path) -> None:
        """Keep it for later commands."""
        write_json(root / "plan.json", asdict(self))


def read_plan(root: Path) -> Plan | None:
    """The last command's plan, if there was one. Raises ConfigError if it is damaged."""
    path = root / "plan.json"
    if not path.exists():
        return None
    try:
        values = json.loads(path.read_text())
        values["config"] = settings.from_dict(values["config"])
        values["sources"] = [Source(**{**s, "paths": tuple(s["paths"])}) for s in values["sources"]]
        return Plan(**values)
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"{path}: damaged ({error}); give all flags again") from None


def parse_sources(texts: Sequence[str]) -> list[Source]:
    """[NAME:]KIND=PATH[,PATH] of each; names are KIND, KIND2, ... if not given.

    Raises ConfigError.
    """
    sources: list[Source] = []
    for text in texts:
        head, _, paths = text.partition("=")
        name, colon, kind = head.rpartition(":")
        if kind not in readers.KINDS or not paths:
            known = ", ".join(readers.KINDS)
            raise ConfigError(
                f"--source {text}: write KIND=PATH,... or NAME:KIND=PATH,... with one of {known}"
            )
        if colon and (not NAME.fullmatch(name) or name in RESERVED):
            known = " or ".join(RESERVED)
            raise ConfigError(f"--source {text}: a name is of letters, digits, . _ -; not {known}")
        absolute = tuple(os.path.abspath(path) for path in paths.split(","))
        taken = [source.name for source in sources]
        count = sum(source.kind == kind for source in sources)
        name = name or (kind if not count else f"{kind}{count + 1}")
        if name in taken:
            raise ConfigError(f"--source {text}: another one is named {name} too")
        sources.append(Source(kind, absolute, name))
    return sources


def load_config(path: Path, profile: str | None) -> CurateConfig:
    """`get_config` of a Python file, called with the profile. Raises ConfigError."""
    spec = importlib.util.spec_from_file_location("curate_settings", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise ConfigError(f"--config {path}: no Python file there")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(profile) if profile else module.get_config()


def make_plan(flags: argparse.Namespace) -> Plan:
    """Flags over the last command's plan over the defaults. Raises InputError."""
    plan = read_plan(flags.output)
    if plan is None or flags.config or flags.profile:
        path = flags.config or Path(__file__).parent.parent / "configs" / "curate.py"
        config = load_config(path, flags.profile)
        plan = Plan(config, []) if plan is None else plan
        plan.config = config
    for name, target in FLAGS.items():
        if (value := getattr(flags, name)) is not None:
            settings.put(plan.config, target, value)
    for assignment in flags.set:
        name, equals, value = assignment.partition("=")
        if not equals:
            raise ConfigError(f"--set {assignment}: write NAME=VALUE")
        settings.put(plan.config, name, value)
    settings.check(plan.config)
    settings.make_absolute(plan.config)
    plan.sources = parse_sources(flags.source) if flags.source else plan.sources
    for name in ("review", "stats", "tags"):
        if (value := getattr(flags, name)) is not None:
            setattr(plan, name, settings.absolute(value))
    if flags.exclude is not None:
        plan.exclude = [os.path.abspath(path) for path in flags.exclude if path]
    check_plan(plan)
    return plan


def check_plan(plan: Plan) -> None:
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


class Pipeline:
    """The stages over one output folder."""

    def __init__(self, plan: Plan, engine: Engine) -> None:
        self.plan, self.engine = plan, engine
        self.ledger = Ledger(engine.root)
        self.unranked = ""  # why the selection ranked nothing

    def index(self) -> None:
        """Labels to rows; prints what each source has."""
        per_shard = self.plan.config.shard_images
        job = Index(tuple(self.plan.sources), per_shard, tuple(self.plan.forgotten))
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
        job = Crop(self.plan.config, tuple(self.plan.sources))
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
            self._sharded(Score(group, self.plan.config.score), crops, "crops")

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
        job = Select(plan.config, shards, plan.review, plan.stats, barred, bool(plan.forgotten))
        self.engine.here().run(job, ["all"])
        table = read_manifest(self.ledger, ["dataset", "image_id", "box_index", "reason"])
        check(table)
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
            print(f"{split}: {size:,} crops in {self.engine.root / 'packed' / split}")
        if set(sizes) == {"val"}:
            print(f"train: none left, split.val is {config.split.val:,} (--set split.val=N)")

    def report(self) -> None:
        """Tables and figures."""
        from curate.report import write_report  # matplotlib: not for every worker process

        write_report(self.ledger, self.plan.tags)
        print(f"report: {self.engine.root / 'report' / 'report.md'}")


def notes(facts: dict[str, Any], detected: Sequence[str]) -> list[str]:
    """What a selection rests on and what it does without, a line each.

    Args:
        facts: stats.json.
        detected: names of the sources that have no labels.
    """
    settings = facts["settings"]
    missing = [name for name in PAPER_METRICS if name not in facts["metrics"]]
    lines = [f"scores: {', '.join(facts['metrics'])}"]
    if missing:
        lines += [f"not computed: {', '.join(missing)} (--iqa pyiqa --iqa_weights DIR)"]
    kind = settings["detect"]["kind"] + (
        ", a fallback" if settings["detect"]["kind"] == "hog" else ""
    )
    lines += [
        f"detector: {kind}, of {', '.join(detected)}" if detected else "detector: none needed"
    ]
    limits = ", ".join(f"{name} {limit:.4g}" for name, limit in facts["thresholds"].items())
    lines += [f"thresholds: {limits or 'none, rank only'}"]
    if limits and (share := settings["select"]["calibrate"]):
        bounds = {k: v for k, v in settings["select"].items() if k.endswith(("_min", "_max"))}
        usual = ", ".join(f"{name[:-4]} {bound:g}" for name, bound in bounds.items())
        lines += [f"found to keep {share:.1%} of the top share, in place of: {usual}"]
    if "blur_min" in facts:
        lines += [f"blur threshold of the sources: {facts['blur_min']:.1f}"]
    if "unranked" in facts:
        lines += [f"nothing is ranked: {facts['unranked']}"]
    if "review_unknown" in facts:
        lines += [f"review: {facts['review_unknown']} crops of it are not there (any more)"]
    return lines


def rows_of(path: Path) -> int:
    """Rows of a Parquet file, from its footer."""
    return pq.ParquetFile(path).metadata.num_rows


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m curate.run",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", nargs="?", default="run", choices=COMMANDS)
    parser.add_argument("names", nargs="*", metavar="IMAGE_ID", help="of `forget`")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--source", action="append", default=[], metavar="[NAME:]KIND=PATH[,PATH]")
    parser.add_argument("--config", type=Path, help="default: configs/curate.py")
    parser.add_argument("--profile", help="default, strict, paper or test")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    for name, target in FLAGS.items():
        parser.add_argument(f"--{name}", help=f"the same as --set {target}=...")
    parser.add_argument("--review", help="csv of a review page's decisions; '' = none")
    parser.add_argument("--stats", help="stats.json of the run whose pool is the measure")
    parser.add_argument(
        "--exclude",
        action="append",
        help="folder of pictures, or output of another run, to have no photograph in common with",
    )
    parser.add_argument("--tags", help="Parquet with crop_id and tags, for the report")
    parser.add_argument("--engine", choices=("local", "ray"), default="local")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="0 = no processes")
    parser.add_argument("--verify", action="store_true", help="compare digests of all that is done")
    flags = parser.parse_args(argv)
    flags.output = flags.output.absolute()  # Ray's workers have a folder of their own
    if flags.names and flags.command != "forget":
        parser.error(f"{flags.command} takes no names")
    return flags


def execute(flags: argparse.Namespace) -> None:
    """Do what the command line says."""
    if flags.command == "gc":
        freed = Ledger(flags.output).collect_garbage()
        print(f"removed {freed / 1e6:,.1f} MB")
        return
    plan = make_plan(flags)
    flags.output.mkdir(parents=True, exist_ok=True)
    Ledger(flags.output).clean()
    engine = Engine(flags.output, flags.engine, flags.workers, plan.config.limit, flags.verify)
    if flags.command == "forget":
        if not flags.names:
            raise ConfigError("forget: name the images (see image_id in the manifest)")
        check_known(Ledger(flags.output), plan.forgotten, flags.names)
        plan.forgotten = sorted({*plan.forgotten, *flags.names})
        plan.write(flags.output)
        forget(engine, plan, flags.names)
        made = {"select": "select", "report": "report", "pack": "packed"}
        stages = [stage for stage, folder in made.items() if (flags.output / folder).exists()]
    else:
        stages = list(STAGES) if flags.command == "run" else [flags.command]
        plan.write(flags.output)
    pipeline = Pipeline(plan, engine)
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
    except InputError as error:
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
