"""Whether drafts are worth waiting for, and how long. Pure arithmetic: times come in as arguments.

Knows no trees, sessions or servers.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Collection
from statistics import median
from typing import Protocol

FIRST_WAIT_S = 0.02
"""Longest wait while nothing is known of the server or of the steps."""

JITTER_S = 0.002
PATIENCE = 4.0
"""An answer that takes this many times as long as usual, and the jitter, will not come soon."""

CREDIT_STEPS = 2.0
LEAST_CREDIT_S, MOST_CREDIT_S = 0.002, 0.01
"""What drafts that do not pay may cost before the client only listens."""

LONGEST_GAP_STEPS, LONGEST_GAP_S = 32, 0.16
"""Listening takes less than a millisecond: between long steps it may be done more often."""

_EXPLORING_STEPS, _EXPLORED_STEPS = 16, 64
_KEPT, _FEW = 9, 3
_VAIN_DRAFTS = 2

PROBING_NODES = 4
"""Of a draft after one in vain, before any was of use: on a CPU, a pass over 16 takes three times as long."""

ANY_NODES = 1 << 30


class Move(enum.Enum):
    """What to do in a step.

    Attributes:
        ASK: ask and wait for the answer.
        LISTEN: ask and go on; later tokens show what the answer would have been worth.
        REST: nothing.
    """

    ASK = "ask"
    LISTEN = "listen"
    REST = "rest"


class Policy(Protocol):
    """Decides about each step; told what came of it."""

    def plan(self) -> Move:
        """Returns what to do in this step."""
        ...

    @property
    def limit_s(self) -> float:
        """How long an answer may take before a step goes on without it."""
        ...

    @property
    def max_nodes(self) -> int:
        """How many nodes to ask for at most, for each session."""
        ...

    @property
    def is_probing(self) -> bool:
        """Whether what came of the last step is to be noted before this one is planned."""
        ...

    def rest(self) -> int:
        """Returns how many of the steps after this one, which rests, rest too."""
        ...

    def heard(self, latency_s: float) -> None:
        """Notes how long an answer took, waited for or not."""
        ...

    def stepped(self, elapsed_s: float, accepted: float, waited_s: float | None, *, drafted: bool) -> None:
        """Notes a finished step.

        Args:
            elapsed_s: from the draft, or its absence, to the next step.
            accepted: drafted tokens that came true, for each session.
            waited_s: what asking took; None if the step did not ask.
            drafted: whether there was a tree to verify.
        """
        ...

    def judged(self, accepted: float, latency_s: float, *, is_final: bool) -> bool:
        """Notes what an answer that was only listened to would have been worth; whether that settles it."""
        ...

    def opened(self) -> None:
        """Notes a new generation."""
        ...


class FixedWait:
    """Asks in every step and waits as long as it was told to."""

    max_nodes = ANY_NODES
    is_probing = False

    def __init__(self, limit_s: float) -> None:
        self.limit_s = limit_s

    def plan(self) -> Move:
        """Returns to ask."""
        return Move.ASK

    def rest(self) -> int:
        """Returns none."""
        return 0

    def heard(self, latency_s: float) -> None:
        """Does nothing."""

    def stepped(self, elapsed_s: float, accepted: float, waited_s: float | None, *, drafted: bool) -> None:
        """Does nothing."""

    def judged(self, accepted: float, latency_s: float, *, is_final: bool) -> bool:
        """Settles everything: it asks anyway."""
        return True

    def opened(self) -> None:
        """Does nothing."""


class Economy:
    """Asks while accepted tokens spare more time than asking and verifying takes.

    Each step that asked changes an account: `accepted * step - (drafted step - plain step) - wait`. It never
    holds more than two steps' time nor 10 ms, and when it is empty the client only listens: it asks without
    waiting, once in 1, 2, 4, ... 32 steps but every 0.16 s at least, and compares the answer with the tokens
    that come. An answer that would have been worth its wait ends that, with half the account. So drafts that
    never pay cost 10 ms and little more, however long the generation, and a server that becomes slow is one
    that does not pay.

    What a plain step takes is learned from those without drafts. Two drafts in a row in vain, of which the
    second is small, and three steps do without, to learn it; then those drafts are booked with what verifying
    them took. That may have been much more than usual, as first passes are: while it rests on few passes, it
    keeps nobody from asking again once drafts come true.

    A wait is at most a few times the usual one, and what the step's drafts may be worth.

    Args:
        ceiling_s: longest wait in any case.
    """

    def __init__(self, ceiling_s: float) -> None:
        self._ceiling_s = ceiling_s
        self._latencies: deque[float] = deque(maxlen=_KEPT)
        self._plain: deque[float] = deque(maxlen=_KEPT)
        self._drafted: deque[float] = deque(maxlen=_KEPT)
        self._balance_s: float | None = None
        self._accepted = 0.0
        self._num_vain = 0  # steps in a row that asked in vain
        self._num_unpaid = 0  # drafted ones among them whose verification is not booked
        self._has_accepted = False  # since drafts were asked for again
        self._gap_steps = 1
        self._rest_steps = 0
        self._steps_since_plain = 0
        self.is_backed_off = False

    @property
    def step_s(self) -> float:
        """What a step without drafts takes, as far as known; 0.0 before the first."""
        return _usual(self._plain if len(self._plain) >= _FEW else [*self._plain, *self._drafted])

    @property
    def verifying_s(self) -> float:
        """What drafts add to the pass that verifies them; 0.0 while that is not known."""
        return max(0.0, _usual(self._drafted) - _usual(self._plain)) if self._knows_verifying else 0.0

    @property
    def max_nodes(self) -> int:
        """How many nodes to ask for at most, for each session."""
        is_in_vain = self._num_vain > 0 and self.is_probing
        return PROBING_NODES if is_in_vain and not self.is_backed_off else ANY_NODES

    @property
    def is_probing(self) -> bool:
        """Whether what came of the last step is to be noted before this one is planned."""
        return not self._has_accepted

    @property
    def limit_s(self) -> float:
        """How long an answer may take before a step goes on without it."""
        usual = max(median(self._latencies), self._latencies[-1]) if self._latencies else FIRST_WAIT_S
        return min(self._ceiling_s, PATIENCE * usual + JITTER_S, max(self._hoped_s, JITTER_S))

    def plan(self) -> Move:
        """Returns what to do in this step."""
        if not self.is_backed_off:
            return Move.REST if self._is_exploring() else Move.ASK
        self._rest_steps -= 1
        if self._rest_steps > 0:
            return Move.REST
        self._rest_steps = self._gap_steps
        return Move.LISTEN

    def rest(self) -> int:
        """Returns how many of the steps after this one, which rests, rest too."""
        steps = max(self._rest_steps - 1, 0) if self.is_backed_off else 0
        self._rest_steps -= steps
        return steps

    def heard(self, latency_s: float) -> None:
        """Notes how long an answer took, waited for or not."""
        self._latencies.append(latency_s)

    def stepped(self, elapsed_s: float, accepted: float, waited_s: float | None, *, drafted: bool) -> None:
        """Notes a finished step."""
        (self._drafted if drafted else self._plain).append(elapsed_s)
        self._steps_since_plain = self._steps_since_plain + 1 if drafted else 0
        worth_s = 0.0
        if waited_s is not None:
            self._note(accepted, drafted=drafted)
            worth_s = accepted * self.step_s - waited_s
        if self._num_unpaid and self._knows_verifying:
            worth_s -= self._num_unpaid * self.verifying_s
            self._num_unpaid = 0
        if worth_s:
            self._book(worth_s)

    def judged(self, accepted: float, latency_s: float, *, is_final: bool) -> bool:
        """Notes what an answer that was only listened to would have been worth; whether that settles it."""
        if not self.is_backed_off:
            return True
        verifying_s = self.verifying_s if len(self._drafted) == _KEPT else 0.0
        if accepted * self.step_s - verifying_s - latency_s > 0:
            self.is_backed_off = self._has_accepted = False
            self._num_vain = 0
            self._balance_s = self._credit_s / 2
            self._accepted = max(self._accepted, accepted)
            return True
        if is_final:
            self._gap_steps = min(2 * self._gap_steps, self._longest_gap_steps)
            self._rest_steps = self._gap_steps
        return is_final

    def opened(self) -> None:
        """Notes a new generation: its drafts may be better, so its first step listens at least."""
        self._rest_steps = 0

    @property
    def _hoped_s(self) -> float:
        """What an answer may be worth, or what the client can afford to lose."""
        if self._balance_s is None:
            return FIRST_WAIT_S
        return max(self._balance_s, 2 * self._accepted * self.step_s)

    @property
    def _credit_s(self) -> float:
        return min(max(CREDIT_STEPS * self.step_s, LEAST_CREDIT_S), MOST_CREDIT_S)

    @property
    def _longest_gap_steps(self) -> int:
        step_s = max(self.step_s, LONGEST_GAP_S / LONGEST_GAP_STEPS)
        return max(int(LONGEST_GAP_S / step_s), 1)

    @property
    def _knows_verifying(self) -> bool:
        return len(self._plain) >= _FEW and len(self._drafted) >= _VAIN_DRAFTS

    def _note(self, accepted: float, *, drafted: bool) -> None:
        self._accepted += (accepted - self._accepted) / 8
        if accepted > 0:
            self._has_accepted = True
            self._num_vain = self._num_unpaid = 0
        else:
            self._num_vain += 1
        self._num_unpaid += drafted

    def _book(self, worth_s: float) -> None:
        credit_s = self._credit_s
        balance_s = (credit_s if self._balance_s is None else self._balance_s) + worth_s
        if balance_s >= credit_s:
            self._gap_steps = 1
        self._balance_s = min(balance_s, credit_s)
        if balance_s < 0 and not self.is_backed_off:
            self.is_backed_off = True
            self._rest_steps = self._gap_steps

    def _is_exploring(self) -> bool:
        """Whether to leave out a draft, of those that bring little, to learn what a plain step takes."""
        lacks = len(self._plain) < _FEW
        if lacks and self._num_vain >= _VAIN_DRAFTS:
            return True
        due = self._steps_since_plain >= (_EXPLORING_STEPS if lacks else _EXPLORED_STEPS)
        return due and self._accepted < 1.0


def _usual(times: Collection[float]) -> float:
    """Returns the lower quartile: what disturbs a step makes it longer."""
    return sorted(times)[(len(times) - 1) // 4] if times else 0.0
