"""One question, one answer, in bounded time: over a bidirectional stream or as single calls.

Knows gRPC and step numbers; nothing of sessions, trees or when to give up on a server.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

import grpc

from retrieval_spec import wire
from retrieval_spec.errors import InvalidRequest, RetrievalSpecError, ServiceUnavailable
from retrieval_spec.v1 import draft_pb2 as pb

CONNECT_TIMEOUT_S = 1.0
"""Shortest wait for the first answer of a connection: it includes the handshake."""

OPEN_TIMEOUT_S = 10.0
"""For opening sessions; a prompt of a million tokens takes a fraction of a second."""

_SERVICE = pb.DESCRIPTOR.services_by_name["DraftService"].full_name
_OPTIONS = (
    ("grpc.max_receive_message_length", wire.MAX_MESSAGE_BYTES),
    ("grpc.enable_http_proxy", 0),  # drafts never leave for a proxy that the environment names
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
)


def open_channel(address: str) -> grpc.Channel:
    """Returns a channel to `unix:/path` or `host:port`; nothing is sent yet."""
    return grpc.insecure_channel(address, options=_OPTIONS)


def unary(channel: grpc.Channel, method: str, response: type[Any]) -> Any:
    """Returns the callable of one unary method of the service."""
    # The generated stub would do, but it refuses grpc releases older than its generator.
    return channel.unary_unary(f"/{_SERVICE}/{method}", _serialized, response.FromString)


def typed_error(failure: grpc.RpcError) -> RetrievalSpecError:
    """Returns the error that the server raised, or what the failure of the call means."""
    metadata = dict(failure.trailing_metadata() or ())
    type_name = str(metadata.get(wire.ERROR_TYPE_KEY, ""))
    error = wire.error_from(type_name, failure.code().name, failure.details() or "no reason given")
    if type_name or not isinstance(error, ServiceUnavailable):
        return error
    return ServiceUnavailable(
        "the draft server does not answer",
        got=f"{failure.code().name} ({failure.details()})",
        remedy="start one with `retrieval-spec serve`, or check the address",
    )


def called(call: Callable[..., Any], request: Any, **options: Any) -> Any:
    """Returns the response of a unary call, or the start of a streaming one.

    Raises:
        ServiceUnavailable: no answer in time, or the channel is closed.
        RetrievalSpecError: what the server refused the call for.
    """
    try:
        return call(request, **options)
    except grpc.RpcError as failure:
        raise typed_error(failure) from None
    except ValueError as closed:  # grpc's word for a closed channel
        raise ServiceUnavailable("the client is closed", remedy="open a new one") from closed


class Transport(Protocol):
    """How steps travel."""

    def new_request(self) -> Any:
        """Returns an empty message whose `step` the caller fills."""
        ...

    def exchange(self, request: Any, timeout_s: float) -> pb.DraftStepResult:
        """Returns the answer to one step.

        Raises:
            ServiceUnavailable: no answer in time.
            RetrievalSpecError: what the server refused the message for.
        """
        ...

    def close(self) -> None:
        """Ends what is open."""
        ...


class UnaryTransport:
    """One call per step: slower, but passes through proxies that break streams."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._draft = unary(channel, "Draft", pb.DraftResponse)
        self._connected = False

    def new_request(self) -> pb.DraftRequest:
        """Returns an empty message."""
        return pb.DraftRequest()

    def exchange(self, request: pb.DraftRequest, timeout_s: float) -> pb.DraftStepResult:
        """Returns the answer to one step."""
        wait_s = timeout_s if self._connected else max(timeout_s, CONNECT_TIMEOUT_S)
        self._connected = False
        response = called(self._draft, request, timeout=wait_s)
        self._connected = True
        result: pb.DraftStepResult = response.result
        if result.step_number != request.step.step_number:
            raise ServiceUnavailable("the server answered another question")
        return result

    def close(self) -> None:
        """Does nothing: the channel is the client's."""


class StreamTransport:
    """One stream for all steps, opened when first needed and again after it broke."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._open = channel.stream_stream(
            f"/{_SERVICE}/DraftStream", _serialized, pb.DraftStreamResponse.FromString
        )
        self._stream: _Stream | None = None

    def new_request(self) -> pb.DraftStreamRequest:
        """Returns an empty message."""
        return pb.DraftStreamRequest()

    def exchange(self, request: pb.DraftStreamRequest, timeout_s: float) -> pb.DraftStepResult:
        """Returns the answer to one step; answers to earlier ones are dropped."""
        wait_s = timeout_s
        if self._stream is None:
            self._stream = _Stream(self._open)
            wait_s = max(timeout_s, CONNECT_TIMEOUT_S)
        try:
            return self._stream.ask(request, wait_s)
        except _StreamEnded as end:
            self._stream = None
            raise end.error from None

    def close(self) -> None:
        """Ends the stream."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None


class _StreamEnded(Exception):
    def __init__(self, error: RetrievalSpecError) -> None:
        super().__init__(str(error))
        self.error = error


class _Stream:
    """A stream and the thread that reads it: a reader that waits on a queue can stop waiting."""

    def __init__(self, open_stream: Callable[..., Any]) -> None:
        self._requests: queue.SimpleQueue[pb.DraftStreamRequest | None] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[pb.DraftStepResult | _StreamEnded] = queue.SimpleQueue()
        self._call = called(open_stream, iter(self._requests.get, None))
        threading.Thread(target=self._read, name="retrieval-spec-stream", daemon=True).start()

    def ask(self, request: pb.DraftStreamRequest, timeout_s: float) -> pb.DraftStepResult:
        """Returns the answer that carries the request's step number."""
        self._requests.put(request)
        deadline = time.monotonic() + timeout_s
        remaining_s = timeout_s
        while remaining_s > 0:
            try:
                answer = self._answers.get(timeout=remaining_s)
            except queue.Empty:
                break
            if isinstance(answer, _StreamEnded):
                self._requests.put(None)  # lets the thread go that waits for requests
                raise answer
            if answer.step_number == request.step.step_number:
                return answer
            remaining_s = deadline - time.monotonic()
        raise ServiceUnavailable("no answer in time", expected=f"one within {timeout_s * 1000:.0f} ms")

    def close(self) -> None:
        """Ends both directions."""
        self._requests.put(None)
        self._call.cancel()

    def _read(self) -> None:
        end: RetrievalSpecError = ServiceUnavailable("the server ended the stream")
        try:
            for response in self._call:
                self._answers.put(response.result)
        except grpc.RpcError as failure:
            end = typed_error(failure)
        self._answers.put(_StreamEnded(end))


_TRANSPORTS: dict[str, Callable[[grpc.Channel], Transport]] = {
    "stream": StreamTransport,
    "unary": UnaryTransport,
}


def open_transport(name: str, channel: grpc.Channel) -> Transport:
    """Returns the transport of that name.

    Raises:
        InvalidRequest: there is none.
    """
    if name not in _TRANSPORTS:
        raise InvalidRequest("unknown transport", got=name, expected=" or ".join(_TRANSPORTS))
    return _TRANSPORTS[name](channel)


def _serialized(message: Any) -> bytes:
    return message.SerializeToString()  # type: ignore[no-any-return]
