"""When to leave a server alone that does not answer, or not sensibly. Knows a clock and no transport."""

from __future__ import annotations

import enum
import logging
import time
from collections import deque
from collections.abc import Callable

logger = logging.getLogger(__name__)

STRIKES = 3
"""So many bad or missing answers in a row, and a server is left alone; one lost connection is enough."""

FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 0.4
"""Nobody waits for a probe, and it costs next to nothing: long pauses would only delay the return."""

CALM_S = 5.0
"""A server that was back for less has not recovered: the next pause is longer than the last."""

_LINES, _LINES_S = 4, 60.0
_MAX_REASON = 300


class State(enum.Enum):
    """What a server is trusted with.

    Attributes:
        CLOSED: every question; all is well, or not known to be otherwise.
        OPEN: none.
        PROBING: one question that nobody waits for.
    """

    CLOSED = "closed"
    OPEN = "open"
    PROBING = "probing"


class Breaker:
    """Opens after strikes or a failure, lets a probe through after each pause, closes when one is answered.

        closed --failed, or struck 3 times in a row--> open --pause over, probe sent--> probing
        probing --succeeded--> closed                  probing --failed, struck--> open, pausing twice as long

    Who calls it asks for nothing while it is open. At most four lines a minute are logged, one per change.
    """

    def __init__(self, address: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._address = address
        self._clock = clock
        self._strikes = 0
        self._pause_s = 0.0
        self._retry_at = 0.0
        self._closed_at = -CALM_S
        self._logged_at: deque[float] = deque([float("-inf")] * _LINES, maxlen=_LINES)
        self.state = State.CLOSED

    @property
    def allows(self) -> bool:
        """Whether the server may be asked and waited for."""
        return self.state is State.CLOSED

    @property
    def wants_probe(self) -> bool:
        """Whether it is time to ask, without waiting, if the server is back."""
        return self.state is State.OPEN and self._clock() >= self._retry_at

    def probed(self) -> None:
        """Notes that a probe is on its way."""
        if self.state is State.OPEN:
            self.state = State.PROBING

    def struck(self, reason: Exception) -> None:
        """Notes an answer that was no good, or one that did not come in time."""
        self._strikes += 1
        if self._strikes >= STRIKES or self.state is State.PROBING:
            self.failed(reason)

    def failed(self, reason: Exception) -> None:
        """Notes that the server cannot be reached, or refuses to serve."""
        if self.state is State.CLOSED:
            self._log("no drafts from %s: %s; generation goes on without", str(reason)[:_MAX_REASON])
            has_recovered = self._clock() - self._closed_at >= CALM_S
            self._pause_s = 0.0 if has_recovered else self._pause_s
        elif self.state is State.OPEN:
            return  # late news of what is known
        self._strikes = 0
        self._pause_s = min(max(2 * self._pause_s, FIRST_PAUSE_S), LONGEST_PAUSE_S)
        self._retry_at = self._clock() + self._pause_s
        self.state = State.OPEN

    def succeeded(self) -> None:
        """Notes a sound answer."""
        self._strikes = 0
        if self.state is not State.CLOSED and self._retry_at < float("inf"):
            self.state = State.CLOSED
            self._closed_at = self._clock()
            self._log("drafts from %s are back%s", "")

    def shut(self) -> None:
        """Ends all asking: the client is closed."""
        self.state = State.OPEN
        self._retry_at = float("inf")

    def _log(self, text: str, more: str) -> None:
        now = self._clock()
        level = logging.WARNING if now - self._logged_at[0] >= _LINES_S else logging.DEBUG
        if level == logging.WARNING:
            self._logged_at.append(now)
        logger.log(level, text, self._address, more)
