"""Steps in frames over a plain socket: who is let in, what is refused, and what neither side falls for."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import signal
import socket
import struct
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval_spec import wire
from retrieval_spec.client import Credentials, DraftClient, LocalClient
from retrieval_spec.client.frames import frame_streams
from retrieval_spec.client.streams import StreamTransport
from retrieval_spec.client.transport import Connection
from retrieval_spec.engine import Engine, Limits
from retrieval_spec.errors import (
    InvalidRequest,
    LimitExceeded,
    RetrievalSpecError,
    ServiceUnavailable,
    Unauthenticated,
)
from retrieval_spec.service import frames
from retrieval_spec.service.config import ServerConfig
from retrieval_spec.v1 import draft_pb2 as pb
from tests.service_process import (
    LIMITS,
    VOCAB_SIZE,
    counting_engine,
    frames_of,
    server_process,
    server_thread,
    session_engine,
)

PATIENCE_S = 20.0
HELLO = wire.frame(wire.OTHER, b"")
EMPTY_STEP = wire.frame(
    wire.MESSAGE, pb.DraftStreamRequest(step=pb.DraftStep(step_number=5)).SerializeToString()
)


def test_frames_are_these_bytes():
    hello = pb.FramedHello(authorization="Bearer abc").SerializeToString()
    assert wire.frame(wire.OTHER, hello) == b"\x0c\x00\x00\x00\x01\x0a\x0aBearer abc"
    assert wire.frame(wire.MESSAGE, b"") == b"\x00\x00\x00\x00\x00"
    refusal = pb.FramedRefusal(status=16, type="Unauthenticated", message="no")
    assert refusal.SerializeToString() == b"\x08\x10\x12\x0fUnauthenticated\x1a\x02no"


@given(st.integers(0, 1_000), st.integers(0, 255), st.integers(0, 1_000), st.binary(max_size=3))
def test_heads_tell_length_and_kind(num_bytes, kind, max_bytes, more):
    head = struct.pack("<IB", num_bytes, kind) + more
    if kind > 1:
        with pytest.raises(InvalidRequest, match="unknown kind"):
            wire.read_head(head, max_bytes)
    elif num_bytes > max_bytes:
        with pytest.raises(LimitExceeded, match="too long"):
            wire.read_head(head, max_bytes)
    else:
        assert wire.read_head(head, max_bytes) == (num_bytes, kind)


@pytest.fixture
def listen(tmp_path):
    return f"unix:{tmp_path}/s.sock"


@pytest.fixture
def served(listen):
    """Where a server takes frames."""
    with server_thread(listen, counting_engine(), ServerConfig(frames=frames_of(listen))):
        yield frames_of(listen)


def connected(address):
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(PATIENCE_S)
    connection.connect(address.removeprefix("unix:"))
    return connection


def told(connection):
    """All frames until the other side hangs up: kinds and messages."""
    data = b""
    with contextlib.suppress(ConnectionResetError):  # it hung up without reading the rest
        while more := connection.recv(1 << 16):
            data += more
    found = []
    while data:
        num_bytes, kind = wire.read_head(data, 1 << 20)
        found.append((kind, data[wire.HEAD_BYTES : wire.HEAD_BYTES + num_bytes]))
        data = data[wire.HEAD_BYTES + num_bytes :]
    return found


def refusal_of(connection):
    kind, message = told(connection)[-1]
    assert kind == wire.OTHER
    return pb.FramedRefusal.FromString(message)


def expect_service(listen):
    """Somebody else is served."""
    with DraftClient(listen, timeout_s=PATIENCE_S, transport=frames_of(listen)) as client:
        assert client.open_session([1]).draft(2).token_ids.tolist() == [2, 3]


def test_whoever_stops_writing_is_answered_and_let_go(served):
    with connected(served) as connection:
        connection.sendall(HELLO + EMPTY_STEP * 2)
        connection.shutdown(socket.SHUT_WR)
        answers = [pb.DraftStreamResponse.FromString(message) for _, message in told(connection)]
    assert [answer.result.step_number for answer in answers] == [5, 5]


MALFORMED = {
    "no hello": (EMPTY_STEP, "Unauthenticated"),
    "a hello that is no message": (wire.frame(wire.OTHER, b"\xff\xff"), "Unauthenticated"),
    "a hello without end": (struct.pack("<IB", 1 << 30, 1), "Unauthenticated"),
    "an unknown kind first": (b"\x00\x00\x00\x00\x07", "Unauthenticated"),
    "an unknown kind later": (HELLO + b"\x00\x00\x00\x00\x07", "InvalidRequest"),
    "two hellos": (HELLO + HELLO, "InvalidRequest"),
    "a message without end": (HELLO + struct.pack("<IB", (1 << 32) - 1, 0), "LimitExceeded"),
    "no message": (HELLO + wire.frame(wire.MESSAGE, b"\xff\xff\xff"), "InvalidRequest"),
    "a step of columns that do not fit": (
        HELLO + wire.frame(wire.MESSAGE, b"\x0a\x03\x1a\x01x"),
        "InvalidRequest",
    ),
}


@pytest.mark.row("V3")
@pytest.mark.parametrize(("sent", "expected"), MALFORMED.values(), ids=MALFORMED)
def test_malformed_streams_are_refused_and_nobody_else_notices(served, listen, sent, expected, caplog):
    with connected(served) as connection:
        connection.sendall(sent)
        refusal = refusal_of(connection)
    assert refusal.type == expected
    assert (
        refusal.status
        == wire.STATUS_NUMBERS[
            {
                "Unauthenticated": "UNAUTHENTICATED",
                "InvalidRequest": "INVALID_ARGUMENT",
                "LimitExceeded": "RESOURCE_EXHAUSTED",
            }[expected]
        ]
    )
    assert refusal.message
    assert caplog.records == []
    expect_service(listen)


HALF_OPEN = {"nothing": b"", "half a head": HELLO[:3], "half a hello": struct.pack("<IB", 9, 1) + b"abc"}


@pytest.mark.row("V3")
@pytest.mark.parametrize("sent", HALF_OPEN.values(), ids=HALF_OPEN)
def test_who_does_not_say_hello_is_not_waited_for(served, listen, sent, monkeypatch):
    monkeypatch.setattr(frames, "HELLO_TIMEOUT_S", 0.2)
    with connected(served) as connection:
        connection.sendall(sent)
        assert refusal_of(connection).type == "Unauthenticated"
    expect_service(listen)


def test_streams_on_which_nothing_moves_end(listen):
    engine = Engine(VOCAB_SIZE, limits=Limits(max_stream_idle_s=1))
    config = ServerConfig(frames=frames_of(listen))
    with (
        server_thread(listen, engine, config),
        connected(frames_of(listen)) as silent,
        connected(frames_of(listen)) as half,
    ):
        silent.sendall(HELLO)
        half.sendall(HELLO + EMPTY_STEP[:-1])
        assert told(silent) == told(half) == []


def test_so_many_streams_and_connections_may_be_open(listen, monkeypatch):
    monkeypatch.setattr(frames, "_MORE_THAN_STREAMS", 1)
    engine = Engine(VOCAB_SIZE, limits=Limits(max_streams=2))
    with contextlib.ExitStack() as stack:
        stack.enter_context(server_thread(listen, engine, ServerConfig(frames=frames_of(listen))))
        streams = [stack.enter_context(connected(frames_of(listen))) for _ in range(2)]
        for stream in streams:
            stream.sendall(HELLO + EMPTY_STEP)
            assert len(stream.recv(1 << 16)) > wire.HEAD_BYTES
        with connected(frames_of(listen)) as third:
            third.sendall(HELLO)
            assert refusal_of(third).type == "LimitExceeded"
        stack.enter_context(connected(frames_of(listen)))  # says nothing
        time.sleep(0.1)
        with connected(frames_of(listen)) as one_more:
            assert told(one_more) == []
        streams[0].close()
        time.sleep(0.1)
        with connected(frames_of(listen)) as successor:
            successor.sendall(HELLO + EMPTY_STEP)
            assert len(successor.recv(1 << 16)) > wire.HEAD_BYTES


def test_who_reads_no_answers_is_not_read_from(served, listen):
    """Else what waits to be read would fill the server's memory."""
    with connected(served) as greedy:
        greedy.sendall(HELLO)
        greedy.setblocking(False)
        num_bytes, deadline_s = 0, time.monotonic() + PATIENCE_S
        with contextlib.suppress(BlockingIOError):
            while True:
                num_bytes += greedy.send(EMPTY_STEP * 100)
                time.sleep(0.001)
                assert time.monotonic() < deadline_s
        assert num_bytes < 8 << 20
        expect_service(listen)


