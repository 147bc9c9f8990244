"""Opening sessions on the server, at first or again, without making a generation wait for it.

Decides nothing about drafts; raises only what concerns the server as a whole.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import grpc

from retrieval_spec import wire
from retrieval_spec.client.session import NO_SESSION, RemoteSession
from retrieval_spec.client.transport import OPEN_TIMEOUT_S, typed_error
from retrieval_spec.errors import RetrievalSpecError, ServiceUnavailable
from retrieval_spec.v1 import draft_pb2 as pb


class Opener:
    """Sends whole contexts to a server that does not hold them.

    Args:
        open_session: the gRPC method.
        learn: takes what the server says about itself.
    """

    def __init__(self, open_session: Any, learn: Callable[[pb.ServerInfo], None]) -> None:
        self._open_session = open_session
        self._learn = learn

    def begin(self, session: RemoteSession, ended: Sequence[pb.CloseSessionRequest] = ()) -> None:
        """Sends the context on its way, and which sessions have ended before.

        Raises:
            ServiceUnavailable: the client is closed.
        """
        request = pb.OpenSessionRequest(
            prompt_token_ids=wire.token_bytes(session.context),
            namespace=session.namespace,
            replaced_session_id=session.replaced_id,
            ended=ended,
        )
        session.opening = self._open_session.begin(request, OPEN_TIMEOUT_S)
        session.opening_length = session.context_length

    def end(self, session: RemoteSession, timeout_s: float) -> bool:
        """Takes in the server's answer; whether it has come.

        Raises:
            RetrievalSpecError: the server does not open the session.
        """
        try:
            response = session.opening.result(timeout=timeout_s)
        except grpc.FutureTimeoutError:
            return False
        except grpc.RpcError as failure:
            session.forget_opening()
            raise typed_error(failure) from None
        except grpc.FutureCancelledError:
            session.forget_opening()
            raise ServiceUnavailable("the client is closed", remedy="open a new one") from None
        length = session.opening_length
        session.forget_opening()
        self._learn(response.info)
        if response.session_id == NO_SESSION:
            raise ServiceUnavailable("the server opened a session without an id")
        session.confirm(response.session_id, response.info.incarnation, length)
        return True

    def reopen(self, lost: Sequence[RemoteSession], deadline_s: float) -> list[RetrievalSpecError]:
        """Opens lost sessions again, all at once; returns why some were refused.

        An answer that does not come in time is picked up by a later step.

        Args:
            lost: the sessions.
            deadline_s: on the clock of `time.perf_counter`; steps after the one that begins do not wait.

        Raises:
            ServiceUnavailable: the server does not answer.
        """
        now = time.monotonic()
        due = [session for session in lost if now >= session.retry_at]
        fresh = [session for session in due if session.opening is None]
        for session in fresh:
            self.begin(session)
        try:
            answers = [self._refusal(session, deadline_s if fresh else 0.0) for session in due]
        except ServiceUnavailable:
            for session in due:  # else each of them would report the same outage in a later step
                session.forget_opening()
            raise
        return [error for error in answers if error is not None]

    def _refusal(self, session: RemoteSession, deadline_s: float) -> RetrievalSpecError | None:
        try:
            self.end(session, max(0.0, deadline_s - time.perf_counter()))
        except ServiceUnavailable:
            raise
        except RetrievalSpecError as error:
            session.park()
            return error
        return None
