"""A job: one file that becomes one other. What plans, carries out and reports of a run hand on."""

from dataclasses import dataclass
from pathlib import Path


class UsageError(ValueError):
    """A request that is refused before any work; the message is printed as it is."""


@dataclass(frozen=True)
class Job:
    """One file to restore."""

    source: Path  # absolute
    output: Path  # relative to the output folder
    size: tuple[int, int] = (0, 0)  # height, width after upscaling
    broken: str = ""  # why the header alone rules the file out
