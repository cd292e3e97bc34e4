"""The packed set: kept crops, recoded, in a seeded order, in files for training.

A record is what the trainer reads: `osdhuman_jax.data.records` encodes a header and a picture as
one. Records lie in ArrayRecord files with one record a group, so that access is random. The other
containers hold the same header and picture: Parquet (columns header, image), WebDataset tars
(CROP.json, CROP.EXT), or plain folders (CROP.EXT, headers in index.parquet). The selection and the
stored crops go in, OUT/packed/SPLIT comes out.
"""

import hashlib
import io
import json
import os
import shutil
import tarfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypedDict

import cv2
import pyarrow as pa
from PIL import Image

from curate.config import PackConfig
from curate.cropping.job import CODE, LIBRARIES, decode_crop
from curate.engine.engine import Engine
from curate.engine.ledger import ShardLedger, digest
from curate.engine.parquet import Row, read_rows, write_rows
from curate.engine.worker import ItemRunner, Outcome
from curate.schema import Facts, InputError, Pixels, sorted_counts
from curate.selection.decisions import read_facts
from curate.selection.manifest import Crops, selected_rows
from curate.selection.split import seeded_key
from osdhuman_jax.data.records import RecordError, decode_record, encode_record
from osdhuman_jax.disk import file_digest, staged_folder, write_text

# Suffix of a shard's file by container. A folder's pictures come in tars too, and are taken out of
# them when the set is published: a shard has one file, whose digest the ledger knows.
CONTAINER_SUFFIXES = {
    "arrayrecord": "arrayrecord",
    "parquet": "parquet",
    "webdataset": "tar",
    "folder": "tar",
}
# Suffix of a picture by codec.
EXTENSIONS = {"webp": "webp", "png": "png", "jpeg": "jpg"}
# The manifest's columns that a record's header has too.
CARRIED = ("image_id", "dataset", "license", "x0", "y0", "s", "split")
RECORD_SCHEMA = pa.schema([("header", pa.string()), ("image", pa.binary())])
PACK_INDEX_SCHEMA = pa.schema(
    [
        ("crop_id", pa.string()),
        ("file", pa.string()),
        ("row", pa.int32()),
        ("header", pa.string()),
    ]
)
# A header (crop_id, w, h, codec, CARRIED, sha256) and an encoded picture.
Record = tuple[Facts, bytes]


class PackError(InputError):
    """Nothing to pack, an unknown container, or a crop that is not the one in the manifest."""


class SaveOptions(TypedDict, total=False):
    """Pillow's options for saving a picture."""

    format: str
    lossless: bool
    quality: int
    method: int
    exact: bool
    compress_level: int
    subsampling: int


def encode_picture(rgb: Pixels, codec: str) -> bytes:
    """Pixels as webp (lossless), png, or jpeg (quality 95, colour at full resolution)."""
    # Stated in full, so that another default of Pillow's changes no bytes. In lossless WebP quality
    # and method are effort.
    options: dict[str, SaveOptions] = {
        "webp": {"format": "WEBP", "lossless": True, "quality": 75, "method": 4, "exact": True},
        "png": {"format": "PNG", "compress_level": 6},
        "jpeg": {"format": "JPEG", "quality": 95, "subsampling": 0},
    }
    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, **options[codec])
    return buffer.getvalue()


def make_record(row: Row, png: bytes, codec: str) -> Record:
    """Header and picture of a kept crop. Raises PackError if the stored PNG is damaged."""
    if hashlib.sha256(png).hexdigest() != row["crop_sha256"]:
        raise PackError(f"crop {row['crop_id']}: stored picture is damaged; run with --verify")
    rgb = decode_crop(png)
    data = png if codec == "png" else encode_picture(rgb, codec)
    header = {"crop_id": row["crop_id"], "w": rgb.shape[1], "h": rgb.shape[0], "codec": codec}
    header |= {name: row[name] for name in CARRIED}
    return {**header, "sha256": hashlib.sha256(data).hexdigest()}, data


def picture_name(header: Facts) -> str:
    """The name of a record's picture as a file."""
    return f"{header['crop_id']}.{EXTENSIONS[header['codec']]}"


def write_container(path: Path, kind: str, records: Iterable[Record]) -> list[Facts]:
    """Write one file of a container; returns the headers of its records."""
    headers: list[Facts] = []

    # Records go through one by one, since pictures of a file are more than memory should hold.
    def noted() -> Iterator[Record]:
        for record in records:
            headers.append(record[0])
            yield record

    if kind == "arrayrecord":
        _write_arrayrecord(path, noted())
    elif kind == "parquet":
        rows = ({"header": json.dumps(h), "image": data} for h, data in noted())
        write_rows(path, RECORD_SCHEMA, rows, group=32, zip_=False)
    else:
        _write_tar(path, noted())
    return headers


