"""The score job: crops in, a number of each metric for every crop out.

Metrics are computed by group (see `curate.quality.scores`), a job for each, so that a metric which
is added later leaves the numbers that are there alone. The selection reads the numbers.
"""

import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from curate.config import ScoreConfig
from curate.cropping.job import CODE, LIBRARIES, decode_crop, file_name_digest
from curate.engine.ledger import ShardLedger, digest
from curate.engine.parquet import ERROR, CropFile, Row, write_scores
from curate.engine.worker import Failure, ItemRunner
from curate.quality import scores
from curate.schema import CropBatch, Facts, Pixels, sorted_counts


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

    def key(self, ledger: ShardLedger, shard: str) -> str:
        # Of the crop job's outputs the pictures alone: its rows may change without them.
        crops = file_name_digest(ledger.output("crop", shard, "crops.parquet"))
        return digest(CODE, LIBRARIES, scores.describe(self.group, self.config), crops)

    def work(self, ledger: ShardLedger, shard: str, folder: Path, run: ItemRunner) -> Facts:
        crops = CropFile(ledger.output("crop", shard, "crops.parquet"))
        metrics = scores.names(self.group, self.config)
        failed = dict.fromkeys(metrics, math.nan)
        rows: list[Row] = []
        for name, values in self.results(crops, run):
            if isinstance(values, Failure):
                values = {**failed, ERROR: values.reason}
            rows.append({"crop_id": name, **values})
        write_scores(folder / "scores.parquet", metrics, rows)
        errors = sorted_counts(row[ERROR] for row in rows if ERROR in row)
        return {"crops": len(rows), "reasons": errors}

    def results(self, crops: CropFile, run: ItemRunner) -> Iterator[tuple[str, Row | Failure]]:
        """Yields of each crop its name and its values by metric, or a Failure.

        A batch that fails is taken one by one. Raises RuntimeError if all of its crops fail then:
        the metric, or what it runs on, is at fault and not the crops.
        """
        # Items are whole batches, which may take as long as all of their crops.
        setup = partial(make_batch_scorer, self.group, self.config)
        patient = replace(run, limit=run.limit * self.config.batch)
        # The runner takes the pixels and is ahead by one batch at most. (`itertools.tee` would hold
        # 57 batches, which is 360 MB.)
        ahead: deque[tuple[list[str], np.ndarray]] = deque()

        def taken() -> Iterator[np.ndarray]:
            for batch in crop_batches(crops, self.config.batch):
                ahead.append(batch)
                yield batch[1]

        for values in patient.each(setup, taken()):
            ids, pixels = ahead.popleft()
            if isinstance(values, Failure) and len(ids) > 1:
                # One crop at a time, to find those that are at fault.
                single = list(run.each(setup, pixels[:, None]))
                if all(isinstance(value, Failure) for value in single):
                    raise RuntimeError(f"{self.group}: no crop can be scored: {values.detail}")
                values = [v if isinstance(v, Failure) else v[0] for v in single]
            yield from zip(ids, [values] if isinstance(values, Failure) else values, strict=True)


def make_batch_scorer(group: str, config: ScoreConfig) -> Callable[[CropBatch], list[Row]]:
    """The function on batches that a worker process runs, with the metrics' weights loaded."""
    cv2.setNumThreads(1)
    return partial(score_batch, scores.make_scorer(group, config))


def score_batch(scorer: scores.MetricGroup, batch: CropBatch) -> list[Row]:
    """Values by metric of each crop of a batch."""
    columns = scorer(batch)
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
