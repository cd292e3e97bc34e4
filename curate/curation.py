"""The stages of a curation over one output folder, in the order of section 3.1 of the paper.

A plan goes in. Each stage reads what the stages before it left in the folder, does only what is not
done yet, and prints one summary. `curate.run` calls the stages that a command line names.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow.parquet as pq

from curate import readers
from curate.config import ConfigError
from curate.cropping import detect
from curate.cropping.index import IndexJob, crop_shards, survey_line
from curate.cropping.job import CropJob, index_file
from curate.engine.engine import Engine
from curate.engine.ledger import ShardLedger
from curate.engine.parquet import ERROR, open_parquet, read_rows
from curate.engine.progress import Screen
from curate.engine.worker import ShardJob
from curate.plan import CurationPlan
from curate.prune import prune
from curate.publish.pack import pack
from curate.publish.tags import Tags, ram_tags, read_tags
from curate.quality import scores
from curate.quality.score_job import ScoreJob
from curate.selection.barred import barred_files
from curate.selection.decisions import SelectionFacts, read_facts
from curate.selection.manifest import check_funnels, funnel_text, read_funnels
from curate.selection.pool import SelectError
from curate.selection.select_job import SelectJob
from osdhuman_jax.filenames import spelled

# The methods of CurationPipeline, in the order in which they build on each other.
STAGES = ("index", "crop", "score", "select", "report", "pack")
# The metrics of the paper's Table 1.
PAPER_METRICS = ("brisque", "niqe", "clipiqa", "maniqa", "musiq")


class CurationPipeline:
    """The stages over one output folder."""

    def __init__(self, plan: CurationPlan, engine: Engine) -> None:
        self.plan, self.engine = plan, engine
        self.ledger = ShardLedger(engine.root)
        # Becomes the reason, if the selection can rank nothing. The report is still written then.
        self.unranked = ""

    def index(self) -> None:
        """Read the sources' labels, and say what each source has."""
        per_shard = self.plan.config.shard_images
        job = IndexJob(tuple(self.plan.sources), per_shard, tuple(self.plan.forgotten))
        # How many pictures there are is what this stage finds out.
        with Screen("index", None) as screen:
            self.engine.run(job, [source.name for source in self.plan.sources], screen)
        for source in self.plan.sources:
            marker = self.ledger.marker("index", source.name)
            if marker is not None:
                print(survey_line(source.name, marker["facts"]))

    def crop(self) -> None:
        """Cut the crops out of the pictures."""
        # A csv of boxes that fit no picture is a mistake, which is told before hours of work.
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
        """Score the crops, one group of metrics after the other."""
        for group in scores.groups(self.plan.config.score):
            job = ScoreJob(group, self.plan.config.score)
            self._sharded(job, self.crops_of, "crops")

    def crops_of(self, shard: str) -> int:
        """How many crops a shard of the crop job has."""
        return rows_of(self.ledger.output("crop", shard, "crops.parquet"))

    def _sharded(self, job: ShardJob, size: Callable[[str], int], unit: str = "images") -> None:
        """Run a job over all crop shards, with a bar that counts what is left to do."""
        shards = crop_shards(self.ledger, self.plan.sources)
        left = sum(size(name) for name in self.engine.todo(job, shards))
        with Screen(job.name, left, unit) as screen:
            self.engine.run(job, shards, screen)

    def select(self) -> None:
        """Decide on the crops; print what became of all, and what the decisions rest on."""
        self.engine.here().run(self._select_job(), ["all"])
        # Nothing may have vanished on the way, whatever was decided.
        funnels = read_funnels(self.ledger)
        check_funnels(funnels)
        print(funnel_text(funnels))
        facts = read_facts(self.ledger)
        detected = [s.name for s in self.plan.sources if readers.needs_detector(s)]
        print("\n".join(notes(facts, detected)))
        self.unranked = facts.get("unranked", "")

    def _select_job(self) -> SelectJob:
        plan = self.plan
        shards = tuple(crop_shards(self.ledger, plan.sources))
        self.refuse_mixtures(shards)
        barred = tuple(map(str, barred_files(self.engine, plan.exclude)))
        return SelectJob(plan.config, shards, plan.review, plan.stats, barred, bool(plan.forgotten))

    def prune(self) -> None:
        """Remove the pictures of the crops that the present selection drops."""
        # By a selection of other crops the wrong ones would go.
        if self.engine.here().todo(self._select_job(), ["all"]):
            raise ConfigError("prune: the selection is not that of these settings: run `select`")
        count, freed = prune(self.ledger)
        print(f"prune: pictures of {count:,} dropped crops, {freed / 1e6:,.1f} MB")

    def refuse_mixtures(self, shards: Sequence[str]) -> None:
        """Raises SelectError where shards were measured in another way than the settings say.

        Eq. 1 would compare their numbers with each other.
        """
        markers = [self.ledger.marker("crop", shard) for shard in shards]
        # Shards of earlier versions do not tell: they measured all of the picture.
        ways = {marker["facts"].get("blur_of", "picture") for marker in markers if marker}
        if len(ways) > 1:
            raise SelectError(f"blur was measured by {' and by '.join(sorted(ways))}: run `crop`")
        # What is not scored at all is told by the selection itself.
        for group in scores.groups(self.plan.config.score):
            wanted = {*scores.names(group, self.plan.config.score)}
            job = f"score-{group}"
            for shard in (shard for shard in shards if self.ledger.marker(job, shard)):
                path = self.ledger.output(job, shard, "scores.parquet")
                # Only the footer is read.
                if wanted != {*pq.read_schema(open_parquet(path)).names} - {"crop_id", ERROR}:
                    raise SelectError(f"{job} {shard} was scored by other metrics: run `score`")

    def pack(self) -> None:
        """Write what is kept to files for training."""
        config = self.plan.config
        with Screen("pack", None, "crops") as screen:
            sizes = pack(self.engine, config.pack, config.split.seed, screen)
        for split, size in sizes.items():
            print(f"{split}: {size:,} crops in {spelled(self.engine.root / 'packed' / split)}")
        # The validation split is filled first, and takes all of a small set.
        if set(sizes) == {"val"}:
            print(f"train: none left, split.val is {config.split.val:,} (--set split.val=N)")

    def report(self) -> None:
        """Write tables and figures."""
        # Matplotlib is slow to import, and worker processes do not need it.
        from curate.publish.report import write_report

        write_report(self.ledger, self.plan.config.review, self._tags())
        print(f"report: {spelled(self.engine.root / 'report' / 'report.md')}")

    def _tags(self) -> tuple[Tags, str] | None:
        """The kept crops' tags and whose they are; None where none are asked for."""
        if self.plan.tags:
            return read_tags(Path(self.plan.tags)), self.plan.tags
        # Of nothing there is no figure, and no model is loaded.
        found = ram_tags(self.ledger, Path(self.plan.tagger)) if self.plan.tagger else {}
        return (found, "RAM") if found else None


