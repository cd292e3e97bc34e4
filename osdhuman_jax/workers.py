"""What a process does first that works for another one, beside as many others as there are cores.

Needed by the data loader's processes and by curation's; free of JAX.
"""

import multiprocessing
import os
import signal
import threading

import cv2


def prepare_process(*ignored: signal.Signals) -> None:
    """Make this process a worker, which leaves the signals `ignored` to its parent.

    It uses one OpenCV thread, since there is a worker for every core. It ends when its parent is
    gone, so that a killed parent leaves no workers behind.
    """
    cv2.setNumThreads(1)
    # Ctrl-C reaches the whole group of processes: the parent alone decides what it means.
    for kind in ignored:
        signal.signal(kind, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    """Wait for the parent's end, and end with it."""
    # A parent that was killed outright tells its workers nothing: they would stay for ever.
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
