"""What one output folder is made of, kept as OUT/plan.json: settings, sources, decisions.

A command takes from the plan what its flags leave out, so that a second command needs to name only
what changes. `parse_sources` turns the values of --source into `SourceSpec`s.
"""

import json
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import cast, get_args

from curate import config as settings
from curate import readers
from curate.config import ConfigError, CurateConfig
from curate.readers import SourceSpec
from curate.schema import ExifPolicy
from osdhuman_jax.disk import write_json

# A source's name becomes part of file names, so that it has only letters that are safe in them.
SOURCE_NAME = re.compile(r"[A-Za-z0-9][\w.-]*", re.ASCII)
# What may follow a kind after "@" (see `SourceImage.exif`).
EXIF_POLICIES = tuple(policy for policy in get_args(ExifPolicy) if policy)
# The report uses these names beside those of the sources.
RESERVED = ("all", "kept")


@dataclass
class CurationPlan:
    """What is run. Paths are absolute; "" = none."""

    config: CurateConfig
    sources: list[SourceSpec]
    # A csv of decisions by hand.
    review: str = ""
    # stats.json of the run whose pool measures this one.
    stats: str = ""
    # Sets that must have no photograph in common with this one.
    exclude: list[str] = field(default_factory=list)
    # Parquet with the crops' tags, for the report; or the model folder whose RAM finds them.
    tags: str = ""
    tagger: str = ""
    # Names of images that are left out for good.
    forgotten: list[str] = field(default_factory=list)

    def write(self, root: Path) -> None:
        """Write plan.json below `root`, for later commands."""
        write_json(root / "plan.json", asdict(self))


def read_plan(root: Path) -> CurationPlan | None:
    """The last command's plan, if there was one. Raises ConfigError if it is damaged."""
    path = root / "plan.json"
    if not path.exists():
        return None
    try:
        # From bytes: people edit this file, and some editors begin it with a byte order mark.
        values = json.loads(path.read_bytes())
        values["config"] = settings.from_dict(values["config"])
        values["sources"] = [
            SourceSpec(**{**s, "paths": tuple(s["paths"])}) for s in values["sources"]
        ]
        return CurationPlan(**values)
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"{path}: damaged ({error}); give all flags again") from None


def parse_sources(texts: Sequence[str]) -> list[SourceSpec]:
    """Sources from texts of the form [NAME:]KIND[@EXIF]=PATH[,PATH].

    A source without a name is called KIND, the next one of its kind KIND2 and so on. Raises
    ConfigError on texts of another form and on a name that is given twice.
    """
    sources: list[SourceSpec] = []
    for text in texts:
        head, _, paths = text.partition("=")
        name, colon, kind = head.rpartition(":")
        kind, at, exif = kind.partition("@")
        if kind not in readers.SOURCE_FORMATS or not paths:
            known = ", ".join(readers.SOURCE_FORMATS)
            raise ConfigError(
                f"--source {text}: write KIND=PATH,... or NAME:KIND=PATH,... with one of {known}"
            )
        if at and exif not in EXIF_POLICIES:
            known = ", ".join(EXIF_POLICIES)
            raise ConfigError(f"--source {text}: after @ comes one of {known}")
        # The name, if one is given, and what else it must not be.
        if colon and (not SOURCE_NAME.fullmatch(name) or name in RESERVED):
            known = " or ".join(RESERVED)
            raise ConfigError(f"--source {text}: a name is of letters, digits, . _ -; not {known}")
        # Absolute, since a later command may run in another folder.
        absolute = tuple(os.path.abspath(path) for path in paths.split(","))
        taken = [source.name for source in sources]
        count = sum(source.kind == kind for source in sources)
        name = name or (kind if not count else f"{kind}{count + 1}")
        if name in taken:
            raise ConfigError(f"--source {text}: another one is named {name} too")
        sources.append(SourceSpec(kind, absolute, name, cast(ExifPolicy, exif)))
    return sources
