"""Command lines: one that refuses in one line, and amounts of memory as a flag's value."""

import argparse
import logging
import sys
from typing import NoReturn

from tqdm import tqdm

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
    package = logging.getLogger("osdhuman_jax")
    package.setLevel(logging.INFO)
    if not any(isinstance(handler, _AboveTheBar) for handler in package.handlers):
        package.addHandler(_AboveTheBar())
