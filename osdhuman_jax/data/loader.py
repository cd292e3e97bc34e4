"""Training pictures in batches of a fixed order, whatever makes them and wherever a run goes on.

A sample is made by a pure function of (seed, epoch, index), so that any of them can be made again
(samples.py). Order is arithmetic: the run's samples have positions 0, 1, 2, ...; position p is
place p % n of the seeded permutation of epoch p // n (n pictures). The batch of step s holds
positions s*B .. (s+1)*B - 1 and each of several processes takes its contiguous slice of it, so
that neither processes nor workers change what is learned from. Batches may straddle epochs.

Grain runs this in worker processes or threads; the state is one position, whatever their number.
Pictures are NHWC uint8 in [0, 255]; this module never imports jax.
"""

import atexit
import functools
import logging
import signal
import sys
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NotRequired, TypedDict

import grain
import numpy as np
from absl import flags
from jaxtyping import Bool, Float32, Int64, UInt8

from osdhuman_jax.config import ConfigError, DataConfig
from osdhuman_jax.data.captions import Captions, open_captions
from osdhuman_jax.data.part_maps import PartMaps, open_part_maps
from osdhuman_jax.data.samples import Sample, make_sample
from osdhuman_jax.data.sources import DataError, LabelledSource, Source, open_sources
from osdhuman_jax.data.structures import Structures, open_structures
from osdhuman_jax.workers import prepare_process

# What Grain's error says of a worker that was killed; it has no class of its own.
KILLED = "terminated unexpectedly"

_log = logging.getLogger(__name__)


class WorkerBatch(TypedDict):
    """What a worker hands over: the arrays of a batch, and lines for the log."""

    hq: UInt8[np.ndarray, "b height width 3"]
    lq: NotRequired[UInt8[np.ndarray, "b height width 3"]]
    mask: NotRequired[Bool[np.ndarray, "b height width"]]
    people: NotRequired[Float32[np.ndarray, "b 4 18 3"]]
    attention: NotRequired[Float32[np.ndarray, "b height width 1"]]
    caption: NotRequired[np.ndarray]  # of str (b,); for the host, which makes tokens of it
    index: Int64[np.ndarray, " b"]
    skipped: Int64[np.ndarray, " b"]
    failures: list[str]


@functools.lru_cache(maxsize=2)
def epoch_order(seed: int, epoch: int, count: int) -> Int64[np.ndarray, " count"]:
    """The epoch's permutation of 0 .. count - 1, read-only because it is cached."""
    # `count` as third word: no sample's generator has it, since indices end before.
    order = np.random.default_rng([seed, epoch, count]).permutation(count)
    order.setflags(write=False)
    return order


@dataclass(frozen=True)
class BatchMaker:
    """Makes this process's slice of the global batch that begins at a position.

    It is sent to the worker processes whole, so that all it holds can be pickled.
    """

    source: Source
    config: DataConfig
    size: int  # samples in the slice
    offset: int  # where the slice starts in the global batch
    labelled: LabelledSource | None = None
    maps: PartMaps | None = None
    structures: Structures | None = None
    captions: Captions | None = None

    def __call__(self, position: int) -> WorkerBatch:
        """Arrays of `size` samples, and the lines of "failures" for the log."""
        first = position + self.offset
        samples = [self.sample(p) for p in range(first, first + self.size)]
        batch: WorkerBatch = {
            "hq": np.stack([s["hq"] for s in samples]),
            "index": np.array([s["index"] for s in samples], np.int64),
            "skipped": np.array([len(s["failures"]) for s in samples], np.int64),
            "failures": [line for s in samples for line in s["failures"]],
        }
        # Whether there is an LQ or a mask is a matter of the config: all have one, or none.
        if degraded := [s["lq"] for s in samples if "lq" in s]:
            batch["lq"] = np.stack(degraded)
        if masks := [s["mask"] for s in samples if "mask" in s]:
            batch["mask"] = np.stack(masks)
        if self.structures:
            batch["people"] = np.stack([s["people"] for s in samples if "people" in s])
            batch["attention"] = np.stack([s["attention"] for s in samples if "attention" in s])
        if self.captions:
            batch["caption"] = np.array([s["caption"] for s in samples if "caption" in s], str)
        return batch

    def sample(self, position: int) -> Sample:
        """The run's sample number `position`."""
        epoch, place = divmod(position, len(self.source))
        index = epoch_order(self.config.seed, epoch, len(self.source))[place]
        return make_sample(
            self.source,
            self.config,
            epoch,
            int(index),
            self.labelled,
            self.maps,
            structures=self.structures,
            captions=self.captions,
        )


