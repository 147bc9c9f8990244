"""When to stop asking a server that does not answer. Knows a clock and no transport."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

logger = logging.getLogger(__name__)

FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 30.0


class Breaker:
    """Pauses after each failure, twice as long each time; one log line per change, not per step."""

    def __init__(self, address: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._address = address
        self._clock = clock
        self._pause_s = 0.0
        self._retry_at = 0.0

    @property
    def allows(self) -> bool:
        """Whether the server may be asked now."""
        return self._pause_s == 0.0 or self._clock() >= self._retry_at

    def failed(self, reason: Exception) -> None:
        """Notes that the server did not answer, or not sensibly."""
        if self._pause_s == 0.0:
            logger.warning("no drafts from %s: %s; generation goes on without", self._address, reason)
        self._pause_s = min(max(2 * self._pause_s, FIRST_PAUSE_S), LONGEST_PAUSE_S)
        self._retry_at = self._clock() + self._pause_s

    def shut(self) -> None:
        """Ends all asking: the client is closed."""
        self._pause_s = self._retry_at = float("inf")

    def succeeded(self) -> None:
        """Notes that the server answered."""
        if self._pause_s:
            logger.warning("drafts from %s are back", self._address)
            self._pause_s = 0.0
