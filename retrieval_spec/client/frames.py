"""Steps over a plain unix socket, for a server on this machine: a fraction of the latency of gRPC.

Nobody but the caller reads: each thread that has to be woken would cost as much as the draft.
"""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Callable

from retrieval_spec import wire
from retrieval_spec.client.credentials import TOKEN_KEY
from retrieval_spec.client.told import Told
from retrieval_spec.client.transport import Answer, Connection, client_closed, wrong_answer
from retrieval_spec.errors import RetrievalSpecError, ServiceUnavailable
from retrieval_spec.v1 import draft_pb2 as pb

PREFIX = "unix:"
_READ_BYTES = 1 << 16
_SHORT_S, _NAP_S = 0.001, 0.00005
"""The system waits for whole milliseconds; what is left after them passes in naps."""


def frame_streams(address: str, connection: Connection) -> Callable[[bool], FrameStream]:
    """Returns what opens streams of frames, which wait for no server.

    Args:
        address: `unix:PATH`, as given to `retrieval-spec serve --frames`.
        connection: on which all else is called.
    """
    authorization = dict(connection.credentials.metadata).get(TOKEN_KEY, "")
    hello = pb.FramedHello(authorization=authorization)

    def opened(wait_for_ready: bool) -> FrameStream:
        if connection.is_closed:
            raise client_closed()
        return FrameStream(address.removeprefix(PREFIX), hello)

    return opened


class FrameStream:
    """A connection and what it is in the middle of.

    Raises:
        ServiceUnavailable: nobody listens there.
    """

    def __init__(self, path: str, hello: pb.FramedHello) -> None:
        self.told = Told()
        self.has_ended = False
        self._awaited: int | None = None
        self._incoming = bytearray()
        self._outgoing = bytearray(wire.frame(wire.OTHER, hello.SerializeToString()))
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.setblocking(False)
        self._ready = select.poll()
        try:
            self._socket.connect(path)
        except OSError as error:
            self._socket.close()
            raise ServiceUnavailable(
                "the draft server does not answer",
                got=f"unix:{path} ({error.strerror})",
                remedy=f"start one with `retrieval-spec serve --frames unix:{path}`, or check the path",
            ) from None

    def send(self, request: pb.DraftStreamRequest) -> None:
        """Sends a question, as far as the system takes it now."""
        self._awaited = request.step.step_number
        self.told.asked()
        self._put(request)

    def tell(self, ended: pb.CloseSessionRequest) -> None:
        """Sends what is not answered: the answer to the next question shows that it was heard."""
        self.told.add(ended)
        self._put(pb.DraftStreamRequest(ended=[ended]))

    def receive(self, timeout_s: float) -> Answer | None:
        """Returns the answer; None if it has not come in time.

        Raises:
            RetrievalSpecError: why the server ended the stream, or that it did.
        """
        deadline_s = time.perf_counter() + timeout_s
        while True:
            message = self._next()
            if message is not None:
                return self._answer(message)
            if not self._read():
                left_s = deadline_s - time.perf_counter()
                if left_s <= 0:
                    return None
                self._wait(left_s)

    def flush(self, timeout_s: float) -> None:
        """Says that nothing more comes, and waits until the server has read what came before."""
        deadline_s = time.perf_counter() + timeout_s
        try:
            while self._outgoing and time.perf_counter() < deadline_s:
                self._write()
                self._wait(min(_SHORT_S, timeout_s))
            self._socket.shutdown(socket.SHUT_WR)
            while self.receive(deadline_s - time.perf_counter()) is not None:
                pass
        except (RetrievalSpecError, OSError):
            pass  # the end, as asked for
        self.close()

    def close(self) -> None:
        """Ends both directions."""
        self.has_ended = True
        self._socket.close()

    def _put(self, request: pb.DraftStreamRequest) -> None:
        self._outgoing += wire.frame(wire.MESSAGE, request.SerializeToString())
        self._write()

    def _write(self) -> None:
        """Sends what the system takes now. That the server is gone shows where answers are read."""
        try:
            while self._outgoing:
                del self._outgoing[: self._socket.send(self._outgoing)]
        except BlockingIOError:
            pass
        except OSError:
            self._outgoing.clear()

    def _read(self) -> bool:
        """Takes in what has come; returns whether anything has."""
        self._write()
        try:
            data = self._socket.recv(_READ_BYTES)
        except BlockingIOError:
            return False
        except OSError as error:
            raise ServiceUnavailable("the draft server was lost", got=error.strerror) from None
        if not data:
            raise ServiceUnavailable("the server ended the stream")
        self._incoming += data
        return True

    def _wait(self, seconds: float) -> None:
        if seconds < _SHORT_S:
            time.sleep(min(seconds, _NAP_S))
            return
        self._ready.register(self._socket, select.POLLIN | (select.POLLOUT if self._outgoing else 0))
        self._ready.poll(int(seconds * 1_000))

    def _next(self) -> bytes | None:
        """Returns the next message if all of it has come.

        Raises:
            RetrievalSpecError: why the server ended the stream; or it is too long.
        """
        if len(self._incoming) < wire.HEAD_BYTES:
            return None
        num_bytes, kind = wire.read_head(self._incoming, wire.MAX_MESSAGE_BYTES)
        end = wire.HEAD_BYTES + num_bytes
        if len(self._incoming) < end:
            return None
        message = bytes(self._incoming[wire.HEAD_BYTES : end])
        del self._incoming[:end]
        if kind == wire.OTHER:
            raise _refusal(message)
        return message

    def _answer(self, message: bytes) -> Answer:
        """Returns the answer that is awaited; unasked ones are none."""
        result = wire.parsed(pb.DraftStreamResponse, message).result
        if result.step_number != self._awaited:
            raise wrong_answer()
        self._awaited = None
        self.told.answered()
        return Answer(result, time.perf_counter())


def _refusal(message: bytes) -> RetrievalSpecError:
    refusal = wire.parsed(pb.FramedRefusal, message)
    status = wire.STATUS_NAMES.get(refusal.status, "UNKNOWN")
    return wire.error_from(refusal.type, status, refusal.message or "no reason given")
