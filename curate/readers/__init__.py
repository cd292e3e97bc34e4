"""Sources: what lies on disk in each set's own format, as `SourceImage`s.

People are found by the names in a set's own table of labels, never by a number. Labels that a
table does not explain are an error, since skipping them would lose people in silence.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

from curate.readers import coco, crowdhuman, folders, openimages, voc
from curate.readers.common import Notes, ReaderError
from curate.schema import SourceImage

__all__ = [
    "KINDS",
    "Notes",
    "ReaderError",
    "Source",
    "check",
    "label_files",
    "needs_detector",
    "read",
]


class Source(Protocol):
    """Where a set lies; `name` becomes its dataset and the start of its image names."""

    @property
    def kind(self) -> str: ...

    @property
    def paths(self) -> tuple[str, ...]: ...

    @property
    def name(self) -> str: ...


class Kind(NamedTuple):
    """A format: its paths (for messages; [..] may be left out), reader, files with labels."""

    usage: str
    read: Callable[..., Iterator[SourceImage]]
    labels: Callable[..., list[Path]]
    detect: bool = False  # pictures without boxes


KINDS = {
    "coco": Kind("INSTANCES.json,IMAGES", coco.read_coco, coco.labels),
    "objects365": Kind("ANNOTATIONS.json,IMAGES", coco.read_objects365, coco.labels),
    "openimages": Kind(
        "BOXES.csv,CLASSES.csv,IMAGES[,IMAGE_INFO.csv]", openimages.read, openimages.labels
    ),
    "crowdhuman": Kind("ANNOTATIONS.odgt,IMAGES", crowdhuman.read, crowdhuman.labels),
    "voc": Kind("DIR", voc.read, voc.labels),
    "lsdir": Kind("DIR", folders.read_lsdir, folders.labels, True),
    "folder": Kind("DIR", folders.read_folder, folders.labels, True),
    "person": Kind("DIR", folders.read_person, folders.labels),
}


def check(source: Source) -> None:
    """Raises ReaderError unless a source has the paths that its kind needs."""
    kind = KINDS[source.kind]
    least = kind.usage.split("[")[0].count(",") + 1
    most = kind.usage.count(",") + 1
    if not least <= len(source.paths) <= most:
        raise ReaderError(f"--source {source.kind}={','.join(source.paths)}: needs {kind.usage}")
    for path in source.paths:
        if not Path(path).exists():
            raise ReaderError(f"--source {source.kind}: {path} is not there")


def read(source: Source, notes: Notes | None = None) -> Iterator[SourceImage]:
    """Every image of a source. Raises ReaderError: one line that names file and fault.

    Counts in `notes` what was not understood, by its words; it is complete when the last image
    has been read.
    """
    check(source)
    notes = Notes() if notes is None else notes
    return KINDS[source.kind].read(source.name, notes, *map(Path, source.paths))


def label_files(source: Source) -> list[Path]:
    """The files that a source's boxes come from; none for plain pictures."""
    return KINDS[source.kind].labels(*map(Path, source.paths))


def needs_detector(source: Source) -> bool:
    """Whether nothing says where people are."""
    return KINDS[source.kind].detect
