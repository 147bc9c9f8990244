"""`DraftClient`: draft trees from a server, and nothing worse than an empty tree when it is in trouble.

Opens and closes what is asked about; `asking` decides about each step, `transport` moves the bytes.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Sequence
from typing import Any

import grpc

from retrieval_spec import wire
from retrieval_spec.budget import CostCurve
from retrieval_spec.client.ahead import Foresight, Pushes, check_ahead
from retrieval_spec.client.asking import Asker
from retrieval_spec.client.breaker import Breaker
from retrieval_spec.client.credentials import Credentials
from retrieval_spec.client.economy import Economy, FixedWait
from retrieval_spec.client.interface import TokenIds
from retrieval_spec.client.opening import Opener
from retrieval_spec.client.peer import Peer
from retrieval_spec.client.session import RemoteSession
from retrieval_spec.client.steps import Counters, Step
from retrieval_spec.client.suffixes import SuffixAsker
from retrieval_spec.client.transport import OPEN_TIMEOUT_S, Connection
from retrieval_spec.client.transports import open_transport
from retrieval_spec.errors import InvalidRequest, RetrievalSpecError, ServiceUnavailable
from retrieval_spec.projection import Projection
from retrieval_spec.tree import DraftTree, as_tokens
from retrieval_spec.v1 import draft_pb2 as pb

MAX_PADDED_NODES = 4_096
LONGEST_WAIT_S = 0.1
"""No step waits longer, whatever drafts have been worth."""

CONTACT_TIMEOUT_S = 5.0
"""For the first answer of a server that was never reached: without it no generation can be told anything."""

_CONTACT_RATIO = 10.0
"""So many times longer than a vain attempt took, the next one waits."""

TELL_TIMEOUT_S = 5.0
_FLUSH_S = 1.0


class DraftClient:
    """A draft server behind the interface of `LocalClient`. One engine loop uses it at a time.

    A step waits only as long as drafts are worth: where they do not pay, because they are wrong or because
    they come late, the client asks less and less often, and without waiting. A server that is gone is
    noticed by questions that nobody waits for.

    Args:
        address: `unix:/path/to.sock` or `host:port`, as given to `retrieval-spec serve --listen`;
            `dns:///name:port` for several replicas, of which the client keeps to one until it is lost.
        timeout_s: asks in every step and waits so long at most, for replays and wherever else there is no
            generation to hold up; None waits as long as it pays.
        transport: `stream`; `unary` where a proxy breaks streams; or `unix:PATH`, as given to
            `retrieval-spec serve --frames`, where the server is on this machine: a fraction of the latency.
        credentials: TLS and a token, where the server asks for them.
        pad_to_nodes: if positive, the size of an answer tells nobody how much was drafted: it holds so many
            nodes for each session, and no more are drafted.
        ahead_outcomes: if positive, the server drafts for so many likely outcomes of a step while the target
            decides it, for steps of one session. Where one of them comes true, nothing is waited for.
    """

    def __init__(
        self,
        address: str,
        *,
        timeout_s: float | None = None,
        transport: str = "stream",
        credentials: Credentials | None = None,
        pad_to_nodes: int = 0,
        ahead_outcomes: int = 0,
    ) -> None:
        check_ahead(ahead_outcomes, transport, pad_to_nodes)
        if not 0 <= pad_to_nodes <= MAX_PADDED_NODES:
            raise InvalidRequest(
                "pad_to_nodes is out of range", got=pad_to_nodes, expected=f"0 to {MAX_PADDED_NODES}"
            )
        if timeout_s is not None and not timeout_s > 0:
            raise InvalidRequest("the time limit must be positive", got=timeout_s)
        self.address, self.transport = address, transport
        self._longest_wait_s = timeout_s or LONGEST_WAIT_S
        self._connection = Connection(address, credentials)
        self._get_info = self._connection.method("GetInfo", pb.GetInfoResponse)
        self._get_projection = self._connection.method("GetProjection", pb.GetProjectionResponse)
        self._truncate_session = self._connection.method("TruncateSession", pb.TruncateSessionResponse)
        self._close_session = self._connection.method("CloseSession", pb.CloseSessionResponse)
        self._breaker = Breaker(address)
        self._peer = Peer()
        self._opener = Opener(
            self._connection.method("OpenSession", pb.OpenSessionResponse), self._peer.learn
        )
        counters, pushes = Counters(), Pushes()
        self._transport = open_transport(transport, self._connection, pushes)
        self._asker = Asker(
            self._peer,
            self._transport,
            self._breaker,
            FixedWait(timeout_s) if timeout_s else Economy(LONGEST_WAIT_S),
            self._opener,
            Foresight(self._peer, pushes, counters, ahead_outcomes),
            counters,
            pad_to_nodes,
        )
        self._suffixes = SuffixAsker(
            self._connection.method("DraftSuffixes", pb.DraftSuffixesResponse),
            self._get_info,
            self._peer,
            Breaker(address),
            self._longest_wait_s,
            pad_to_nodes,
        )
        self._greets = timeout_s is None
        self._told: list[Any] = []
        self._no_contact: RetrievalSpecError | None = None
        self._contact_at_s = 0.0
        self._is_closed = False
        self.lock = threading.RLock()

    @property
    def counters(self) -> Counters:
        """What the client did and met so far."""
        return self._asker.counters

    @property
    def server_info(self) -> pb.ServerInfo:
        """What the server said about itself; asked for when first needed.

        Raises:
            ServiceUnavailable: the server does not answer.
        """
        return self._peer.info or self._contact()

    def _contact(self) -> pb.ServerInfo:
        """Asks the server who it is; for some time after it did not answer, only says so again."""
        if self._peer.info is not None:
            return self._peer.info
        began_s = time.perf_counter()
        if self._no_contact is not None and began_s < self._contact_at_s:
            raise self._no_contact.with_traceback(None)
        try:
            self._peer.learn(self._get_info(pb.GetInfoRequest(), CONTACT_TIMEOUT_S).info)
        except RetrievalSpecError as error:
            now_s = time.perf_counter()
            self._no_contact, self._contact_at_s = error, now_s + _CONTACT_RATIO * (now_s - began_s)
            raise
        return self._peer.info  # type: ignore[return-value]  # learn has set it

    @property
    def vocab_size(self) -> int:
        """Token ids lie in `0 .. vocab_size - 1`."""
        return self._peer.vocab_size or self.server_info.vocab_size

    @property
    def source_names(self) -> tuple[str, ...]:
        """The drafter behind each bit of a tree's `sources`, lowest first."""
        return self._peer.source_names or tuple(self.server_info.source_names)

    @property
    def datastores(self) -> dict[str, str]:
        """Name -> tokenizer fingerprint of every datastore that the server drafts from."""
        return {store.name: store.tokenizer_fingerprint for store in self.server_info.datastores}

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
        response = self._get_projection(pb.GetProjectionRequest(), OPEN_TIMEOUT_S)
        return wire.read_projection(response.projection)

    def open_session(self, prompt_ids: TokenIds, namespace: str = "default") -> RemoteSession:
        """Returns a session whose context is the prompt, which may be empty.

        A server that has answered before and is in trouble now opens it later: until then the session
        drafts nothing.

        Raises:
            InvalidTokens: an id outside the vocabulary.
            InvalidRequest: a malformed namespace.
            LimitExceeded: the prompt is too long or the server holds too many sessions.
            TokenizerMismatch: the server came back with another vocabulary.
            ServiceUnavailable: the server has never answered.
        """
        session = RemoteSession(self, as_tokens(prompt_ids, self.vocab_size), namespace)
        with self.lock:
            if self._is_closed:
                raise ServiceUnavailable("the client is closed", remedy="open a new one")
            self._asker.wake()
            if self._breaker.allows:
                self._open(session)
        return session

    def _open(self, session: RemoteSession) -> None:
        self._flush(self._longest_wait_s)  # the server may learn from what was closed before
        began_s = time.perf_counter()
        try:
            self._opener.begin(session, self._transport.unheard)
            self._opener.end(session, self._longest_wait_s)
        except ServiceUnavailable as error:
            self._breaker.failed(error)
        else:
            if self._greets:
                self._asker.greet(time.perf_counter() - began_s)

    @property
    def rests(self) -> bool:
        """Whether this step asks nothing and has nothing to look at; each call is one step."""
        return self._asker.rests

    @property
    def no_draft(self) -> DraftTree:
        """The empty tree."""
        return self._peer.no_draft

    def draft_batch(
        self,
        sessions: Sequence[RemoteSession],
        total_nodes: int,
        cost_curve: CostCurve | None = None,
        max_nodes: int | None = None,
    ) -> list[DraftTree]:
        """Returns one tree a session, together at most `total_nodes` nodes, in one message.

        With the cost curve of the pass that verifies them all, only nodes that pay are among them.

        Raises:
            UnknownSession: one of them is closed.
        """
        most = total_nodes if max_nodes is None else min(total_nodes, max_nodes)
        return self.draft_step(sessions, [most] * len(sessions), total_nodes, cost_curve)

    def draft_step(
        self,
        sessions: Sequence[RemoteSession],
        max_nodes: Sequence[int],
        total_nodes: int,
        cost_curve: CostCurve | None,
    ) -> list[DraftTree]:
        """Returns one tree a session: commits and drafts of a whole engine step in one round trip."""
        with self.lock:
            if self.rests and all([session.is_open for session in sessions]):
                for session in sessions:
                    session.skipped_steps += 1
                return [self.no_draft] * len(sessions)
            return self.end_step(self.begin_step(sessions, max_nodes, total_nodes, cost_curve))

    def begin_step(
        self,
        sessions: Sequence[RemoteSession],
        max_nodes: Sequence[int],
        total_nodes: int,
        cost_curve: CostCurve | None = None,
    ) -> Step:
        """Sends the questions of a step; who calls it holds the lock until `end_step` has returned.

        Raises:
            UnknownSession: one of the sessions is closed.
        """
        for session in sessions:
            if not session.is_open:
                session.check_open()
        trees = [self.no_draft] * len(sessions)
        step = Step(sessions, max_nodes, total_nodes, cost_curve, trees, time.perf_counter())
        if sessions:
            self._asker.begin(step)
        return step

    def end_step(self, step: Step) -> list[DraftTree]:
        """Returns one tree a session, as soon as the answer is there, or without it."""
        self._asker.finish(step)
        return [*step.trees]  # whose list sessions keep

    def draft_suffixes(
        self,
        contexts: Sequence[TokenIds],
        max_nodes: int = 16,
        total_nodes: int | None = None,
        cost_curve: CostCurve | None = None,
        namespace: str = "default",
    ) -> list[DraftTree]:
        """Returns one tree a row, for hosts that name no requests: see `SuffixSource`.

        Only rows that are new are sent whole. A server in trouble costs the drafts.

        Raises:
            InvalidTokens: an id outside the vocabulary.
            ServiceUnavailable: the server has never answered.
        """
        rows = [as_tokens(context, self.vocab_size) for context in contexts]
        nodes = max_nodes * len(rows) if total_nodes is None else total_nodes
        with self.lock:
            return self._suffixes.draft(rows, [max_nodes] * len(rows), nodes, cost_curve, namespace)

    def ping(self) -> float:
        """Returns the seconds that a step without sessions takes, on the way that drafts take.

        Raises:
            RetrievalSpecError: the server does not answer, or not sensibly.
        """
        with self.lock:
            self._contact()
            start = time.perf_counter()
            try:
                self._asker.ping(max(self._longest_wait_s, 1.0))
            except RetrievalSpecError:
                self._asker.drop()
                raise
            return time.perf_counter() - start

    def close(self) -> None:
        """Closes the connection; sessions are closed by those who opened them."""
        with self.lock:
            if self._breaker.allows:
                self._flush(_FLUSH_S)
                self._transport.flush(_FLUSH_S)
            self._is_closed = True
            self._breaker.shut()
            self._asker.drop()
            self._suffixes.drop()
            self._connection.close()

    def __enter__(self) -> DraftClient:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def truncate_session(self, session: RemoteSession, length: int) -> None:
        """Tells the server of a cut; if that fails, the session is opened again later."""
        with self.lock:
            request = pb.TruncateSessionRequest(
                session_id=session.server_id, context_length=session.server_length, kept_length=length
            )
            is_sure = session.sent_length is None and self._breaker.allows
            session.cutting = self._tell(self._truncate_session, request) if is_sure else None
            if session.cutting is None:
                session.lose()
            else:
                session.server_length = length

    def close_session(self, session: RemoteSession) -> None:
        """Tells the server the last tokens; if that fails, the server drops the session in time."""
        with self.lock:
            request = pb.CloseSessionRequest(
                session_id=session.server_id,
                context_length=session.told_length,
                commit_token_ids=wire.token_bytes(session.uncommitted),
            )
            if self._breaker.allows and not (self._peer.takes_ended and self._transport.tell(request)):
                self._tell(self._close_session, request)

    def _tell(self, call: Any, request: Any) -> Any:
        """Begins a call that nobody waits for; None if the client is closed."""
        try:
            begun = call.begin(request, TELL_TIMEOUT_S)
        except RetrievalSpecError:
            return None
        self._told = [earlier for earlier in self._told if not earlier.done()]
        self._told.append(begun)
        return begun

    def _flush(self, timeout_s: float) -> None:
        """Waits, in bounded time, until the server has heard what it was told."""
        deadline_s = time.perf_counter() + timeout_s
        told, self._told = self._told, []
        for begun in told:
            with contextlib.suppress(grpc.FutureTimeoutError, grpc.FutureCancelledError, grpc.RpcError):
                begun.result(timeout=max(0.0, deadline_s - time.perf_counter()))
