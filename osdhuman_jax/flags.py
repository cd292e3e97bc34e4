"""Command lines: what is refused in one line, what is said meanwhile, what settings there are."""

import argparse
import ast
import dataclasses
import importlib.util
import inspect
import logging
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from tqdm import tqdm

from osdhuman_jax.config import Config, ConfigError
from osdhuman_jax.memory import parse_bytes


class Parser(argparse.ArgumentParser):
    """Shows defaults, takes no abbreviations, and refuses in one line with status 2."""

    def __init__(self, prog: str, description: str) -> None:
        formatter = argparse.ArgumentDefaultsHelpFormatter
        super().__init__(prog, None, description, formatter_class=formatter, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def memory(text: str) -> int:
    """Bytes of a text like 4GiB, as a flag's type."""
    try:
        return parse_bytes(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


class _AboveTheBar(logging.Handler):
    """Writes a line to the terminal, past a progress bar that may be there."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)


def speak() -> None:
    """Let the package say on the terminal what it does; of JAX and Orbax only what goes wrong."""
    for name in (None, "absl"):
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.getLogger("osdhuman_jax").setLevel(logging.INFO)
    # At the root: where that has no handler, whatever warns first may add another one.
    root = logging.getLogger()
    for handler in root.handlers[:]:
        # What a library's warning added before this: every line would come twice.
        if type(handler) is logging.StreamHandler:
            root.removeHandler(handler)
    if not any(isinstance(handler, _AboveTheBar) for handler in root.handlers):
        root.addHandler(_AboveTheBar())


def check_folder(flag: str, path: Path) -> None:
    """Raise ConfigError where a folder to write into cannot be made, or not be written."""
    whole = path.absolute()
    there = next(folder for folder in (whole, *whole.parents) if os.path.lexists(folder))
    if not there.is_dir():
        raise ConfigError(f"--{flag} {path}: {there} is no folder; name another one")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ConfigError(f"--{flag} {path}: {there} cannot be written; name another folder")


def flag_value(argv: Sequence[str], name: str) -> str | None:
    """What a command line gives as `--name=value` or `--name value`, before it is parsed."""
    found = None  # of several, the last one counts
    for word, following in zip(argv, [*argv[1:], None], strict=True):
        flag, equals, value = word.lstrip("-").partition("=")
        if word.startswith("-") and flag == name:
            found = value if equals else following
    return found


def load_config(name: str) -> Config:
    """The configuration of a Python file, `FILE` or `FILE:ARGUMENT` of its get_config.

    Raises ConfigError, in one line, where there is none.
    """
    file, *arguments = name.split(":", 1)
    path = Path(file)
    if not path.is_file():
        what = "a folder, not a file" if path.is_dir() else "no such file"
        raise ConfigError(f"{file}: {what}; give a config such as configs/base.py")
    spec = importlib.util.spec_from_file_location("given_config", path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{file}: not a Python file; give a config such as configs/base.py")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        config = module.get_config(*arguments)
    except Exception as error:  # the file is the user's program: anything may come out of it
        own = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == file]
        line = f" (line {own[-1]})" if own else ""
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigError(f"{file}: no config can be read from it: {reason}{line}") from error
    if not isinstance(config, Config):
        raise ConfigError(f"{file}: its get_config() gives no osdhuman_jax.config.Config")
    return config


def settings(kind: type, prefix: str) -> Iterator[str]:
    """A line for each field of a config dataclass: its flag, its default, what the source says."""
    notes = _notes(kind)
    for field in dataclasses.fields(kind):
        name = f"{prefix}.{field.name}"
        if isinstance(field.type, type) and dataclasses.is_dataclass(field.type):
            yield f"\n{name}: {(field.type.__doc__ or '').splitlines()[0]}"
            yield from settings(field.type, name)
        else:
            yield f"  --{name}={field.default!r}  {notes.get(field.name, '')}".rstrip()


def _notes(kind: type) -> dict[str, str]:
    """The comments at the ends of a dataclass's fields."""
    source = inspect.getsource(kind)
    lines = source.splitlines()
    (body,) = ast.parse(source).body
    found: dict[str, Any] = {
        node.target.id: lines[(node.end_lineno or 1) - 1].partition("  # ")[2]
        for node in ast.walk(body)
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }
    return found
