"""A worker of a cluster: a loaded model, which restores what the driver hands it.

`folder_cluster.py` starts workers as actors of Ray. Each carries out its jobs by the same `Runner`
as a run on one machine, so that pictures have the same bytes. The record alone is not its own: a
line goes to the driver, and a picture takes its name when the driver has the line on its disk. So a
picture that is there has a line, whichever machine ends in between.
"""

import socket
from dataclasses import dataclass, field
from pathlib import Path
from threading import Condition

from osdhuman_jax import __version__
from osdhuman_jax.config import Json
from osdhuman_jax.inference.folder_run import Runner
from osdhuman_jax.inference.jobs import Job
from osdhuman_jax.inference.notes import Notes
from osdhuman_jax.inference.pipeline import Pipeline
from osdhuman_jax.inference.program_cache import keep_programs
from osdhuman_jax.inference.restraint import Restrainer, RestraintOptions, open_restrainer
from osdhuman_jax.inference.settings import Restraint, Settings
from osdhuman_jax.workers import EngineError

PATIENCE = 1.0  # seconds for which a driver that asks for lines waits where there are none


@dataclass(frozen=True)
class Orders:
    """What every worker of a run is told. Paths are absolute, and the same on all machines."""

    model: Path
    digest: str  # of the driver's model
    precision: str
    batch_size: int
    max_memory: int | None
    settings: Settings
    output: Path
    token: Path  # a folder in the output folder, by which a worker knows that it is the driver's
    notes: Notes | None
    restraint: RestraintOptions = field(default_factory=RestraintOptions)
    version: str = __version__  # of the driver's package


class RunStopped(Exception):
    """The run ends before a picture got its line, so that it gets no name either."""


class Relay:
    """The way of lines to the driver; threads add them, and one of the driver's calls takes them.

    It is a `ledger.Record`.
    """

    def __init__(self) -> None:
        self._waiting: list[Json] = []
        # How many lines there were so far, and how many of them are on the driver's disk.
        self._added = self._recorded = 0
        self._stopped = False
        self._change = Condition()

    def add(self, line: Json) -> None:
        """Return when the driver has the line on its disk. Raises RunStopped if the run ends."""
        with self._change:
            self._waiting.append(line)
            self._added += 1
            number = self._added
            self._change.notify_all()
            self._change.wait_for(lambda: self._stopped or self._recorded >= number)
            if self._recorded < number:
                raise RunStopped

    def take(self, recorded: int, patience: float) -> list[Json]:
        """Lines that came since the last call; all before them, `recorded`, are on the disk.

        Where there are none it waits for `patience` seconds.
        """
        with self._change:
            self._recorded = recorded
            self._change.notify_all()
            self._change.wait_for(lambda: self._stopped or bool(self._waiting), patience)
            taken, self._waiting = self._waiting, []
            return taken

    def stop(self) -> None:
        """Let no picture take its name any more whose line is not recorded yet."""
        with self._change:
            self._stopped = True
            self._change.notify_all()


class Worker:
    """One loaded model. Ray calls the methods in several threads at once."""

    def __init__(self, orders: Orders) -> None:
        self._orders, self._relay = orders, Relay()
        self._pipeline: Pipeline | None = None
        self._restrain: Restrainer | None = None

    def ready(self) -> str:
        """Load the model; returns its name. Raises EngineError where this machine is another."""
        orders, here = self._orders, socket.gethostname()
        if orders.version != __version__:
            text = f"osdhuman_jax {__version__}, and not the driver's {orders.version}"
            raise EngineError(f"{here} has {text}: install the same on all machines")
        # Pictures that were written elsewhere would be lost.
        if not orders.token.is_dir():
            text = "is not there, or is another folder"
            raise EngineError(f"{orders.output} {text}, on {here}: mount it there too")
        keep_programs()
        try:
            self._pipeline = Pipeline.from_folder(
                orders.model,
                orders.precision,
                batch_size=orders.batch_size,
                max_memory=orders.max_memory,
            )
        except (ValueError, OSError) as error:
            raise EngineError(f"{orders.model}, on {here}: {error}") from error
        if self._pipeline.model.digest != orders.digest:
            text = "is another model than the driver's, on"
            raise EngineError(f"{orders.model} {text} {here}: copy that one there")
        try:
            self._restrain = open_restrainer(self._pipeline.model.use, **orders.restraint)
        except (ValueError, OSError) as error:
            raise EngineError(f"{here}: {error}") from error
        # Other files of the same names would give back other faces, or other parts of pictures.
        found = self._restrain.settings if self._restrain else None
        if (found or Restraint()) != (orders.settings.restraint or Restraint()):
            text = "mask, detector or embedding are not the driver's: copy those there"
            raise EngineError(f"{here}: {text}")
        return self._pipeline.model.name

    def work(self, jobs: list[Job]) -> list[tuple[Job, str]]:
        """Carry out jobs; returns what is remarked of pictures, once all have their names."""
        assert self._pipeline is not None  # the driver has asked whether it is ready
        orders = self._orders
        what = self._pipeline, orders.settings, orders.output, self._relay
        runner = Runner(*what, orders.notes, restrain=self._restrain)
        try:
            runner.run(jobs)
        except RunStopped:
            pass
        return runner.remarks

    def lines(self, recorded: int) -> list[Json]:
        """Lines for the record, as `Relay.take`."""
        return self._relay.take(recorded, PATIENCE)

    def stop(self) -> None:
        """Begin no more, and let nothing take its name that has no line."""
        self._relay.stop()
