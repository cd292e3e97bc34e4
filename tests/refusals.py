"""How a refusal is checked: an error of one line, or a command's status and what it says."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def one_line(error: type[BaseException], said: str | None = None) -> Iterator[pytest.ExceptionInfo]:
    """The block must raise such an error, of one line in which a pattern is found."""
    with pytest.raises(error, match=said) as caught:
        yield caught
    assert "\n" not in str(caught.value)


def status(main: Callable[[list[str]], int], *words: object) -> int:
    """The exit status of a command in this process, also where argparse ends it."""
    try:
        return main([str(word) for word in words])
    except SystemExit as ended:
        return int(ended.code or 0)