def _write_arrayrecord(path: Path, records: Iterable[Record]) -> None:
    """One record a group, for random access; uncompressed, since pictures are compressed."""
    # Not installed everywhere: there are no wheels for Windows.
    from array_record.python.array_record_module import ArrayRecordWriter

    writer = ArrayRecordWriter(str(path), "group_size:1,uncompressed")
    for record in records:
        writer.write(encode_record(*record))
    writer.close()


def _write_tar(path: Path, records: Iterable[Record]) -> None:
    """WebDataset: members that share a name up to the suffix are one sample."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for header, data in records:
            text = json.dumps(header).encode()
            names = f"{header['crop_id']}.json", picture_name(header)
            for name, content in zip(names, (text, data), strict=True):
                # A new TarInfo has no owner and time 0, so that bytes repeat.
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def read_container(path: Path) -> Iterator[Record]:
    """Yields header and picture of every record in a file, or in a packed folder of any kind."""
    if path.is_dir():
        yield from _read_folder(path)
    elif path.suffix == ".arrayrecord":
        yield from _read_arrayrecord(path)
    elif path.suffix == ".tar":
        yield from _read_tar(path)
    else:
        for row in read_rows(path):
            yield json.loads(row["header"]), row["image"]


def _read_folder(path: Path) -> Iterator[Record]:
    """Records of a published folder, in the order of its index."""
    # A row's file is its picture, or a container that is read at its first row.
    for row in read_rows(path / "index.parquet"):
        header = json.loads(row["header"])
        if Path(row["file"]).suffix.lstrip(".") in EXTENSIONS.values():
            yield header, (path / row["file"]).read_bytes()
        elif row["row"] == 0:
            yield from read_container(path / row["file"])


def _read_arrayrecord(path: Path) -> Iterator[Record]:
    from array_record.python.array_record_module import ArrayRecordReader

    reader = ArrayRecordReader(str(path))
    for _ in range(reader.num_records()):
        try:
            yield decode_record(reader.read())
        except RecordError as error:
            raise PackError(f"{path}: {error}; pack again") from None
    reader.close()


def _read_tar(path: Path) -> Iterator[Record]:
    with tarfile.open(path) as tar:
        members = iter(tar)
        for header, picture in zip(members, members, strict=True):
            head, data = tar.extractfile(header), tar.extractfile(picture)
            # `_write_tar` writes plain files only.
            assert head is not None and data is not None
            yield json.loads(head.read()), data.read()


@dataclass(frozen=True)
class PackJob:
    """The job of one file. A shard, `SPLIT-00000-of-00001`, is some of a split's crops.

    Outputs the file and its headers, which are also read without it.
    """

    config: PackConfig
    seed: int
    name: str = "pack"
    gpus: float = 0.0
    network: bool = False

    def key(self, ledger: ShardLedger, shard: str) -> str:
        # All that a file holds follows from these, besides the settings.
        rows = [(r["crop_id"], r["crop_sha256"], r["license"]) for r in self.rows(ledger, shard)]
        return digest(CODE, LIBRARIES, asdict(self.config), rows)

    def rows(self, ledger: ShardLedger, shard: str) -> list[Row]:
        """The manifest's rows of the shard's crops, in order."""
        split, number, _, count = shard.rsplit("-", 3)
        rows = selected_rows(ledger).get(split, [])
        return [r for r in rows if file_number(self.seed, r["crop_id"], int(count)) == int(number)]

    def work(self, ledger: ShardLedger, shard: str, folder: Path, run: ItemRunner) -> Facts:
        cv2.setNumThreads(1)
        rows, crops = self.rows(ledger, shard), Crops(ledger)
        records = (make_record(row, crops.png(row), self.config.codec) for row in rows)
        name = f"records.{CONTAINER_SUFFIXES[self.config.to]}"
        headers = write_container(folder / name, self.config.to, records)
        (folder / "headers.json").write_text(json.dumps(headers))
        return {"crops": len(headers)}


def file_count(crops: int, per_file: int) -> int:
    """How many files a split has, of about `per_file` crops at most."""
    # A power of two: one crop more or less hardly ever deals all of them anew.
    return 1 << max(0, -(-crops // per_file) - 1).bit_length()


def file_number(seed: int, crop: str, files: int) -> int:
    """The number of the file that a crop is in. Files are stretches of the seeded order."""
    return int(seeded_key(seed, crop)[:8], 16) * files >> 32


def check_container(config: PackConfig) -> None:
    """Raises PackError on an unknown container or codec."""
    if config.to not in CONTAINER_SUFFIXES or config.codec not in EXTENSIONS:
        known = f"{', '.join(CONTAINER_SUFFIXES)}; {', '.join(EXTENSIONS)}"
        raise PackError(f"pack: no container {config.to!r} with codec {config.codec!r}: {known}")


def pack(
    engine: Engine,
    config: PackConfig,
    seed: int,
    report: Callable[[Outcome], None] | None = None,
) -> dict[str, int]:
    """Pack every split into OUT/packed/SPLIT; returns the number of crops of each.

    `report` is called with each file's outcome. Raises PackError if nothing is selected or a
    setting is unknown.
    """
    check_container(config)
    # Each split has its files, each file is a shard of one job.
    ledger = ShardLedger(engine.root)
    sizes = {split: len(rows) for split, rows in sorted(selected_rows(ledger).items())}
    if not sizes:
        raise PackError("nothing is selected, so there is nothing to pack: see the funnel")
    shards = {
        split: shard_names(split, file_count(size, config.per_file))
        for split, size in sizes.items()
    }
    engine.run(
        PackJob(config, seed), [shard for names in shards.values() for shard in names], report
    )
    # Packs of another number of files, or of splits that are no more.
    for stale in set(ledger.shards("pack")) - {s for names in shards.values() for s in names}:
        ledger.forget_shard("pack", stale)
    # The folder appears as a whole; the old one stays until then.
    with staged_folder(ledger.root / "packed", replace=True) as folder:
        for split, names in shards.items():
            publish(ledger, config, split, names, folder / split)
    return sizes


def shard_names(split: str, files: int) -> list[str]:
    """Names of a split's files without suffix."""
    return [f"{split}-{k:05d}-of-{files:05d}" for k in range(files)]


