"""Decisions by hand: the csv file that the report's review page saves, and what it changes.

Needed where `--review` names such a file. A person's word goes above rank and thresholds. It does
not go above the reasons that make a crop unusable, such as a copy of another one.
"""

import csv
from pathlib import Path

from curate.readers.text_files import open_text
from curate.schema import RANKED, Reason
from curate.selection.decisions import Decisions
from curate.selection.pool import Pool, SelectError


def read_review(path: Path) -> dict[str, bool]:
    """Whether to keep a crop, by its name: a csv with columns crop_id and keep (1 or 0).

    Of two lines on one crop the later one counts. Raises SelectError that names the line.
    """
    # Names that are no text are replaced: they are unknown crops, and are said to be.
    with open_text(path, errors="replace") as file:
        reader = csv.DictReader(file)
        if not {"crop_id", "keep"} <= set(reader.fieldnames or ()):
            raise SelectError(f"{path}: needs columns crop_id and keep")
        decisions = {}
        for number, row in enumerate(reader, 2):
            # A second header comes from files that were put together.
            if row["keep"] == "keep":
                continue
            if row["keep"] not in ("0", "1"):
                raise SelectError(f"{path}, line {number}: keep is {row['keep']!r}, not 0 or 1")
            decisions[row["crop_id"]] = row["keep"] == "1"
    return decisions


def apply_review(
    pool: Pool, result: Decisions, decisions: dict[str, bool], forgotten: bool = False
) -> None:
    """Change `result` as a review says. Raises SelectError on unknown crops.

    Once images were `forgotten` nobody can tell their crops from unknown ones: these are counted.
    """
    places = {name: at for at, name in enumerate(pool.crop_ids)}
    unknown = sorted(set(decisions) - set(places))
    if unknown and not forgotten:
        raise SelectError(f"review: {len(unknown)} unknown crops, such as {unknown[0]}")
    if unknown:
        result.statistics["review_unknown"] = len(unknown)
    for name, keep in decisions.items():
        if (at := places.get(name)) is None:
            continue
        # A crop that was dropped already keeps the reason it has.
        if not keep:
            result.reasons[at] = result.reasons[at] or Reason.REVIEW
        elif result.reasons[at].startswith(RANKED):
            result.reasons[at] = ""
