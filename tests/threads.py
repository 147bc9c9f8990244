"""Work that several threads do at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import TypeVar

Part = TypeVar("Part")
Result = TypeVar("Result")


def in_threads(work: Callable[[Part], Result], parts: Sequence[Part]) -> list[Result]:
    """The results of `work` for every part, each in a thread of its own; raises what one of them raised."""
    barrier = Barrier(len(parts))

    def begin(part: Part) -> Result:
        barrier.wait()
        return work(part)

    with ThreadPoolExecutor(len(parts)) as pool:
        return list(pool.map(begin, parts))
