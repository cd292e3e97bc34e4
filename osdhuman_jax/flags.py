"""Command lines: one that refuses in one line, and amounts of memory as a flag's value."""

import argparse
from typing import NoReturn

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
