"""What one output folder is made of, kept as OUT/plan.json: settings, sources, decisions.

A command takes from here what its flags leave out. `parse_sources` turns the values of --source
into `SourceSpec`s.
"""

import json
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from curate import config as settings
from curate import readers
from curate.config import ConfigError, CurateConfig
from curate.readers import SourceSpec
from osdhuman_jax.disk import write_json

SOURCE_NAME = re.compile(r"[A-Za-z0-9][\w.-]*", re.ASCII)  # of a source: part of file names
# The report uses these names beside those of the sources.
RESERVED = ("all", "kept")


@dataclass
class CurationPlan:
    """What is run: kept as OUT/plan.json."""

    config: CurateConfig
    sources: list[SourceSpec]
    review: str = ""
    stats: str = ""
    exclude: list[str] = field(default_factory=list)
    tags: str = ""
    forgotten: list[str] = field(default_factory=list)

    def write(self, root: Path) -> None:
        """Keep it for later commands."""
        write_json(root / "plan.json", asdict(self))


def read_plan(root: Path) -> CurationPlan | None:
    """The last command's plan, if there was one. Raises ConfigError if it is damaged."""
    path = root / "plan.json"
    if not path.exists():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8-sig"))
        values["config"] = settings.from_dict(values["config"])
        values["sources"] = [
            SourceSpec(**{**s, "paths": tuple(s["paths"])}) for s in values["sources"]
        ]
        return CurationPlan(**values)
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"{path}: damaged ({error}); give all flags again") from None


def parse_sources(texts: Sequence[str]) -> list[SourceSpec]:
    """[NAME:]KIND=PATH[,PATH] of each; names are KIND, KIND2, ... if not given.

    Raises ConfigError.
    """
    sources: list[SourceSpec] = []
    for text in texts:
        head, _, paths = text.partition("=")
        name, colon, kind = head.rpartition(":")
        if kind not in readers.SOURCE_FORMATS or not paths:
            known = ", ".join(readers.SOURCE_FORMATS)
            raise ConfigError(
                f"--source {text}: write KIND=PATH,... or NAME:KIND=PATH,... with one of {known}"
            )
        if colon and (not SOURCE_NAME.fullmatch(name) or name in RESERVED):
            known = " or ".join(RESERVED)
            raise ConfigError(f"--source {text}: a name is of letters, digits, . _ -; not {known}")
        absolute = tuple(os.path.abspath(path) for path in paths.split(","))
        taken = [source.name for source in sources]
        count = sum(source.kind == kind for source in sources)
        name = name or (kind if not count else f"{kind}{count + 1}")
        if name in taken:
            raise ConfigError(f"--source {text}: another one is named {name} too")
        sources.append(SourceSpec(kind, absolute, name))
    return sources
