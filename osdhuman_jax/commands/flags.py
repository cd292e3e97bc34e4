"""Values of flags, each a type for argparse, and what a command says while it works.

A type raises argparse.ArgumentTypeError (or ValueError on what is no number), of which argparse
makes the one line that a person reads. The standard library alone is imported: `--help` is at once.
"""

import argparse
import logging

from osdhuman_jax.cli import say
from osdhuman_jax.images.formats import LOSSLESS
from osdhuman_jax.inference.memory import parse_bytes


def factor(text: str) -> float:
    """How much larger a picture shall be, 1 to 16."""
    # Beyond 16 a thumbnail takes the memory of a poster: most likely a typing error.
    value = float(text)
    if not 1 <= value <= 16:
        raise argparse.ArgumentTypeError(f"{text} is not between 1 and 16")
    return value


def share(text: str) -> float:
    """A part of the whole, 0 to 1."""
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def quality(text: str) -> int:
    """Of JPEG and WebP, 1 to 100."""
    value = int(text)
    if not 1 <= value <= LOSSLESS:
        raise argparse.ArgumentTypeError(f"{text} is not between 1 and {LOSSLESS}")
    return value


def count(text: str) -> int:
    """A number of things, 1 or more."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return value


def memory(text: str) -> int:
    """Bytes of a text like 4GiB, as a flag's type."""
    try:
        return parse_bytes(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


class _AboveTheBar(logging.Handler):
    """Writes a line to the terminal, past a progress bar that may be there."""

    def emit(self, record: logging.LogRecord) -> None:
        say(self.format(record))


def speak() -> None:
    """Let the package say on the terminal what it does; of JAX and Orbax only what goes wrong."""
    # Libraries say at length what their authors need.
    for name in (None, "absl"):
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.getLogger("osdhuman_jax").setLevel(logging.INFO)
    # At the root: where that has no handler, whatever warns first may add another one.
    root = logging.getLogger()
    for handler in root.handlers[:]:
        # What a library's warning added before this: every line would come twice.
        if type(handler) is logging.StreamHandler:
            root.removeHandler(handler)
    # Once, however many commands run in one process, as in tests.
    if not any(isinstance(handler, _AboveTheBar) for handler in root.handlers):
        root.addHandler(_AboveTheBar())
