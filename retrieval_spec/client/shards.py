"""`ShardedClient`: servers that each hold other corpora, asked at once and fused where the target runs."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

import numpy as np

from retrieval_spec.budget import CostCurve, cut, share_nodes
from retrieval_spec.client.credentials import Credentials
from retrieval_spec.client.frames import PREFIX
from retrieval_spec.client.interface import TokenIds
from retrieval_spec.client.remote import DraftClient
from retrieval_spec.client.session import RemoteSession
from retrieval_spec.errors import (
    InvalidFeedback,
    InvalidRequest,
    ServiceUnavailable,
    TokenizerMismatch,
    UnknownSession,
)
from retrieval_spec.feedback import Feedback
from retrieval_spec.fusion import fuse
from retrieval_spec.projection import Projection
from retrieval_spec.tree import DraftTree, as_tokens

MAX_SOURCES = 16
"""One bit each in `DraftTree.sources`."""


class ShardedClient:
    """Servers with different corpora behind the interface of one. One engine loop uses it at a time.

    Each step asks all of them at once, so that it takes as long as the slowest that is worth waiting for, and
    fuses their trees along their longest common prefixes. A server in trouble leaves the drafts to the
    others. Sources of one name on several servers count as one. What only learns from the generation itself
    need not run on all of them: they would all say the same.

        ShardedClient(["unix:/run/code.sock", "unix:/run/docs.sock"])

    Args:
        addresses: one for each server; for replicas of one server see `DraftClient`.
        timeout_s: as for `DraftClient`.
        transport: `stream` or `unary`, as for `DraftClient`.
        credentials: for all of them.

    Raises:
        InvalidRequest: no address, or one socket for all.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        *,
        timeout_s: float | None = None,
        transport: str = "stream",
        credentials: Credentials | None = None,
    ) -> None:
        if isinstance(addresses, str) or not addresses:
            raise InvalidRequest("no list of addresses", got=repr(addresses), expected="one for each server")
        if transport.startswith(PREFIX):
            raise InvalidRequest("servers share no socket", got=transport, expected="stream or unary")
        self.clients = tuple(
            DraftClient(address, timeout_s=timeout_s, transport=transport, credentials=credentials)
            for address in addresses
        )

    @property
    def vocab_size(self) -> int:
        """Token ids lie in `0 .. vocab_size - 1`.

        Raises:
            TokenizerMismatch: the servers draft for different vocabularies.
            ServiceUnavailable: none of them can be reached.
        """
        sizes = {client.vocab_size for client in self._reached()}
        if len(sizes) > 1:
            raise TokenizerMismatch("the servers draft for different vocabularies", got=sorted(sizes))
        if not sizes:
            raise ServiceUnavailable(
                "none of the servers can be reached", got=[client.address for client in self.clients]
            )
        return sizes.pop()

    @property
    def source_names(self) -> tuple[str, ...]:
        """The drafter behind each bit of a tree's `sources`, lowest first."""
        return tuple(dict.fromkeys(name for client in self._reached() for name in client.source_names))

    @property
    def wanted_topk(self) -> int:
        """Ids a node that are of use in `Feedback.topk_ids`; 0 if no source learns from them."""
        return max((client.wanted_topk for client in self._reached()), default=0)

    @property
    def projection(self) -> Projection | None:
        """What turns the target's state into `Feedback.hidden_state`; None if no source is asked with it.

        Raises:
            InvalidRequest: the servers want different ones, and a step tells one state.
        """
        found = [one for client in self._reached() if (one := client.projection) is not None]
        if any(not other.equals(found[0]) for other in found[1:]):
            raise InvalidRequest("the servers are asked with different projections")
        return found[0] if found else None

    def open_session(self, prompt_ids: TokenIds, namespace: str = "default") -> ShardedSession:
        """Returns a session on all servers that have ever answered.

        Raises:
            InvalidTokens, InvalidRequest, LimitExceeded: as `DraftClient.open_session`.
            TokenizerMismatch: the servers draft for different vocabularies.
            ServiceUnavailable: none of them can be reached.
        """
        prompt = as_tokens(prompt_ids, self.vocab_size)
        if len(self.source_names) > MAX_SOURCES:
            raise InvalidRequest(
                "too many drafting sources", got=len(self.source_names), expected=f"<= {MAX_SOURCES}"
            )
        parts = {client: client.open_session(prompt, namespace) for client in self._reached()}
        return ShardedSession(self, parts, prompt.size)

    def draft_batch(
        self,
        sessions: Sequence[ShardedSession],
        total_nodes: int,
        cost_curve: CostCurve | None = None,
        max_nodes: int | None = None,
    ) -> list[DraftTree]:
        """Returns one tree a session, together at most `total_nodes` nodes, and only such as pay.

        Raises:
            UnknownSession: one of them is closed.
        """
        most = total_nodes if max_nodes is None else min(total_nodes, max_nodes)
        trees = self.draft_all(sessions, most)
        return share_nodes(trees, max(total_nodes, 0), cost_curve)

    def draft_all(self, sessions: Sequence[ShardedSession], max_nodes: int) -> list[DraftTree]:
        """Returns one tree a session, of the best `max_nodes` nodes of each server: one round trip to all."""
        for session in sessions:
            session.check_open()
        drafted: list[list[DraftTree]] = [[] for _ in sessions]
        with ExitStack() as locks:
            steps = []
            for client in self.clients:
                held = [index for index, session in enumerate(sessions) if client in session.parts]
                if held:
                    locks.enter_context(client.lock)
                    parts = [sessions[index].parts[client] for index in held]
                    steps.append(
                        (
                            client,
                            held,
                            client.begin_step(parts, [max_nodes] * len(held), max_nodes * len(held)),
                        )
                    )
            for client, held, step in steps:
                for index, tree in zip(held, client.end_step(step), strict=True):
                    drafted[index].append(tree)
        known = [client.no_draft.source_names for client in self.clients]
        names = tuple(dict.fromkeys(name for own in known for name in own))
        return [fuse([relabelled(tree, names) for tree in trees], max_nodes) for trees in drafted]

    def close(self) -> None:
        """Closes all connections; sessions are closed by those who opened them."""
        for client in self.clients:
            client.close()

    def __enter__(self) -> ShardedClient:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _reached(self) -> list[DraftClient]:
        return [client for client in self.clients if _has_answered(client)]


