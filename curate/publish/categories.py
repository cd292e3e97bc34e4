"""Figure 7's categories of tags, in `tag_categories.csv`.

Needed where there are tags of the crops. The paper's own map is not published, so sums by
category are this project's. A tag that is not in the file is in the category "Other".
"""

import csv
import functools
from collections.abc import Mapping
from pathlib import Path

OTHER = "Other"


@functools.cache
def categories() -> dict[str, str]:
    """The category of each tag in the file, in lower case."""
    with open(Path(__file__).with_name("tag_categories.csv"), newline="") as file:
        rows = csv.DictReader(file)
        return {tag: row["category"] for row in rows for tag in row["tags"].split(";")}


def by_category(tags: Mapping[str, int]) -> dict[str, dict[str, int]]:
    """Occurrences and distinct tags of each category that occurs, most frequent first.

    Args:
        tags: occurrences by tag.
    """
    found: dict[str, dict[str, int]] = {}
    for tag, count in tags.items():
        category = found.setdefault(
            categories().get(tag.strip().lower(), OTHER), {"occurrences": 0, "tags": 0}
        )
        category["occurrences"] += count
        category["tags"] += 1
    return dict(sorted(found.items(), key=lambda pair: (-pair[1]["occurrences"], pair[0])))
