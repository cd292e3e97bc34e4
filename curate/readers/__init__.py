"""Sources: what lies on disk in each set's own format, as `SourceImage`s.

Files of labels and folders of pictures go in, a description of each picture comes out; nothing is
decoded here. People are found by the names in a set's own table of labels, never by a number.
Labels that a table does not explain are an error, since skipping them would lose people in silence.

    coco crowdhuman openimages voc folders    one file for each format
    pictures                                  the pictures that labels name
    entries text_files values common          what several formats need
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from curate.readers import coco, crowdhuman, folders, openimages, voc
from curate.readers.common import Notes, ReaderError
from curate.schema import ExifPolicy, SourceImage

__all__ = [
    "SOURCE_FORMATS",
    "Notes",
    "ReaderError",
    "SourceSpec",
    "check",
    "label_files",
    "needs_detector",
    "read",
]


@dataclass(frozen=True)
class SourceSpec:
    """One `--source [NAME:]KIND[@EXIF]=PATH,...`: where a set lies and in which format.

    `name` tells two of a kind apart; it is the set's dataset and begins its image names.
    """

    kind: str
    paths: tuple[str, ...]
    name: str
    # What its labels were drawn on, which no format states.
    exif: ExifPolicy = ""


class SourceFormat(NamedTuple):
    """What the command line and the index job know of a format."""

    # Names of its paths for messages; what is in [..] may be left out.
    usage: str
    read: Callable[..., Iterator[SourceImage]]
    # The files that hold labels, on which the index depends.
    labels: Callable[..., list[Path]]
    # Whether its pictures have no boxes, so that a detector has to find people.
    detect: bool = False


SOURCE_FORMATS = {
    "coco": SourceFormat("INSTANCES.json,IMAGES", coco.read_coco, coco.labels),
    "objects365": SourceFormat("ANNOTATIONS.json,IMAGES", coco.read_objects365, coco.labels),
    "openimages": SourceFormat(
        "BOXES.csv,CLASSES.csv,IMAGES[,IMAGE_INFO.csv]", openimages.read, openimages.labels
    ),
    "crowdhuman": SourceFormat("ANNOTATIONS.odgt,IMAGES", crowdhuman.read, crowdhuman.labels),
    "voc": SourceFormat("DIR", voc.read, voc.labels),
    "lsdir": SourceFormat("DIR", folders.read_lsdir, folders.labels, True),
    "folder": SourceFormat("DIR", folders.read_folder, folders.labels, True),
    "person": SourceFormat("DIR", folders.read_person, folders.labels),
}


def check(source: SourceSpec) -> None:
    """Raises ReaderError unless a source has the files and folders that its kind needs."""
    # The usage text says how many paths there are to be, and which of them are files.
    kind = SOURCE_FORMATS[source.kind]
    least = kind.usage.split("[")[0].count(",") + 1
    most = kind.usage.count(",") + 1
    if not least <= len(source.paths) <= most:
        raise ReaderError(f"--source {source.kind}={','.join(source.paths)}: needs {kind.usage}")
    names = kind.usage.replace("[", "").replace("]", "").split(",")
    for name, path in zip(names, source.paths, strict=False):
        if not Path(path).exists():
            raise ReaderError(f"--source {source.kind}: {path} is not there")
        # Folders are named without a suffix.
        if Path(path).is_dir() == ("." in name):
            what = "a folder" if Path(path).is_dir() else "a file"
            raise ReaderError(f"--source {source.kind}: {path} is {what}; needs {kind.usage}")


def read(source: SourceSpec, notes: Notes | None = None) -> Iterator[SourceImage]:
    """Yields every image of a source. Raises ReaderError: one line that names file and fault.

    `notes` counts what was not understood, by the words for it; it is complete when the last image
    has been read.
    """
    check(source)
    notes = Notes() if notes is None else notes
    images = SOURCE_FORMATS[source.kind].read(source.name, notes, *map(Path, source.paths))
    return (replace(image, exif=source.exif) for image in images) if source.exif else images


def label_files(source: SourceSpec) -> list[Path]:
    """The files that a source's boxes come from; none for plain pictures."""
    return SOURCE_FORMATS[source.kind].labels(*map(Path, source.paths))


def needs_detector(source: SourceSpec) -> bool:
    """Whether a source has no labels, so that a detector has to find the people."""
    return SOURCE_FORMATS[source.kind].detect
