"""The sessions that a server holds for its clients, by the random ids it gave out.

Knows engine sessions and a clock; nothing of messages.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from retrieval_spec.budget import CostCurve
from retrieval_spec.engine import Engine, Session
from retrieval_spec.errors import UnknownSession
from retrieval_spec.tree import Tokens

logger = logging.getLogger(__name__)

IDLE_LIMIT_S = 600.0
"""A session that nobody asked for this long may be dropped; its client opens it again by itself."""


def random_id() -> int:
    """Returns 63 random bits that are not all 0: nobody guesses another client's session."""
    return secrets.randbits(63) or 1


@dataclass(slots=True)
class _Entry:
    session: Session
    used_s: float
    cost_curve: CostCurve | None = None


class SessionTable:
    """Open sessions, the longest unused first. Belongs to one event loop."""

    def __init__(self, engine: Engine, clock: Callable[[], float] = time.monotonic) -> None:
        self._engine = engine
        self._clock = clock
        self._sessions: dict[int, _Entry] = {}

    def __len__(self) -> int:
        return len(self._sessions)

    def open(self, prompt_ids: Tokens, namespace: str) -> int:
        """Returns the id of a new session; sessions that were left behind make room for it."""
        self._drop_idle()
        session = self._engine.open_session(prompt_ids, namespace)
        session_id = random_id()
        self._sessions[session_id] = _Entry(session, self._clock())
        return session_id

    def get(self, session_id: int) -> Session:
        """Returns a session and notes that it is in use.

        Raises:
            UnknownSession: no session has that id.
        """
        entry = self._sessions.pop(session_id, None)
        if entry is None:
            raise UnknownSession("no session has this id", got=session_id, remedy="open a new one")
        entry.used_s = self._clock()
        self._sessions[session_id] = entry
        return entry.session

    def follow(self, session_ids: Iterable[int], cost_curve: CostCurve | None) -> None:
        """Remembers the cost curve that sessions were told; unknown ids are passed over."""
        for session_id in session_ids:
            if session_id in self._sessions:
                self._sessions[session_id].cost_curve = cost_curve

    def followed(self, session_ids: Iterable[int]) -> CostCurve | None:
        """Returns the first cost curve that one of the sessions was told."""
        for session_id in session_ids:
            entry = self._sessions.get(session_id)
            if entry is not None and entry.cost_curve is not None:
                return entry.cost_curve
        return None

    def close(self, session_id: int) -> None:
        """Ends a session; one that is gone already is no error."""
        entry = self._sessions.pop(session_id, None)
        if entry is not None:
            entry.session.close()

    def _drop_idle(self) -> None:
        oldest_allowed = self._clock() - IDLE_LIMIT_S
        idle = [session_id for session_id, entry in self._sessions.items() if entry.used_s < oldest_allowed]
        for session_id in idle:
            self.close(session_id)
        if idle:
            logger.info("dropped %d idle sessions", len(idle))
