"""What a source learned, kept apart by namespace: one tenant's text never reaches another's drafts."""

from __future__ import annotations

import threading
import weakref
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

from retrieval_spec.limits import tenant_of

Learned = TypeVar("Learned")

MAX_NAMESPACES = 64
"""Namespaces that a source remembers; the tenant that has most first forgets the one unused longest."""

TOKENS_PER_LOCK = 512
"""A text is learned in pieces of so many tokens, so that no other session waits for a long one."""


def pieces(begin: int, end: int) -> Iterator[tuple[int, int]]:
    """Yields where the pieces of `begin .. end` begin and end, each to be learned under a lock of its own."""
    for at in range(begin, end, TOKENS_PER_LOCK):
        yield at, min(at + TOKENS_PER_LOCK, end)


class Namespaces(Generic[Learned]):
    """One `Learned` per namespace, made when first asked for. Safe to share between threads.

    A cursor fetches its own when it starts and keeps it, forgotten or not. What has a `release` gives back
    its memory all the same when it is forgotten: else sessions that stay open would hold any number of
    former states of a namespace, beside every budget.

    Args:
        make: returns what a fresh namespace starts with; its `num_bytes`, if it has any, is what it holds.
    """

    def __init__(self, make: Callable[[], Learned]) -> None:
        self._make = make
        self._learned: OrderedDict[str, Learned] = OrderedDict()
        self._held: list[weakref.ref[Any]] = []  # forgotten, but perhaps not by every open session
        self._lock = threading.Lock()

    def of(self, namespace: str) -> Learned:
        """Returns what was learned in a namespace."""
        with self._lock:
            if namespace not in self._learned:
                if len(self._learned) >= MAX_NAMESPACES:
                    self._forget(self._least_missed())
                self._learned[namespace] = self._make()
            self._learned.move_to_end(namespace)
            return self._learned[namespace]

    def __contains__(self, namespace: str) -> bool:
        return namespace in self._learned

    @property
    def num_bytes(self) -> int:
        """Bytes of all namespaces, those included that only open sessions still hold."""
        with self._lock:
            self._held = [held for held in self._held if held() is not None]
            held_bytes = sum(_num_bytes(held()) for held in self._held)
            return held_bytes + sum(map(_num_bytes, self._learned.values()))

    def sizes(self) -> dict[str, int]:
        """Returns namespace -> bytes, the one unused longest first."""
        with self._lock:
            return {namespace: _num_bytes(learned) for namespace, learned in self._learned.items()}

    def forget(self, namespace: str) -> None:
        """Lets later sessions of the namespace start anew; one that is not there is no error."""
        with self._lock:
            if namespace in self._learned:
                self._forget(namespace)

    def _forget(self, namespace: str) -> None:
        learned = self._learned.pop(namespace)
        if isinstance(learned, Releasable):
            learned.release()
        if _num_bytes(learned):
            self._held.append(weakref.ref(learned))

    def _least_missed(self) -> str:
        counts = Counter(map(tenant_of, self._learned))
        most = max(counts.values())
        return next(namespace for namespace in self._learned if counts[tenant_of(namespace)] == most)


AnyNamespaces = Namespaces[Any]


@runtime_checkable
class Releasable(Protocol):
    """What can give back its memory while sessions still hold it."""

    def release(self) -> None:
        """Forgets everything, and learns nothing any more."""
        ...


@runtime_checkable
class Learner(Protocol):
    """What keeps something for every namespace."""

    namespaces: AnyNamespaces


def _num_bytes(learned: object) -> int:
    return int(getattr(learned, "num_bytes", 0))