def publish(
    ledger: ShardLedger, config: PackConfig, split: str, shards: list[str], folder: Path
) -> None:
    """Make a split's folder: its files under plain names, index.parquet, dataset.json."""
    folder.mkdir()
    suffix, index = CONTAINER_SUFFIXES[config.to], []
    for shard in shards:
        source = ledger.output("pack", shard, f"records.{suffix}")
        headers = json.loads(ledger.output("pack", shard, "headers.json").read_text())
        if not headers:
            # An empty file is not published: a loader would take it for a damaged one.
            continue
        if config.to == "folder":
            names = list(_extract(source, folder))
        else:
            # A second name for the committed file costs no space.
            _link(source, folder / f"{shard}.{suffix}")
            names = [f"{shard}.{suffix}"] * len(headers)
        index += [
            {"crop_id": h["crop_id"], "file": name, "row": row, "header": json.dumps(h)}
            for row, (h, name) in enumerate(zip(headers, names, strict=True))
        ]
    write_rows(folder / "index.parquet", PACK_INDEX_SCHEMA, index)
    write_text(folder / "dataset.json", _dataset(ledger, config, split, folder, index))


def _extract(tar: Path, folder: Path) -> Iterator[str]:
    """Write the pictures of a tar as files; yields their names."""
    for header, data in _read_tar(tar):
        name = picture_name(header)
        (folder / name).write_bytes(data)
        yield name


def _link(source: Path, target: Path) -> None:
    """Give a file a second name, or copy it where the file system knows no second names."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _dataset(
    ledger: ShardLedger, config: PackConfig, split: str, folder: Path, index: list[Row]
) -> str:
    """The text of dataset.json: what the files are, how many crops of which licence, digests."""
    stats = read_facts(ledger)
    headers = [json.loads(row["header"]) for row in index]
    files = sorted({row["file"] for row in index})
    facts = {
        "split": split,
        "crops": len(index),
        "to": config.to,
        "codec": config.codec,
        "datasets": sorted_counts(h["dataset"] for h in headers),
        "licenses": sorted_counts(h["license"] or "unknown" for h in headers),
        "sha256": {name: file_digest(folder / name) for name in files},
        "profile": stats["profile"],
        "metrics": stats["iqa"],
        "config_sha256": digest(stats["settings"]),
    }
    return json.dumps(facts, indent=1, sort_keys=True) + "\n"
