"""A session as its client sees it: the whole context, and how much of it the server is known to hold.

Sends nothing itself: its client does, and decides when. Never raises for server trouble.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from retrieval_spec.budget import CostCurve
from retrieval_spec.client.interface import TokenIds
from retrieval_spec.errors import ContextMismatch, UnknownSession
from retrieval_spec.feedback import Feedback
from retrieval_spec.tree import TOKEN, DraftTree, Tokens, as_tokens

if TYPE_CHECKING:
    from retrieval_spec.client.remote import DraftClient

PARKED_S = 30.0
"""How long a session goes without drafts after the server refused it for a reason of its own."""

FIRST_RETRY_S = 0.1
"""How long it waits after being opened again in vain; twice as long each time."""

NO_SESSION = 0
_FEW_TOKENS = 64

_MOST_FRESH_TOKENS, _MOST_UNANSWERED_TOKENS = 128, 2_048
"""So many wait as plain numbers for their place in the buffer, and so many at most while no answer comes:
each call into numpy serves many steps."""


@dataclass(slots=True, eq=False)
class Timing:
    """When a step was over; one for all its sessions.

    Attributes:
        returned_s: on the clock of `time.perf_counter`; None if it is not over yet.
        waited_s: what asking took; None if nobody asked.
    """

    returned_s: float | None = None
    waited_s: float | None = None

    def end(self, asked_s: float | None) -> None:
        """Notes that the step is over, and when it began to ask."""
        self.returned_s = time.perf_counter()
        if asked_s is not None:
            self.waited_s = self.returned_s - asked_s


class RemoteSession:
    """One generation on a draft server; made by `DraftClient.open_session`. Not thread-safe.

    Committed tokens wait here and ride on the next question. If the server loses the session, the client
    opens it again with the whole context, so the caller never notices more than empty trees.

    Attributes:
        is_open: whether the caller has not closed it.
        is_lost: whether it must be opened again before the server can draft for it.
        server_id: the server's name for it.
        server_length: tokens that the server holds as far as known.
        sent_length: tokens that it holds when the question under way has arrived; None if none is.
        epoch: another number whenever news from before no longer concern the session.
        incarnation: of the server process that holds it.
        told_curve: the cost curve that the server remembers for it; None if it has none.
        is_curve_known: whether that is certain.
        context_length: tokens decided so far, prompt included.
        feedback: what would travel with the next question, about the tokens from `feedback_begin` on.
        last_step: the last one that was looked at; None if what came of it is booked.
        last_length: tokens of the context in it.
        last_trees: the drafts that it brought.
        last_row: which of them is the session's.
        skipped_steps: those since then.
    """

    def __init__(self, client: DraftClient, prompt: Tokens, namespace: str) -> None:
        self._client = client
        self._vocab_size = client.vocab_size
        self._buffer: Tokens = prompt.copy()
        self._settled_length = prompt.size
        self._fresh: list[int] = []
        self.context_length = prompt.size
        self.feedback: Feedback | None = None
        self.feedback_begin = 0
        self.namespace = namespace
        self.is_open = True
        self.told_curve: CostCurve | None = None
        self.is_curve_known = True
        self.last_step: Timing | None = None
        self.last_length = 0
        self.last_trees: Sequence[DraftTree] = (client.no_draft,)
        self.last_row = 0
        self.skipped_steps = 0
        self.server_id = self.replaced_id = NO_SESSION
        self.server_length = 0
        self.sent_length: int | None = None
        self.epoch = 0
        self.incarnation = 0
        self.is_lost = True
        self.cutting: Any = None
        self.opening: Any = None
        self.opening_length = 0
        self.retry_at = 0.0
        self._vain_openings = -1  # the first one is none

    @property
    def last_tree(self) -> DraftTree:
        """The draft that the last step brought."""
        return self.last_trees[self.last_row]

    @property
    def context(self) -> Tokens:
        """All tokens decided so far, as a view: int32[context_length]."""
        if self._fresh:
            self._settle()
        return self._buffer[: self.context_length]

    def tail(self, begin: int) -> list[int]:
        """Returns the tokens of the context from a place on; cheap for those of the last steps."""
        if begin >= self._settled_length:
            return self._fresh[begin - self._settled_length :]
        tokens: list[int] = self.context[begin:].tolist()
        return tokens

    @property
    def uncommitted(self) -> Tokens:
        """The tokens that are not on the server nor on their way, as a view."""
        return self.context[self.told_length :]

    @property
    def told_length(self) -> int:
        """Tokens that the server holds once it has read what is on its way."""
        return self.server_length if self.sent_length is None else self.sent_length

    def draft(self, max_nodes: int = 16, cost_curve: CostCurve | None = None) -> DraftTree:
        """Returns at most `max_nodes` nodes that continue the context; none if the server is in trouble.

        With what a pass of the target costs, only nodes that pay are drafted (`budget.num_paying`). The
        curve travels only when it is another than in the last draft.

        Raises:
            UnknownSession: the session is closed.
        """
        if self.is_open and self._client.rests:
            self.skipped_steps += 1
            return self._client.no_draft
        return self._client.draft_step([self], [max_nodes], max_nodes, cost_curve)[0]

    def commit(self, token_ids: TokenIds, feedback: Feedback | None = None) -> None:
        """Appends decided tokens to the context; they travel with the next question, and so does feedback.

        Raises:
            InvalidTokens: an id outside the vocabulary; the session is unchanged.
            InvalidFeedback: feedback that no source can use; the session is unchanged.
            UnknownSession: the session is closed.
        """
        self.check_open()
        if not (type(token_ids) is list and len(token_ids) <= _FEW_TOKENS and self._are_sound(token_ids)):
            token_ids = as_tokens(token_ids, self._vocab_size).tolist()
        if feedback is not None:
            feedback.check(self._vocab_size, self._client.state_dimensions)
        self.feedback, self.feedback_begin = feedback, self.context_length
        self._fresh += token_ids
        self.context_length += len(token_ids)
        if len(self._fresh) > _MOST_UNANSWERED_TOKENS:
            self._settle()

    def _are_sound(self, token_ids: list[Any]) -> bool:
        # Most steps commit one to three tokens, and numpy would take longer than all the rest of such a step;
        # so would a generator.
        vocab_size = self._vocab_size
        for token in token_ids:  # noqa: SIM110
            if type(token) is not int or not 0 <= token < vocab_size:
                return False
        return True

    def _settle(self) -> None:
        """Puts the tokens that came last where the others are."""
        if self.context_length > self._buffer.size:
            grown = np.empty(max(self.context_length, 2 * self._buffer.size, 256), TOKEN)
            grown[: self._settled_length] = self._buffer[: self._settled_length]
            self._buffer = grown
        self._buffer[self._settled_length : self.context_length] = self._fresh
        self._settled_length = self.context_length
        self._fresh = []

    def truncate(self, length: int) -> None:
        """Cuts the context to its first `length` tokens.

        Raises:
            ContextMismatch: the context is shorter than that.
            UnknownSession: the session is closed.
        """
        self.check_open()
        if not 0 <= length <= self.context_length:
            raise ContextMismatch(
                "cannot cut the context", got=length, expected=f"0 to {self.context_length}"
            )
        self._settle()
        self.context_length = self._settled_length = length
        self.feedback = None
        self.last_step = None
        self.retry_at = 0.0  # a shorter context may be welcome where a longer one was not
        if length < self.opening_length:
            self.forget_opening()
        if length < self.told_length and not self.is_lost:
            self._client.truncate_session(self, length)

    def close(self) -> None:
        """Tells the server the last tokens and ends the session; closing twice is harmless."""
        if self.is_open:
            self.is_open = False
            self.forget_opening()
            if not self.is_lost:
                self._client.close_session(self)
            self.epoch += 1
            self.context_length = self._settled_length = 0
            self._fresh = []
            self._buffer = self._buffer[:0].copy()

    def check_open(self) -> None:
        """Refuses a closed session.

        Raises:
            UnknownSession: it is closed.
        """
        if not self.is_open:
            raise UnknownSession("the session is closed", remedy="open a new one")

    @property
    def has_feedback(self) -> bool:
        """Whether feedback would travel with the next question."""
        return self.feedback is not None

    def forget_feedback(self) -> None:
        """Drops what would travel with the next question."""
        self.feedback = None

    def confirm(self, session_id: int, incarnation: int, length: int) -> None:
        """Notes that the server opened the session with so many tokens."""
        self.server_id = session_id
        self.incarnation = incarnation
        self.server_length = length
        self.sent_length = None
        self.replaced_id = NO_SESSION
        self.told_curve, self.is_curve_known = None, True
        self.is_lost = False

    def must_tell(self, cost_curve: CostCurve | None) -> bool:
        """Whether the server may remember another cost curve than this one."""
        return not self.is_curve_known or cost_curve != self.told_curve

    def tell(self, cost_curve: CostCurve | None) -> None:
        """Notes that a curve is on its way: unless an answer comes, it may have arrived or not."""
        self.told_curve = cost_curve
        self.is_curve_known = False

    def arrived(self, length: int) -> None:
        """Notes that the server took a question: it holds so many tokens, and the curve if one was sent."""
        self.server_length = length
        self.sent_length = None
        self.is_curve_known = True
        self._vain_openings = 0
        if self.context_length == length:
            self.feedback = None
        if len(self._fresh) > _MOST_FRESH_TOKENS:
            self._settle()

    def unheard(self) -> None:
        """Notes that a question will not be answered, nor is it known whether it arrived.

        The server is asked as if it had not, and says so if it had.
        """
        self.sent_length = None

    def lose(self) -> None:
        """Notes that nobody knows what the server holds; the next draft opens the session again."""
        if not self.is_lost:
            self.replaced_id = self.server_id
            self._vain_openings += 1
            if self._vain_openings > 1:  # opened again, and lost again before any answer
                wait_s = FIRST_RETRY_S * 2.0 ** min(self._vain_openings, 8)
                self.retry_at = time.monotonic() + min(wait_s, PARKED_S)
        self.epoch += 1
        self.server_id = NO_SESSION
        self.sent_length = None
        self.cutting = None
        self.is_lost = True

    def park(self) -> None:
        """Loses the session and asks for nothing for a while: the server would refuse it again."""
        self.lose()
        self.retry_at = time.monotonic() + PARKED_S

    def forget_opening(self) -> None:
        """Ends an attempt to open the session again, if one is under way."""
        if self.opening is not None:
            self.opening.cancel()
        self.opening = None
        self.opening_length = 0
