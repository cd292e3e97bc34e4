"""Rows go to disk group by group, and come back as they were."""

import weakref

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curate.engine.ledger import ShardLedger
from curate.engine.parquet import CropFile, RowWriter, crop_writer, read_rows, write_rows
from curate.selection import manifest

SCHEMA = pa.schema([("n", pa.int32())])


@pytest.mark.parametrize(("count", "groups"), [(0, []), (3, [3]), (4, [4]), (9, [4, 4, 1])])
def test_a_writer_holds_one_group(tmp_path, count, groups):
    path = tmp_path / "rows.parquet"
    rows = [{"n": n} for n in range(count)]
    assert write_rows(path, SCHEMA, iter(rows), group=4) == count
    assert read_rows(path) == rows
    data = pq.ParquetFile(path).metadata
    assert [data.row_group(i).num_rows for i in range(data.num_row_groups)] == groups


def test_an_error_adds_no_half_group(tmp_path):
    path = tmp_path / "rows.parquet"
    with pytest.raises(OSError, match="full"), RowWriter(path, SCHEMA, group=2) as file:
        for n in range(3):
            file.add({"n": n})
        raise OSError("full")
    assert read_rows(path) == [{"n": 0}, {"n": 1}]


def test_few_crop_files_are_open_at_once(tmp_path, monkeypatch):
    alive: weakref.WeakSet[CropFile] = weakref.WeakSet()

    class Counted(CropFile):
        def __init__(self, path):
            super().__init__(path)
            alive.add(self)

    monkeypatch.setattr(manifest, "CropFile", Counted)
    monkeypatch.setattr(
        ShardLedger, "output", lambda self, job, shard, name: tmp_path / f"{shard}.{name}"
    )
    for shard in range(2 * manifest.OPEN):
        with crop_writer(tmp_path / f"{shard}.crops.parquet") as file:
            for row in range(2):
                file.add({"crop_id": f"{shard}-{row}", "png": bytes([shard, row])})
    crops, most = manifest.Crops(ShardLedger(tmp_path)), 0
    for shard in range(2 * manifest.OPEN):
        for row in (1, 0):
            assert crops.png({"crop_shard": str(shard), "crop_row": row}) == bytes([shard, row])
        most = max(most, len(alive))
    assert most <= manifest.OPEN + 1
