"""Parquet in and out, with settings fixed so that the same rows give the same bytes.

The columns of every file of the pipeline are here. Rows go in and come out as dictionaries by
column. Files are written group by group, so that no more than a group of rows is held. Pages carry
checksums, which are compared when they are read.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from curate.schema import Box, InputError, Json, SourceImage

# A row of any of these files; the schema says the type of each value.
Row = dict[str, Json]
# The column that says why a crop has no scores.
ERROR = "error"

_TEXTS = pa.list_(pa.string())
_BOX = pa.struct(
    [
        ("xyxy", pa.list_(pa.float64())),
        ("kind", pa.string()),
        ("raw_label", pa.string()),
        ("flags", _TEXTS),
        ("score", pa.float64()),
    ]
)
# What the index job writes: the fields of SourceImage, in their order.
INDEX_SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),
        ("dataset", pa.string()),
        ("path", pa.string()),
        ("split_of_source", pa.string()),
        ("label_w", pa.int32()),
        ("label_h", pa.int32()),
        ("normalized", pa.bool_()),
        ("rotation", pa.int32()),
        ("boxes", pa.list_(_BOX)),
        ("policy", pa.string()),
        ("exif", pa.string()),
        ("flickr_id", pa.string()),
        ("license", pa.string()),
    ]
)
# What the crop job writes, and the first columns of the manifest: a row for each candidate, or one
# for an image without candidates.
CANDIDATE_SCHEMA = pa.schema(
    [
        # What the labels say of the image.
        ("image_id", pa.string()),
        ("dataset", pa.string()),
        ("split_of_source", pa.string()),
        ("path", pa.string()),
        ("flickr_id", pa.string()),
        ("license", pa.string()),
        # What the decoded image says; null where it was not decoded.
        ("file_sha256", pa.string()),
        ("pixel_sha256", pa.string()),
        ("phash", pa.string()),
        ("w", pa.int32()),
        ("h", pa.int32()),
        ("orientation", pa.int32()),
        ("image_flags", _TEXTS),
        ("lap_src", pa.float64()),
        # The candidate's box; its index is null where an image has no candidates.
        ("box_index", pa.int32()),
        ("box_x0", pa.float64()),
        ("box_y0", pa.float64()),
        ("box_x1", pa.float64()),
        ("box_y1", pa.float64()),
        ("raw_label", pa.string()),
        ("box_flags", _TEXTS),
        # Null where the box is labelled.
        ("detector", pa.string()),
        ("box_score", pa.float64()),
        # Its square in pixels of the source, and the stored side over the source's.
        ("crop_id", pa.string()),
        ("x0", pa.int32()),
        ("y0", pa.int32()),
        ("s", pa.int32()),
        ("scale_factor", pa.float64()),
        # Its crop: sharpness, labelled persons, digest of the stored PNG, where that lies.
        ("lap_crop", pa.float64()),
        ("persons", pa.int32()),
        ("crop_sha256", pa.string()),
        ("crop_shard", pa.string()),
        ("crop_row", pa.int32()),
        # Empty where no rule has dropped the candidate.
        ("reason", pa.string()),
        ("detail", pa.string()),
    ]
)
CROP_SCHEMA = pa.schema([("crop_id", pa.string()), ("png", pa.binary())])
FINGERPRINT_SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),
        # Null where the fingerprint is of the whole image.
        ("crop_id", pa.string()),
        # The digest of the image's file, for crops too.
        ("file_sha256", pa.string()),
        ("pixel_sha256", pa.string()),
        ("flickr_id", pa.string()),
        ("pixels", pa.int64()),
        ("phash", pa.uint64()),
        ("mirrored", pa.uint64()),
        ("thumb", pa.binary()),
    ]
)


def write_rows(
    path: Path, schema: pa.Schema, rows: Iterable[Row], group: int = 65536, zip_: bool = True
) -> int:
    """Write rows; returns how many there were.

    Args:
        group: rows that are held, and later read, at once.
        zip_: whether columns are compressed, which is of no use for pictures.
    """
    with RowWriter(path, schema, group, zip_) as file:
        for row in rows:
            file.add(row)
    return file.count


def write_scores(path: Path, metrics: Sequence[str], rows: Sequence[Row]) -> None:
    """Write a score job's output: crop_id, the metrics and, where any crop has one, ERROR."""
    fields = [("crop_id", pa.string()), *((name, pa.float64()) for name in metrics)]
    fields += [(ERROR, pa.string())] if any(row.get(ERROR) for row in rows) else []
    write_rows(path, pa.schema(fields), rows)