class ShardedSession:
    """One generation on several servers; made by `ShardedClient.open_session`. Not thread-safe.

    Attributes:
        parts: its sessions, by the client of their server.
        context_length: tokens decided so far, prompt included.
    """

    def __init__(
        self, source: ShardedClient, parts: dict[DraftClient, RemoteSession], context_length: int
    ) -> None:
        self._source = source
        self._vocab_size = source.vocab_size
        self._is_open = True
        self.parts = parts
        self.context_length = context_length

    def draft(self, max_nodes: int = 16, cost_curve: CostCurve | None = None) -> DraftTree:
        """Returns at most `max_nodes` nodes that continue the context; only nodes that pay, with a curve.

        Raises:
            UnknownSession: the session is closed.
        """
        (tree,) = self._source.draft_all([self], max_nodes)
        return tree if cost_curve is None else cut(tree, cost_curve)

    def commit(self, token_ids: TokenIds, feedback: Feedback | None = None) -> None:
        """Appends decided tokens to the context; feedback goes to those servers that can use it.

        Raises:
            InvalidTokens: an id outside the vocabulary; the session is unchanged.
            InvalidFeedback: feedback that none of the servers can use; the session is unchanged.
            UnknownSession: the session is closed.
        """
        self.check_open()
        tokens = as_tokens(token_ids, self._vocab_size).tolist()
        heard = [client for client in self.parts if feedback is not None and _can_use(client, feedback)]
        if feedback is not None and not heard:
            raise InvalidFeedback("none of the servers can use this feedback")
        for client, part in self.parts.items():
            part.commit(tokens, feedback if client in heard else None)
        self.context_length += len(tokens)

    def truncate(self, length: int) -> None:
        """Cuts the context to its first `length` tokens.

        Raises:
            ContextMismatch: the context is shorter than that.
            UnknownSession: the session is closed.
        """
        self.check_open()
        for part in self.parts.values():
            part.truncate(length)
        self.context_length = length

    def close(self) -> None:
        """Tells the servers the last tokens and ends the session; closing twice is harmless."""
        self._is_open = False
        for part in self.parts.values():
            part.close()

    def check_open(self) -> None:
        """Refuses a closed session.

        Raises:
            UnknownSession: it is closed.
        """
        if not self._is_open:
            raise UnknownSession("the session is closed", remedy="open a new one")


def relabelled(tree: DraftTree, names: Sequence[str]) -> DraftTree:
    """Returns a tree whose source bits count names of another list; unknown ones are left out."""
    masks = tree.sources.astype(np.int64)
    sources = np.zeros(len(tree), np.int64)
    for bit, name in enumerate(tree.source_names):
        if name in names:
            sources |= (masks >> bit & 1) << list(names).index(name)
    return DraftTree(tree.token_ids, tree.parents, tree.probs, sources.astype(np.uint16), tuple(names))


def _has_answered(client: DraftClient) -> bool:
    try:
        return client.vocab_size > 0
    except ServiceUnavailable:
        return False


def _can_use(client: DraftClient, feedback: Feedback) -> bool:
    try:
        feedback.check(client.vocab_size, client.state_dimensions)
    except InvalidFeedback:
        return False
    return True
