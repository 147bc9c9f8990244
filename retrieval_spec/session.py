"""One generation in an engine: its context, and its place in every source."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from retrieval_spec.ahead import Lookahead
from retrieval_spec.budget import CostCurve, draft_paying
from retrieval_spec.drafters.base import Cursor
from retrieval_spec.drafters.joint import Joint
from retrieval_spec.errors import ContextMismatch, UnknownSession
from retrieval_spec.feedback import Feedback
from retrieval_spec.limits import tenant_of
from retrieval_spec.memory import MEASURED_TOKENS, cursor_bytes
from retrieval_spec.structures.context import Context
from retrieval_spec.tree import DraftTree, Tokens, as_tokens

if TYPE_CHECKING:
    from retrieval_spec.engine import Engine

FIRST_PAID_NODES = 12
"""What is taken to have paid before the first step under a cost curve."""

TokenIds = Sequence[int] | NDArray[Any]


class Session:
    """One generation: its context, and one cursor in every source. Not thread-safe.

    Attributes:
        namespace: whose text it learns from and teaches.
        is_open: whether it has not ended.
        seat: where it sits among the engine's (`roster`), as long as it is open.
    """

    __slots__ = (
        "__weakref__",
        "_context",
        "_cursors",
        "_engine",
        "_joint",
        "_num_bytes",
        "_num_drafted",
        "_num_paid",
        "_prompt_length",
        "is_open",
        "namespace",
        "seat",
    )

    def __init__(self, engine: Engine, prompt: Tokens, namespace: str, reserved_bytes: int) -> None:
        self._engine = engine
        self._prompt_length = int(prompt.size)
        self.namespace = namespace
        self._cursors: list[Cursor] = []
        self._num_bytes = reserved_bytes
        self._start(prompt)
        self.seat = engine.roster.take(self, self._joint)
        self.is_open = True
        self._num_paid = self._num_drafted = FIRST_PAID_NODES
        self._measure()

    @property
    def context(self) -> Tokens:
        """All tokens decided so far, as a view: int32[context_length]."""
        return self._context.tokens

    @property
    def context_length(self) -> int:
        """How many these are, the prompt included."""
        return self._context.length

    def draft(self, max_nodes: int = 16, cost_curve: CostCurve | None = None) -> DraftTree:
        """Returns at most `max_nodes` nodes that continue the context; equal states give equal trees.

        With what a pass of the target costs, only nodes that pay are drafted (`budget.num_paying`).

        Raises:
            UnknownSession: the session is closed.
        """
        self._check_open()
        if max_nodes <= 0:
            return DraftTree.empty(self._engine.source_names)
        max_nodes = min(max_nodes, self._engine.max_nodes)

        def ask(num_nodes: int) -> DraftTree:
            return self._joint.draft(self._engine.budget(num_nodes))

        if cost_curve is None:
            return ask(max_nodes)
        tree = draft_paying(ask, max_nodes, cost_curve, self._num_paid)
        self._num_drafted = len(tree)
        self.keep(len(tree))
        return tree

    @property
    def joint(self) -> Joint:
        """The sources of an open session as one, for drafts of several sessions at once."""
        self._check_open()
        return self._joint

    def keep(self, num_nodes: int) -> None:
        """Says that of the tree drafted last only the first nodes will be verified: what it teaches is less.

        Unsaid, the whole tree is taken to be. Nodes that a cost curve or a batch left out are known of.
        """
        self._joint.keep(num_nodes)

    def commit(self, token_ids: TokenIds, feedback: Feedback | None = None) -> None:
        """Appends decided tokens (accepted ones and the bonus token) to the context.

        Raises:
            InvalidTokens: an id outside the vocabulary; the session is unchanged.
            InvalidFeedback: feedback that no source can use; the session is unchanged.
            LimitExceeded: more tokens than one commit, context or the memory may hold; nothing is changed.
            UnknownSession: the session is closed.
        """
        self._check_open()
        tokens = as_tokens(token_ids, self._engine.vocab_size)
        self.measure_in_time()
        self._engine.check_append(self.context_length, tokens.size)
        if feedback is not None:
            self._engine.check_feedback(feedback)
        self._joint.observe(tokens, feedback)
        self._num_paid = self._num_drafted
        if tokens.shape[0] > MEASURED_TOKENS:  # else it is worked in with the next draft, in its turn
            self.measure_in_time()

    def tend(self) -> None:
        """Makes room for tokens to come, and tells the ledger, where a step said that it is time."""
        self._joint.make_room(0)
        self.measure_in_time()

    def measure_in_time(self) -> None:
        """Tells the ledger what the session holds, if it has grown enough."""
        if self.context_length >= self._context.notice_length:
            self._joint.settle()  # what waits to be worked in is not in what the sources hold
            self._measure()

    def look_ahead(self) -> Lookahead:
        """Returns what drafts for tokens that may be committed next; for as long as none is."""
        return Lookahead(self._joint, self._num_drafted, self._engine.budget(self._engine.max_nodes))

    def truncate(self, length: int) -> None:
        """Cuts the context to its first `length` tokens, because the host went back.

        Raises:
            ContextMismatch: the context is shorter than that.
            UnknownSession: the session is closed.
        """
        self._check_open()
        if not 0 <= length <= self.context_length:
            raise ContextMismatch(
                "cannot cut the context", got=length, expected=f"0 to {self.context_length}"
            )
        self._joint.settle()
        kept = self.context[:length]
        self._prompt_length = min(length, self._prompt_length)
        self._start(kept[: self._prompt_length])
        self._engine.roster.note(self.seat, self._joint)
        self._joint.observe(kept[self._prompt_length :])
        self._joint.settle()
        self._measure()

    def expect(self, context_length: int) -> None:
        """Refuses a step that was meant for another state of the session.

        Raises:
            ContextMismatch: a message before this one was lost, or this one is repeated or late.
        """
        if context_length != self.context_length:
            raise ContextMismatch(
                "verifier and session disagree on the context length",
                got=context_length,
                expected=self.context_length,
                remedy="truncate or open the session again",
            )

    def close(self) -> None:
        """Ends the session, lets the sources learn from it and releases it; closing twice is harmless."""
        if self.is_open:
            self._joint.settle()
            cursors, context, begin = self._cursors, self.context, self._prompt_length
            self.discard()
            for cursor in cursors:
                cursor.close()
            self._engine.memory.taught(self.namespace, context[:begin], context[begin:])

    def discard(self) -> None:
        """Ends the session and releases it, and no source learns from its end; as harmless twice."""
        if self.is_open:
            self.is_open = False
            self._engine.roster.leave(self.seat)
            self._cursors = []
            self._context = Context(self.context[:0])
            self._engine.ledger.close(tenant_of(self.namespace), self._num_bytes)

    def _start(self, prompt: Tokens) -> None:
        # What was added since the session began stays out: its verifier does not know the source's bit.
        drafters = islice(self._engine.drafters.values(), len(self._cursors) or None)
        self._cursors = [drafter.start(prompt, self.namespace) for drafter in drafters]
        self._context = Context(prompt)
        self._joint: Joint = self._engine.joining.start(self._cursors, self.namespace, self._context)

    def _measure(self) -> None:
        """Tells the ledger what the session holds, and says when to look again."""
        num_bytes = self._context.num_bytes + cursor_bytes(self._cursors, self.context_length)
        self._engine.ledger.resize(num_bytes - self._num_bytes)
        self._num_bytes = num_bytes
        self._context.notice_at(self.context_length + max(self.context_length >> 3, MEASURED_TOKENS))

    def _check_open(self) -> None:
        if not self.is_open:
            raise UnknownSession("the session is closed", remedy="open a new one")
