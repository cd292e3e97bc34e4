"""What every command line has in common: flags, refusals in one line, a progress bar, the end.

What cannot be done is one line on stderr and status 2. Places are looked at before anything is made
there, so that a refused command leaves nothing behind.
"""

import argparse
import importlib.util
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from osdhuman_jax.filenames import spelled
from osdhuman_jax.interruption import leave

if TYPE_CHECKING:
    from tqdm import tqdm

# Exit statuses as shells give them to a process that a signal ended: 128 and the signal's number.
INTERRUPTED, UNREAD = 128 + signal.SIGINT, 128 + signal.SIGPIPE


class CommandError(ValueError):
    """What a person gave is at fault: one line that says what, where, and what to do."""


class _Formatter(argparse.ArgumentDefaultsHelpFormatter):
    """Adds a flag's default to its help, unless there is none or the help tells of it."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        # A default of None, False or "" tells a person nothing.
        told = "default" in (action.help or "")
        return action.help if told or not action.default else super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """Shows defaults, takes no abbreviations, and refuses in one line with status 2."""

    def __init__(self, prog: str, description: str = "", **options: Any) -> None:
        # Abbreviations would take a new flag's beginning for an old flag.
        options = {"formatter_class": _Formatter} | options
        super().__init__(prog, description=description, allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def called(script: str) -> str:
    """The name of a command as it was called: `osdhuman NAME`, or that of its script."""
    return sys.argv[0] if sys.argv[0].startswith("osdhuman ") else script


def end(
    name: str, main: Callable[[], int], advice: str = "give the same command again"
) -> NoReturn:
    """Run a command as the whole process.

    Ctrl-C, SIGTERM and a closed terminal are one line and status 130. Where nobody reads its output
    any more, as behind `| head -1`, the command ends in silence with status 141.
    """
    # A service that ends a job sends SIGTERM: what cleans up after Ctrl-C serves both.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # So does a terminal that is closed, but for what `nohup` started to outlive it.
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.default_int_handler)
    try:
        try:
            status = main()
        finally:
            # A pipe without a reader is noticed here, and not at the interpreter's end.
            sys.stdout.flush()
    except KeyboardInterrupt:
        print(f"{name}: interrupted; {advice}", file=sys.stderr)
        status = INTERRUPTED
    except BrokenPipeError:
        # What is still in the buffer must go somewhere when the interpreter ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = UNREAD
    leave(status)


def some_text(text: str) -> str:
    """A path or pattern as a flag's type: empty text, as of an unset variable, is no folder here.

    Raises argparse.ArgumentTypeError.
    """
    if not text:
        raise argparse.ArgumentTypeError("the path is empty; name one ('.' is this folder)")
    return text


def some_path(text: str) -> Path:
    """A path as a flag's type. Raises argparse.ArgumentTypeError where it is empty."""
    return Path(some_text(text))


def check_folder(flag: str, path: Path) -> None:
    """Raise CommandError where a folder to write into cannot be made, or not be written."""
    # What is to be made lies in the nearest folder above that is there, if it is a folder.
    whole = path.absolute()
    there = next(folder for folder in (whole, *whole.parents) if os.path.lexists(folder))
    if not there.is_dir():
        raise CommandError(
            f"--{flag} {spelled(path)}: {spelled(there)} is no folder; name another one"
        )
    if not os.access(there, os.W_OK | os.X_OK):
        raise CommandError(
            f"--{flag} {spelled(path)}: {spelled(there)} cannot be written; name another folder"
        )


def check_file(flag: str, path: Path) -> None:
    """Raise CommandError where a file to write cannot be made in its folder, or is a folder."""
    if path.is_dir():
        raise CommandError(f"--{flag} {spelled(path)}: is a folder; name a file in it")
    check_folder(flag, path.absolute().parent)


def check_input(flag: str, path: Path) -> None:
    """Raise CommandError where a folder to read is not there, is a file or cannot be read."""
    if not path.is_dir():
        what = "is a file, not a folder" if path.exists() else "no such folder"
        raise CommandError(f"--{flag} {spelled(path)}: {what}; name another one")
    if not os.access(path, os.R_OK | os.X_OK):
        raise CommandError(f"--{flag} {spelled(path)}: cannot be read; name another folder")


def check_input_file(flag: str, path: Path) -> None:
    """Raise CommandError where a file to read is not there, is a folder or cannot be read."""
    if path.is_dir() or not path.exists():
        what = "is a folder, not a file" if path.is_dir() else "no such file"
        raise CommandError(f"--{flag} {spelled(path)}: {what}; name another one")
    if not os.access(path, os.R_OK):
        raise CommandError(f"--{flag} {spelled(path)}: cannot be read; name another file")


def bar(total: int, unit: str, done: int = 0, shown: bool = True) -> "tqdm":
    """A command's progress bar on stderr, a context whose `update(n)` says that n more are done.

    `done` were there before, `unit` is one of them in words.
    """
    # Where nothing is left to do it is not needed.
    from tqdm import tqdm

    # Pictures differ in size: what is left is told by the mean of many, not by the last few.
    return tqdm(
        total=total,
        initial=done,
        unit=unit,
        smoothing=0.05,
        file=sys.stderr,
        disable=not shown,
    )


def say(line: str) -> None:
    """Write a line to stderr, above a progress bar that may be there."""
    # Where nothing is said it is not needed.
    from tqdm import tqdm

    tqdm.write(line, file=sys.stderr)


def call_config(path: Path, *arguments: str) -> object:
    """What a Python file's `get_config` gives. Raises CommandError, in one line, where it cannot.

    The file is run, so that anything may be wrong with it.
    """
    advice = "give a config such as configs/base.py"
    if not path.is_file():
        what = "a folder, not a file" if path.is_dir() else "no such file"
        raise CommandError(f"{spelled(path)}: {what}; {advice}")
    # As a module of its own: the name of the file need not be one that Python could import.
    spec = importlib.util.spec_from_file_location("given_config", path)
    if spec is None or spec.loader is None:
        raise CommandError(f"{spelled(path)}: not a Python file; {advice}")
    module = importlib.util.module_from_spec(spec)
    try:
        # Whatever the file does wrong, a person gets one line that names the file. Not by its
        # loader, which would leave a __pycache__ in the person's folder.
        exec(compile(path.read_bytes(), path, "exec"), vars(module))
        return module.get_config(*arguments)
    except (Exception, SystemExit) as error:
        # The line in the person's own file is what helps, not those of Python's import.
        frames = traceback.extract_tb(error.__traceback__)
        own = [frame.lineno for frame in frames if frame.filename == str(path)]
        line = f" (line {own[-1]})" if own else ""
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise CommandError(
            f"{spelled(path)}: no config can be read from it: {reason}{line}"
        ) from error