def test_who_never_reads_is_let_go_of_in_time(listen, monkeypatch):
    monkeypatch.setattr(frames, "_LEAVE_TIMEOUT_S", 0.1)
    engine = Engine(VOCAB_SIZE, limits=Limits(max_stream_idle_s=1))
    with (
        server_thread(listen, engine, ServerConfig(frames=frames_of(listen))),
        connected(frames_of(listen)) as greedy,
    ):
        greedy.sendall(HELLO)

        def is_cut_off():
            try:
                greedy.send(EMPTY_STEP * 100, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return False
            except (BrokenPipeError, ConnectionResetError):
                return True

        assert wait_for(is_cut_off)


@pytest.mark.row("T1")
def test_a_token_says_whose_sessions_they_are(listen, tmp_path):
    tokens = tmp_path / "tokens"
    tokens.touch(mode=0o600)
    tokens.write_text("alice 0123456789abcdef\nbob fedcba9876543210\n")
    config = ServerConfig(frames=frames_of(listen), tokens=str(tokens))
    alice, bob = Credentials(token="0123456789abcdef"), Credentials(token="fedcba9876543210")
    with server_thread(listen, counting_engine(), config):
        way = {"timeout_s": PATIENCE_S, "transport": frames_of(listen)}
        with (
            DraftClient(listen, credentials=alice, **way) as client,
            DraftClient(listen, credentials=bob, **way) as other,
        ):
            session, stolen = client.open_session([1]), other.open_session([5])
            assert session.draft(1).token_ids.tolist() == [2]
            stolen.server_id = session.server_id
            assert stolen.draft(1).token_ids.tolist() in ([], [6])  # hers is not found, and his opened again
            assert session.draft(1).token_ids.tolist() == [2]
        for authorization in ("", "Bearer 0123456789abcdee", "0123456789abcdef"):
            with connected(frames_of(listen)) as connection:
                hello = pb.FramedHello(authorization=authorization).SerializeToString()
                connection.sendall(wire.frame(wire.OTHER, hello) + EMPTY_STEP)
                assert refusal_of(connection).type == "Unauthenticated"


def test_sessions_that_ended_are_told_of_before_the_client_closes(listen):
    servers = []
    config = ServerConfig(frames=frames_of(listen))
    with server_thread(listen, session_engine(), config, servers):
        with DraftClient(listen, timeout_s=PATIENCE_S, transport=frames_of(listen)) as client:
            sessions = [client.open_session([1, 2, 3]) for _ in range(5)]
            client.draft_batch(sessions, 20)
            for session in sessions:
                session.commit([4, 5])
                session.close()
        assert len(servers[0].servicer.sessions) == 0
        assert servers[0].servicer.meter.committed_tokens == 10


@pytest.mark.row("P1")
def test_messages_may_be_larger_than_what_the_system_holds(listen):
    local = LocalClient(session_engine()).open_session([1])
    with (
        server_thread(listen, session_engine(), ServerConfig(frames=frames_of(listen))),
        DraftClient(listen, timeout_s=PATIENCE_S, transport=frames_of(listen)) as client,
    ):
        session = client.open_session([1])
        session.draft(1)
        # A quarter of a MiB, a little more than Linux buffers.
        tokens = [number * number % 60_000 for number in range(LIMITS.max_append_tokens)]
        for either in (session, local):
            either.commit(tokens)
        assert session.draft(8) == local.draft(8)
        assert client.counters.missed == client.counters.failures == 0


@pytest.mark.row("V1")
def test_a_server_that_is_told_to_stop_ends_streams_and_removes_its_socket(listen):
    with (
        server_process(listen, frames=frames_of(listen)) as (process, _),
        connected(frames_of(listen)) as connection,
        connected(frames_of(listen)) as silent,
    ):
        connection.sendall(HELLO + EMPTY_STEP)
        assert len(connection.recv(1 << 16)) > wire.HEAD_BYTES
        process.send_signal(signal.SIGTERM)
        assert told(connection) == told(silent) == []
        assert process.wait(PATIENCE_S) == 0
    assert not os.path.lexists(frames_of(listen).removeprefix("unix:"))


@pytest.mark.row("V4")
def test_a_client_finds_the_successor_of_a_server_that_was_killed(listen):
    client = DraftClient(listen, transport=frames_of(listen))
    with server_process(listen, frames=frames_of(listen)) as (process, _):
        session = client.open_session([1])
        assert wait_for(lambda: len(session.draft(2)))
        process.kill()
        process.wait()
        for token in range(50):
            session.commit([token])
            session.draft(2)
            time.sleep(0.01)
    with server_process(listen, frames=frames_of(listen)):
        began_s = time.monotonic()
        assert wait_for(lambda: len(session.draft(2)))
        assert time.monotonic() - began_s < 1.0
    client.close()


def wait_for(condition):
    deadline_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline_s:
        if condition():
            return True
        time.sleep(0.002)
    return False


def test_what_frames_cannot_keep_secret_is_refused(tmp_path, listen):
    with pytest.raises(InvalidRequest, match="without TLS"):
        ServerConfig(frames=frames_of(listen), tls_certificate="a", tls_key="b")
    (tmp_path / "ca.pem").write_bytes(b"")
    with pytest.raises(InvalidRequest, match="without TLS"):
        DraftClient(listen, transport=frames_of(listen), credentials=Credentials(ca_file=tmp_path / "ca.pem"))
    with pytest.raises(InvalidRequest, match="unix socket"):
        frames.FrameListener(None, "127.0.0.1:0")
    with pytest.raises(InvalidRequest, match="drafts ahead"):
        DraftClient(listen, transport=frames_of(listen), ahead_outcomes=3)


@contextlib.contextmanager
def scripted(tmp_path, script):
    """A server that does as the test says with the first connection, and a transport that asks it."""
    path = f"{tmp_path}/f.sock"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen()

        def serve():
            connection, _ = listening.accept()
            with connection, contextlib.suppress(OSError):
                script(connection)

        thread = threading.Thread(target=serve)
        thread.start()
        connection = Connection("unix:/nowhere")
        transport = StreamTransport(frame_streams(f"unix:{path}", connection))
        try:
            transport.send(pb.DraftStreamRequest(step=pb.DraftStep(step_number=5)))
            yield transport
        finally:
            transport.drop()
            thread.join(PATIENCE_S)
            connection.close()
            os.unlink(path)


ANSWER = wire.frame(
    wire.MESSAGE, pb.DraftStreamResponse(result=pb.DraftStepResult(step_number=5)).SerializeToString()
)


@given(st.lists(st.integers(0, 2 * len(ANSWER)), max_size=6))
@settings(max_examples=30, deadline=None)
def test_answers_may_come_in_pieces(tmp_path_factory, cuts):
    data = ANSWER
    bounds = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]

    def script(connection):
        for begin, end in itertools.pairwise(bounds):
            connection.sendall(data[begin:end])
            time.sleep(0.0005)
        connection.recv(1 << 16)

    with scripted(tmp_path_factory.mktemp("f"), script) as transport:
        answer = transport.receive(PATIENCE_S)
        assert answer.result.step_number == 5
        assert 0 <= time.perf_counter() - answer.at_s < PATIENCE_S
        assert transport.receive(0.0) is None


