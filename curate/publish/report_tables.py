"""What the report on a set says, as numbers and as text: Table 1, funnel, persons, tags.

Rows of the manifest go in, `ReportFacts` and Markdown come out. Values with which the paper
describes PERSONA stand beside ours only where the same metrics were used.
"""

import json
from collections import Counter
from heapq import nsmallest
from typing import NotRequired, TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curate.publish.categories import by_category
from curate.publish.tags import TagError, Tags
from curate.selection.manifest import Funnel, funnel_text, merge_funnels
from curate.selection.split import seeded_key

# Table 1 of the paper, row PERSONA.
PERSONA_MEANS = {
    "brisque": 10.3758,
    "niqe": 2.8659,
    "clipiqa": 0.7632,
    "maniqa": 0.7198,
    "musiq": 74.7808,
}
# The paper's means of persons and of tags on an image.
PAPER_PERSONS, PAPER_TAGS = 3.4154, 13.32
# The row of the made set beside those of its sources.
KEPT = "kept"
# Crops of a dataset that Table 1 averages over: they give a mean to 0.03 standard deviations.
TABLE_1_CROPS = 5000
NOTICE = (
    "Scores are of sharpness, noise and compression only; they see neither "
    "content nor beauty and say nothing about quality in the paper's sense."
)
# A `summary` by dataset and metric.
MetricTable = dict[str, dict[str, dict[str, float]]]


class TagFacts(TypedDict):
    """Tags of the kept crops: by whom, of how many, sums, occurrences by tag and category."""

    # "RAM", or the name of the file that a tagger wrote.
    by: str
    images: int
    occurrences: int
    tags: dict[str, int]
    categories: dict[str, dict[str, int]]


class ReportFacts(TypedDict):
    """All that the report says; report.json holds it as it is."""

    profile: str
    iqa: str
    table_1: MetricTable
    # The fields of a Funnel by dataset.
    funnel: dict[str, dict[str, int | dict[str, int]]]
    # Persons on the kept crops, by the labels of their sources and by a detector on the crops.
    persons: dict[str, float]
    detected_persons: dict[str, float]
    # The detector's name; "" = none.
    persons_detector: str
    thresholds: dict[str, float]
    licenses: dict[str, int]
    detectors: list[str]
    # Only where the user gave tags.
    tags: NotRequired[TagFacts]


def summary(values: np.ndarray) -> dict[str, float]:
    """What Table 1 says of one metric.

    "n" finite values and "nan" others; of the finite ones the mean, the sample's standard deviation
    and half of the mean's 95 % interval.
    """
    finite = values[np.isfinite(values)]
    n = len(finite)
    std = float(finite.std(ddof=1)) if n > 1 else float("nan")
    return {
        "n": n,
        "nan": int(len(values) - n),
        "mean": float(finite.mean()) if n else float("nan"),
        "std": std,
        "ci95": 1.96 * std / n**0.5 if n else float("nan"),
    }


def table_one(pool: pa.Table, metrics: list[str], seed: int) -> MetricTable:
    """Table 1: a summary of each metric over every dataset's pool, and over what is kept."""
    parts = {}
    for name in sorted(pool["dataset"].unique().to_pylist()):
        part = pool.filter(pc.field("dataset") == name)
        # A large dataset is represented by a seeded draw.
        if len(part) > TABLE_1_CROPS:
            keys = [seeded_key(seed, crop) for crop in part["crop_id"].to_pylist()]
            part = part.take(pa.array(nsmallest(TABLE_1_CROPS, range(len(keys)), keys.__getitem__)))
        parts[name] = part
    parts[KEPT] = pool.filter(pool["kept"])
    return {
        name: {metric: summary(float_column(part, metric)) for metric in metrics}
        for name, part in parts.items()
    }


def float_column(table: pa.Table, name: str) -> np.ndarray:
    """A column as float64, with NaN in place of null."""
    return table[name].cast(pa.float64()).to_numpy(zero_copy_only=False)


def persons(table: pa.Table, name: str) -> dict[str, float]:
    """Numbers of persons on crops, from a column of counts: mean, median, shares of crops."""
    counts = float_column(table, name)
    counts = counts[np.isfinite(counts)]
    if not len(counts):
        return {"n": 0}
    return {
        "n": len(counts),
        "mean": float(counts.mean()),
        "median": float(np.median(counts)),
        "one": float(np.mean(counts <= 1)),
        "two": float(np.mean(counts == 2)),
        "three_to_five": float(np.mean((counts >= 3) & (counts <= 5))),
        "more": float(np.mean(counts > 5)),
    }


