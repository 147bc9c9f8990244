"""Pools that run what they are given in this process, in any order, more than once, or not to the end."""

from __future__ import annotations

import random


class ShuffledPool:
    """Runs what waits in any order, and now and then something again that has returned before."""

    def __init__(self, seed: int = 0, *, stop_after: int | None = None) -> None:
        self._random = random.Random(seed)
        self._waiting: list = []
        self._done: list = []
        self._left = stop_after
        self.order: list = []
        self.needs: list[tuple[int, int]] = []

    def submit(self, task, function, *arguments, num_cpus, memory_bytes):
        self._waiting.append((task, function, arguments))
        self.needs.append((num_cpus, memory_bytes))

    def results(self):
        while self._waiting:
            if self._left is not None and not self._left:
                raise KeyboardInterrupt
            task, function, arguments = self._waiting.pop(self._random.randrange(len(self._waiting)))
            self.order.append(task)
            self._left = None if self._left is None else self._left - 1
            result = function(*arguments)
            self._done.append((function, arguments, result))
            again, with_what, before = self._random.choice(self._done)
            assert again(*with_what) == before
            yield task, result

    def cancel(self):
        self._waiting.clear()
