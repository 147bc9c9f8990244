"""The sessions that a server holds for its clients, by the random ids it gave out.

Knows engine sessions and a clock; nothing of messages.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from retrieval_spec.budget import CostCurve
from retrieval_spec.engine import Engine
from retrieval_spec.errors import LimitExceeded, UnknownSession
from retrieval_spec.limits import tenant_of
from retrieval_spec.service.peers import ANYBODY
from retrieval_spec.service.unused import Unused
from retrieval_spec.session import Session
from retrieval_spec.tree import Tokens

logger = logging.getLogger(__name__)

SPARE_S = 10.0
"""A session unused for so long makes room for another one of its tenant; its client opens it again."""

MAX_DROPPED = 4
"""Sessions dropped at once: a session that ends may teach, and nobody waits for a hundred of them."""

TELL_S = 10.0
"""Dropped sessions are told of once in so long: who opens without end must not fill the log."""


def random_id() -> int:
    """Returns 63 random bits that are not all 0: nobody guesses another client's session."""
    return secrets.randbits(63) or 1


@dataclass(slots=True)
class _Entry:
    session: Session
    tenant: str
    cost_curve: CostCurve | None = None


class SessionTable:
    """Open sessions. Belongs to one event loop.

    Attributes:
        num_opened: sessions opened so far.
        num_dropped: sessions dropped so far because nobody asked for them.
    """

    def __init__(self, engine: Engine, clock: Callable[[], float] = time.monotonic) -> None:
        self._engine = engine
        self._clock = clock
        self._entries: dict[int, _Entry] = {}
        self._seats: dict[int, int] = {}
        self._used_s: dict[int, float] = {}
        self._unused = Unused(self._used_s)
        self._of_tenants: dict[str, Unused] = {}
        self._new: set[int] = set()
        self._num_new: Counter[str] = Counter()
        self.num_opened = self.num_dropped = self._num_told = 0
        self._has_cost_curves = False  # ever: most clients tell none, and each step would look for one
        self._tell_s = clock()

    def __len__(self) -> int:
        return len(self._entries)

    def open(self, prompt_ids: Tokens, namespace: str) -> int:
        """Returns the id of a new session; sessions that were left behind make room for it.

        Raises:
            LimitExceeded: there is no room for it.
            InvalidTokens, InvalidRequest: no prompt or namespace.
        """
        self.make_room(namespace)
        tenant = tenant_of(namespace)
        session = self._engine.open_session(prompt_ids, namespace)
        session_id = random_id()
        self._entries[session_id] = _Entry(session, tenant)
        self._seats[session_id] = session.seat
        self._used_s[session_id] = self._clock()
        self._unused.add(session_id)
        self._of_tenants.setdefault(tenant, Unused(self._used_s)).add(session_id)
        self._new.add(session_id)
        self._num_new[tenant] += 1
        self.num_opened += 1
        return session_id

    def get(self, session_id: int, owner: str = ANYBODY) -> Session:
        """Returns a session and notes that it is in use.

        Raises:
            UnknownSession: no session of the owner has that id.
        """
        if self.seats([session_id], owner) is None:
            raise UnknownSession("no session has this id", got=session_id, remedy="open a new one")
        self.note_use([session_id])
        return self._entries[session_id].session

    def seats(self, session_ids: Sequence[int], owner: str = ANYBODY) -> list[int] | None:
        """Returns where sessions sit in the engine; None if one is not there, or not the owner's.

        Looks at no session itself: they lie in no cache. That they are in use can be noted when nobody waits.
        """
        seats = [*map(self._seats.get, session_ids)]
        if None in seats:
            return None
        if owner != ANYBODY and any([self._entries[one].tenant != owner for one in session_ids]):
            return None
        return seats  # type: ignore[return-value]  # none of them is None

    def note_use(self, session_ids: Sequence[int]) -> None:
        """Notes that sessions are in use; some may have ended by now."""
        self._used_s.update(dict.fromkeys(self._used_s.keys() & session_ids, self._clock()))
        for session_id in self._new.intersection(session_ids):
            self._now_used(session_id)

    def tenant(self, session_id: int) -> str:
        """Returns whose session it is; nobody's if there is none."""
        entry = self._entries.get(session_id)
        return ANYBODY if entry is None else entry.tenant

    def num_new(self, tenant: str) -> int:
        """Sessions of a tenant that it opened, and asked nothing about yet."""
        return self._num_new.get(tenant, 0)

    def follow(self, session_ids: Iterable[int], cost_curve: CostCurve | None, owner: str = ANYBODY) -> None:
        """Remembers the cost curve that sessions were told; those of others are passed over."""
        self._has_cost_curves = True
        for session_id in session_ids:
            entry = self._entries.get(session_id)
            if entry is not None and owner in (ANYBODY, entry.tenant):
                entry.cost_curve = cost_curve

    def followed(self, session_ids: Iterable[int], owner: str = ANYBODY) -> CostCurve | None:
        """Returns the first cost curve that one of the owner's sessions was told."""
        if not self._has_cost_curves:
            return None
        for session_id in session_ids:
            entry = self._entries.get(session_id)
            if entry is not None and entry.cost_curve is not None and owner in (ANYBODY, entry.tenant):
                return entry.cost_curve
        return None

    def close(self, session_id: int, owner: str = ANYBODY) -> None:
        """Ends a session; one that is gone already, or is not the owner's, is no error."""
        entry = self._entries.get(session_id)
        if entry is None or owner not in (ANYBODY, entry.tenant):
            return
        if session_id in self._new:
            self._now_used(session_id)
        for column in (self._entries, self._seats, self._used_s):
            del column[session_id]
        self._unused.remove(session_id)
        of_tenant = self._of_tenants[entry.tenant]
        of_tenant.remove(session_id)
        if not of_tenant:
            del self._of_tenants[entry.tenant]
        entry.session.close()

    def discard(self, namespace: str) -> int:
        """Ends a namespace's sessions without learning from them; returns how many."""
        of_tenant = self._of_tenants.get(tenant_of(namespace), ())
        found = [one for one in of_tenant if self._entries[one].session.namespace == namespace]
        self.give_up(found)
        return len(found)

    def give_up(self, session_ids: Iterable[int]) -> None:
        """Ends sessions without learning from them; their clients open them again."""
        for session_id in session_ids:
            self._entries[session_id].session.discard()
            self.close(session_id)

    def drop_idle(self) -> int:
        """Ends a few of the sessions for which nobody asked for long; returns how many."""
        oldest_allowed = self._clock() - self._engine.limits.max_idle_s
        return self._drop(self._unused.since(oldest_allowed, MAX_DROPPED))

    def make_room(self, namespace: str) -> None:
        """Ends the tenant's own session unused longest if there is no room otherwise: never another's.

        Raises:
            LimitExceeded: there is no room all the same.
        """
        self.drop_idle()
        tenant = tenant_of(namespace)
        try:
            self._engine.ledger.check_room(tenant)
        except LimitExceeded:
            if tenant in self._of_tenants:
                self._drop(self._of_tenants[tenant].since(self._clock() - SPARE_S, 1))
            self._engine.ledger.check_room(tenant)

    def _drop(self, session_ids: Sequence[int]) -> int:
        for session_id in session_ids:
            self.close(session_id)
        self.num_dropped += len(session_ids)
        now_s = self._clock()
        if self.num_dropped > self._num_told and now_s >= self._tell_s:
            logger.info("dropped %d unused sessions", self.num_dropped - self._num_told)
            self._num_told, self._tell_s = self.num_dropped, now_s + TELL_S
        return len(session_ids)

    def _now_used(self, session_id: int) -> None:
        self._new.remove(session_id)
        tenant = self._entries[session_id].tenant
        self._num_new[tenant] -= 1
        if not self._num_new[tenant]:
            del self._num_new[tenant]
