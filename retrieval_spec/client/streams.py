"""Questions and answers on a stream, opened anew when it broke; and the streams of gRPC.

Knows step numbers; nothing of sessions, trees or when to give up on a server.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Protocol

import grpc

from retrieval_spec.client.told import Told
from retrieval_spec.client.transport import Answer, Connection, Pushes, typed_error, wrong_answer
from retrieval_spec.errors import RetrievalSpecError, ServiceUnavailable
from retrieval_spec.v1 import draft_pb2 as pb


class Stream(Protocol):
    """A way for questions and their answers, one after the other, that may break.

    Attributes:
        told: what it was told of beside questions.
        has_ended: whether nothing more can be sent on it.
    """

    told: Told
    has_ended: bool

    def send(self, request: pb.DraftStreamRequest) -> None:
        """Sends a question."""
        ...

    def tell(self, ended: pb.CloseSessionRequest) -> None:
        """Sends what is not answered: the answer to the next question shows that it was heard."""
        ...

    def receive(self, timeout_s: float) -> Answer | None:
        """Returns the answer; None if there is none yet.

        Raises:
            RetrievalSpecError: why the server ended the stream, or that it did.
        """
        ...

    def flush(self, timeout_s: float) -> None:
        """Says that nothing more comes, and waits until the server has read what came before."""
        ...

    def close(self) -> None:
        """Ends both directions."""
        ...


class StreamTransport:
    """One stream for all steps, opened when first needed and again after it broke.

    Args:
        open_stream: opens one, which may wait for a server that is not there if it is told so.
    """

    def __init__(self, open_stream: Callable[[bool], Stream]) -> None:
        self._open = open_stream
        self._stream: Stream | None = None

    def new_request(self) -> pb.DraftStreamRequest:
        """Returns an empty message."""
        return pb.DraftStreamRequest()

    def send(self, request: pb.DraftStreamRequest, *, wait_for_ready: bool = False) -> None:
        """Puts the question on the stream; on a new one if the last has ended."""
        if self._stream is None or self._stream.has_ended:
            self._stream = self._open(wait_for_ready)
        self._stream.send(request)

    def receive(self, timeout_s: float) -> Answer | None:
        """Returns the answer; None if there is none yet."""
        if self._stream is None:
            raise ServiceUnavailable("nothing was asked")
        try:
            return self._stream.receive(timeout_s)
        except RetrievalSpecError:
            self.drop()
            raise

    def drop(self) -> None:
        """Ends the stream."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    @property
    def unheard(self) -> Sequence[pb.CloseSessionRequest]:
        """What was told of last, as long as no answer shows that the server has heard it."""
        return () if self._stream is None else self._stream.told.unheard

    def tell(self, ended: pb.CloseSessionRequest) -> bool:
        """Puts it on the stream, if one is open."""
        if self._stream is None or self._stream.has_ended:
            return False
        self._stream.tell(ended)
        return True

    def flush(self, timeout_s: float) -> None:
        """Lets the server read to the end of the stream, if it was told something after the last question."""
        if self._stream is not None and not self._stream.told.all_heard:
            self._stream.flush(timeout_s)


class GrpcStream:
    """A stream and the thread that reads it: a reader that waits on a queue can stop waiting."""

    def __init__(self, open_stream: Callable[..., Any], wait_for_ready: bool, pushes: Pushes) -> None:
        self._pushes = pushes
        self._requests: queue.SimpleQueue[pb.DraftStreamRequest | None] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[Answer | RetrievalSpecError] = queue.SimpleQueue()
        self._awaited: int | None = None
        self.told = Told()
        self.has_ended = False
        self._call = open_stream(iter(self._requests.get, None), wait_for_ready=wait_for_ready)
        threading.Thread(target=self._read, name="retrieval-spec-stream", daemon=True).start()

    def send(self, request: pb.DraftStreamRequest) -> None:
        """Lets the thread that sends have a question."""
        self._awaited = request.step.step_number
        self.told.asked()
        self._requests.put(request)

    def tell(self, ended: pb.CloseSessionRequest) -> None:
        """Sends what is not answered: the answer to the next question shows that it was heard."""
        self.told.add(ended)
        self._requests.put(pb.DraftStreamRequest(ended=[ended]))

    def flush(self, timeout_s: float) -> None:
        """Ends the questions, and waits for the end of answers."""
        deadline_s = time.perf_counter() + timeout_s
        self._requests.put(None)
        with suppress(RetrievalSpecError):  # the end, as asked for
            while not self.has_ended and self.receive(deadline_s - time.perf_counter()) is not None:
                pass

    def receive(self, timeout_s: float) -> Answer | None:
        """Returns what the thread that reads has found, or raises why it ended."""
        try:
            answer = self._answers.get(timeout_s > 0, max(timeout_s, 0.0))
        except queue.Empty:
            return None
        if isinstance(answer, RetrievalSpecError):
            raise answer
        return answer

    def close(self) -> None:
        """Ends both directions."""
        self._requests.put(None)
        self._call.cancel()

    def _read(self) -> None:
        end: RetrievalSpecError = ServiceUnavailable("the server ended the stream")
        try:
            for response in self._call:
                if response.HasField("ahead"):
                    self._pushes.put(response.ahead)
                elif not self._deliver(response.result):
                    end = wrong_answer()
                    self._call.cancel()
                    break
        except grpc.RpcError as failure:
            end = typed_error(failure)
        self.has_ended = True
        self._requests.put(None)  # lets the thread go that waits for requests
        self._answers.put(end)

    def _deliver(self, result: pb.DraftStepResult) -> bool:
        """Hands on the answer that is awaited; unasked ones, which could fill the memory, are none."""
        if result.step_number != self._awaited:
            return False
        self._awaited = None
        self.told.answered()
        self._answers.put(Answer(result, time.perf_counter()))
        return True


def grpc_streams(connection: Connection, pushes: Pushes) -> Callable[[bool], GrpcStream]:
    """Returns what opens streams; what comes beside answers they put into `pushes`."""
    call = connection.stream("DraftStream", pb.DraftStreamResponse)
    return lambda wait_for_ready: GrpcStream(call, wait_for_ready, pushes)
