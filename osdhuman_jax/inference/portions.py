"""Which pictures a cluster's workers are handed, in which portions, and what a death means.

A portion is small beside what is left, so that all workers end at about the same time. Pictures
that a worker died over are handed out once more, each to a worker that does nothing else: the one
that kills its worker again is at fault, and is given up, and no other is.
"""

import math
from collections import deque
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from osdhuman_jax.images.sizes import step
from osdhuman_jax.inference.folder_plan import ALONE
from osdhuman_jax.inference.jobs import Job

LANES = 4  # portions at a time in a worker: encoding a PNG takes longer than a GPU does
PORTION = 32  # pictures at the most
LARGE = ALONE // LANES  # pixels; a larger picture has no other portion beside it in a worker
SHARES = 2  # portions that are left for each lane when a portion is cut
UNIT = 128  # pixels; steps of padded sides, as `Pipeline` has them by default


class Portion(NamedTuple):
    """Jobs for one call of a worker."""

    jobs: list[Job]
    alone: bool = False  # whether the worker may do nothing else meanwhile


class Schedule:
    """Jobs that are not handed out, and those to be handed out again."""

    def __init__(self, jobs: Sequence[Job], workers: int, batch: int) -> None:
        """`batch` is how many pictures are restored together."""
        # Pictures of one padded size follow each other: few programs serve a worker, and batches
        # are full. By name in a size, so that a person can follow; the largest come last.
        self._left = deque(sorted(jobs, key=_order))
        self._suspects: deque[Job] = deque()
        self._died: set[Job] = set()
        self._lanes, self._batch = LANES * workers, batch

    def __len__(self) -> int:
        return len(self._left) + len(self._suspects)

    def take(self, idle: bool) -> Portion | None:
        """What a worker gets next; `idle` if it has nothing else. None: nothing for it now."""
        if self._left:
            # One that fills the memory is by itself.
            if _pixels(self._left[0]) > LARGE:
                return Portion([self._left.popleft()], alone=True) if idle else None
            share = min(PORTION, len(self._left) // (SHARES * self._lanes))
            count = max(share // self._batch, 1) * self._batch
            jobs = []
            while self._left and len(jobs) < count and _pixels(self._left[0]) <= LARGE:
                jobs.append(self._left.popleft())
            return Portion(jobs)
        return Portion([self._suspects.popleft()], alone=True) if self._suspects and idle else None

    def lost(self, jobs: Iterable[Job]) -> list[Job]:
        """Take back what a worker died over; returns those that another died over before."""
        jobs = list(jobs)
        guilty = [job for job in jobs if job in self._died]
        self._suspects += [job for job in jobs if job not in self._died]
        self._died.update(jobs)
        return guilty


def _pixels(job: Job) -> int:
    return math.prod(job.size)


def _order(job: Job) -> tuple[object, ...]:
    padded = (step(side, UNIT) for side in job.size)
    return _pixels(job) > LARGE, *padded, job.output
