"""Long work of C++ that Ctrl-C and SIGTERM can end: compiling, for one, takes minutes.

Give such work to `apart`, and end the process by `leave` if it may still be going on.

Python's handlers of signals run in the main thread, between two of its own instructions. XLA does
not come back to Python before a program is compiled, so that a signal would wait until then.
"""

import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import NoReturn, TypeVar

T = TypeVar("T")
# Seconds between two looks at a signal that was noted and raised nothing.
PATIENCE = 0.2
_threads: list[threading.Thread] = []


class Stopped(KeyboardInterrupt):
    """A signal was noted, and work that was still going on is given up."""


def apart(work: Callable[[], T], stopped: Callable[[], bool] = lambda: False) -> T:
    """Result of `work`, done in a thread of its own while the caller's hears signals.

    What a signal's handler raises comes out of here, and Stopped when `stopped` says so. The
    thread cannot be stopped, and is left to itself then: end the process by `leave`.
    """
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001 (it is raised where it is waited for)
            future.set_exception(error)

    # A daemon: the interpreter would wait for any other thread at its end.
    thread = threading.Thread(target=run, name="apart", daemon=True)
    _threads.append(thread)
    thread.start()
    # Back in Python five times a second: there a handler can run, and `stopped` be asked.
    while not wait([future], PATIENCE).done:
        if stopped():
            raise Stopped
    _threads.remove(thread)
    return future.result()


def leave(status: int) -> NoReturn:
    """End the process; at once where work that was given up is still going on in its thread."""
    if any(thread.is_alive() for thread in _threads):
        sys.stdout.flush()
        sys.stderr.flush()
        # The interpreter's own end would take away what a thread in C++ still uses.
        os._exit(status)
    sys.exit(status)
