"""Drafts for hosts that name no requests: whole contexts in, trees out; only their ends travel.

At most one question is under way, no answer is waited for longer than the client's bound, and a server in
trouble costs its drafts and no exception. Knows messages; nothing of sessions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grpc

from retrieval_spec import wire
from retrieval_spec.budget import CostCurve
from retrieval_spec.client.breaker import Breaker
from retrieval_spec.client.peer import Peer
from retrieval_spec.client.transport import typed_error
from retrieval_spec.errors import InvalidInput, InvalidTree, RetrievalSpecError, ServiceUnavailable
from retrieval_spec.tree import DraftTree, Tokens
from retrieval_spec.v1 import draft_pb2 as pb

SENT_TOKENS = 128
"""So much of a row's end travels that the server knows: it may have grown by a little less since."""

KNOWN_TOKENS = 16
"""So many tokens tell whether a row is known."""

MAX_WHOLE_TOKENS = 1 << 20
"""Of rows that are new, in one message; of further ones only the end travels."""

MAX_KNOWN = 4_096


class KnownRows:
    """How the rows ended that the server holds: what grew out of one of them need not be sent again."""

    def __init__(self) -> None:
        self._by_length: dict[int, set[bytes]] = {}
        self._count = 0

    def knows(self, context: Tokens) -> bool:
        """Whether the context grew out of a row that the server holds."""
        length = context.shape[0]
        for end in range(length, max(length - SENT_TOKENS + KNOWN_TOKENS, 0), -1):
            if end in self._by_length and _tail(context, end) in self._by_length[end]:
                return True
        return False

    def replace(self, contexts: Sequence[Tokens]) -> None:
        """Notes rows that the server holds now, and forgets what they grew out of."""
        for context in contexts:
            self.forget(context)
        if self._count > MAX_KNOWN:
            self.clear()
        for context in contexts:
            tails = self._by_length.setdefault(context.shape[0], set())
            self._count -= len(tails)
            tails.add(_tail(context, context.shape[0]))
            self._count += len(tails)

    def forget(self, context: Tokens) -> None:
        """Takes a row, or what it grew out of, for new."""
        length = context.shape[0]
        for end in range(length, max(length - SENT_TOKENS + KNOWN_TOKENS, 0), -1):
            tails = self._by_length.get(end)
            if tails is not None and (tail := _tail(context, end)) in tails:
                tails.remove(tail)
                self._count -= 1
                if not tails:
                    del self._by_length[end]
                return

    def clear(self) -> None:
        """Takes all rows for new."""
        self._by_length.clear()
        self._count = 0


def _tail(context: Tokens, end: int) -> bytes:
    return context[max(0, end - KNOWN_TOKENS) : end].tobytes()


