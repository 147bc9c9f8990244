"""What a source learned, kept apart by namespace: one tenant's text never reaches another's drafts."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

Learned = TypeVar("Learned")

MAX_NAMESPACES = 64
"""Namespaces that a source remembers; the one unused longest is forgotten first."""

TOKENS_PER_LOCK = 512
"""A text is learned in pieces of so many tokens, so that no other session waits for a long one."""


def pieces(begin: int, end: int) -> Iterator[tuple[int, int]]:
    """Yields where the pieces of `begin .. end` begin and end, each to be learned under a lock of its own."""
    for at in range(begin, end, TOKENS_PER_LOCK):
        yield at, min(at + TOKENS_PER_LOCK, end)


class Namespaces(Generic[Learned]):
    """One `Learned` per namespace, made when first asked for. Safe to share between threads.

    A cursor fetches its own when it starts and keeps it: forgetting takes nothing from open sessions.

    Args:
        make: returns what a fresh namespace starts with.
    """

    def __init__(self, make: Callable[[], Learned]) -> None:
        self._make = make
        self._learned: OrderedDict[str, Learned] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, namespace: str) -> Learned:
        """Returns what was learned in a namespace."""
        with self._lock:
            if namespace not in self._learned:
                self._learned[namespace] = self._make()
            self._learned.move_to_end(namespace)
            if len(self._learned) > MAX_NAMESPACES:
                self._learned.popitem(last=False)
            return self._learned[namespace]
