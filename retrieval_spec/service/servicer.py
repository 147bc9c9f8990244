"""The calls of `DraftService`: decode, ask the engine, encode, and turn errors into statuses.

Drafting takes microseconds, so everything runs in the event loop and needs no lock. Knows nothing of
sockets, signals and health.
"""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections.abc import AsyncIterator, Callable
from functools import wraps
from typing import Any, NoReturn, TypeVar

import grpc

import retrieval_spec
from retrieval_spec import wire
from retrieval_spec.budget import CostCurve
from retrieval_spec.engine import Engine, Session
from retrieval_spec.errors import RetrievalSpecError, ServiceUnavailable, UnknownSession
from retrieval_spec.service.sessions import SessionTable, random_id
from retrieval_spec.tree import DraftTree
from retrieval_spec.v1 import draft_pb2 as pb
from retrieval_spec.v1.draft_pb2_grpc import DraftServiceServicer

logger = logging.getLogger(__name__)

Request = TypeVar("Request")
Response = TypeVar("Response")
_logged: set[tuple[type, str]] = set()


def _internal_error(error: Exception) -> RetrievalSpecError:
    """Logs a bug, once for each place it shows up in: the next step would hit it again."""
    place = (type(error), str(traceback.extract_tb(error.__traceback__)[-1]))
    if place not in _logged:
        _logged.add(place)
        logger.error("a call failed", exc_info=error)
    # What the exception says may hold a tenant's tokens: it stays in the log.
    return RetrievalSpecError("the server failed", remedy="its log says why")


async def _abort(context: Any, error: RetrievalSpecError) -> NoReturn:
    """Ends a call with an error: the one place where errors become statuses."""
    metadata = ((wire.ERROR_TYPE_KEY, type(error).__name__),)
    await context.abort(grpc.StatusCode[error.grpc_status], str(error), metadata)
    raise error  # not reached: abort raises


def _call(method: Callable[[Any, Request], Response]) -> Callable[[Any, Request, Any], Any]:
    """Makes a gRPC call of a plain method."""

    @wraps(method)
    async def call(self: Any, request: Request, context: Any) -> Response:
        try:
            return method(self, request)
        except RetrievalSpecError as error:
            await _abort(context, error)
        except Exception as error:
            await _abort(context, _internal_error(error))

    return call


