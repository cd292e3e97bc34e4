"""Remove the pictures of dropped crops, which take up most of an output folder.

Needed once a selection is final: of the paper's 440,000 crops a quarter is kept, and a PNG has 0.4
MB or so. Rows, scores and fingerprints stay, so that another threshold can still be tried; if it
keeps a crop whose picture is gone, packing names the shard that has to be cropped anew.
"""

import pyarrow as pa

from curate.engine.ledger import ShardLedger
from curate.engine.parquet import CropFile, crop_writer, read_table
from curate.selection.manifest import manifest_parts


def prune(ledger: ShardLedger) -> tuple[int, int]:
    """Remove the PNG of every crop that is not kept; returns how many there were, and bytes freed.

    The manifest must be that of the present crops. Raises LedgerError before a selection.
    """
    count = freed = 0
    for part in manifest_parts(ledger):
        rows = read_table(part, ["crop_shard", "crop_row", "kept"])
        rows = rows.filter(rows["crop_row"].is_valid())
        # A part is of one crop shard.
        for shard in rows["crop_shard"].unique().to_pylist():
            removed, size = prune_shard(ledger, shard, rows)
            count, freed = count + removed, freed + size
    return count, freed


def prune_shard(ledger: ShardLedger, shard: str, rows: pa.Table) -> tuple[int, int]:
    """`prune` of a crop shard, of whose crops `rows` says which are kept."""
    kept = set(rows.filter(rows["kept"])["crop_row"].to_pylist())
    crops = CropFile(ledger.output("crop", shard, "crops.parquet"))
    with ledger.workspace() as folder:
        path, removed = folder / "crops.parquet", 0
        # Rows stay where they are, since the manifest names crops by their row.
        with crop_writer(path) as file:
            for row, name in enumerate(crops.names()):
                png = crops.find(row)
                removed += png is not None and row not in kept
                file.add({"crop_id": name, "png": png if row in kept else None})
        if not removed:
            return 0, 0
        return removed, ledger.thin("crop", shard, "crops.parquet", path)
