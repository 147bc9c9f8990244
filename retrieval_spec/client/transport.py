"""One question at a time and its answer: what all ways for it have in common, and single calls.

Knows gRPC and step numbers; nothing of sessions, trees or when to give up on a server. Sending returns at
once and waiting is for a local event: deadlines of gRPC overshoot by milliseconds.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import grpc

from retrieval_spec import wire
from retrieval_spec.client.credentials import Credentials
from retrieval_spec.errors import RetrievalSpecError, ServiceUnavailable
from retrieval_spec.v1 import draft_pb2 as pb

OPEN_TIMEOUT_S = 10.0
"""For opening sessions; a prompt of a million tokens takes a fraction of a second."""

_SERVICE = pb.DESCRIPTOR.services_by_name["DraftService"].full_name
# Of several addresses behind a name each client keeps to one, any one, until it is lost: sessions live there.
_ONE_OF_MANY = '{"loadBalancingConfig":[{"pick_first":{"shuffleAddressList":true}}]}'
_OPTIONS = (
    ("grpc.max_receive_message_length", wire.MAX_MESSAGE_BYTES),
    ("grpc.enable_http_proxy", 0),  # drafts never leave for a proxy that the environment names
    ("grpc.service_config", _ONE_OF_MANY),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 400),
    # A peer that vanished without a word; servers refuse pings that come more often than each 10 s.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 2_000),
    ("grpc.http2.ping_timeout_ms", 2_000),
)


class Connection:
    """A channel to `unix:/path`, `host:port` or `dns:///name:port`, and what travels with every call.

    Attributes:
        credentials: how the client shows who it is.
        is_closed: whether the client is.
    """

    def __init__(self, address: str, credentials: Credentials | None = None) -> None:
        self.credentials = credentials or Credentials()
        self._channel = self.credentials.open_channel(address, _OPTIONS)
        self.is_closed = False

    def method(self, name: str, response: type[Any]) -> Method:
        """Returns one unary method of the service."""
        # The generated stub would do, but it refuses grpc releases older than its generator.
        call = self._channel.unary_unary(f"/{_SERVICE}/{name}", _serialized, response.FromString)
        return Method(call, self.credentials.metadata)

    def stream(self, name: str, response: type[Any]) -> Callable[..., Any]:
        """Returns what opens one streaming method of the service."""
        call = self._channel.stream_stream(f"/{_SERVICE}/{name}", _serialized, response.FromString)
        metadata = self.credentials.metadata
        return lambda requests, **options: _started(call, requests, metadata=metadata, **options)

    def close(self) -> None:
        """Ends all calls."""
        self.is_closed = True
        self._channel.close()


class Method:
    """One unary method: called and waited for, or begun."""

    def __init__(self, call: Any, metadata: tuple[tuple[str, str], ...]) -> None:
        self._call = call
        self._metadata = metadata

    def __call__(self, request: Any, timeout_s: float) -> Any:
        """Returns the response.

        Raises:
            ServiceUnavailable: no answer in time, or the client is closed.
            RetrievalSpecError: what the server refused the call for.
        """
        try:
            return _started(self._call, request, timeout=timeout_s, metadata=self._metadata)
        except grpc.RpcError as failure:
            raise typed_error(failure) from None

    def begin(self, request: Any, timeout_s: float | None, *, wait_for_ready: bool = False) -> Any:
        """Returns gRPC's future of the response.

        Raises:
            ServiceUnavailable: the client is closed.
        """
        options = {"metadata": self._metadata, "wait_for_ready": wait_for_ready}
        return _started(self._call.future, request, timeout=timeout_s, **options)


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


def _started(call: Callable[..., Any], request: Any, **options: Any) -> Any:
    try:
        return call(request, **options)
    except ValueError as closed:  # grpc's word for a closed channel
        raise client_closed() from closed


class Answer(NamedTuple):
    """What came back, and when, on the clock of `time.perf_counter`."""

    result: pb.DraftStepResult
    at_s: float


class Pushes(Protocol):
    """Where messages go that answer no question."""

    def put(self, message: pb.DraftAhead) -> None:
        """Takes one, on the reading thread."""
        ...


class Transport(Protocol):
    """How steps travel, one at a time."""

    def new_request(self) -> Any:
        """Returns an empty message whose `step` the caller fills."""
        ...

    def send(self, request: Any, *, wait_for_ready: bool = False) -> None:
        """Sends a question on its way, once the one before was answered or dropped.

        Args:
            request: the question.
            wait_for_ready: it may wait for a server that is not there.

        Raises:
            ServiceUnavailable: the client is closed.
        """
        ...

    def receive(self, timeout_s: float) -> Answer | None:
        """Returns the answer; None if there is none yet.

        Raises:
            ServiceUnavailable: the server was lost, or answered another question.
            RetrievalSpecError: what it refused the message for.
        """
        ...

    def drop(self) -> None:
        """Forgets what was asked."""
        ...

    @property
    def unheard(self) -> Sequence[pb.CloseSessionRequest]:
        """What was told of last, as long as no answer shows that the server has heard it."""
        ...

    def tell(self, ended: pb.CloseSessionRequest) -> bool:
        """Says that a session ended, on the way of questions and behind the last; whether there is a way."""
        ...

    def flush(self, timeout_s: float) -> None:
        """Waits, in bounded time, until the server has heard what it was told; nothing is asked after."""
        ...


class UnaryTransport:
    """One call per step: slower, but passes through proxies that break streams."""

    unheard: Sequence[pb.CloseSessionRequest] = ()

    def __init__(self, connection: Connection) -> None:
        self._draft = connection.method("Draft", pb.DraftResponse)
        self._answers: queue.SimpleQueue[tuple[Any, float]] = queue.SimpleQueue()
        self._call: Any = None
        self._step_number = 0

    def new_request(self) -> pb.DraftRequest:
        """Returns an empty message."""
        return pb.DraftRequest()

    def send(self, request: pb.DraftRequest, *, wait_for_ready: bool = False) -> None:
        """Begins the call."""
        self._step_number = request.step.step_number
        self._call = self._draft.begin(request, None, wait_for_ready=wait_for_ready)
        answers = self._answers
        self._call.add_done_callback(lambda call: answers.put((call, time.perf_counter())))

    def receive(self, timeout_s: float) -> Answer | None:
        """Returns the answer; None if there is none yet."""
        try:
            call, at_s = self._answers.get(timeout_s > 0, max(timeout_s, 0.0))
        except queue.Empty:
            return None
        self._call = None
        try:
            result: pb.DraftStepResult = call.result().result
        except grpc.RpcError as failure:
            raise typed_error(failure) from None
        except grpc.FutureCancelledError:
            raise ServiceUnavailable("the client is closed") from None
        if result.step_number != self._step_number:
            raise wrong_answer()
        return Answer(result, at_s)

    def drop(self) -> None:
        """Cancels the call."""
        self._answers = queue.SimpleQueue()
        if self._call is not None:
            self._call.cancel()
            self._call = None

    def tell(self, ended: pb.CloseSessionRequest) -> bool:
        """Has no such way."""
        return False

    def flush(self, timeout_s: float) -> None:
        """Does nothing: nothing was told."""


def wrong_answer() -> ServiceUnavailable:
    """Returns what is wrong with an answer to another question than the one that waits."""
    return ServiceUnavailable("the server answered another question")


def client_closed() -> ServiceUnavailable:
    """Returns what is wrong with calls after the client was closed."""
    return ServiceUnavailable("the client is closed", remedy="open a new one")


def _serialized(message: Any) -> bytes:
    return message.SerializeToString()  # type: ignore[no-any-return]
