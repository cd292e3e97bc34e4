"""The index job: labels in, a row for every picture of a source out.

It is needed first: all other jobs work on the shards that it deals pictures to. A picture's shard
depends on the digest of its name alone, so that shards which are done stay done when another source
is added.
"""

import hashlib
import pickle
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np

from curate import readers
from curate.cropping.job import CODE
from curate.engine.ledger import ShardLedger, digest
from curate.engine.parquet import (
    INDEX_SCHEMA,
    Row,
    image_row,
    write_rows,
)
from curate.engine.worker import ItemRunner
from curate.readers import Notes, ReaderError, SourceSpec
from curate.schema import Facts, SourceImage
from osdhuman_jax.disk import file_digest
from osdhuman_jax.filenames import unspelled_path

# Raised when the readers give other rows for the same files.
READERS = 4
# How many of the missing pictures are named.
MISSING_NAMED = 3


def shard_count(images: int, per_shard: int) -> int:
    """How many shards a source has: as many as `per_shard` images each make, but one at least.

    A small source has up to 16, if each of them gets 8 images, so that all cores have some work.
    """
    return max(1, -(-images // per_shard), min(16, images // 8))


def deal(image_id: str) -> int:
    """A number of 64 bits; its remainder by the number of shards is the image's shard."""
    return int.from_bytes(hashlib.blake2b(image_id.encode(), digest_size=8).digest(), "big")


@dataclass(frozen=True)
class IndexJob:
    """The index job. A shard is a source, by its name.

    Outputs 00000.parquet and so on, each with the images of one crop shard, sorted by name.
    """

    sources: tuple[SourceSpec, ...]
    per_shard: int
    forgotten: tuple[str, ...] = ()
    name: str = "index"
    gpus: float = 0.0
    network: bool = False

    def key(self, ledger: ShardLedger, shard: str) -> str:
        source = self._source(shard)
        forgotten = [i for i in self.forgotten if i.startswith(f"{source.name}/")]
        own = (source.kind, source.paths, source.name, source.exif)
        parameters = (*own, self.per_shard, forgotten)
        return digest(CODE, READERS, parameters, inputs_digest(source))

    def work(self, ledger: ShardLedger, shard: str, folder: Path, run: ItemRunner) -> Facts:
        forgotten, source = set(self.forgotten), self._source(shard)
        survey, notes = Survey(), Notes()
        with open(folder / "spool", "w+b") as file:
            # Images go to a spool file, since a source may have more than memory holds.
            images = (
                image if image.image_id in forgotten else survey.count(image)
                for image in readers.read(source, notes)
            )
            hashes, offsets = spool(images, file)
            if not len(hashes):
                raise ReaderError(f"--source {source.name}: its labels list no pictures")
            # Forgotten images count here, so that forgetting one moves no other to another shard.
            count = shard_count(len(hashes), self.per_shard)
            # A shard at a time is read back, sorted and written.
            for k in range(count):
                rows = []
                for offset in offsets[hashes % np.uint64(count) == k]:
                    file.seek(int(offset))
                    # Unpickling is safe: this process wrote the file a moment ago.
                    rows.append(pickle.load(file))
                rows = [row for row in rows if row["image_id"] not in forgotten]
                rows.sort(key=lambda row: row["image_id"])
                refuse_image_twins(rows)
                write_rows(folder / f"{k:05d}.parquet", INDEX_SCHEMA, rows)
        (folder / "spool").unlink()
        survey.check(source)
        # Adding an empty counter drops the notes that were never met.
        notes += Notes()
        return {"images": len(hashes), "shards": count, **asdict(survey), "notes": dict(notes)}

    def _source(self, name: str) -> SourceSpec:
        return next(source for source in self.sources if source.name == name)


@dataclass
class Survey:
    """What a source has, counted while it is read."""

    # Pictures whose files are there, and those whose files are not.
    found: int = 0
    missing: int = 0
    # People with boxes; none where a detector has to find them.
    people: int = 0
    # Paths of the first few pictures that are missing.
    first_missing: list[str] = field(default_factory=list)

    def count(self, image: SourceImage) -> SourceImage:
        """Count an image, and return it. Raises ReaderError if its name is no text."""
        # Parquet holds text as UTF-8, which has no lone surrogates.
        try:
            f"{image.image_id}{image.path}".encode()
        except UnicodeEncodeError:
            raise ReaderError(f"{ascii(image.image_id)}: the name is no text") from None
        self.people += sum(box.kind == "person" for box in image.boxes)
        if unspelled_path(image.path).is_file():
            self.found += 1
            return image
        self.missing += 1
        if len(self.first_missing) < MISSING_NAMED:
            self.first_missing.append(image.path)
        return image

    def check(self, source: SourceSpec) -> None:
        """Raises ReaderError where labels and pictures are of different sets."""
        if self.missing and not self.found:
            raise ReaderError(
                f"--source {source.name}: all {self.missing:,} pictures are missing, such as "
                f"{', '.join(self.first_missing)}: give the folder that the names of pictures in "
                "the labels begin in"
            )


def survey_line(source: str, facts: Facts) -> str:
    """One line on what the index job found in a source, and what it did not understand.

    Args:
        facts: of the source's shard: the fields of Survey, and "notes".
    """
    line = f"{source}: {facts['found']:,} pictures found"
    if facts["missing"]:
        more = " ..." if facts["missing"] > len(facts["first_missing"]) else ""
        line += f", {facts['missing']:,} missing ({', '.join(facts['first_missing'])}{more})"
    line += f", {facts['people']:,} people" if facts["people"] else ", no people with boxes"
    told = [f"{count:,} {words}" for words, count in sorted(facts["notes"].items())]
    return f"{line}; not used or not understood: {', '.join(told)}" if told else line


def spool(images: Iterable[SourceImage], file: BinaryIO) -> tuple[np.ndarray, np.ndarray]:
    """Write images to a file, one after the other.

    Returns of each image its number by `deal` (uint64) and its offset in the file (int64).
    """
    hashes, offsets = [], []
    for image in images:
        hashes.append(deal(image.image_id))
        offsets.append(file.tell())
        pickle.dump(image_row(image), file, pickle.HIGHEST_PROTOCOL)
    return np.array(hashes, np.uint64), np.array(offsets, np.int64)


def refuse_image_twins(rows: list[Row]) -> None:
    """Raises ReaderError if two rows, sorted by name, are of one name.

    All later steps would take them for one image.
    """
    for a, b in zip(rows, rows[1:], strict=False):
        if a["image_id"] == b["image_id"]:
            raise ReaderError(
                f"two images are named {a['image_id']}: {a['path']} and {b['path']}: "
                "give each an id of its own in the labels"
            )


def inputs_digest(source: SourceSpec) -> str:
    """A digest that changes with what a source holds.

    It is of the label files' bytes or, where there are none, of the pictures' names and sizes.
    """
    if labels := readers.label_files(source):
        return digest([(path.name, file_digest(path)) for path in labels])
    images = readers.read(source)
    return digest([(i.image_id, file_size(i.path)) for i in images])


def file_size(path: str) -> int:
    """The size of a file in bytes; -1 if it is missing, as behind a link to a missing disk."""
    file = unspelled_path(path)
    return file.stat().st_size if file.exists() else -1


def crop_shards(ledger: ShardLedger, sources: Iterable[SourceSpec]) -> list[str]:
    """Names of the crop job's shards. Raises LedgerError where a source is not indexed."""
    names = []
    for source in sources:
        count = len(ledger.outputs_key("index", source.name))
        names += [f"{source.name}-{k:05d}" for k in range(count)]
    return names