def score_columns(table: pa.Table) -> list[str]:
    """Names of the metrics in a score job's output."""
    return [name for name in table.column_names if name not in ("crop_id", ERROR)]


class RowWriter:
    """A file that takes rows one by one and holds `group` of them at most."""

    def __init__(self, path: Path, schema: pa.Schema, group: int = 65536, zip_: bool = True):
        self.count = 0
        self._schema, self._group = schema, group
        self._rows: list[Row] = []
        compression = "zstd" if zip_ else "none"
        # Arrow would open paths of UTF-8 only; its own file object takes the bytes of any name.
        self._sink = pa.OSFile(os.fsencode(path), "wb")
        self._file = pq.ParquetWriter(
            self._sink, schema, compression=compression, write_page_checksum=True
        )

    def add(self, row: Row) -> None:
        """Take one more row, and write the group if it is full."""
        self._rows.append(row)
        self.count += 1
        if len(self._rows) == self._group:
            self._flush()

    def _flush(self) -> None:
        self._file.write_table(pa.Table.from_pylist(self._rows, self._schema))
        self._rows = []

    def __enter__(self) -> "RowWriter":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        # After an error the file is of no use to anyone, so its last rows need not be written.
        if self._rows and kind is None:
            self._flush()
        self._file.close()
        self._sink.close()


def crop_writer(path: Path) -> RowWriter:
    """A file for rows of CROP_SCHEMA, from which `CropFile` reads single crops."""
    return RowWriter(path, CROP_SCHEMA, group=1, zip_=False)


def write_table(path: Path, table: pa.Table) -> None:
    """Write a table with the compression and checksums of all files."""
    with pa.OSFile(os.fsencode(path), "wb") as sink:
        pq.write_table(table, sink, compression="zstd", write_page_checksum=True)


def read_table(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """A whole file, or some columns of it, as a table."""
    wanted = list(columns) if columns else None
    with open_parquet(path) as file:
        return pq.read_table(file, columns=wanted, page_checksum_verification=True)


def open_parquet(path: Path) -> pa.NativeFile:
    """Open a file whose name may be of any bytes; Arrow by itself wants names of UTF-8."""
    return pa.OSFile(os.fsencode(path))


def read_rows(path: Path, columns: Sequence[str] | None = None) -> list[Row]:
    """The rows of a file, or some columns of them, as dictionaries."""
    return read_table(path, columns).to_pylist()


class PrunedError(InputError):
    """A crop whose picture is wanted and was pruned."""


class CropFile:
    """A crops file, read a crop at a time. Those that were pruned have no PNG any more."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = pq.ParquetFile(open_parquet(path), page_checksum_verification=True)

    def __len__(self) -> int:
        return self._file.metadata.num_rows

    def find(self, row: int) -> bytes | None:
        """The PNG in a row of the file; None where it was pruned."""
        # `crop_writer` makes every row a group, so that this reads one crop and no more.
        return self._file.read_row_group(row, ["png"]).column(0)[0].as_py()

    def png(self, row: int) -> bytes:
        """The PNG in a row of the file. Raises PrunedError where there is none."""
        png = self.find(row)
        if png is None:
            raise PrunedError(
                f"{self._path}: its dropped crops were pruned, and one is wanted: remove its "
                "marker in done/crop and run `crop`"
            )
        return png

    def names(self) -> list[str]:
        """The crop_id of every row."""
        return self._file.read(["crop_id"])["crop_id"].to_pylist()

    def items(self) -> Iterator[tuple[str, bytes]]:
        """Yields (crop_id, PNG) of every row. Raises PrunedError where there is none."""
        for row, name in enumerate(self.names()):
            yield name, self.png(row)


def image_row(image: SourceImage) -> Row:
    """A source image as a row of the index."""
    return asdict(image)


def source_image(row: Row) -> SourceImage:
    """A row of the index as a source image."""
    boxes = tuple(
        Box(tuple(b["xyxy"]), b["kind"], b["raw_label"], tuple(b["flags"]), b["score"])
        for b in row["boxes"]
    )
    return SourceImage(**{**row, "boxes": boxes})
