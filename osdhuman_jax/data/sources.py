"""Where training pictures come from: folders, ArrayRecord files, several of them in a row.

A source is a sequence of encoded pictures, each with a name for messages: `data.sources` and
`run.eval_sources` of a configuration are opened here. A picture that cannot be read is passed over
for the next one, since one damaged file among a hundred thousand must not end a run of weeks;
many in a row do end it. Pixels are uint8 (h, w, 3) RGB in [0, 255]. This module never imports jax.
"""

import bisect
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import grain
import numpy as np
from jaxtyping import UInt8

from osdhuman_jax.data.records import RecordError, decode_record
from osdhuman_jax.filenames import spelled
from osdhuman_jax.images.codec import ImageError, read_rgb_bytes
from osdhuman_jax.images.listing import SUFFIXES, list_images

Pixels = UInt8[np.ndarray, "h w 3"]

# The first is what `curate` writes, the second what Grain's documentation calls its files.
RECORD_SUFFIXES = (".arrayrecord", ".array_record")
MAX_TRIES = 100  # unreadable pictures in a row before the run is stopped
# What reading one picture may raise where it is the picture's fault, not the program's.
UNREADABLE = (ImageError, RecordError, OSError)


class DataError(ValueError):
    """Sources that hold no usable pictures, or a state that belongs to other data."""


@runtime_checkable
class Source(Protocol):
    """Random access to encoded pictures; picklable. `read` raises OSError or RecordError.

    `name` is for messages; `stem` is what files that belong to a picture are called, suffix apart;
    `text` is the caption that a picture brings with it.
    """

    def __len__(self) -> int: ...

    def name(self, index: int) -> str: ...

    def stem(self, index: int) -> str: ...

    def text(self, index: int) -> str: ...

    def read(self, index: int) -> bytes: ...


class FolderSource:
    """The pictures below a folder, in the order of their sorted relative paths.

    Raises DataError if there is none.
    """

    def __init__(self, path: str | Path) -> None:
        # Sorted, since a folder's own order differs from disk to disk, and with it the run.
        self.root = Path(path)
        self.files = sorted(name.as_posix() for _, name in list_images(self.root))
        if not self.files:
            raise DataError(f"{path}: no pictures ({', '.join(SUFFIXES)}) in this folder")

    def __len__(self) -> int:
        return len(self.files)

    def name(self, index: int) -> str:
        return spelled(self.root / self.files[index])

    def stem(self, index: int) -> str:
        return Path(self.files[index]).with_suffix("").as_posix()

    def text(self, index: int) -> str:
        return ""

    def read(self, index: int) -> bytes:
        return (self.root / self.files[index]).read_bytes()


class RecordSource:
    """One ArrayRecord file of packed records. Raises DataError if it is damaged or empty."""

    def __init__(self, path: str | Path) -> None:
        # Opening reads the index at the file's end, which a copy that was cut off lacks.
        self.path = str(path)
        try:
            # Grain's types do not say that it has a length.
            self._records: Any = grain.sources.ArrayRecordDataSource([self.path])
        except RuntimeError as error:
            raise DataError(f"{path}: no whole ArrayRecord file: {error}") from error
        if not len(self._records):
            raise DataError(f"{path}: no records in this file")

    def __len__(self) -> int:
        return len(self._records)

    def name(self, index: int) -> str:
        return f"{self.path}[{index}]"

    def stem(self, index: int) -> str:
        return str(self._decoded(index)[0]["crop_id"])

    def text(self, index: int) -> str:
        return str(self._decoded(index)[0].get("text", ""))

    def read(self, index: int) -> bytes:
        return self._decoded(index)[1]

    def _decoded(self, index: int) -> tuple[dict[str, Any], bytes]:
        try:
            data = self._records[index]
        except RuntimeError as error:
            # How ArrayRecord's reader reports a damaged chunk.
            raise RecordError(str(error)) from error
        return decode_record(data)


