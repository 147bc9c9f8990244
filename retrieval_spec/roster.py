"""Where open sessions sit, so that a step of many looks at none of them.

What kernels need of each lies in columns by seat: a session that lies in no cache costs more to look at than
its share of a step's other work in Python.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from retrieval_spec.drafters.base import Int64s
from retrieval_spec.drafters.joint import Group, Joint
from retrieval_spec.drafters.stepping import Seated

if TYPE_CHECKING:
    from retrieval_spec.session import Session

_FIRST_SEATS = 64


class Roster:
    """Seats of an engine's sessions. Safe to share between threads; keeps no session alive."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._cards: Int64s = np.zeros(_FIRST_SEATS, np.int64)
        self._groups: list[Group | None] = [None] * _FIRST_SEATS
        self._sessions: list[Callable[[], Any]] = [_nobody] * _FIRST_SEATS
        self._free = list(range(_FIRST_SEATS))[::-1]

    def take(self, session: Session, joint: Joint) -> int:
        """Returns the seat of a new session."""
        with self._lock:
            if not self._free:
                self._grow()
            seat = self._free.pop()
            self._sessions[seat] = weakref.ref(session)
        self.note(seat, joint)
        return seat

    def note(self, seat: int, joint: Joint) -> None:
        """Notes what kernels are to step over from here on."""
        with self._lock:
            self._cards[seat], self._groups[seat] = joint.address, joint.group

    def leave(self, seat: int) -> None:
        """Frees a seat; what sits there is not stepped over any more."""
        with self._lock:
            self._groups[seat], self._sessions[seat] = None, _nobody
            self._free.append(seat)

    def session(self, seat: int) -> Session:
        """Returns who has a seat."""
        session: Session | None = self._sessions[seat]()
        assert session is not None, "nobody sits there"
        return session

    def look(self, seats: Sequence[int]) -> Seated | None:
        """Returns what kernels need to step over sessions; None if they cannot, or one comes twice."""
        groups = set(map(self._groups.__getitem__, seats))
        if None in groups or len({*seats}) < len(seats):
            return None
        return Seated(self._cards, groups)  # type: ignore[arg-type]  # none of them is None

    def _grow(self) -> None:
        size = len(self._groups)
        self._cards = np.concatenate([self._cards, np.zeros(size, np.int64)])
        self._groups += [None] * size
        self._sessions += [_nobody] * size
        self._free = list(range(size, 2 * size))[::-1]


def _nobody() -> None:
    """Stands for a reference to a session."""
