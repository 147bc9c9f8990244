"""How fast each caller is answered, so that none floods the others out.

A flood asks anew when it was answered: answers held back slow it down and cost nothing. Whoever asks one
question at a time, for drafts of its sessions, is never held. Knows names and times; nothing of calls.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

REFUSED_S = 0.01
"""What a refusal costs its caller, once its credit is used up: 100 in a second."""

OPENED_S = 0.002
"""What an opened session costs: its prompt is learned while all others wait."""

CROWD_CALLS = 4
CROWD_S = 0.001
"""What each call of a caller costs that has more than so many under way."""

CREDIT_S = 0.25
"""What may be had at once: 125 sessions, or 25 refusals."""

LONGEST_S = 5.0
"""No answer is held for longer; how many calls of a connection wait at a time, gRPC bounds."""

MAX_CALLERS = 4_096


class Door:
    """Remembers what each caller had lately. Belongs to one event loop."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._paid_s: dict[str, float] = {}  # caller -> when all that it had is paid; longest unused first
        self._num_calls: dict[str, int] = {}

    @contextmanager
    def inside(self, caller: str) -> Iterator[None]:
        """Counts a call that is under way."""
        calls = self._num_calls
        calls[caller] = calls.get(caller, 0) + 1
        try:
            yield
        finally:
            calls[caller] -= 1
            if not calls[caller]:
                del calls[caller]

    async def hold(self, caller: str, price_s: float = 0.0) -> None:
        """Waits until an answer of that price may go out."""
        if not price_s and self._num_calls.get(caller, 0) > CROWD_CALLS:
            price_s = CROWD_S
        if price_s:
            wait_s = self.wait_s(caller, price_s)
            if wait_s > 0:
                await asyncio.sleep(wait_s)

    def wait_s(self, caller: str, price_s: float) -> float:
        """Books an answer; returns how long it has to wait."""
        now_s = self._clock()
        paid_s = max(self._paid_s.pop(caller, 0.0), now_s - CREDIT_S) + price_s
        self._paid_s[caller] = paid_s = min(paid_s, now_s + LONGEST_S)
        if len(self._paid_s) > MAX_CALLERS:
            del self._paid_s[next(iter(self._paid_s))]
        return max(0.0, paid_s - now_s)
