"""Opening sessions again that a server has lost, without making a generation wait for it.

Decides nothing about drafts; raises only what concerns the server as a whole.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import grpc

from retrieval_spec import wire
from retrieval_spec.client.session import RemoteSession
from retrieval_spec.client.transport import OPEN_TIMEOUT_S, called, typed_error
from retrieval_spec.errors import RetrievalSpecError, ServiceUnavailable
from retrieval_spec.v1 import draft_pb2 as pb


class Reopener:
    """Sends whole contexts to a server that does not hold them.

    Args:
        open_session: the gRPC call.
        timeout_s: longest wait; an answer that comes later is picked up by a later step.
        learn: takes what the server says about itself.
    """

    def __init__(self, open_session: Any, timeout_s: float, learn: Callable[[pb.ServerInfo], None]) -> None:
        self._open_session = open_session
        self._timeout_s = timeout_s
        self._learn = learn

    def reopen(self, lost: Sequence[RemoteSession]) -> list[RetrievalSpecError]:
        """Opens lost sessions again, all at once; returns why some were refused.

        Raises:
            ServiceUnavailable: the server does not answer.
        """
        now = deadline = time.monotonic()
        lost = [session for session in lost if now >= session.retry_at]
        for session in lost:
            if session.opening is None:
                self._start(session)
                deadline = now + self._timeout_s  # only the step that begins to open waits for it
        try:
            answers = [self._finish(session, max(0.0, deadline - time.monotonic())) for session in lost]
        except ServiceUnavailable:
            for session in lost:  # else each of them would report the same outage in a later step
                session.forget_opening()
            raise
        return [error for error in answers if error is not None]

    def _start(self, session: RemoteSession) -> None:
        request = pb.OpenSessionRequest(
            prompt_token_ids=wire.token_bytes(session.context),
            namespace=session.namespace,
            replaced_session_id=session.replaced_id,
        )
        session.opening_length = session.context_length
        session.opening = called(self._open_session.future, request, timeout=OPEN_TIMEOUT_S)

    def _finish(self, session: RemoteSession, timeout_s: float) -> RetrievalSpecError | None:
        try:
            response = session.opening.result(timeout=timeout_s)
        except grpc.FutureTimeoutError:
            return None
        except grpc.RpcError as failure:
            return self._given_up(session, typed_error(failure))
        length = session.opening_length
        session.forget_opening()
        self._learn(response.info)
        session.confirm(response.session_id, length)
        return None

    def _given_up(self, session: RemoteSession, error: RetrievalSpecError) -> RetrievalSpecError:
        session.forget_opening()
        if isinstance(error, ServiceUnavailable):
            raise error
        session.park()
        return error
