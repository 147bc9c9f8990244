"""What a server did, as plain numbers: counting takes 4 us of a step of one session, a twentieth of it.

Knows steps, and no metrics library: `service.metrics` reads it when somebody asks.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Sequence

from retrieval_spec.tree import DraftTree
from retrieval_spec.wire import Outcome

BUCKETS_S = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1.0)
"""Upper bounds of the histogram of step times: a step that takes longer than 5 ms may come too late."""

_MAX_AWAITED = 65_536


class Meter:
    """Counts. Belongs to the event loop; other threads may read it.

    Attributes:
        steps: engine steps answered.
        drafts: draft trees that were not empty.
        drafted_nodes: their nodes.
        accepted_nodes: tokens of the next commits but the last of each, which is the target's own.
        committed_tokens: tokens appended to sessions.
        sessions_opened: sessions opened.
        errors: gRPC status -> calls and rows of steps that ended with it.
        step_counts: steps by `BUCKETS_S`, and those above at the end.
        step_seconds: time of all steps together.
    """

    def __init__(self) -> None:
        self.steps = self.drafts = self.drafted_nodes = self.accepted_nodes = 0
        self.committed_tokens = self.sessions_opened = 0
        self.errors: Counter[str] = Counter()
        self.step_counts = [0] * (len(BUCKETS_S) + 1)
        self.step_seconds = 0.0
        self._awaited: dict[int, int] = {}  # session -> nodes of its newest draft

    def answered(
        self,
        session_ids: Sequence[int],
        commit_lengths: Sequence[int],
        outcomes: Sequence[Outcome],
        seconds: float,
    ) -> None:
        """Notes what a step committed and drafted, and how long it took from its message to its answer."""
        known = []
        for session_id, num_tokens, outcome in zip(session_ids, commit_lengths, outcomes, strict=True):
            if isinstance(outcome, DraftTree):
                known.append((session_id, num_tokens, len(outcome)))
            else:
                self.errors[outcome.grpc_status] += 1
        self.drafted(known, seconds)

    def drafted(self, known: Iterable[tuple[int, int, int]], seconds: float) -> None:
        """Notes the sessions of a step that drafted: their ids, committed tokens and drafted nodes."""
        awaited = self._awaited
        for session_id, num_tokens, num_nodes in known:
            self.committed_tokens += num_tokens
            if num_tokens > 1 and session_id in awaited:
                self.accepted_nodes += min(num_tokens - 1, awaited[session_id])
            awaited[session_id] = num_nodes
            if num_nodes:
                self.drafts += 1
                self.drafted_nodes += num_nodes
        if len(awaited) > _MAX_AWAITED:
            awaited.clear()  # sessions end without a word here; so few numbers are soon known again
        self.steps += 1
        self.step_seconds += seconds
        self.step_counts[bisect_left(BUCKETS_S, seconds)] += 1

    def closed(self, session_id: int, num_tokens: int) -> None:
        """Notes the last commit of a session."""
        self.committed_tokens += num_tokens
        if num_tokens:
            self.accepted_nodes += min(num_tokens - 1, self._awaited.get(session_id, 0))
        self._awaited.pop(session_id, None)
