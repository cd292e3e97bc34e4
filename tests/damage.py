"""What disks, copies and machines do to a program: bits that turn over, calls that fail."""

from collections.abc import Callable
from pathlib import Path
from typing import NoReturn


def flip(path: Path, at: int = -5) -> None:
    """Turn one bit of a file over."""
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def raising(error: BaseException) -> Callable[..., NoReturn]:
    """A function that fails whatever it is given."""

    def fail(*_: object, **__: object) -> NoReturn:
        raise error

    return fail
