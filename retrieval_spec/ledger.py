"""What open sessions take of the limits: how many there are, whose they are, how many bytes they hold.

Knows numbers and tenants; nothing of sessions. Safe to share between threads.
"""

from __future__ import annotations

import threading

from retrieval_spec.errors import LimitExceeded
from retrieval_spec.limits import Limits

BYTES_PER_TOKEN = 96
"""What a token of a prompt takes, until it is known: ordinary text in an automaton with room to grow."""


class Ledger:
    """Counts sessions and their memory; refuses what is too much.

    Attributes:
        num_sessions: open ones.
        num_bytes: of their memory, as far as sources tell it.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._lock = threading.Lock()
        self._of_tenants: dict[str, int] = {}
        self.num_sessions = 0
        self.num_bytes = 0

    def check_room(self, tenant: str, num_tokens: int = 0) -> None:
        """Refuses what `open` would refuse.

        Raises:
            LimitExceeded: too many sessions of all or of the tenant, or no memory left.
        """
        refusal = self._refusal(tenant, num_tokens)
        if refusal is not None:
            raise refusal

    def open(self, tenant: str, num_tokens: int) -> int:
        """Counts a session, and returns the bytes that are put aside for it.

        Raises:
            LimitExceeded: too many sessions of all or of the tenant, or no memory left.
        """
        with self._lock:
            self.check_room(tenant, num_tokens)
            self.num_sessions += 1
            self._of_tenants[tenant] = self._of_tenants.get(tenant, 0) + 1
            reserved = num_tokens * BYTES_PER_TOKEN
            self.num_bytes += reserved
        return reserved

    def close(self, tenant: str, num_bytes: int) -> None:
        """Takes a session that holds so many bytes out of the count."""
        with self._lock:
            self.num_sessions -= 1
            self.num_bytes -= num_bytes
            left = self._of_tenants[tenant] - 1
            if left:
                self._of_tenants[tenant] = left
            else:
                del self._of_tenants[tenant]

    def resize(self, difference_bytes: int) -> None:
        """Notes that a session grew or shrank."""
        with self._lock:
            self.num_bytes += difference_bytes

    def check_growth(self, num_tokens: int) -> None:
        """Refuses tokens for which there is no memory.

        Raises:
            LimitExceeded: there is none left.
        """
        if not self.has_memory_for(num_tokens):
            raise self._no_memory()

    def has_memory_for(self, num_tokens: int) -> bool:
        """Whether so many tokens more fit into the memory of all sessions."""
        return self.num_bytes + num_tokens * BYTES_PER_TOKEN <= self._limits.max_session_bytes

    def _refusal(self, tenant: str, num_tokens: int) -> LimitExceeded | None:
        if self.num_sessions >= self._limits.max_sessions:
            return _too_many("too many open sessions", self._limits.max_sessions)
        if self._of_tenants.get(tenant, 0) >= self._limits.max_tenant_sessions:
            return _too_many("too many open sessions of one tenant", self._limits.max_tenant_sessions)
        if not self.has_memory_for(num_tokens):
            return self._no_memory()
        return None

    def _no_memory(self) -> LimitExceeded:
        return LimitExceeded(
            "the memory of open sessions is used up",
            expected=f"<= {self._limits.max_session_bytes} bytes",
            remedy="close finished sessions, or raise max_session_bytes",
        )


def _too_many(what: str, highest: int) -> LimitExceeded:
    return LimitExceeded(what, expected=f"<= {highest}", remedy="close finished ones, or try again shortly")
