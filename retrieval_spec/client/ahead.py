"""What a server drafted ahead, and whether it is the answer to the question at hand.

Off unless it is asked for. Messages are as hostile as answers, and checked as they are.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

from retrieval_spec import wire
from retrieval_spec.client.peer import Peer
from retrieval_spec.client.steps import Counters, Question, Step
from retrieval_spec.errors import InvalidRequest, RetrievalSpecError
from retrieval_spec.tree import DraftTree
from retrieval_spec.v1 import draft_pb2 as pb

logger = logging.getLogger(__name__)

MAX_AHEAD_OUTCOMES = 64
_NONE_AWAITED = -1

Trees = dict[bytes, DraftTree]
"""By the column of the tokens that are committed before each."""


def check_ahead(num_outcomes: int, transport: str, pad_to_nodes: int) -> None:
    """Refuses to ask for drafts ahead where they cannot come.

    Raises:
        InvalidRequest: too many, or beside what excludes them.
    """
    if not 0 <= num_outcomes <= MAX_AHEAD_OUTCOMES:
        raise InvalidRequest(
            "ahead_outcomes is out of range", got=num_outcomes, expected=f"0 to {MAX_AHEAD_OUTCOMES}"
        )
    if num_outcomes and (transport != "stream" or pad_to_nodes):
        raise InvalidRequest(
            "drafts ahead need a stream, and show how much was drafted",
            got=f"transport {transport}, pad_to_nodes {pad_to_nodes}",
            remedy="leave out ahead_outcomes",
        )


class Pushes:
    """What came after the newest answer. The reading thread puts it here, the caller takes it.

    It is read and checked on that thread, while nobody waits.

    Attributes:
        num_dropped: messages that nobody waited for, that came twice or late, are too large or malformed.
    """

    def __init__(self) -> None:
        self._awaited = _NONE_AWAITED
        self._read: Callable[[pb.DraftAhead], Trees] = lambda message: {}
        self._kept: tuple[int, Trees] | None = None
        self.num_dropped = 0

    def expect(self, step_number: int, read: Callable[[pb.DraftAhead], Trees]) -> None:
        """Waits for the message that follows the answer to a question."""
        self._awaited = _NONE_AWAITED
        self._kept = None
        self._read = read
        self._awaited = step_number

    def forget(self) -> None:
        """Waits for no message."""
        self._awaited = _NONE_AWAITED
        self._kept = None

    def put(self, message: pb.DraftAhead) -> None:
        """Keeps a message that is waited for."""
        step_number, read = message.trees.step_number, self._read
        is_awaited = step_number == self._awaited and self._kept is None
        try:
            if is_awaited and message.ByteSize() <= wire.MAX_AHEAD_BYTES:
                self._kept = step_number, read(message)
                return
        except Exception as error:  # whatever it holds, answers must go on coming
            if not isinstance(error, RetrievalSpecError):
                logger.debug("a message with drafts ahead could not be read")
        self.num_dropped += 1

    def take(self) -> Trees | None:
        """Returns what was waited for, if it has come; it is not waited for any more."""
        awaited, self._awaited = self._awaited, _NONE_AWAITED
        kept, self._kept = self._kept, None
        # It may be an older one, which was put here while another began to be waited for.
        return kept[1] if kept is not None and kept[0] == awaited else None


class Foresight:
    """Asks for drafts ahead and finds the one that answers a question. Belongs to one caller at a time.

    Args:
        peer: whose vocabulary and sources the trees are about.
        pushes: where messages come.
        counters: where it counts.
        num_outcomes: to ask for after each answer; 0 asks for nothing.
    """

    def __init__(self, peer: Peer, pushes: Pushes, counters: Counters, num_outcomes: int) -> None:
        self._peer = peer
        self._pushes = pushes
        self._counters = counters
        self._num_outcomes = num_outcomes
        self._asked: Question | None = None

    def ask(self, request: Any, question: Question) -> None:
        """Asks for drafts ahead after a question, where that is of use."""
        if self._num_outcomes and len(question.sessions) == 1:
            request.ahead_outcomes = self._num_outcomes
            self._asked = question
            self._pushes.expect(request.step.step_number, partial(self._read, question))

    def forget(self) -> None:
        """Waits for nothing any more."""
        self._asked = None
        self._pushes.forget()

    def tree_for(self, step: Step) -> DraftTree | None:
        """Returns the answer to a step's question, if it was drafted ahead."""
        question, self._asked = self._asked, None
        if question is None:
            return None
        trees = self._pushes.take()
        self._counters.ahead_dropped = self._pushes.num_dropped
        if trees is None:
            return None
        self._counters.ahead_received += 1
        if not _is_next(step, question):
            return None
        tree = trees.get(wire.token_bytes(step.sessions[0].context[question.lengths[0] :]))
        self._counters.foreseen += tree is not None
        return tree

    def _read(self, question: Question, message: pb.DraftAhead) -> Trees:
        peer = self._peer
        if message.trees.incarnation != peer.incarnation_seen:
            return {}
        return wire.read_ahead(message, question.caps[0], peer.vocab_size, peer.source_names)


def _is_next(step: Step, question: Question) -> bool:
    """Whether a step asks what was asked in an answered question, after more tokens and nothing else."""
    session = question.sessions[0]
    return (
        len(step.sessions) == 1
        and step.sessions[0] is session
        and session.epoch == question.epochs[0]
        and not session.is_lost
        and session.sent_length is None
        and session.cutting is None
        and session.server_length == question.lengths[0] < session.context_length
        and not session.has_feedback
        and not session.must_tell(step.cost_curve)
        and (min(step.max_nodes[0], step.total_nodes), step.total_nodes)
        == (question.caps[0], question.total_nodes)
    )
