"""The calls of `DraftService`: decode, ask the engine, encode, and turn errors into statuses.

Drafting takes microseconds, so everything runs in the event loop and needs no lock. Knows nothing of
sockets, signals and health. What is logged are types and places of errors: what they say may hold a
tenant's tokens.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from functools import wraps
from typing import Any, NoReturn, TypeVar

import grpc

from retrieval_spec import wire
from retrieval_spec.engine import Engine
from retrieval_spec.errors import (
    InvalidRequest,
    LimitExceeded,
    RetrievalSpecError,
    ServiceUnavailable,
)
from retrieval_spec.service.ahead import Ahead, Arrivals, Pushed
from retrieval_spec.service.bugs import internal_error
from retrieval_spec.service.callers import caller_of, namespace_of, price_s
from retrieval_spec.service.door import REFUSED_S, Door
from retrieval_spec.service.history import HistoryKeeper
from retrieval_spec.service.info import server_info
from retrieval_spec.service.meter import Meter
from retrieval_spec.service.peers import ANYBODY, Anyone, Peers
from retrieval_spec.service.sessions import SessionTable
from retrieval_spec.service.steps import Answered, StepDesk
from retrieval_spec.service.suffixes import SuffixDesk
from retrieval_spec.v1 import draft_pb2 as pb
from retrieval_spec.v1.draft_pb2_grpc import DraftServiceServicer

logger = logging.getLogger(__name__)

Request = TypeVar("Request")
Response = TypeVar("Response")
MALFORMED = object()
"""Comes in place of a request whose bytes are no message."""


def _expect_message(request: Request) -> Request:
    if request is MALFORMED:
        raise InvalidRequest("the bytes are no message of this call", expected="protobuf, as in draft.proto")
    return request


def _call(method: Callable[[Any, Request, str], Response]) -> Callable[[Any, Request, Any], Any]:
    """Makes a gRPC call of a plain method, which is told who calls."""

    @wraps(method)
    async def call(self: Any, request: Request, context: Any) -> Response:
        owner, caller = ANYBODY, ""
        try:
            owner = self.peers.owner(context)
            caller = caller_of(request, owner, str(context.peer()), self.sessions)
            with self.door.inside(caller):
                earlier = self.sessions.num_opened
                response = method(self, _expect_message(request), owner)
                price = price_s(response, self.sessions, self.sessions.num_opened - earlier)
                await self.door.hold(caller, price)
            return response
        except RetrievalSpecError as error:
            refusal = error
        except Exception as error:
            refusal = internal_error(error)
        await self.refuse(context, refusal, caller)
        raise refusal  # not reached: refusing raises

    return call


class Servicer(DraftServiceServicer):
    """Answers for one engine. Belongs to one event loop."""

    def __init__(self, engine: Engine, peers: Peers | None = None) -> None:
        self.engine = engine
        self.peers = peers or Anyone()
        self.meter = Meter()
        self.door = Door()
        self.sessions = SessionTable(engine)
        self.desk = StepDesk(engine, self.sessions)
        self.ahead = Ahead(self.sessions, engine.limits.max_ahead_outcomes)
        self.suffixes = SuffixDesk(engine, self.sessions, self.desk.draft)
        self.history: HistoryKeeper | None = None
        self._idle_streams: set[Any] = set()
        self._moved_s: dict[Any, float] = {}  # stream -> when something moved on it last
        self._is_stopping = False
        self.accepts_sessions = False
        self.refresh_info()

    def refresh_info(self) -> None:
        """Says from now on what the engine drafts from now."""
        self.info = server_info(self.engine, self.desk.incarnation)

    @_call
    def GetInfo(self, request: pb.GetInfoRequest, owner: str) -> pb.GetInfoResponse:  # noqa: D102 - the proto says it
        return pb.GetInfoResponse(info=self.info)

    @_call
    def GetProjection(self, request: pb.GetProjectionRequest, owner: str) -> pb.GetProjectionResponse:  # noqa: D102
        response = pb.GetProjectionResponse()
        if self.engine.projection is not None:
            wire.write_projection(response.projection, self.engine.projection)
        return response

    async def OpenSession(self, request: pb.OpenSessionRequest, context: Any) -> pb.OpenSessionResponse:  # noqa: D102
        await self._recall(request, context)
        return await self._open_session(request, context)  # type: ignore[no-any-return]

    async def DraftSuffixes(self, request: pb.DraftSuffixesRequest, context: Any) -> pb.DraftSuffixesResponse:  # noqa: D102
        await self._recall(request, context)
        return await self._draft_suffixes(request, context)  # type: ignore[no-any-return]

    async def _recall(self, request: Any, context: Any) -> None:
        if self.history is not None and self.accepts_sessions and request is not MALFORMED:
            with suppress(RetrievalSpecError):  # said below
                await self.history.recall(namespace_of(request, self.peers.owner(context)))

    @_call
    def _draft_suffixes(self, request: pb.DraftSuffixesRequest, owner: str) -> pb.DraftSuffixesResponse:
        self._expect_ready()
        return self.suffixes.answer(request, namespace_of(request, owner), self.info, self.meter)

    def _expect_ready(self) -> None:
        if not self.accepts_sessions:
            raise ServiceUnavailable("the server is starting or stopping", remedy="try again shortly")

    @_call
    def _open_session(self, request: pb.OpenSessionRequest, owner: str) -> pb.OpenSessionResponse:
        self._expect_ready()
        return self.open_session(request, owner)

    def open_session(self, request: pb.OpenSessionRequest, owner: str = ANYBODY) -> pb.OpenSessionResponse:
        """Opens a session whether or not the server is ready: the warm-up comes first."""
        self.close(request.replaced_session_id, owner)
        self.end_all(request.ended, owner)
        namespace = namespace_of(request, owner)
        self.sessions.make_room(namespace)  # before the prompt is decoded, so that a refusal is cheap
        prompt = wire.read_tokens(request.prompt_token_ids, "prompt_token_ids")
        session_id = self.sessions.open(prompt, namespace)
        self.meter.sessions_opened += 1
        return pb.OpenSessionResponse(session_id=session_id, info=self.info)

    def close(self, session_id: int, owner: str = ANYBODY) -> None:
        """Drops a session, if it is there and the owner's."""
        self.sessions.close(session_id, owner)

    async def forget(self, namespace: str) -> bool:
        """Deletes for good what a namespace taught, from memory and disk; returns whether there was anything.

        Its open sessions end: what they hold is part of it, and their clients open them again.

        Raises:
            DatastoreError: the file system refused, so that some of it may still be there: ask again.
        """
        found = self.sessions.discard(namespace) > 0 or namespace in self.engine.memory
        try:
            if self.history is not None:
                found |= await self.history.forget(namespace)
        finally:  # once more: sessions may have been opened meanwhile
            self.sessions.discard(namespace)
            self.engine.memory.forget(namespace)
        return found

    @property
    def history_bytes(self) -> int:
        """Bytes of the history on disk."""
        return self.history.num_bytes if self.history else 0

    @property
    def num_history_lost(self) -> int:
        """Sessions whose text could not be written."""
        return self.history.num_lost if self.history else 0

    async def refuse(self, context: Any, error: RetrievalSpecError, caller: str = "") -> NoReturn:
        """Ends a call with an error: the one place where errors become statuses.

        Whoever is refused all the time waits for it.
        """
        self.meter.errors[error.grpc_status] += 1
        await self.door.hold(caller, REFUSED_S)
        metadata = ((wire.ERROR_TYPE_KEY, type(error).__name__),)
        await context.abort(grpc.StatusCode[error.grpc_status], str(error), metadata)
        raise error  # not reached: abort raises

    @_call
    def Draft(self, request: pb.DraftRequest, owner: str) -> pb.DraftResponse:  # noqa: D102
        response = pb.DraftResponse()
        answered = self.answer(request.step, response.result, owner)
        asyncio.get_running_loop().call_soon(self.end_step, answered)  # once the answer is under way
        return response

    async def DraftStream(  # noqa: D102
        self, request_iterator: AsyncIterator[pb.DraftStreamRequest], context: Any
    ) -> AsyncIterator[pb.DraftStreamResponse]:
        task = asyncio.current_task()
        owner, version = await self._admit_stream(context, task), self.peers.version
        arrivals, pushed = Arrivals(request_iterator), None
        try:
            async for request in arrivals:
                self._idle_streams.discard(task)
                response = pb.DraftStreamResponse()
                try:
                    _expect_message(request)
                    if version != self.peers.version:  # whoever may call has changed
                        owner, version = self.peers.owner(context), self.peers.version
                    if request.ended:
                        self.end_all(request.ended, owner)
                        self._moved_s[task] = time.monotonic()
                        self._idle_streams.add(task)
                        continue
                    answered = self.answer(request.step, response.result, owner)
                except RetrievalSpecError as error:
                    await self.refuse(context, error)
                except Exception as error:
                    await self.refuse(context, internal_error(error))
                yield response
                self._moved_s[task] = time.monotonic()
                self.end_step(answered)  # nobody waits for that
                self.ahead.hits += pushed is not None and request.step.commit_token_ids in pushed.commits
                pushed = None
                if request.ahead_outcomes > 0 and not self._is_stopping:
                    pushed = await self._draft_ahead(request, answered, owner, arrivals)
                    if pushed is not None:
                        yield pushed.message(response.result)
                if self._is_stopping:
                    return
                self._idle_streams.add(task)
        except asyncio.CancelledError:
            if task in self._moved_s and not self._is_stopping:
                raise  # the client went away
        finally:
            arrivals.close()
            self._idle_streams.discard(task)
            self._moved_s.pop(task, None)

    def end_step(self, answered: Answered) -> None:
        """Does what nobody waits for, once an answer is under way: counts it, and tends to its sessions."""
        try:
            answered.note_in(self.meter)
            self.desk.tend(answered)
        except Exception as error:
            internal_error(error)

    async def _draft_ahead(
        self, request: pb.DraftStreamRequest, answered: Answered, owner: str, arrivals: Arrivals
    ) -> Pushed | None:
        try:
            return await self.ahead.after(request, answered, owner, arrivals)
        except Exception as error:  # nobody has asked for it yet
            internal_error(error)
            return None

    async def _admit_stream(self, context: Any, task: Any) -> str:
        try:
            owner = self.peers.owner(context)
            if len(self._moved_s) >= self.engine.limits.max_streams:
                raise LimitExceeded(
                    "too many open streams",
                    expected=f"<= {self.engine.limits.max_streams}",
                    remedy="use one stream for all sessions of a client",
                )
        except RetrievalSpecError as error:
            await self.refuse(context, error)
        self._idle_streams.add(task)
        self._moved_s[task] = time.monotonic()
        return owner

    @property
    def num_streams(self) -> int:
        """Streams that are open."""
        return len(self._moved_s)

    def end_idle_streams(self) -> None:
        """Ends streams on which nothing moved for too long: nobody asks, or nobody reads."""
        oldest_allowed = time.monotonic() - self.engine.limits.max_stream_idle_s
        for task in [task for task, moved_s in self._moved_s.items() if moved_s < oldest_allowed]:
            del self._moved_s[task]
            task.cancel()

    def end_streams(self) -> None:
        """Lets each stream answer what it has read, and ends it."""
        self._is_stopping = True
        self.accepts_sessions = False
        for task in tuple(self._idle_streams):
            task.cancel()

    @_call
    def TruncateSession(self, request: pb.TruncateSessionRequest, owner: str) -> pb.TruncateSessionResponse:  # noqa: D102
        session = self.sessions.get(request.session_id, owner)
        session.expect(request.context_length)
        session.truncate(request.kept_length)
        return pb.TruncateSessionResponse()

    @_call
    def CloseSession(self, request: pb.CloseSessionRequest, owner: str) -> pb.CloseSessionResponse:  # noqa: D102
        self.end(request, owner)
        return pb.CloseSessionResponse()

    def end(self, request: pb.CloseSessionRequest, owner: str = ANYBODY) -> None:
        """Commits the last tokens of a session of the owner's, and ends it.

        Raises:
            UnknownSession: the owner has no such session.
            RetrievalSpecError: the tokens cannot be committed; it has ended all the same.
        """
        tokens = wire.read_tokens(request.commit_token_ids, "commit_token_ids")
        session = self.sessions.get(request.session_id, owner)
        try:
            session.expect(request.context_length)
            session.commit(tokens)
            self.meter.closed(request.session_id, tokens.shape[0])
        finally:
            self.sessions.close(request.session_id)

    def end_all(self, requests: Sequence[pb.CloseSessionRequest], owner: str = ANYBODY) -> None:
        """Ends sessions of the owner's that are there; nobody is told of the others.

        Raises:
            LimitExceeded: too many for one message; none is ended.
        """
        if len(requests) > wire.MAX_ENDED:
            raise LimitExceeded(
                "too many ended sessions in one message",
                got=len(requests),
                expected=f"<= {wire.MAX_ENDED}",
                remedy="tell of them in several",
            )
        for request in requests:
            self._try_to_end(request, owner)

    def _try_to_end(self, request: pb.CloseSessionRequest, owner: str) -> None:
        try:
            with suppress(RetrievalSpecError):
                self.end(request, owner)
        except Exception as error:
            internal_error(error)

    def answer(self, step: pb.DraftStep, result: pb.DraftStepResult, owner: str = ANYBODY) -> Answered:
        """Answers one engine step of the owner's sessions, and returns what it came to; counts nothing.

        Raises:
            InvalidRequest: the step's columns do not fit each other, or its cost curve is none.
            LimitExceeded: more sessions than may be open.
        """
        return self.desk.answer(step, result, owner)
