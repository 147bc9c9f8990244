"""A further thread for the halves of large steps: kernels hold no interpreter lock."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from queue import SimpleQueue

from retrieval_spec.engine import Engine

Work = Callable[[], object]


class _Job:
    """What is done once, by whoever comes first."""

    __slots__ = ("_claim", "_done", "_error", "_work")

    def __init__(self, work: Work) -> None:
        self._work = work
        self._error: BaseException | None = None
        self._claim, self._done = threading.Lock(), threading.Lock()
        self._done.acquire()

    def try_to_do(self) -> None:
        """Does it, unless somebody else does."""
        if self._claim.acquire(blocking=False):
            try:
                self._work()
            except BaseException as error:
                self._error = error
            finally:
                self._done.release()

    def finish(self) -> None:
        """Returns once it is done; raises what it raised."""
        self.try_to_do()
        self._done.acquire()
        if self._error is not None:
            raise self._error


class Beside:
    """A thread that does the second halves of an engine's large steps. Does not keep the process alive."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self._alone = engine, engine.both
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        threading.Thread(target=self._work, name="drafting", daemon=True).start()
        engine.both = self.both

    def both(self, first: Work, second: Work) -> None:
        """Does the first, while the thread does the second; or both, where the thread finds no time."""
        job = _Job(second)
        self._jobs.put(job)
        try:
            first()
        finally:
            job.finish()

    def stop(self) -> None:
        """Ends the thread; the engine goes on alone."""
        self._engine.both = self._alone
        self._jobs.put(None)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job.try_to_do()
            del job  # it holds what was searched: a datastore may be replaced while nobody asks


def num_cores() -> int:
    """Returns on how many cores this process may run."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