HOSTILE = {
    "hangs up": (b"", ServiceUnavailable),
    "hangs up half-way": (ANSWER[:-1], ServiceUnavailable),
    "another step": (
        wire.frame(wire.MESSAGE, pb.DraftStreamResponse().SerializeToString()),
        ServiceUnavailable,
    ),
    "no message": (wire.frame(wire.MESSAGE, b"\xff\xff"), InvalidRequest),
    "unknown kind": (b"\x00\x00\x00\x00\x09", InvalidRequest),
    "a message without end": (struct.pack("<IB", (1 << 32) - 1, 0), LimitExceeded),
    "a refusal": (
        wire.frame(
            wire.OTHER, pb.FramedRefusal(status=16, type="Unauthenticated", message="who").SerializeToString()
        ),
        Unauthenticated,
    ),
    "a refusal of an unknown class": (
        wire.frame(wire.OTHER, pb.FramedRefusal(status=14, type="KeyError").SerializeToString()),
        ServiceUnavailable,
    ),
    "a refusal that is none": (wire.frame(wire.OTHER, b"\xff"), InvalidRequest),
}


@pytest.mark.row("V3")
@pytest.mark.parametrize(("sent", "expected"), HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_server_ends_the_connection_and_nothing_else(tmp_path, sent, expected):
    with scripted(tmp_path, lambda connection: connection.sendall(sent)) as transport:
        with pytest.raises(RetrievalSpecError) as raised:
            transport.receive(PATIENCE_S)
        assert type(raised.value) is expected
        with pytest.raises(ServiceUnavailable, match="nothing was asked"):
            transport.receive(0.0)
        assert not transport.tell(pb.CloseSessionRequest(session_id=1))


def test_nobody_waits_longer_than_said(tmp_path):
    with scripted(tmp_path, lambda connection: connection.recv(1 << 16) and connection.recv(1)) as transport:
        for timeout_s in (0.0, 0.0004, 0.0123):
            began_s = time.perf_counter()
            assert transport.receive(timeout_s) is None
            assert time.perf_counter() - began_s >= timeout_s


def test_without_a_server_the_error_says_what_to_do(tmp_path):
    connection = Connection("unix:/nowhere")
    transport = StreamTransport(frame_streams(f"unix:{tmp_path}/f.sock", connection))
    with pytest.raises(ServiceUnavailable, match=os.strerror(errno.ENOENT)) as raised:
        transport.send(pb.DraftStreamRequest())
    assert f"--frames unix:{tmp_path}/f.sock" in str(raised.value)
    connection.close()
    with pytest.raises(ServiceUnavailable, match="client is closed"):
        transport.send(pb.DraftStreamRequest())