class SuffixAsker:
    """Asks one server for drafts of rows. Belongs to one caller at a time.

    Args:
        method: the gRPC method.
        get_info: the one that says who answers.
        peer: what is known of the server.
        breaker: when to leave it alone; of its own, as sessions may be asked about beside.
        longest_wait_s: for an answer.
        pad_to_nodes: see `DraftClient`.
    """

    def __init__(
        self,
        method: Any,
        get_info: Any,
        peer: Peer,
        breaker: Breaker,
        longest_wait_s: float,
        pad_to_nodes: int = 0,
    ) -> None:
        self._method = method
        self._get_info = get_info
        self._peer = peer
        self._breaker = breaker
        self._longest_wait_s = longest_wait_s
        self._pad_to_nodes = pad_to_nodes
        self._known = KnownRows()
        self._late: Any = None

    def draft(
        self,
        contexts: Sequence[Tokens],
        max_nodes: Sequence[int],
        total_nodes: int,
        cost_curve: CostCurve | None,
        namespace: str,
    ) -> list[DraftTree]:
        """Returns a tree for each row, empty ones if the server is in trouble."""
        no_drafts = [self._peer.no_draft] * len(contexts)
        if total_nodes <= 0 or not contexts or not self._may_ask():
            return no_drafts
        call = None
        try:
            request = self._request(contexts, max_nodes, total_nodes, cost_curve, namespace)
            call = self._method.begin(request, 60 * self._longest_wait_s)
            self._late = call
            try:
                response = call.result(timeout=self._longest_wait_s)
            except grpc.FutureTimeoutError:
                self._breaker.struck(ServiceUnavailable("no answer in time"))
                return no_drafts
            self._late = None
            outcomes = self._read(response, contexts, max_nodes, total_nodes)
        except (grpc.RpcError, grpc.FutureCancelledError, RetrievalSpecError) as error:
            self._late = None if self._late is call else self._late
            self._in_trouble(error)
            return no_drafts
        self._breaker.succeeded()
        return [one if isinstance(one, DraftTree) else self._peer.no_draft for one in outcomes]

    def drop(self) -> None:
        """Forgets what is under way."""
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _may_ask(self) -> bool:
        """Whether nothing is under way, and the server is not left alone just now."""
        late = self._late
        if late is not None:
            if not late.done():
                return False
            self._late = None
            self._take(late)
        if self._breaker.allows:
            return True
        if self._breaker.wants_probe:
            self._breaker.probed()
            self._late = self._get_info.begin(pb.GetInfoRequest(), None, wait_for_ready=True)
        return False

    def _take(self, late: Any) -> None:
        """Learns from an answer that no step waited for; its drafts are worth nothing by now."""
        try:
            response = late.result()
            if isinstance(response, pb.GetInfoResponse):
                self._peer.learn(response.info)
        except (grpc.RpcError, grpc.FutureCancelledError, RetrievalSpecError) as error:
            self._in_trouble(error)
        else:
            self._breaker.succeeded()

    def _request(
        self,
        contexts: Sequence[Tokens],
        max_nodes: Sequence[int],
        total_nodes: int,
        cost_curve: CostCurve | None,
        namespace: str,
    ) -> pb.DraftSuffixesRequest:
        request = pb.DraftSuffixesRequest(namespace=namespace, pad_to_nodes=self._pad_to_nodes)
        left_tokens = MAX_WHOLE_TOKENS
        rows, held = [], []
        for context, cap in zip(contexts, max_nodes, strict=True):
            length = context.shape[0]
            is_known = self._known.knows(context)
            is_whole = not is_known and length <= left_tokens
            left_tokens -= length if is_whole else 0
            rows.append(wire.Suffix(context if is_whole else context[-SENT_TOKENS:], length, cap))
            if is_known or is_whole:
                held.append(context)
        # Taken for granted before the answer: one that comes late must not make all of it travel again.
        self._known.replace(held)
        wire.write_suffixes(request, rows, total_nodes)
        if cost_curve is not None:
            wire.write_cost_curve(request, cost_curve)
        return request

    def _read(
        self,
        response: pb.DraftSuffixesResponse,
        contexts: Sequence[Tokens],
        max_nodes: Sequence[int],
        total_nodes: int,
    ) -> list[wire.Outcome]:
        """Checks an answer as if an attacker had sent it, and notes which rows must be told whole.

        Raises:
            InvalidInput: it is no good.
        """
        if response.HasField("info"):
            self._peer.learn(response.info)
        if response.result.incarnation != self._peer.incarnation_seen:
            self._late = self._get_info.begin(pb.GetInfoRequest(), 60 * self._longest_wait_s)
            raise InvalidTree("drafts of another server process than the one asked")
        missing = wire.read_missing(response, len(contexts))
        if self._pad_to_nodes:
            wire.unpad(response.result)
        caps = [max(0, cap) for cap in max_nodes]
        peer = self._peer
        outcomes = wire.read_result(response.result, caps, total_nodes, peer.vocab_size, peer.source_names)
        for context, num_missing in zip(contexts, missing, strict=True):
            if num_missing:
                self._known.forget(context)
        return outcomes

    def _in_trouble(self, error: Exception) -> None:
        self._known.clear()
        typed = typed_error(error) if isinstance(error, grpc.RpcError) else error
        if isinstance(typed, InvalidInput):
            self._breaker.struck(typed)
        else:
            self._breaker.failed(typed)