class Servicer(DraftServiceServicer):
    """Answers for one engine. Belongs to one event loop."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._sessions = SessionTable(engine)
        self._idle_streams: set[Any] = set()
        self._is_stopping = False
        self.accepts_sessions = False
        self._incarnation = random_id()
        self.info = pb.ServerInfo(
            version=retrieval_spec.__version__,
            incarnation=self._incarnation,
            vocab_size=engine.vocab_size,
            source_names=engine.source_names,
            datastores=[
                pb.Datastore(name=name, tokenizer_fingerprint=fingerprint)
                for name, fingerprint in engine.datastores.items()
            ],
            wanted_topk=engine.wanted_topk,
            state_dimensions=engine.state_dimensions,
        )

    @_call
    def GetInfo(self, request: pb.GetInfoRequest) -> pb.GetInfoResponse:  # noqa: D102 - the proto says it
        return pb.GetInfoResponse(info=self.info)

    @_call
    def GetProjection(self, request: pb.GetProjectionRequest) -> pb.GetProjectionResponse:  # noqa: D102
        response = pb.GetProjectionResponse()
        if self.engine.projection is not None:
            wire.write_projection(response.projection, self.engine.projection)
        return response

    @_call
    def OpenSession(self, request: pb.OpenSessionRequest) -> pb.OpenSessionResponse:  # noqa: D102
        if not self.accepts_sessions:
            raise ServiceUnavailable("the server is starting or stopping", remedy="try again shortly")
        return self.open_session(request)

    def open_session(self, request: pb.OpenSessionRequest) -> pb.OpenSessionResponse:
        """Opens a session whether or not the server is ready: the warm-up comes first."""
        prompt = wire.read_tokens(request.prompt_token_ids, "prompt_token_ids")
        self.close(request.replaced_session_id)
        session_id = self._sessions.open(prompt, _namespace(request))
        return pb.OpenSessionResponse(session_id=session_id, info=self.info)

    def close(self, session_id: int) -> None:
        """Drops a session, if it is there."""
        self._sessions.close(session_id)

    @_call
    def Draft(self, request: pb.DraftRequest) -> pb.DraftResponse:  # noqa: D102
        response = pb.DraftResponse()
        self.answer(request.step, response.result)
        return response

    async def DraftStream(  # noqa: D102
        self, request_iterator: AsyncIterator[pb.DraftStreamRequest], context: Any
    ) -> AsyncIterator[pb.DraftStreamResponse]:
        task = asyncio.current_task()
        self._idle_streams.add(task)
        try:
            async for request in request_iterator:
                self._idle_streams.discard(task)
                response = pb.DraftStreamResponse()
                try:
                    self.answer(request.step, response.result)
                except RetrievalSpecError as error:
                    await _abort(context, error)
                except Exception as error:
                    await _abort(context, _internal_error(error))
                yield response
                if self._is_stopping:
                    return
                self._idle_streams.add(task)
        except asyncio.CancelledError:
            if not self._is_stopping:
                raise  # the client went away
        finally:
            self._idle_streams.discard(task)

    def end_streams(self) -> None:
        """Lets each stream answer what it has read, and ends it."""
        self._is_stopping = True
        self.accepts_sessions = False
        for task in tuple(self._idle_streams):
            task.cancel()

    @_call
    def TruncateSession(self, request: pb.TruncateSessionRequest) -> pb.TruncateSessionResponse:  # noqa: D102
        session = self._sessions.get(request.session_id)
        session.expect(request.context_length)
        session.truncate(request.kept_length)
        return pb.TruncateSessionResponse()

    @_call
    def CloseSession(self, request: pb.CloseSessionRequest) -> pb.CloseSessionResponse:  # noqa: D102
        tokens = wire.read_tokens(request.commit_token_ids, "commit_token_ids")
        session = self._sessions.get(request.session_id)
        try:
            session.expect(request.context_length)
            session.commit(tokens)
        finally:
            self._sessions.close(request.session_id)
        return pb.CloseSessionResponse()

    def answer(self, step: pb.DraftStep, result: pb.DraftStepResult) -> None:
        """Answers one engine step.

        Raises:
            InvalidRequest: the step's columns do not fit each other, or its cost curve is none.
            LimitExceeded: more sessions than may be open.
        """
        rows = wire.read_step(step, self.engine.limits.max_sessions)
        result.step_number = step.step_number
        result.incarnation = self._incarnation
        if not rows:
            return
        if step.incarnation not in (0, self._incarnation):
            gone = UnknownSession("the session belonged to an earlier server process", remedy="open it again")
            wire.write_result(result, [gone] * len(rows))
        else:
            cost_curve = self._cost_curve(step, [row.session_id for row in rows])
            wire.write_result(result, self._outcomes(rows, max(0, step.total_nodes), cost_curve))

    def _cost_curve(self, step: pb.DraftStep, session_ids: list[int]) -> CostCurve | None:
        """Returns the curve that a step follows: its own, or what its sessions were told before."""
        if not step.HasField("cost_curve"):
            return self._sessions.followed(session_ids)
        cost_curve = wire.read_cost_curve(step)
        self._sessions.follow(session_ids, cost_curve)
        return cost_curve

    def _outcomes(
        self, rows: list[wire.SessionStep], total_nodes: int, cost_curve: CostCurve | None
    ) -> list[wire.Outcome]:
        errors: dict[int, RetrievalSpecError] = {}
        sessions: list[Session] = []
        caps: list[int] = []
        for index, row in enumerate(rows):
            advanced = self._advance(row)
            if isinstance(advanced, Session):
                sessions.append(advanced)
                caps.append(row.max_nodes)
            else:
                errors[index] = advanced
        outcomes = self._draft(sessions, total_nodes, caps, cost_curve)
        for index, error in errors.items():  # in rising order, so each lands in its own place
            outcomes.insert(index, error)
        return outcomes

    def _advance(self, row: wire.SessionStep) -> Session | RetrievalSpecError:
        try:
            session = self._sessions.get(row.session_id)
            session.expect(row.context_length)
            session.commit(row.commit, row.feedback)
            return session
        except RetrievalSpecError as error:
            return error
        except Exception as error:
            self._sessions.close(row.session_id)  # a cursor may have stopped half-way
            return _internal_error(error)

    def _draft(
        self, sessions: list[Session], total_nodes: int, caps: list[int], cost_curve: CostCurve | None
    ) -> list[wire.Outcome]:
        if not sessions:
            return []
        try:
            return list(self.engine.draft_batch(sessions, total_nodes, caps, cost_curve))
        except Exception:
            logger.debug("a step failed", exc_info=True)
        # One of them fails, so each is asked alone: the others must not pay for it.
        share = total_nodes // len(sessions)
        return [
            _draft_alone(session, min(cap, share), cost_curve)
            for session, cap in zip(sessions, caps, strict=True)
        ]


def _namespace(request: pb.OpenSessionRequest) -> str:
    return request.namespace if request.HasField("namespace") else "default"


def _draft_alone(
    session: Session, max_nodes: int, cost_curve: CostCurve | None
) -> DraftTree | RetrievalSpecError:
    try:
        return session.draft(max_nodes, cost_curve)
    except RetrievalSpecError as error:
        return error
    except Exception as error:
        return _internal_error(error)
