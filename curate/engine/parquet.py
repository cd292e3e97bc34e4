"""Parquet in and out, with settings fixed so that the same rows give the same bytes.

The columns of every file of the pipeline are here. Files are written group by group, so that no
more than a group of rows is held.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from curate.schema import Box, SourceImage

Row = dict[str, Any]
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
        ("flickr_id", pa.string()),
        ("license", pa.string()),
    ]
)
CANDIDATE_SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),
        ("dataset", pa.string()),
        ("split_of_source", pa.string()),
        ("path", pa.string()),
        ("flickr_id", pa.string()),
        ("license", pa.string()),
        ("file_sha256", pa.string()),
        ("pixel_sha256", pa.string()),
        ("phash", pa.string()),
        ("w", pa.int32()),
        ("h", pa.int32()),
        ("orientation", pa.int32()),
        ("image_flags", _TEXTS),
        ("lap_src", pa.float64()),
        ("box_index", pa.int32()),  # null: an image without candidates
        ("box_x0", pa.float64()),
        ("box_y0", pa.float64()),
        ("box_x1", pa.float64()),
        ("box_y1", pa.float64()),
        ("raw_label", pa.string()),
        ("box_flags", _TEXTS),
        ("detector", pa.string()),  # null: labelled
        ("box_score", pa.float64()),
        ("crop_id", pa.string()),
        ("x0", pa.int32()),
        ("y0", pa.int32()),
        ("s", pa.int32()),
        ("scale_factor", pa.float64()),  # stored side over source side
        ("lap_crop", pa.float64()),
        ("persons", pa.int32()),  # labelled persons on the crop
        ("crop_sha256", pa.string()),  # of the stored PNG
        ("crop_shard", pa.string()),
        ("crop_row", pa.int32()),
        ("reason", pa.string()),
        ("detail", pa.string()),
    ]
)
CROP_SCHEMA = pa.schema([("crop_id", pa.string()), ("png", pa.binary())])
FINGERPRINT_SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),
        ("crop_id", pa.string()),  # null: the whole image
        ("file_sha256", pa.string()),  # of the image's file, for crops too
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
    """Write rows; `group` rows are held, and later read, at once. Returns how many there were."""
    with RowWriter(path, schema, group, zip_) as file:
        for row in rows:
            file.add(row)
    return file.count


def write_scores(path: Path, metrics: Sequence[str], rows: Sequence[Row]) -> None:
    """A score job's output: crop_id, the metrics and, where any crop has one, ERROR."""
    fields = [("crop_id", pa.string()), *((name, pa.float64()) for name in metrics)]
    fields += [(ERROR, pa.string())] if any(row.get(ERROR) for row in rows) else []
    write_rows(path, pa.schema(fields), rows)


def score_columns(table: pa.Table) -> list[str]:
    """The metrics of a score job's output."""
    return [name for name in table.column_names if name not in ("crop_id", ERROR)]


class RowWriter:
    """A file that takes rows one by one and holds `group` of them at most."""

    def __init__(self, path: Path, schema: pa.Schema, group: int = 65536, zip_: bool = True):
        self.count = 0
        self._schema, self._group = schema, group
        self._rows: list[Row] = []
        compression = "zstd" if zip_ else "none"
        self._sink = pa.OSFile(os.fsencode(path), "wb")
        self._file = pq.ParquetWriter(
            self._sink, schema, compression=compression, write_page_checksum=True
        )

    def add(self, row: Row) -> None:
        """Write one more."""
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
        if self._rows and kind is None:
            self._flush()
        self._file.close()
        self._sink.close()


def crop_writer(path: Path) -> RowWriter:
    """A file for rows of CROPS, read a crop at a time (see `CropFile`)."""
    return RowWriter(path, CROP_SCHEMA, group=1, zip_=False)


def write_table(path: Path, table: pa.Table) -> None:
    """Write a table."""
    with pa.OSFile(os.fsencode(path), "wb") as sink:
        pq.write_table(table, sink, compression="zstd", write_page_checksum=True)


def read_table(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """A whole file or some columns of it."""
    wanted = list(columns) if columns else None
    with open_parquet(path) as file:
        return pq.read_table(file, columns=wanted, page_checksum_verification=True)


def open_parquet(path: Path) -> pa.NativeFile:
    """A file of any name; Arrow's own opening wants names of UTF-8."""
    return pa.OSFile(os.fsencode(path))


def read_rows(path: Path, columns: Sequence[str] | None = None) -> list[Row]:
    """The rows of a file, or some columns of them, as dictionaries."""
    return read_table(path, columns).to_pylist()


class CropFile:
    """A crops file, read a crop at a time."""

    def __init__(self, path: Path) -> None:
        self._file = pq.ParquetFile(open_parquet(path), page_checksum_verification=True)

    def __len__(self) -> int:
        return self._file.metadata.num_rows

    def png(self, row: int) -> bytes:
        """The crop in a row."""
        return self._file.read_row_group(row, ["png"]).column(0)[0].as_py()

    def items(self) -> Iterator[tuple[str, bytes]]:
        """(crop_id, PNG) of all."""
        for group in range(self._file.num_row_groups):
            for row in self._file.read_row_group(group).to_pylist():
                yield row["crop_id"], row["png"]


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
