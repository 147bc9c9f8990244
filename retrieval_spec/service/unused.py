"""Which sessions nobody asked about for longest, without keeping them in order at each use.

Knows ids and times; nothing of sessions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from heapq import heapify, heappop, heappush, heapreplace

_MOST_GONE = 64
"""So many entries of ids that are gone may wait, and as many again as there are ids."""


class Unused:
    """Ids by their last use: a heap of uses, of which later ones are noted when their turn comes.

    A step that uses many ids only notes the time of each. None is looked at more than once in the time that
    is asked about.

    Args:
        used_s: id -> its last use; shared, and at hand for each id that is here. No use is earlier than one
            before.
    """

    __slots__ = ("_heap", "_ids", "_used_s")

    def __init__(self, used_s: Mapping[int, float]) -> None:
        self._used_s = used_s
        self._ids: set[int] = set()
        self._heap: list[tuple[float, int]] = []

    def __len__(self) -> int:
        return len(self._ids)

    def __iter__(self) -> Iterator[int]:
        return iter(self._ids)

    def add(self, one: int) -> None:
        """Takes in an id, which is used now."""
        self._ids.add(one)
        heappush(self._heap, (self._used_s[one], one))

    def remove(self, one: int) -> None:
        """Forgets an id."""
        self._ids.remove(one)
        if len(self._heap) > 2 * len(self._ids) + _MOST_GONE:
            self._heap = [(self._used_s[left], left) for left in self._ids]
            heapify(self._heap)

    def since(self, before_s: float, most: int) -> list[int]:
        """Returns at most so many ids that were not used since, the longest unused first."""
        found: dict[int, float] = {}
        while self._heap and self._heap[0][0] < before_s and len(found) < most:
            noted_s, one = self._heap[0]
            if one not in self._ids or one in found:  # one that left and came again stands here twice
                heappop(self._heap)
            elif self._used_s[one] > noted_s:
                heapreplace(self._heap, (self._used_s[one], one))
            else:
                found[one], _ = heappop(self._heap)
        for one, noted_s in found.items():
            heappush(self._heap, (noted_s, one))
        return [*found]
