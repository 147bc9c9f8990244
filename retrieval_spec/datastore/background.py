"""Work on another thread, and its result. Knows nothing of what the work is."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")

NICENESS = 10
"""Priority of threads that read datastores, on the scale of `nice`."""


class Background(Generic[T]):
    """Runs `work` on a thread of its own, at once; whoever gives up need not wait for its end.

    Pays for work that holds no interpreter lock, such as hashing.
    """

    def __init__(self, work: Callable[[], T]) -> None:
        self._work = work
        self._error: BaseException | None = None
        # A daemon: an interrupted command ends now, not after the file that is being read.
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def result(self) -> T:
        """Waits for the end of the work; returns what it returned, or raises, once, what it raised."""
        self._thread.join()
        error, self._error = self._error, None
        if error is None:
            return self._result
        try:
            raise error
        finally:
            del error  # else its frames would hold it, and what the work had open

    def _run(self) -> None:
        try:
            self._result = self._work()
        except BaseException as error:
            self._error = error


def let_others_go_first() -> None:
    """Lowers this thread's priority and that of the threads it starts, where one thread has its own.

    Loading kernels is work in one line, hashing fills whatever cores are left: neither waits for the other.
    """
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