class ChainSource:
    """Several sources one after the other."""

    def __init__(self, parts: Sequence[Source]) -> None:
        self.parts = tuple(parts)
        self._ends = list(itertools.accumulate(len(part) for part in self.parts))

    def __len__(self) -> int:
        return self._ends[-1]

    def name(self, index: int) -> str:
        _, part, local = self.locate(index)
        return part.name(local)

    def stem(self, index: int) -> str:
        _, part, local = self.locate(index)
        return part.stem(local)

    def text(self, index: int) -> str:
        _, part, local = self.locate(index)
        return part.text(local)

    def read(self, index: int) -> bytes:
        _, part, local = self.locate(index)
        return part.read(local)

    def locate(self, index: int) -> tuple[int, Source, int]:
        """Number of the source that has a picture, that source, and the index in it."""
        # The first part whose end lies beyond the index.
        at = bisect.bisect_right(self._ends, index)
        return at, self.parts[at], index - (self._ends[at - 1] if at else 0)


def check_count(setting: str, kind: str, given: int, source: ChainSource) -> None:
    """Raise DataError unless a setting names as many `kind` as there are sources."""
    if given != len(source.parts):
        text = f"{given} {kind} for {len(source.parts)} sources; name one for each"
        raise DataError(f"{setting}: {text}, '' where there is none")


class LabelledSource:
    """Folders of degraded pictures, `lq/`, and what a teacher made of each, `teacher/`.

    A picture without a label, of which an interrupted labelling leaves some, is not counted. Raises
    DataError where a folder is missing or holds no labelled picture.
    """

    def __init__(self, paths: Sequence[str | Path]) -> None:
        # Pairs of LQ and teacher's output, of all folders in a row.
        self.files: list[tuple[Path, Path]] = []
        for path in map(Path, paths):
            found = FolderSource(path / "teacher").files
            pairs = [(path / "lq" / name, path / "teacher" / name) for name in found]
            if lost := [lq for lq, _ in pairs if not lq.is_file()]:
                raise DataError(f"{lost[0]}: missing, though it has a label in {path / 'teacher'}")
            self.files += pairs

    def __len__(self) -> int:
        return len(self.files)

    def read(self, index: int) -> tuple[Pixels, Pixels]:
        """LQ and label. Raises DataError where they are unreadable or of two sizes."""
        names = self.files[index]
        try:
            lq, label = (read_rgb_bytes(name.read_bytes()) for name in names)
        except UNREADABLE as error:
            raise DataError(f"{names[1]} or its LQ: {error}") from error
        if lq.shape != label.shape:
            raise DataError(f"{names[0]}: of another size than its label {names[1]}")
        return lq, label


def open_source(path: str | Path) -> Source:
    """An ArrayRecord file, a folder that holds such files, or else a folder of pictures.

    Raises DataError: one line that names what is missing or empty.
    """
    path = Path(path)
    if path.suffix in RECORD_SUFFIXES and path.is_file():
        return RecordSource(path)
    if not path.is_dir():
        raise DataError(f"{path}: neither a folder nor a file {' or '.join(RECORD_SUFFIXES)}")
    # What `curate` packs is several files of one set, in the order of their names.
    packed = sorted(file for file in path.iterdir() if file.suffix in RECORD_SUFFIXES)
    return ChainSource([RecordSource(file) for file in packed]) if packed else FolderSource(path)


def open_sources(paths: Sequence[str | Path]) -> ChainSource:
    """The sources of `DataConfig.sources`, concatenated. Raises DataError if there are none."""
    if not paths:
        raise DataError("no data sources given")
    return ChainSource([open_source(path) for path in paths])


def read_pixels(source: Source, index: int) -> tuple[Pixels, tuple[str, ...]]:
    """The picture at `index`, or the next readable one (cyclic), and why those before were not.

    Raises DataError when `MAX_TRIES` in a row, or all there are, cannot be read.
    """
    failures: list[str] = []
    # A whole source may be unreadable, as where a disk is gone: that must not be an endless loop.
    for at in range(index, index + min(len(source), MAX_TRIES)):
        at %= len(source)
        try:
            return read_rgb_bytes(source.read(at)), tuple(failures)
        except UNREADABLE as error:
            failures.append(f"{source.name(at)}: {error}")
    raise DataError(f"{len(failures)} pictures in a row are unreadable, such as {failures[0]}")
