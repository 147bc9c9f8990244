"""`DraftClient`: draft trees from a server, and nothing worse than an empty tree when it is in trouble.

Decides when to ask, to open a session again and to leave the server alone; how bytes travel is the
transport's business.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from typing import Any

from retrieval_spec import wire
from retrieval_spec.budget import CostCurve
from retrieval_spec.client.breaker import Breaker
from retrieval_spec.client.interface import TokenIds
from retrieval_spec.client.reopening import Reopener
from retrieval_spec.client.session import PARKED_S, RemoteSession
from retrieval_spec.client.transport import OPEN_TIMEOUT_S, called, open_channel, open_transport, unary
from retrieval_spec.errors import (
    ContextMismatch,
    InvalidFeedback,
    InvalidRequest,
    RetrievalSpecError,
    ServiceUnavailable,
    UnknownSession,
)
from retrieval_spec.projection import Projection
from retrieval_spec.tree import MAX_VOCAB_SIZE, DraftTree, as_tokens
from retrieval_spec.v1 import draft_pb2 as pb

logger = logging.getLogger(__name__)


# The server and the client disagree about a session: it is opened again with the whole context.
_LOST = (UnknownSession, ContextMismatch)


class DraftClient:
    """A draft server behind the interface of `LocalClient`. One engine loop uses it at a time.

    Args:
        address: `unix:/path/to.sock` or `host:port`, as given to `retrieval-spec serve --listen`.
        timeout_s: longest wait for one draft; later answers are dropped.
        transport: `stream`, or `unary` where a proxy breaks streams.
    """

    def __init__(self, address: str, *, timeout_s: float = 0.1, transport: str = "stream") -> None:
        if not timeout_s > 0:
            raise InvalidRequest("the time limit must be positive", got=timeout_s)
        self.address = address
        self._timeout_s = timeout_s
        self._channel = open_channel(address)
        self._transport = open_transport(transport, self._channel)
        self._get_info = unary(self._channel, "GetInfo", pb.GetInfoResponse)
        self._get_projection = unary(self._channel, "GetProjection", pb.GetProjectionResponse)
        self._open_session = unary(self._channel, "OpenSession", pb.OpenSessionResponse)
        self._truncate_session = unary(self._channel, "TruncateSession", pb.TruncateSessionResponse)
        self._close_session = unary(self._channel, "CloseSession", pb.CloseSessionResponse)
        self._breaker = Breaker(address)
        self._reopener = Reopener(self._open_session, timeout_s, self._learn)
        self._lock = threading.Lock()
        self._step_number = 0
        self._info: pb.ServerInfo | None = None
        self._names: tuple[str, ...] = ()
        self._no_draft = DraftTree.empty()

    @property
    def server_info(self) -> pb.ServerInfo:
        """What the server said about itself; asked for when first needed.

        Raises:
            ServiceUnavailable: the server does not answer.
        """
        if self._info is None:
            response = called(self._get_info, pb.GetInfoRequest(), timeout=OPEN_TIMEOUT_S)
            self._learn(response.info)
        return self._info  # type: ignore[return-value]  # _learn has set it

    @property
    def vocab_size(self) -> int:
        """Token ids lie in `0 .. vocab_size - 1`."""
        return self.server_info.vocab_size

    @property
    def source_names(self) -> tuple[str, ...]:
        """The drafter behind each bit of a tree's `sources`, lowest first."""
        return self._names or tuple(self.server_info.source_names)

    @property
    def wanted_topk(self) -> int:
        """Ids a node that are of use in `Feedback.topk_ids`; 0 if no source learns from them."""
        return self.server_info.wanted_topk

    @property
    def state_dimensions(self) -> int:
        """Dimensions of `Feedback.hidden_state`; 0 if no source is asked with it."""
        return self.server_info.state_dimensions

    @property
    def projection(self) -> Projection | None:
        """What turns the target's state into `Feedback.hidden_state`; None if no source is asked with it.

        Raises:
            ServiceUnavailable: the server does not answer.
            InvalidRequest: it answers with no projection at all.
        """
        if not self.state_dimensions:
            return None
        response = called(self._get_projection, pb.GetProjectionRequest(), timeout=OPEN_TIMEOUT_S)
        return wire.read_projection(response.projection)

    def open_session(self, prompt_ids: TokenIds, namespace: str = "default") -> RemoteSession:
        """Returns a session whose context is the prompt, which may be empty.

        Raises:
            InvalidTokens: an id outside the vocabulary.
            InvalidRequest: a malformed namespace.
            LimitExceeded: the prompt is too long or the server holds too many sessions.
            ServiceUnavailable: the server does not answer.
        """
        prompt = as_tokens(prompt_ids, self.vocab_size)
        request = pb.OpenSessionRequest(prompt_token_ids=wire.token_bytes(prompt), namespace=namespace)
        response = called(self._open_session, request, timeout=OPEN_TIMEOUT_S)
        self._learn(response.info)
        return RemoteSession(self, prompt, namespace, response.session_id)

    def draft_batch(
        self, sessions: Sequence[RemoteSession], total_nodes: int, cost_curve: CostCurve | None = None
    ) -> list[DraftTree]:
        """Returns one tree a session, together at most `total_nodes` nodes, in one message.

        With the cost curve of the pass that verifies them all, only nodes that pay are among them.

        Raises:
            UnknownSession: one of them is closed.
        """
        return self.draft_step(sessions, [total_nodes] * len(sessions), total_nodes, cost_curve)

    def ping(self) -> float:
        """Returns the seconds that a step without sessions takes, on the way that drafts take.

        Raises:
            RetrievalSpecError: the server does not answer, or not sensibly.
        """
        start = time.perf_counter()
        with self._lock:
            self._exchange([], [], 0, None)
        return time.perf_counter() - start

    def close(self) -> None:
        """Closes the connection; sessions are closed by those who opened them."""
        self._breaker.shut()
        self._transport.close()
        self._channel.close()

    def __enter__(self) -> DraftClient:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def draft_step(
        self,
        sessions: Sequence[RemoteSession],
        max_nodes: Sequence[int],
        total_nodes: int,
        cost_curve: CostCurve | None,
    ) -> list[DraftTree]:
        """Returns one tree a session: commits and drafts of a whole engine step in one round trip."""
        for session in sessions:
            session.check_open()
        trees = [self._no_draft] * len(sessions)
        if total_nodes <= 0 or not sessions:
            return trees
        with self._lock:
            if not self._breaker.allows:
                return trees
            try:
                if self._fill(trees, sessions, max_nodes, total_nodes, cost_curve):
                    self._breaker.succeeded()
            except RetrievalSpecError as error:
                self._breaker.failed(error)
        return trees

    def _fill(
        self,
        trees: list[DraftTree],
        sessions: Sequence[RemoteSession],
        max_nodes: Sequence[int],
        total_nodes: int,
        cost_curve: CostCurve | None,
    ) -> bool:
        """Asks, opens again what the server lost, asks once more for those; whether it got an answer."""
        answered = False
        refused: list[RetrievalSpecError] = []
        waiting: Sequence[int] = range(len(sessions))
        for _ in range(2):
            lost = [sessions[index] for index in waiting if sessions[index].is_lost]
            if lost:
                refused += self._reopener.reopen(lost)
            asked = [index for index in waiting if not sessions[index].is_lost]
            if not asked or total_nodes <= 0:
                break
            caps = [min(max_nodes[index], total_nodes) for index in asked]
            outcomes = self._exchange([sessions[index] for index in asked], caps, total_nodes, cost_curve)
            answered = True
            again = []
            for index, outcome in zip(asked, outcomes, strict=True):
                if isinstance(outcome, DraftTree):
                    trees[index] = outcome
                    sessions[index].confirm_all()
                elif isinstance(outcome, InvalidFeedback):  # of a server that came back with other sources
                    sessions[index].forget_feedback()
                    again.append(index)
                elif isinstance(outcome, _LOST):
                    sessions[index].lose()
                    again.append(index)
                else:
                    sessions[index].park()
                    refused.append(outcome)
            waiting = again
            if not waiting:
                break
            total_nodes -= sum(len(trees[index]) for index in asked)
        if refused:
            text = "%d session(s) without drafts for %.0f s: %s"
            logger.warning(text, len(refused), PARKED_S, refused[0])
        return answered

    def _exchange(
        self,
        sessions: Sequence[RemoteSession],
        caps: list[int],
        total_nodes: int,
        cost_curve: CostCurve | None,
    ) -> list[wire.Outcome]:
        request = self._transport.new_request()
        self._step_number += 1
        info = self.server_info
        step = request.step
        step.step_number = self._step_number
        step.incarnation = info.incarnation
        rows = [session.row(cap) for session, cap in zip(sessions, caps, strict=True)]
        wire.write_step(step, rows, total_nodes)
        if any([session.must_tell(cost_curve) for session in sessions]):
            wire.write_cost_curve(step, cost_curve)
            for session in sessions:
                session.tell(cost_curve)
        result = self._transport.exchange(request, self._timeout_s)
        return wire.read_result(result, caps, total_nodes, info.vocab_size, self._names)

    def truncate_session(self, session: RemoteSession, length: int) -> None:
        """Tells the server of a cut; if that fails, the session is opened again later."""
        request = pb.TruncateSessionRequest(
            session_id=session.server_id, context_length=session.server_length, kept_length=length
        )
        if self._tell(self._truncate_session, request):
            session.confirm(session.server_id, length)
        else:
            session.lose()

    def close_session(self, session: RemoteSession) -> None:
        """Tells the server the last tokens; if that fails, the server drops the session in time."""
        request = pb.CloseSessionRequest(
            session_id=session.server_id,
            context_length=session.server_length,
            commit_token_ids=wire.token_bytes(session.uncommitted),
        )
        self._tell(self._close_session, request)

    def _tell(self, call: Any, request: Any) -> bool:
        if not self._breaker.allows:
            return False
        try:
            called(call, request, timeout=max(self._timeout_s, 1.0))
        except ServiceUnavailable as error:
            self._breaker.failed(error)
            return False
        except RetrievalSpecError as error:
            logger.debug("the server refused: %s", error)
            return False
        return True

    def _learn(self, info: pb.ServerInfo) -> None:
        """Takes over what a server says of itself; a successor must draft for the same vocabulary.

        Raises:
            ServiceUnavailable: it does not, or says nonsense.
        """
        if self._info is not None and info.incarnation == self._info.incarnation:
            return
        if not 1 <= info.vocab_size <= MAX_VOCAB_SIZE:
            raise ServiceUnavailable("the server names no vocabulary", got=info.vocab_size)
        if self._info is not None and info.vocab_size != self._info.vocab_size:
            raise ServiceUnavailable(
                "the server came back with another vocabulary",
                got=info.vocab_size,
                expected=self._info.vocab_size,
                remedy="open a new client",
            )
        self._info = info
        self._names = tuple(info.source_names)
        self._no_draft = DraftTree.empty(self._names)
