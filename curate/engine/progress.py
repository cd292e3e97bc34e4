"""One screen of progress: how far, how fast, how long still, and what is dropped for what.

Outcomes of shards go in; lines on standard error come out. On a terminal it is a bar that is
redrawn; elsewhere it is a line now and then, so that logs stay readable.
"""

import sys
import time
from collections import Counter

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from curate.engine.worker import Outcome

# Seconds between lines where there is no terminal.
EVERY = 30.0


class RateColumn(ProgressColumn):
    """The column of a bar that shows items a second, over the whole time so far."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.completed / task.elapsed if task.elapsed else 0:,.1f}/s")


class Screen:
    """Progress of one job; a context manager, called with each outcome."""

    def __init__(self, title: str, total: int | None, unit: str = "images") -> None:
        """Start the clock.

        Args:
            title: the job's name.
            total: how many items are left to do, None where that is not known.
            unit: name of the outcomes' fact that counts items.
        """
        self._title, self._total, self._unit = title, total, unit
        self._done, self._told, self._drops = 0, 0, Counter[str]()
        self._start = self._said = time.monotonic()
        # On standard error, so that standard output holds results alone.
        console = Console(stderr=True)
        self._terminal = console.is_terminal
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            RateColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[drops]}"),
            console=console,
            disable=not self._terminal,
        )
        self._task = self._bar.add_task(title, total=total, drops="")

    def __enter__(self) -> "Screen":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()
        # In a log the last line says what was done in all.
        if self._done != self._told and not self._terminal:
            self._say()

    def __call__(self, outcome: Outcome) -> None:
        """Count a shard that ended."""
        # Facts are the job's own: not every job counts this unit, or has reasons.
        self._done += outcome.facts.get(self._unit, 0)
        self._drops.update({k: n for k, n in outcome.facts.get("reasons", {}).items() if k})
        self._bar.update(self._task, completed=self._done, drops=self.drops())
        if outcome.error:
            self._bar.console.print(f"{self._title} {outcome.shard}: {outcome.error}")
        if not self._terminal and time.monotonic() - self._said >= EVERY:
            self._say()

    def drops(self) -> str:
        """The most frequent reasons so far, with their numbers."""
        # Eight fit on a line of a usual terminal.
        return " ".join(f"{name} {n:,}" for name, n in self._drops.most_common(8))

    def _say(self) -> None:
        """Print a line on how far the job is, for logs."""
        self._said = time.monotonic()
        seconds = max(self._said - self._start, 1e-3)
        rate = self._done / seconds
        total = "" if self._total is None else f"/{self._total:,}"
        line = f"{self._title}: {self._done:,}{total} {self._unit}, {rate:,.1f}/s"
        if self._total is not None and self._done < self._total:
            line += f", {(self._total - self._done) / rate if rate else 0:,.0f} s left"
        else:
            line += f", {seconds:,.1f} s"
        print(f"{line}  {self.drops()}".rstrip(), file=sys.stderr)
        self._told = self._done