def tag_counts(tags: Tags, by: str, kept: set[str]) -> TagFacts:
    """Occurrences of tags on the kept crops.

    Args:
        tags: by crop, other crops among them.
        by: whose tags they are.

    Raises TagError if none of the kept crops are in it.
    """
    sets = [set(tags[name]) for name in kept if name in tags]
    if not sets:
        raise TagError(f"--tags {by}: none of the kept crops are in it")
    # A tag that a tagger gives twice to one crop counts once, as in the paper's sum of sets.
    found = Counter(tag for names in sets for tag in names)
    total = sum(found.values())
    counts = dict(sorted(found.items()))
    return {
        "by": by,
        "images": len(sets),
        "occurrences": total,
        "tags": counts,
        "categories": by_category(counts),
    }


def report_markdown(facts: ReportFacts, parts: dict[str, Funnel]) -> str:
    """The text of report.md."""
    # What is only there sometimes is an empty section, which is left out at the end.
    classic = facts["iqa"] == "classic"
    total = merge_funnels(list(parts.values()))
    names = [f"{d}, a fallback" if d == "hog" else d for d in facts["detectors"]]
    # In the order of a reader's questions: what it is, what became of all, how good it is.
    sections = [
        f"# Report (profile {facts['profile']})",
        f"**Classic metrics.** {NOTICE}" if classic else "",
        f"Boxes of unlabelled pictures are by {'; '.join(names)}." if names else "",
        f"{total.images:,} images, {total.candidates:,} person boxes, {total.kept:,} crops kept.",
        "## Funnel",
        f"```\n{funnel_text(parts)}\n```",
        "## Scores: mean ± 95 % interval (n)",
        score_table(facts["table_1"], classic),
        f"512 x 512 crops before selection, {TABLE_1_CROPS:,} a dataset at most; "
        f"`{KEPT}` is the made set.",
        "![Figure 1](figure_1.png)\n\n![Histograms](histograms.png)",
        "## Persons on a crop",
        persons_text(facts),
        "## Thresholds",
        json.dumps(facts["thresholds"], sort_keys=True)
        if facts["thresholds"]
        else "none: rank only",
        "## Licences of what is kept",
        "\n".join(f"- {name}: {n:,}" for name, n in sorted(facts["licenses"].items())) or "-",
        "## A look at it",
        "![Contact sheet](figure_6.png)\n\n[Review page](review.html)" if total.kept else "-",
        tags_text(facts.get("tags")),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def score_table(table: MetricTable, classic: bool) -> str:
    """Table 1 as Markdown, with the paper's PERSONA below where metrics are the same."""
    # One line for each dataset.
    metrics = list(next(iter(table.values())))
    lines = ["| | " + " | ".join(metrics) + " |", "|---" * (len(metrics) + 1) + "|"]
    for name, row in table.items():
        cells = (f"{d['mean']:.4g} ± {d['ci95']:.2g} ({d['n']:,})" for d in row.values())
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    # The paper's values, and how far the made set is from them.
    if not classic:
        cells = (f"{PERSONA_MEANS[m]:.4g}" if m in PERSONA_MEANS else "" for m in metrics)
        lines.append("| PERSONA (paper) | " + " | ".join(cells) + " |")
        away = (
            f"{table[KEPT][m]['mean'] - PERSONA_MEANS[m]:+.3g}" if m in PERSONA_MEANS else ""
            for m in metrics
        )
        lines.append(f"| {KEPT} minus paper | " + " | ".join(away) + " |")
    return "\n".join(lines)


def persons_text(facts: ReportFacts) -> str:
    """Lines on the persons on a crop, by a detector and by labels, with the paper's mean.

    What is not known is left out; "-" where nothing is.
    """
    lines = [
        f"- By {how}: mean {count['mean']:.3f} (n {count['n']:,}), median {count['median']:g}; "
        f"none or one {count['one']:.0%}, two {count['two']:.0%}, "
        f"3-5 {count['three_to_five']:.0%}, more {count['more']:.0%}"
        for how, count in (
            (f"{facts['persons_detector']} on the crop", facts["detected_persons"]),
            ("the boxes of its source", facts["persons"]),
        )
        if count["n"]
    ]
    paper = f"- The paper's PERSONA: mean {PAPER_PERSONS}, method not stated"
    return "\n".join([*lines, paper]) if lines else "-"


def tags_text(facts: TagFacts | None) -> str:
    """The section on tags, with the sums of Figure 7 and the paper's mean; "" without tags."""
    if facts is None:
        return ""
    mean = facts["occurrences"] / facts["images"]
    figure = "\n\n![Figure 7](figure_7.png)" if facts["occurrences"] else ""
    return (
        f"## Tags\n\n{facts['occurrences']:,} of {len(facts['tags']):,} kinds on "
        f"{facts['images']:,} crops, {mean:.2f} a crop (paper: {PAPER_TAGS}), by "
        f"{facts['by']}. Categories are this project's.{figure}"
    )