class Loader:
    """Iterator over batches; made by `make_loader`.

    A batch is {"hq": uint8 (B, H, W, 3), "lq": the same if degraded, "mask": bool (B, H, W) with
    `config.mask`, "people": float32 (B, 4, 18, 3) and "attention": float32 (B, H, W, 1) with
    `config.poses`, "caption": str (B,) with `config.captions`, "index": int64 (B,), "skipped":
    int64 (B,), the number of unreadable pictures passed over for each sample}.
    Each unreadable picture is logged once, as a warning. Use the loader as a context manager, or
    call `close`, to free the workers as soon as they are done.
    """

    def __init__(self, make_batch: BatchMaker, stride: int, stop: int) -> None:
        """`stride`: samples of a global batch; `stop`: the position no batch may go beyond."""
        self._make_batch = make_batch
        self._stride = stride
        self._stop = stop
        self._position = 0
        self._running: list[grain.DatasetIterator] = []  # one at most
        # When forgotten, or first of all at exit: later, Grain's clean-up fails and complains.
        atexit.register(weakref.finalize(self, _close, self._running))
        self._logged: set[str] = set()

    @property
    def images(self) -> int:
        """How many pictures the sources hold."""
        return len(self._make_batch.source)

    def __iter__(self) -> "Loader":
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        if self._position + self._stride > self._stop:
            self.close()
            raise StopIteration
        batch = self._read(again=True)
        self._position += self._stride
        self._warn(batch["failures"])
        # Copies, so that no batch keeps a piece of a worker's shared memory alive.
        return {key: np.array(value) for key, value in batch.items() if key != "failures"}

    def _read(self, again: bool) -> WorkerBatch:
        """The batch at this position; workers that were killed are started `again`, but once."""
        if not self._running:
            self._running.append(self._start())
        try:
            return next(self._running[0])
        except BaseException as error:
            # Grain would go on with the other workers: batches lost, in silence.
            self.close()
            if not (isinstance(error, RuntimeError) and KILLED in str(error)):
                raise
            if not again:
                advice = "is memory or /dev/shm full? lower data.workers"
                raise DataError(f"data workers are killed again and again: {advice}") from error
            _log.warning("%s: started again", error)
        return self._read(again=False)

    def get_state(self) -> dict[str, int]:
        """Where the next batch starts, as JSON values; the same for all processes and workers."""
        seed = self._make_batch.config.seed
        return {"position": self._position, "images": self.images, "seed": seed}

    def set_state(self, state: dict[str, int]) -> None:
        """Goes on where `get_state` was called. Raises DataError if pictures or seed differ."""
        for key, own in self.get_state().items():
            if key != "position" and state[key] != own:
                raise DataError(f"cannot resume: {key} was {state[key]} and is {own} now")
        self.close()
        self._position = int(state["position"])

    def close(self) -> None:
        """Stops the workers. The position stays, and another `next` would start them again."""
        _close(self._running)

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self) -> grain.DatasetIterator:
        """Grain's iterator from this position on; with workers, it starts them."""
        # Grain hands out positions; what a position means is BatchMaker's arithmetic.
        starts = grain.MapDataset.range(self._position, self._stop, self._stride)
        batches = starts.map(self._make_batch)
        workers = self._make_batch.config.workers
        if not workers:
            read = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)
            return iter(batches.to_iter_dataset(read))
        # Workers: each makes whole batches, one ahead, and reads them in its main thread.
        # Grain's workers read absl flags, which only an absl program has parsed.
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()
        read = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
        options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=1)
        iterator = iter(batches.to_iter_dataset(read).mp_prefetch(options, _init_worker))
        # Makes every worker's iterator known to `iterator`, hence to `close`.
        iterator.get_state()
        iterator.start_prefetch()
        return iterator

    def _warn(self, failures: Sequence[str]) -> None:
        # Once for each picture: in a run of a hundred epochs it comes a hundred times.
        for line in failures:
            if line not in self._logged:
                self._logged.add(line)
                _log.warning("skipped an unreadable picture: %s", line)


def _close(running: list[grain.DatasetIterator]) -> None:
    """Stop the workers. A function of the list, since the loader itself may be gone by then."""
    while running:
        running.pop().close()


def _init_worker(index: int, count: int) -> None:
    """What a worker does first, as Grain calls it."""
    prepare_process(signal.SIGINT, signal.SIGTERM)


def make_loader(
    config: DataConfig,
    *,
    batch_size: int,
    shard_index: int = 0,
    shard_count: int = 1,
    repeat: bool = True,
) -> Loader:
    """Batches of `config.sources` for process `shard_index` of `shard_count`.

    Args:
        config: its `batch_size` is not read. With `workers`, a script needs its `__main__` guard.
        batch_size: samples a batch in this process; the global batch is shard_count times that.
        repeat: go on for ever; otherwise stop after the full batches of one epoch.

    Raises DataError if a source is missing or empty, or one epoch does not fill a batch;
    ConfigError if a number is out of range.
    """
    # What a config's own check does not see, as where a script makes a loader alone.
    if batch_size < 1 or not 0 <= shard_index < shard_count:
        raise ConfigError(f"batch_size {batch_size}, shard {shard_index} of {shard_count}")
    others = config.crop_height, config.resize_short, config.workers, config.seed
    if config.crop < 1 or min(others) < 0:
        names = "crop_height, resize_short, workers, seed"
        raise ConfigError(f"data: crop must be positive; {names} not negative")
    # Each process takes its slice of every global batch.
    source = open_sources(config.sources)
    stride = batch_size * shard_count
    if not repeat and len(source) < stride:
        raise DataError(f"{len(source)} pictures do not fill one batch of {stride}")
    labelled = LabelledSource(config.labelled) if config.labelled else None
    maps = open_part_maps(config, source)
    structures, captions = open_structures(config, source), open_captions(config, source)
    for kind, found in (("pose", structures), ("caption", captions)):
        for file, count in (found.missing if found else {}).items():
            _log.warning("%s: %d pictures have no %s in it", file, count, kind)
    make_batch = BatchMaker(
        source, config, batch_size, shard_index * batch_size, labelled, maps, structures, captions
    )
    return Loader(make_batch, stride, sys.maxsize if repeat else len(source) // stride * stride)