def notes(facts: SelectionFacts, detected: Sequence[str]) -> list[str]:
    """Lines on what a selection rests on, and what it does without.

    Args:
        detected: names of the sources that have no labels.
    """
    detector, select = facts["settings"]["detect"]["kind"], facts["settings"]["select"]
    # Metrics, and which of the paper's are not among them.
    missing = [name for name in PAPER_METRICS if name not in facts["metrics"]]
    lines = [f"scores: {', '.join(facts['metrics'])}"]
    if missing:
        lines += [f"not computed: {', '.join(missing)} (--iqa pyiqa --iqa_weights DIR)"]
    # The detector, where a source needs one.
    kind = f"{detector}, a fallback" if detector == "hog" else detector
    lines += [
        f"detector: {kind}, of {', '.join(detected)}" if detected else "detector: none needed"
    ]
    # How it is known that crops show people; sets of earlier versions do not say.
    body = facts["settings"].get("body", {"gate": False})
    if body["gate"]:
        judge = "BlazePose" if body["weights"] else "labels only (no --body_weights)"
        lines += [f"people on crops: by {judge}"]
    # Thresholds, which the paper does not publish.
    limits = ", ".join(f"{name} {limit:.4g}" for name, limit in facts["thresholds"].items())
    lines += [f"thresholds: {limits or 'none, rank only'}"]
    if limits and (share := select["calibrate"]):
        bounds = {k: v for k, v in select.items() if k.endswith(("_min", "_max"))}
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
    """How many rows a Parquet file has; only its footer is read."""
    return pq.ParquetFile(open_parquet(path)).metadata.num_rows
