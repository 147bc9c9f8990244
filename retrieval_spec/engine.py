"""The sans-IO core: sessions, their cursors and one fused draft tree a step.

No sockets, no threads, no clock: whoever calls decides when. The gRPC service and `LocalClient` are
two thin ways in. An engine is shared by all sessions; a session belongs to one caller at a time.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval_spec.ahead import Lookahead
from retrieval_spec.budget import CostCurve, draft_paying, share_nodes
from retrieval_spec.drafters.base import (
    Budget,
    Cursor,
    Drafter,
    TextDrafter,
    TopKDrafter,
    own_source,
)
from retrieval_spec.drafters.blend import Blend
from retrieval_spec.drafters.combination import ask_all
from retrieval_spec.drafters.joint import Combination, Fuse, Joining, Joint
from retrieval_spec.drafters.opening import Places, common_projection, open_sources
from retrieval_spec.drafters.preset import Preset
from retrieval_spec.drafters.presets import preset as preset_of
from retrieval_spec.errors import ContextMismatch, InvalidRequest, LimitExceeded, UnknownSession
from retrieval_spec.feedback import Feedback
from retrieval_spec.fusion import fuse_sources
from retrieval_spec.kernels.fusion import COMPILED
from retrieval_spec.ledger import Ledger
from retrieval_spec.limits import Limits, tenant_of
from retrieval_spec.memory import MEASURED_TOKENS, LearnedMemory, cursor_bytes
from retrieval_spec.tree import MAX_VOCAB_SIZE, TOKEN, DraftTree, Tokens, as_tokens

MAX_SOURCES = 16
"""One bit each in `DraftTree.sources`."""

FIRST_PAID_NODES = 12
"""What is taken to have paid before the first step under a cost curve."""

MAX_SHARE = 4
"""How many times the average one session of a batch may take of the common budget."""

_NAMESPACE = re.compile(r"(?:[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}/)?[A-Za-z0-9_-]{1,64}")
TokenIds = Sequence[int] | NDArray[Any]


class Engine:
    """Drafting sources opened once and shared by all sessions.

    Attributes:
        preset: its sources, and how they are combined; of `drafters` that were given, nothing.
        datastores: name -> tokenizer fingerprint of every datastore among the sources.
        max_nodes: nodes in one tree at most: the limits' bound, or a preset's smaller one.
        memory: what closed sessions taught.
        wanted_topk: ids a node that are of use in `Feedback.topk_ids`; 0 if no source learns from them.
        projection: what turns the target's state into `Feedback.hidden_state`; None if no source is asked
            with it.

    Args:
        vocab_size: token ids lie in `0 .. vocab_size - 1`; may exceed a datastore's (padded embeddings).
        drafters: name -> drafter, in place of the preset's; the order fixes the bits of `sources`.
        preset: which registered sources to open and how to combine them (`drafters.presets`).
        datastores: folders written by `retrieval-spec build`, or what is open already; each becomes a source.
        limits: what one engine accepts.

    Raises:
        InvalidRequest: a vocabulary, preset or number of sources out of range.
        DatastoreError, MissingPath: a datastore that cannot be used.
    """

    def __init__(
        self,
        vocab_size: int,
        drafters: Mapping[str, Drafter] | None = None,
        preset: str | Preset = "default",
        datastores: Places = (),
        limits: Limits | None = None,
    ) -> None:
        if not 1 <= vocab_size <= MAX_VOCAB_SIZE:
            raise InvalidRequest(
                "vocabulary size out of range", got=vocab_size, expected=f"1 to {MAX_VOCAB_SIZE}"
            )
        self.vocab_size = vocab_size
        self.limits = limits or Limits()
        self.preset = chosen = preset if isinstance(preset, Preset) else preset_of(preset)
        self.drafters = dict(open_sources(vocab_size, chosen, datastores) if drafters is None else drafters)
        self.max_nodes = min(self.limits.max_nodes, chosen.max_nodes)
        self.datastores = {
            name.partition(":")[2]: drafter.tokenizer_fingerprint
            for name, drafter in self.drafters.items()
            if isinstance(drafter, TextDrafter)
        }
        opened = self.drafters.values()
        wanted_topk = max((d.wanted_topk for d in opened if isinstance(d, TopKDrafter)), default=0)
        self.wanted_topk = min(wanted_topk, self.limits.max_topk)
        self.projection = common_projection(opened)
        if len(self.drafters) > MAX_SOURCES:
            raise InvalidRequest(
                "too many drafting sources", got=len(self.drafters), expected=f"<= {MAX_SOURCES}"
            )
        self.source_names = tuple(self.drafters)
        self.joining = _joining(ask_all if drafters is not None else chosen.combine, self.source_names)
        self.ledger = Ledger(self.limits)
        self.memory = LearnedMemory(self.drafters.values(), [self.joining], self.limits.max_learned_bytes)

    @property
    def num_sessions(self) -> int:
        """Sessions that are open."""
        return self.ledger.num_sessions

    def open_session(self, prompt_ids: TokenIds, namespace: str = "default") -> Session:
        """Returns a session whose context is the prompt, which may be empty.

        Raises:
            InvalidTokens: an id outside the vocabulary.
            InvalidRequest: a malformed namespace.
            LimitExceeded: the prompt is too long, too many sessions are open or their memory is used up.
        """
        if not _NAMESPACE.fullmatch(namespace):
            raise InvalidRequest(
                "malformed namespace",
                got=repr(namespace[:80]),
                expected="1 to 64 of A-Z a-z 0-9 _ -, with a tenant and / before it where there are tenants",
            )
        tenant = tenant_of(namespace)
        self.ledger.check_room(tenant)  # before the ids are looked at, so that a refusal is cheap
        prompt = as_tokens(prompt_ids, self.vocab_size)
        self.check_context_length(prompt.size)
        reserved_bytes = self.ledger.open(tenant, prompt.size)
        try:
            return Session(self, prompt, namespace, reserved_bytes)
        except BaseException:
            self.ledger.close(tenant, reserved_bytes)
            raise

    def draft_batch(
        self,
        sessions: Sequence[Session],
        total_nodes: int,
        max_nodes: Sequence[int] | None = None,
        cost_curve: CostCurve | None = None,
    ) -> list[DraftTree]:
        """Returns one tree a session, together the `total_nodes` most probable paths of them all.

        `max_nodes` bounds each session's own tree. No session gets more than `MAX_SHARE` times the
        average: drafting nodes that the selection then drops would cost more than it can gain. With the
        curve of the pass that verifies them all, only nodes that pay are among them.
        """
        total_nodes = max(total_nodes, 0)
        most = min(total_nodes, MAX_SHARE * -(-total_nodes // max(len(sessions), 1)))
        caps = [most] * len(sessions) if max_nodes is None else [min(most, cap) for cap in max_nodes]
        if len(sessions) == 1:
            return [sessions[0].draft(caps[0], cost_curve)]
        joints, budgets = [one.joint for one in sessions], [self.budget(cap) for cap in caps]
        trees = self.joining.draft_all(joints, budgets, total_nodes)
        shared = share_nodes(trees, total_nodes, cost_curve)
        for joint, tree, kept in zip(joints, trees, shared, strict=True):
            if len(kept) < len(tree):
                joint.keep(len(kept))
        return shared

    def budget(self, max_nodes: int) -> Budget:
        """Returns what a tree of one session may cost that is asked for so many nodes."""
        return Budget(max(0, min(max_nodes, self.max_nodes)), self.limits.max_depth_nodes)

    def warm_up(self) -> None:
        """Compiles what only a draft from several sources needs; the sources compile with any draft."""
        chain = DraftTree.chain([0], [0.5])
        tree = DraftTree(chain.token_ids, chain.parents, chain.probs, own_source(1))
        fuse_sources([tree, tree], 1, ("warm-up", "warm-up"), COMPILED)

    @property
    def state_dimensions(self) -> int:
        """Dimensions of `Feedback.hidden_state`; 0 if no source is asked with it."""
        return self.projection.dimensions if self.projection else 0

    def check_context_length(self, length: int) -> None:
        """Refuses contexts that are too long.

        Raises:
            LimitExceeded: more tokens than `limits.max_context_tokens`.
        """
        if length > self.limits.max_context_tokens:
            raise LimitExceeded(
                "context too long",
                got=length,
                expected=f"<= {self.limits.max_context_tokens} tokens",
                remedy="raise max_context_tokens",
            )

    def check_append(self, length: int, num_tokens: int) -> None:
        """Refuses commits that are too large, or for which a session of `length` tokens has no room.

        Raises:
            LimitExceeded: more tokens than one commit or context may have, or no memory is left.
        """
        if num_tokens > self.limits.max_append_tokens:
            raise LimitExceeded(
                "too many tokens in one commit",
                got=num_tokens,
                expected=f"<= {self.limits.max_append_tokens}",
                remedy="commit them in parts, or open the session with them as its prompt",
            )
        self.check_context_length(length + num_tokens)
        self.ledger.check_growth(num_tokens)

    def check_feedback(self, feedback: Feedback) -> None:
        """Refuses feedback that no source can use.

        Raises:
            InvalidFeedback: it cannot be relied on, or has more ids a node than anybody wants.
        """
        feedback.check(self.vocab_size, self.state_dimensions, self.limits.max_topk)


def _joining(combine: Combination | type[Blend], source_names: tuple[str, ...]) -> Joining:
    return combine(source_names) if isinstance(combine, type) else Fuse(combine, source_names)


class Session:
    """One generation: its context, and one cursor in every source. Not thread-safe."""

    __slots__ = (
        "_buffer",
        "_cursors",
        "_engine",
        "_joint",
        "_measured_length",
        "_num_bytes",
        "_num_drafted",
        "_num_paid",
        "_prompt_length",
        "context_length",
        "is_open",
        "namespace",
    )

    def __init__(self, engine: Engine, prompt: Tokens, namespace: str, reserved_bytes: int) -> None:
        self._engine = engine
        self._buffer = prompt.copy()
        self.context_length = self._prompt_length = int(prompt.size)
        self.namespace = namespace
        self._cursors: list[Cursor] = []
        self._start(prompt)
        self.is_open = True
        self._num_paid = self._num_drafted = FIRST_PAID_NODES
        self._num_bytes = reserved_bytes
        self._measure()

    @property
    def context(self) -> Tokens:
        """All tokens decided so far, as a view: int32[context_length]."""
        context: Tokens = self._buffer[: self.context_length]
        return context

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
        self._engine.check_append(self.context_length, tokens.size)
        if feedback is not None:
            self._engine.check_feedback(feedback)
        self._append(tokens)
        self._joint.observe(tokens, feedback)
        self._num_paid = self._num_drafted
        if self.context_length >= self._measured_length:
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
        self.context_length = length
        self._prompt_length = min(length, self._prompt_length)
        self._start(self.context[: self._prompt_length])
        self._joint.observe(self.context[self._prompt_length :])
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
            self._cursors = []
            self._buffer = self._buffer[:0].copy()
            self._engine.ledger.close(tenant_of(self.namespace), self._num_bytes)

    def _start(self, prompt: Tokens) -> None:
        # What was added since the session began stays out: its verifier does not know the source's bit.
        drafters = islice(self._engine.drafters.values(), len(self._cursors) or None)
        self._cursors = [drafter.start(prompt, self.namespace) for drafter in drafters]
        self._joint = self._engine.joining.start(self._cursors, self.namespace)

    def _measure(self) -> None:
        """Tells the ledger what the session holds, and says when to look again."""
        num_bytes = self._buffer.nbytes + cursor_bytes(self._cursors, self.context_length)
        self._engine.ledger.resize(num_bytes - self._num_bytes)
        self._num_bytes = num_bytes
        self._measured_length = self.context_length + max(self.context_length >> 3, MEASURED_TOKENS)

    def _check_open(self) -> None:
        if not self.is_open:
            raise UnknownSession("the session is closed", remedy="open a new one")

    def _append(self, tokens: Tokens) -> None:
        length = self.context_length + tokens.size
        if length > self._buffer.size:
            grown = np.empty(max(length, 2 * self._buffer.size, 256), TOKEN)
            grown[: self.context_length] = self.context
            self._buffer = grown
        self._buffer[self.context_length : length] = tokens
        self.context_length = length
