"""The score job: crops in, a number of each metric for every crop out.

Metrics are computed by group (see `curate.quality.scores`), a job for each, so that a metric which
is added later leaves the numbers that are there alone. The selection reads the numbers.
"""

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType

import cv2
import numpy as np
import pyarrow.compute as pc

from curate.config import ScoreConfig
from curate.cropping.job import CODE, LIBRARIES, decode_crop, file_name_digest
from curate.cropping.stages import Region, person_region
from curate.engine.ledger import ShardLedger, digest
from curate.engine.parquet import ERROR, CropFile, Row, read_table, write_scores
from curate.engine.worker import Failure, ItemRunner
from curate.quality import scores
from curate.schema import WHOLE_PICTURE, CropBatch, Facts, Pixels, sorted_counts

# A batch with the regions of its persons, or None where nobody looks at them.
LocatedBatch = tuple[CropBatch, list[Region] | None]
# A crop's person box and square on the source, and whether the box is all of the picture.
Placement = tuple[tuple[float, float, float, float], tuple[int, int, int], bool]
_PLACEMENT = ("crop_id", "reason", "box_flags", "box_x0", "box_y0", "box_x1", "box_y1")
# No placements: of every crop all is looked at.
EVERYWHERE: Mapping[str, Placement] = MappingProxyType({})


@dataclass(frozen=True)
class ScoreJob:
    """The job of one group of metrics. Its shards are those of the crop job.

    The output scores.parquet has crop_id and a column for each metric. A crop that cannot be scored
    has NaN there and, in the column `parquet.ERROR`, the reason.
    """

    group: str
    config: ScoreConfig

    @property
    def name(self) -> str:
        return f"score-{self.group}"

    @property
    def gpus(self) -> float:
        return 1.0 if self.config.device.startswith("cuda") else 0.0

    @property
    def network(self) -> bool:
        return scores.has_network(self.group)

    def key(self, ledger: ShardLedger, shard: str) -> str:
        # Of the crop job's outputs the pictures alone: its rows may change without them.
        inputs = [file_name_digest(ledger.output("crop", shard, "crops.parquet"))]
        # Where a person is on a crop stands in the rows.
        if scores.sees_region(self.group, self.config):
            inputs.append(digest(read_placements(ledger, shard)))
        return digest(CODE, LIBRARIES, scores.describe(self.group, self.config), *inputs)

    def work(self, ledger: ShardLedger, shard: str, folder: Path, run: ItemRunner) -> Facts:
        crops = CropFile(ledger.output("crop", shard, "crops.parquet"))
        located = scores.sees_region(self.group, self.config)
        places = read_placements(ledger, shard) if located else {}
        metrics = scores.names(self.group, self.config)
        failed = dict.fromkeys(metrics, math.nan)
        rows: list[Row] = []
        for name, values in self.results(crops, run, places):
            if isinstance(values, Failure):
                values = {**failed, ERROR: values.reason}
            rows.append({"crop_id": name, **values})
        write_scores(folder / "scores.parquet", metrics, rows)
        errors = sorted_counts(row[ERROR] for row in rows if ERROR in row)
        return {"crops": len(rows), "reasons": errors}

    def results(
        self, crops: CropFile, run: ItemRunner, places: Mapping[str, Placement] = EVERYWHERE
    ) -> Iterator[tuple[str, Row | Failure]]:
        """Yields of each crop its name and its values by metric, or a Failure.

        A batch that fails is taken one by one. Raises RuntimeError if all of its crops fail then:
        the metric, or what it runs on, is at fault and not the crops.

        Args:
            places: where the persons are, by the crop's name; if empty, all of a crop is looked at.
        """
        # Items are whole batches, which may take as long as all of their crops.
        setup = partial(make_batch_scorer, self.group, self.config)
        patient = replace(run, limit=run.limit * self.config.batch)
        # The runner takes the pixels and is ahead by one batch at most. (`itertools.tee` would hold
        # 57 batches, which is 360 MB.)
        ahead: deque[tuple[list[str], np.ndarray]] = deque()

        def taken() -> Iterator[LocatedBatch]:
            for batch in crop_batches(crops, self.config.batch):
                ahead.append(batch)
                yield locate(batch[1], batch[0], places)

        for values in patient.each(setup, taken()):
            ids, pixels = ahead.popleft()
            if isinstance(values, Failure) and len(ids) > 1:
                # One crop at a time, to find those that are at fault.
                alone = ((pixels[at : at + 1], [name]) for at, name in enumerate(ids))
                single = list(run.each(setup, (locate(*one, places) for one in alone)))
                if all(isinstance(value, Failure) for value in single):
                    raise RuntimeError(f"{self.group}: no crop can be scored: {values.detail}")
                values = [v if isinstance(v, Failure) else v[0] for v in single]
            yield from zip(ids, [values] if isinstance(values, Failure) else values, strict=True)


def read_placements(ledger: ShardLedger, shard: str) -> dict[str, Placement]:
    """Where the person of each crop of a shard is, by the crop's name."""
    path = ledger.output("crop", shard, "rows.parquet")
    rows = read_table(path, (*_PLACEMENT, "x0", "y0", "s")).filter(pc.field("reason") == "")
    return {
        row["crop_id"]: (
            (row["box_x0"], row["box_y0"], row["box_x1"], row["box_y1"]),
            (row["x0"], row["y0"], row["s"]),
            WHOLE_PICTURE in row["box_flags"],
        )
        for row in rows.to_pylist()
    }


def locate(
    batch: CropBatch, ids: Sequence[str], placements: Mapping[str, Placement]
) -> LocatedBatch:
    """A batch with the regions of its persons; None without placements."""
    aspect = batch.shape[1] // batch.shape[2]
    found = (placements[name] for name in ids) if placements else ()
    regions = [person_region(box, place, aspect, whole) for box, place, whole in found]
    return batch, regions or None


def make_batch_scorer(group: str, config: ScoreConfig) -> Callable[[LocatedBatch], list[Row]]:
    """The function on batches that a worker process runs, with the metrics' weights loaded."""
    cv2.setNumThreads(1)
    return partial(score_batch, scores.make_scorer(group, config))


def score_batch(scorer: scores.MetricGroup, item: LocatedBatch) -> list[Row]:
    """Values by metric of each crop of a batch."""
    batch, regions = item
    columns = scorer(batch, regions)
    return [{name: float(columns[name][at]) for name in scorer.names} for at in range(len(batch))]


def crop_batches(crops: CropFile, size: int) -> Iterator[tuple[list[str], np.ndarray]]:
    """Yields names and pixels of `size` crops at a time, of what is left at the end."""
    ids: list[str] = []
    pixels: list[Pixels] = []
    for name, png in crops.items():
        ids.append(name)
        pixels.append(decode_crop(png))
        if len(ids) == size:
            yield ids, np.stack(pixels)
            ids, pixels = [], []
    if ids:
        yield ids, np.stack(pixels)
