"""How fast a run is: its rates between two lines of the log, and a trace for the profiler.

The loop asks `Rates` for the next batch, so that the time spent waiting for pictures is known, and
reads them at each line of the log. `ProfilerTrace` records some steps for TensorBoard's or
Perfetto's view of what the device did (`train.py --profile N`).
"""

import time
from pathlib import Path

import jax
import numpy as np
from jaxtyping import PyTree

from osdhuman_jax.data.loader import Loader

# Steps before a trace: the first ones compile.
WARM_UP = 2


class Rates:
    """Pictures a second, the share of time spent waiting, and what was skipped up to now."""

    def __init__(self, batch_size: int, work: float | None) -> None:
        """`batch_size` is the global one.

        `work` is the share of the devices' peak that one step a second would be, if known.
        """
        self._size, self._work = batch_size, work
        self.skipped = 0  # steps that were not finite, in this process's life
        self.unreadable = 0  # pictures of its batches that were passed over, likewise
        self.restart()

    def restart(self) -> None:
        """Begin to measure anew; what took time before this does not count."""
        # Compiling and validating, for two, say nothing of how fast steps are.
        self._since, self._waited, self._steps = time.monotonic(), 0.0, 0

    def next_batch(self, loader: Loader) -> dict[str, np.ndarray]:
        """The loader's next batch, and the time that it took counted."""
        before = time.monotonic()
        batch = next(loader)
        self._waited += time.monotonic() - before
        self._steps += 1
        return batch

    def read(self) -> dict[str, float]:
        """Scalars for the log, of the steps since the last reading."""
        # Dispatched steps stand for finished ones: at most one is still under way.
        seconds = time.monotonic() - self._since
        rate = self._steps / seconds
        # A run with `data_wait` near 1 needs more workers; `mfu` is known on known devices only.
        values = {"images_s": rate * self._size, "data_wait": self._waited / seconds}
        values |= {"skipped_steps": float(self.skipped), "skipped": float(self.unreadable)}
        if self._work:
            values["mfu"] = rate * self._work
        self.restart()
        return values


class ProfilerTrace:
    """A trace of some steps, taken when the program is compiled."""

    def __init__(self, workdir: Path, first: int, steps: int) -> None:
        """`first`: steps done before this process; `steps`: how many to record, 0 = none."""
        self._folder = workdir / "profile"
        self._first = first + WARM_UP
        self._last = self._first + steps
        self._on = False

    def at(self, step: int, done: PyTree) -> None:
        """Start before a step's work, stop when the work of the last one is done."""
        # Neither the first steps, which compile, nor what comes after the wanted ones.
        if self._first < self._last and step == self._first + 1:
            jax.profiler.start_trace(str(self._folder))
            self._on = True
        if self._on and step == self._last + 1:
            self.close(done)

    def close(self, done: PyTree) -> None:
        """Write the trace, if one is being taken, once the arrays `done` are computed."""
        # Steps are dispatched ahead: without waiting, the last ones would be missing.
        if self._on:
            jax.block_until_ready(done)
            jax.profiler.stop_trace()
            self._on = False
