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

import grpc

from retrieval_spec import wire
from retrieval_spec.client.breaker import Breaker
from retrieval_spec.client.interface import TokenIds
from retrieval_spec.client.session import NO_SESSION, RemoteSession
from retrieval_spec.client.transport import open_channel, open_transport, typed_error, unary
from retrieval_spec.errors import (
    ContextMismatch,
    InvalidInput,
    InvalidRequest,
    RetrievalSpecError,
    ServiceUnavailable,
    UnknownSession,
)
from retrieval_spec.tree import MAX_VOCAB_SIZE, DraftTree, as_tokens
from retrieval_spec.v1 import draft_pb2 as pb

logger = logging.getLogger(__name__)

OPEN_TIMEOUT_S = 10.0
"""For calls that a user waits for; a prompt of a million tokens takes a fraction of a second."""
PARKED_S = 30.0
"""How long a session goes without drafts after the server refused it for a reason of its own."""


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
        self._open_session = unary(self._channel, "OpenSession", pb.OpenSessionResponse)
        self._truncate_session = unary(self._channel, "TruncateSession", pb.TruncateSessionResponse)
        self._close_session = unary(self._channel, "CloseSession", pb.CloseSessionResponse)
        self._breaker = Breaker(address)
        self._lock = threading.Lock()
        self._step_number = 0
        self._info: pb.ServerInfo | None = None
        self._names: tuple[str, ...] = ()

    @property
    def server_info(self) -> pb.ServerInfo:
        """What the server said about itself; asked for when first needed.

        Raises:
            ServiceUnavailable: the server does not answer.
        """
        if self._info is None:
            response = _called(self._get_info, pb.GetInfoRequest(), timeout=OPEN_TIMEOUT_S)
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

    def wait_until_ready(self, timeout_s: float) -> None:
        """Waits for a server that is being started.

        Raises:
            ServiceUnavailable: it did not answer in time.
        """
        request = pb.GetInfoRequest()
        response = _called(self._get_info, request, timeout=timeout_s, wait_for_ready=True)
        self._learn(response.info)

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
        response = _called(self._open_session, request, timeout=OPEN_TIMEOUT_S)
        self._learn(response.info)
        return RemoteSession(self, prompt, namespace, response.session_id)

    def draft_batch(self, sessions: Sequence[RemoteSession], total_nodes: int) -> list[DraftTree]:
        """Returns one tree a session, together at most `total_nodes` nodes, in one message.

        Raises:
            UnknownSession: one of them is closed.
        """
        return self.draft_step(sessions, [total_nodes] * len(sessions), total_nodes)

    def ping(self) -> float:
        """Returns the seconds that a step without sessions takes, on the way that drafts take.

        Raises:
            RetrievalSpecError: the server does not answer, or not sensibly.
        """
        start = time.perf_counter()
        with self._lock:
            self._exchange([], [], 0)
        return time.perf_counter() - start

    def close(self) -> None:
        """Closes the connection; sessions are closed by those who opened them."""
        self._transport.close()
        self._channel.close()

    def __enter__(self) -> DraftClient:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def draft_step(
        self, sessions: Sequence[RemoteSession], max_nodes: Sequence[int], total_nodes: int
    ) -> list[DraftTree]:
        """Returns one tree a session: commits and drafts of a whole engine step in one round trip."""
        for session in sessions:
            session.check_open()
        trees = [DraftTree.empty(self._names)] * len(sessions)
        if total_nodes <= 0 or not sessions:
            return trees
        with self._lock:
            if not self._breaker.allows:
                return trees
            try:
                self._fill(trees, sessions, max_nodes, total_nodes)
            except RetrievalSpecError as error:
                self._breaker.failed(error)
            else:
                self._breaker.succeeded()
        return trees

    def _fill(
        self,
        trees: list[DraftTree],
        sessions: Sequence[RemoteSession],
        max_nodes: Sequence[int],
        total_nodes: int,
    ) -> None:
        """Asks, opens again what the server lost, and asks once more for those."""
        waiting = list(range(len(sessions)))
        for _ in range(2):
            self._reopen([sessions[index] for index in waiting])
            asked = [index for index in waiting if sessions[index].server_id != NO_SESSION]
            if not asked:
                return
            caps = [min(max_nodes[index], total_nodes) for index in asked]
            outcomes = self._exchange([sessions[index] for index in asked], caps, total_nodes)
            waiting = []
            for index, outcome in zip(asked, outcomes, strict=True):
                session = sessions[index]
                if isinstance(outcome, DraftTree):
                    trees[index] = outcome
                    session.confirm(session.server_id, session.context_length)
                elif self._may_come_back(session, outcome):
                    waiting.append(index)
            total_nodes -= sum(len(trees[index]) for index in asked)
            if not waiting or total_nodes <= 0:
                return

    def _exchange(
        self, sessions: Sequence[RemoteSession], caps: list[int], total_nodes: int
    ) -> list[wire.Outcome]:
        request = self._transport.new_request()
        self._step_number += 1
        request.step.step_number = self._step_number
        request.step.incarnation = self._info.incarnation if self._info is not None else 0
        rows = [session.row(cap) for session, cap in zip(sessions, caps, strict=True)]
        wire.write_step(request.step, rows, total_nodes)
        result = self._transport.exchange(request, self._timeout_s)
        return wire.read_result(result, caps, self.vocab_size if sessions else 1, self._names)

    def _may_come_back(self, session: RemoteSession, error: RetrievalSpecError) -> bool:
        session.lose()
        if isinstance(error, UnknownSession | ContextMismatch):
            return True
        self._park(session, error)
        return False

    def _park(self, session: RemoteSession, error: RetrievalSpecError) -> None:
        logger.warning("a session goes without drafts for %.0f s: %s", PARKED_S, error)
        session.retry_at = time.monotonic() + PARKED_S

    def _reopen(self, sessions: list[RemoteSession]) -> None:
        """Opens lost sessions again, all at once, and waits no longer than for a draft."""
        now = time.monotonic()
        lost = [
            session for session in sessions if session.server_id == NO_SESSION and now >= session.retry_at
        ]
        for session in lost:
            if session.opening is None:
                self._start_opening(session)
        for session in lost:
            self._finish_opening(session, now + self._timeout_s)

    def _start_opening(self, session: RemoteSession) -> None:
        request = pb.OpenSessionRequest(
            prompt_token_ids=wire.token_bytes(session.context),
            namespace=session.namespace,
            replaced_session_id=session.lost_id,
        )
        session.opening_length = session.context_length
        session.opening = self._open_session.future(request, timeout=OPEN_TIMEOUT_S)

    def _finish_opening(self, session: RemoteSession, deadline: float) -> None:
        try:
            response = session.opening.result(timeout=max(0.0, deadline - time.monotonic()))
        except grpc.FutureTimeoutError:
            return  # it goes on while the loop generates; a later step picks it up
        except grpc.RpcError as failure:
            session.forget_opening()
            error = typed_error(failure)
            if isinstance(error, ServiceUnavailable):
                raise error from None
            self._park(session, error)
            return
        length = session.opening_length
        session.opening, session.opening_length, session.lost_id = None, 0, NO_SESSION
        self._learn(response.info)
        session.confirm(response.session_id, length)

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
            _called(call, request, timeout=max(self._timeout_s, 1.0))
        except (UnknownSession, ContextMismatch, InvalidInput):
            return False
        except RetrievalSpecError as error:
            self._breaker.failed(error)
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


def _called(call: Any, request: Any, **options: Any) -> Any:
    try:
        return call(request, **options)
    except grpc.RpcError as failure:
        raise typed_error(failure) from None
    except ValueError as closed:  # grpc's own word for a closed channel
        raise ServiceUnavailable("the client is closed", remedy="open a new one") from closed
