"""python train.py --config configs/base.py --workdir runs/base [--config.optim.learning_rate=1e-4]

At the start the run says on the terminal what it is about to do: devices, parameters, batch, steps,
and the settings that are not the defaults; after some steps, the hours that are left. The same
command goes on where an interrupted run stopped. At the end, WORKDIR/model/ is a model
folder: what `infer.py --model` takes, and what a further stage's `run.init` starts from.

Exit status: 0 done; 2 bad input; 3 losses or gradients were not finite for too long; 4 the disk is
full or a file cannot be read or written; 75 stopped by SIGTERM or SIGINT: run it again.
"""

import errno
import logging as standard_logging
import sys
from pathlib import Path
from types import TracebackType
from typing import NoReturn

from absl import app, flags, logging

from osdhuman_jax.cli import CommandError, called, end
from osdhuman_jax.commands.config_flags import define_config, settings
from osdhuman_jax.config import Config, ConfigError
from osdhuman_jax.filenames import spelled
from osdhuman_jax.interruption import leave
from osdhuman_jax.training.status import BAD, DONE, NOT_FINITE, NOT_SAVED, STOPPED

NAME = called("train.py")
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; made if need be, else resumed.")
PROFILE = flags.DEFINE_integer("profile", 0, "Write a trace of this many steps to WORKDIR/profile.")
COORDINATOR = flags.DEFINE_string("coordinator", "", "HOST:PORT of process 0 of several.")
PROCESSES = flags.DEFINE_integer("processes", -1, "How many processes there are; 1: no others.")
PROCESS = flags.DEFINE_integer("process", -1, "Which of them this is, from 0.")
# Errors that room on the disk would mend.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
REASONS = {
    NOT_FINITE: "loss or gradient not finite in too many steps in a row (optim.max_nonfinite), "
    "none of which changed anything: step {0} in {1} holds what was before them. If that is "
    "ruined itself, remove it: the run then goes on from the checkpoint before ({2})",
    STOPPED: "stopped; step {0} is saved, the same command goes on from it",
}


def parse_flags(argv: list[str]) -> list[str]:
    """absl's parser, but a bad flag or config file is one line and status 2."""
    # Before absl looks: its help needs a config that can be read.
    if {"--help", "-help", "-h", "--helpshort", "--helpfull"} & set(argv[1:]):
        print(usage())
        sys.exit(DONE)
    try:
        left = flags.FLAGS(define_config(argv))
        if left[1:]:
            raise CommandError(f"{left[1]!r} is no flag (see --help)")
        return left
    except (flags.Error, CommandError, KeyError) as error:
        reason = error.args[0] if isinstance(error, KeyError) else error
        print(f"{NAME}: {' '.join(str(reason).split())}", file=sys.stderr)
        sys.exit(BAD)


def usage() -> str:
    """All flags, and all settings with their defaults."""
    # Not absl's own list, in which these are lost among the flags of libraries.
    own = [WORKDIR, PROFILE, COORDINATOR, PROCESSES, PROCESS]
    said = ["  --config  Experiment, for instance configs/base.py."]
    said += [f"  --{flag.name}  {flags.FLAGS[flag.name].help}" for flag in own]
    head = "Settings, by their defaults; a config file changes some, a flag changes one:"
    return "\n".join([__doc__ or "", "Flags:", *said, "", head, *settings(Config, "config")])


def tell(line: str) -> None:
    """Write one line to stderr."""
    print(f"{NAME}: {line}", file=sys.stderr, flush=True)


def fail(status: int, reason: object) -> NoReturn:
    """Write one line to stderr and end the process."""
    tell(f"{reason}")
    leave(status)


def quieter_hook(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Python's hook, silent on what TensorStore's threads say after a write has failed."""
    if not (kind is RuntimeError and str(error) == "Event loop is closed"):
        sys.__excepthook__(kind, error, trace)


def run(_) -> None:
    """Parse flags, train, turn what went wrong into one line and a status."""
    # OpenCV, JAX, Grain and Orbax, which `--help` does without.
    import cv2

    from osdhuman_jax.data.sources import DataError
    from osdhuman_jax.training import hosts
    from osdhuman_jax.training.checkpoint import CheckpointError, SaveError, steps_saved
    from osdhuman_jax.training.loop import resume_point, train
    from osdhuman_jax.weights import WeightsError

    # Orbax logs through absl, tracebacks of what is told below in one line among it.
    logging.set_verbosity(logging.WARNING)
    standard_logging.getLogger("absl").setLevel(standard_logging.CRITICAL)
    sys.excepthook = quieter_hook
    # The loader's workers are processes; threads of OpenCV in each would only contend.
    cv2.setNumThreads(1)
    # Each way to fail has one line and one status, on which scripts and batch systems rely.
    workdir = Path(WORKDIR.value or "")
    try:
        if not WORKDIR.value:
            raise CommandError("--workdir is empty; name a folder ('.' is this one)")
        hosts.join(COORDINATOR.value, PROCESSES.value, PROCESS.value, tell)
        status = train(flags.FLAGS.config, workdir, PROFILE.value)
    except (CommandError, ConfigError, CheckpointError, DataError, WeightsError) as error:
        fail(BAD, error)
    except SaveError as error:
        fail(NOT_SAVED, error)
    except KeyboardInterrupt:
        fail(STOPPED, f"stopped at once; the same command goes on from {resume_point(workdir)}")
    # Before the first step; later ones are the loop's own to tell.
    except OSError as error:
        fail(NOT_SAVED if error.errno in FULL else BAD, error)
    else:
        if status != DONE:
            *before, last = ["none", *steps_saved(workdir)]
            fail(status, REASONS[status].format(last, workdir / "checkpoints", before[-1]))
        if hosts.is_first():
            tell(f"done; the result is {spelled(workdir / 'model')}")


def main() -> int:
    """Run the command by absl; returns the exit status where nothing ended the process before."""
    app.run(run, flags_parser=parse_flags)
    return DONE


def command() -> NoReturn:
    """Run the command as the whole process."""
    flags.mark_flag_as_required("workdir")
    end(NAME, main)


if __name__ == "__main__":
    command()
