"""The server as any client in any language sees it: raw messages to real processes."""

from __future__ import annotations

import asyncio
import logging
import os
import queue
import random
import signal
import socket
import stat
import subprocess
import sys
import threading
from contextlib import suppress

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from retrieval_spec import wire
from retrieval_spec.engine import Engine, Limits
from retrieval_spec.errors import InvalidRequest, ServiceUnavailable, UnknownSession
from retrieval_spec.service.config import ServerConfig
from retrieval_spec.service.listen import TcpListener, expect_safe, listener, warn_if_open
from retrieval_spec.service.server import SERVICE_NAME, DraftServer, serve
from retrieval_spec.service.servicer import Servicer
from retrieval_spec.service.sessions import SessionTable
from retrieval_spec.v1 import draft_pb2 as pb
from retrieval_spec.v1.draft_pb2_grpc import DraftServiceStub
from tests.fake_drafters import CountingCursor, CountingDrafter
from tests.service_process import LIMITS, VOCAB_SIZE, server_process, server_thread

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    with server_process(f"unix:{tmp_path_factory.mktemp('service') / 'drafts.sock'}") as (_, address):
        yield address


@pytest.fixture
def channel(address):
    with grpc.insecure_channel(address) as channel:
        yield channel


@pytest.fixture
def stub(channel):
    return DraftServiceStub(channel)


def column(values, dtype="<i4") -> bytes:
    return np.array(values, dtype).tobytes()


@pytest.fixture
def opened(stub):
    """Opens sessions and closes them after the test."""
    ids = []

    def open_session(prompt, **fields):
        request = pb.OpenSessionRequest(prompt_token_ids=column(prompt), **fields)
        ids.append(stub.OpenSession(request).session_id)
        return ids[-1]

    yield open_session
    for session_id in ids:
        with suppress(grpc.RpcError):  # closed by the test, or closed now in spite of the wrong length
            stub.CloseSession(pb.CloseSessionRequest(session_id=session_id, context_length=-1))


def row(session_id, context_length, commit=(), max_nodes=4):
    return wire.SessionStep(session_id, context_length, np.array(commit, np.int32), max_nodes)


def step_of(*rows, total_nodes=1_000, **fields):
    step = pb.DraftStep(**fields)
    wire.write_step(step, rows, total_nodes)
    return step


def ask(stub, *rows, **fields):
    return stub.Draft(pb.DraftRequest(step=step_of(*rows, **fields))).result


def statuses(result):
    return [grpc_code(number).name for number in np.frombuffer(result.statuses, "<i4")]


def grpc_code(number):
    return next(code for code in grpc.StatusCode if code.value[0] == number)


def tokens(result):
    return np.frombuffer(result.token_ids, "<i4").tolist()


def test_the_server_says_what_it_is(stub):
    info = stub.GetInfo(pb.GetInfoRequest()).info
    assert info.vocab_size == VOCAB_SIZE
    assert list(info.source_names) == ["half", "sure"]
    assert info.incarnation > 0


def test_a_step_commits_and_drafts(stub, opened):
    session_id = opened([7, 65_536])
    assert session_id.bit_length() <= 63
    result = ask(stub, row(session_id, 2, max_nodes=2), step_number=41)
    assert (result.step_number, tokens(result)) == (41, [65_537, 65_538])
    assert tokens(ask(stub, row(session_id, 2, [3], max_nodes=1))) == [4]


def test_the_server_remembers_the_cost_curve_of_each_session(stub, opened):
    told, other = opened([1]), opened([1])
    dear, no_more = pb.CostCurve(node_counts=column([0, 1]), costs=column([1.0, 1.3], "<f8")), pb.CostCurve()

    def sizes(*ids, **fields):
        result = ask(stub, *[row(session_id, 1, max_nodes=8) for session_id in ids], **fields)
        return np.frombuffer(result.node_counts, "<i4").tolist()

    assert sizes(told) == [8]
    assert sizes(told, cost_curve=dear) == [3]
    assert sizes(told) == [3]
    assert sizes(other) == [8]
    assert sizes(other, told) == [1, 0]  # one pass, one curve
    assert sizes(told, cost_curve=no_more) == [8]
    assert sizes(told) == [8]


def test_a_malformed_cost_curve_fails_the_step_and_leaves_what_was_told(stub, opened):
    session_id = opened([1])
    dear = pb.CostCurve(node_counts=column([0, 1]), costs=column([1.0, 1.3], "<f8"))
    ask(stub, row(session_id, 1), cost_curve=dear)
    for bad in (column([1.0], "<f8"), column([1.0, float("nan")], "<f8"), b"123"):
        step = step_of(
            row(session_id, 1, [5]), cost_curve=pb.CostCurve(node_counts=column([0, 1]), costs=bad)
        )
        assert refusal(stub.Draft, pb.DraftRequest(step=step))[:2] == ("INVALID_ARGUMENT", "InvalidRequest")
    assert len(tokens(ask(stub, row(session_id, 1, max_nodes=8)))) == 3


def test_an_empty_context_is_a_context(stub, opened):
    session_id = opened([])
    result = ask(stub, row(session_id, 0))
    assert (statuses(result), tokens(result)) == (["OK"], [])
    assert tokens(ask(stub, row(session_id, 0, [8], 1))) == [9]


def test_a_step_without_sessions_is_legal(stub):
    result = ask(stub, step_number=5)
    assert (result.step_number, result.statuses) == (5, b"")


def refusal(call, request):
    with pytest.raises(grpc.RpcError) as caught:
        call(request)
    metadata = dict(caught.value.trailing_metadata())
    return caught.value.code().name, metadata.get("retrieval-spec-error"), caught.value.details()


BAD_PROMPTS = [
    (column([1, VOCAB_SIZE]), "INVALID_ARGUMENT", "InvalidTokens", "token id at index 1"),
    (column([-1]), "INVALID_ARGUMENT", "InvalidTokens", f"expected 0 to {VOCAB_SIZE - 1}"),
    (column([-(2**31), 1]), "INVALID_ARGUMENT", "InvalidTokens", "index 0"),
    (b"\x01\x02\x03", "INVALID_ARGUMENT", "InvalidRequest", "got 3 bytes"),
    (bytes(4 * (LIMITS.max_context_tokens + 1)), "RESOURCE_EXHAUSTED", "LimitExceeded", "250000 tokens"),
]


@pytest.mark.row("C1")
@pytest.mark.parametrize(("prompt", "code", "error_type", "words"), BAD_PROMPTS)
def test_bad_prompts_are_refused_by_name(stub, prompt, code, error_type, words):
    got = refusal(stub.OpenSession, pb.OpenSessionRequest(prompt_token_ids=prompt))
    assert got[:2] == (code, error_type)
    assert words in got[2]


@pytest.mark.row("C1")
@pytest.mark.parametrize("namespace", ["", "a b", "x" * 65, "../up"])
def test_malformed_namespaces_are_refused(stub, namespace):
    got = refusal(stub.OpenSession, pb.OpenSessionRequest(namespace=namespace))
    assert got[:2] == ("INVALID_ARGUMENT", "InvalidRequest")


@pytest.mark.row("P1")
def test_unknown_sessions_are_refused_everywhere(stub):
    truncate = pb.TruncateSessionRequest(session_id=12345)
    assert refusal(stub.TruncateSession, truncate)[:2] == ("NOT_FOUND", "UnknownSession")
    close = pb.CloseSessionRequest(session_id=12345)
    assert refusal(stub.CloseSession, close)[:2] == ("NOT_FOUND", "UnknownSession")
    result = ask(stub, row(12345, 0))
    assert statuses(result) == ["NOT_FOUND"]
    assert (result.errors[0].type, result.errors[0].session_index) == ("UnknownSession", 0)


@pytest.mark.row("P1", "V4")
def test_sessions_of_an_earlier_server_are_unknown(stub, opened):
    session_id = opened([1])
    result = ask(stub, row(session_id, 1), incarnation=99)
    assert statuses(result) == ["NOT_FOUND"]
    assert "earlier server process" in result.errors[0].message
    info = stub.GetInfo(pb.GetInfoRequest()).info
    assert statuses(ask(stub, row(session_id, 1), incarnation=info.incarnation)) == ["OK"]


@pytest.mark.row("P1")
def test_a_bad_session_does_not_fail_the_others(stub, opened):
    good, gap, bad = opened([1]), opened([2]), opened([3])
    rows = [row(good, 1, max_nodes=1), row(777, 0), row(gap, 5), row(bad, 1, [VOCAB_SIZE]), row(good, 1)]
    result = ask(stub, *rows)
    assert statuses(result) == ["OK", "NOT_FOUND", "ABORTED", "INVALID_ARGUMENT", "OK"]
    assert [error.session_index for error in result.errors] == [1, 2, 3]
    assert np.frombuffer(result.node_counts, "<i4").tolist() == [1, 0, 0, 0, 4]
    assert tokens(result)[:1] == [2]
    assert tokens(ask(stub, row(bad, 1, max_nodes=1))) == [4], "the refused commit must not show"


@pytest.mark.row("P1")
def test_a_repeated_message_is_not_applied_twice(stub, opened):
    session_id = opened([1])
    message = row(session_id, 1, [5, 6], 1)
    assert tokens(ask(stub, message)) == [7]
    repeated = ask(stub, message)
    assert (statuses(repeated), repeated.errors[0].type) == (["ABORTED"], "ContextMismatch")
    assert tokens(ask(stub, row(session_id, 3, [10], 1))) == [11]


@pytest.mark.row("P1")
def test_truncating_cuts_the_context(stub, opened):
    session_id = opened([1, 2, 3])
    request = pb.TruncateSessionRequest(session_id=session_id, context_length=3, kept_length=1)
    stub.TruncateSession(request)
    assert tokens(ask(stub, row(session_id, 1, max_nodes=1))) == [2]
    assert refusal(stub.TruncateSession, request)[:2] == ("ABORTED", "ContextMismatch")


def test_closing_takes_the_last_tokens_and_ends_the_session(stub, opened):
    session_id = opened([1])
    stub.CloseSession(
        pb.CloseSessionRequest(session_id=session_id, context_length=1, commit_token_ids=column([2]))
    )
    assert statuses(ask(stub, row(session_id, 2))) == ["NOT_FOUND"]


def test_a_session_is_gone_also_when_its_close_is_refused(stub, opened):
    session_id = opened([1])
    late = pb.CloseSessionRequest(session_id=session_id, context_length=7, commit_token_ids=column([2]))
    assert refusal(stub.CloseSession, late)[:2] == ("ABORTED", "ContextMismatch")
    assert statuses(ask(stub, row(session_id, 1))) == ["NOT_FOUND"]


@pytest.mark.row("P1")
def test_a_replaced_session_is_gone(stub, opened):
    old = opened([1])
    new = opened([1, 2], replaced_session_id=old)
    assert statuses(ask(stub, row(old, 1), row(new, 2))) == ["NOT_FOUND", "OK"]


def test_one_budget_for_64_sessions(stub, opened):
    ids = [opened([index]) for index in range(64)]
    result = ask(stub, *[row(session_id, 1, max_nodes=10) for session_id in ids], total_nodes=100)
    counts = np.frombuffer(result.node_counts, "<i4")
    assert (statuses(result), counts.sum()) == (["OK"] * 64, 100)
    assert counts.min() >= 1, "equal probabilities: every session gets its first node"


@pytest.mark.row("C1")
def test_budgets_below_zero_and_above_the_limit_are_clamped(stub, opened):
    session_id = opened([1])
    step = step_of(row(session_id, 1))
    step.max_nodes, step.total_nodes = column([-5]), -1
    assert tokens(stub.Draft(pb.DraftRequest(step=step)).result) == []
    step.max_nodes, step.total_nodes = column([2**31 - 1]), 2**31 - 1
    assert len(tokens(stub.Draft(pb.DraftRequest(step=step)).result)) == LIMITS.max_nodes


def test_a_prompt_of_200_000_tokens(stub, opened):
    prompt = np.arange(200_000) % 65_000
    session_id = opened(prompt)
    assert tokens(ask(stub, row(session_id, 200_000, max_nodes=2))) == [5_000, 5_001]


@pytest.mark.row("C1", "C2/C3")
def test_malformed_columns_fail_the_call_and_end_the_stream(stub):
    step = pb.DraftStep(session_ids=b"\x01" * 9)
    got = refusal(stub.Draft, pb.DraftRequest(step=step))
    assert got[:2] == ("INVALID_ARGUMENT", "InvalidRequest")
    stream = stub.DraftStream(iter([pb.DraftStreamRequest(step=step)]))
    assert refusal(next, stream)[:2] == got[:2]


@pytest.mark.row("C1")
def test_more_rows_than_sessions_can_be_are_refused_at_once(stub):
    rows = [row(1, 0)] * (LIMITS.max_sessions + 1)
    got = refusal(stub.Draft, pb.DraftRequest(step=step_of(*rows)))
    assert got[:2] == ("RESOURCE_EXHAUSTED", "LimitExceeded")


@pytest.mark.row("C1")
def test_messages_above_16_mib_are_refused(stub):
    request = pb.OpenSessionRequest(prompt_token_ids=bytes(wire.MAX_MESSAGE_BYTES + 1))
    assert refusal(stub.OpenSession, request)[0] == "RESOURCE_EXHAUSTED"


def test_a_stream_answers_in_order(stub, opened):
    session_id = opened([1])
    steps = [step_of(row(session_id, 1 + n, [1 + n], 1), step_number=n) for n in range(20)]
    answers = list(stub.DraftStream(pb.DraftStreamRequest(step=step) for step in steps))
    assert [answer.result.step_number for answer in answers] == list(range(20))
    assert [tokens(answer.result) for answer in answers] == [[2 + n] for n in range(20)]


@pytest.mark.row("C2/C3")
def test_garbage_harms_nobody(channel, stub, opened):
    session_id = opened([1])
    good = pb.DraftRequest(step=step_of(row(session_id, 1, [2], 3), step_number=1)).SerializeToString()
    rng = random.Random(1)
    for method in ("Draft", "OpenSession", "TruncateSession", "CloseSession", "GetInfo"):
        call = channel.unary_unary(f"/{SERVICE_NAME}/{method}")
        for _ in range(60):
            data = bytearray(good)
            for _ in range(rng.randrange(1, 5)):
                data[rng.randrange(len(data))] = rng.randrange(256)
            with suppress(grpc.RpcError):
                call(bytes(data[: rng.randrange(len(data) + 1)]), timeout=5)
    assert health(channel) == SERVING
    assert statuses(ask(stub, row(opened([1]), 1))) == ["OK"]


def health(channel, service=""):
    request = health_pb2.HealthCheckRequest(service=service)
    return health_pb2_grpc.HealthStub(channel).Check(request).status


@pytest.mark.row("H1")
@pytest.mark.parametrize("service", ["", SERVICE_NAME])
def test_a_ready_server_is_healthy(channel, service):
    assert health(channel, service) == SERVING


def test_reflection_names_the_service(channel):
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    answers = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter([request]))
    names = [service.name for service in next(answers).list_services_response.service]
    assert SERVICE_NAME in names
    assert "grpc.health.v1.Health" in names


class FaultyDrafter(CountingDrafter):
    """Fails to draft after a 13 and to move on over a 14."""

    def start(self, context, namespace="default"):
        cursor = FaultyCursor(self)
        cursor.observe(context)
        return cursor


class FaultyCursor(CountingCursor):
    def observe(self, tokens, feedback=None):
        super().observe(tokens)
        if 14 in self.seen:
            raise MemoryError(f"token {14}")

    def propose(self, budget):
        if self.seen[-1:] == [13]:
            raise ZeroDivisionError(f"token {self.seen[-1]}")
        return super().propose(budget)


@pytest.mark.row("K4")
def test_a_failing_drafter_costs_its_own_session_alone(caplog):
    servicer = Servicer(Engine(100, {"faulty": FaultyDrafter(100)}))
    ids = [
        servicer.open_session(pb.OpenSessionRequest(prompt_token_ids=column([1]))).session_id
        for _ in range(3)
    ]
    result = pb.DraftStepResult()
    commits = ([2], [13], [14])
    rows = [row(session_id, 1, commit, 2) for session_id, commit in zip(ids, commits, strict=True)]
    servicer.answer(step_of(*rows), result)
    assert statuses(result) == ["OK", "INTERNAL", "INTERNAL"]
    assert tokens(result) == [3, 4]
    assert not any("token 1" in error.message for error in result.errors), "texts of tenants stay in the log"
    assert caplog.text.count("failed with ZeroDivisionError") == 1
    assert "token 1" not in caplog.text
    result = pb.DraftStepResult()
    servicer.answer(step_of(*[row(session_id, 2, [5], 1) for session_id in ids]), result)
    assert statuses(result) == ["OK", "OK", "NOT_FOUND"], "half a commit ends the session"


@pytest.mark.row("C4")
def test_idle_sessions_make_room():
    now = [0.0]
    engine = Engine(100, {"counting": CountingDrafter(100)})
    table = SessionTable(engine, clock=lambda: now[0])
    left_behind, used = (table.open(np.zeros(0, np.int32), "default") for _ in range(2))
    now[0] = engine.limits.max_idle_s
    table.get(used)
    now[0] += 1
    table.open(np.zeros(0, np.int32), "default")
    assert (len(table), engine.num_sessions) == (2, 2)
    table.get(used)
    with pytest.raises(UnknownSession):
        table.get(left_behind)


class SlowToStart(CountingDrafter):
    """Drafts once somebody says so, like a kernel that still compiles."""

    def __init__(self):
        super().__init__(100)
        self.may_start = threading.Event()

    def start(self, context, namespace="default"):
        assert self.may_start.wait(10)
        return super().start(context)


@pytest.mark.row("H1")
def test_a_server_that_warms_up_answers_health_checks_and_refuses_sessions(tmp_path):
    drafter = SlowToStart()

    async def scenario():
        server = DraftServer(Engine(100, {"slow": drafter}), listener(f"unix:{tmp_path}/s.sock"))
        starting = asyncio.create_task(server.start())
        async with grpc.aio.insecure_channel(server.address) as channel:
            check = health_pb2_grpc.HealthStub(channel).Check
            request = health_pb2.HealthCheckRequest(service=SERVICE_NAME)
            status = (await check(request, wait_for_ready=True, timeout=10)).status
            with pytest.raises(grpc.RpcError) as caught:
                await DraftServiceStub(channel).OpenSession(pb.OpenSessionRequest())
            drafter.may_start.set()
            await starting
            ready = (await check(request)).status
            await server.stop()
        return status, caught.value.code(), ready

    expected = (NOT_SERVING, grpc.StatusCode.UNAVAILABLE, SERVING)
    assert asyncio.run(scenario()) == expected


@pytest.mark.row("H1")
@pytest.mark.parametrize("kind", ["unix", "tcp"])
def test_sigterm_drains(tmp_path, kind):
    listen = f"unix:{tmp_path}/s.sock" if kind == "unix" else "127.0.0.1:0"
    with server_process(listen) as (process, address), grpc.insecure_channel(address) as channel:
        seen = [health(channel)]
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert next(watch).status == SERVING
        requests = queue.SimpleQueue()
        stream = DraftServiceStub(channel).DraftStream(iter(requests.get, None))
        requests.put(pb.DraftStreamRequest())
        next(stream)
        process.send_signal(signal.SIGTERM)
        seen.append(next(watch).status)
        assert process.wait(timeout=10) == 0
        assert seen == [SERVING, NOT_SERVING]
        assert list(stream) == [], "an idle stream ends without an error"
        requests.put(None)
        assert os.listdir(tmp_path) == []


def test_the_socket_is_private_and_a_stale_one_is_replaced(tmp_path):
    path = tmp_path / "s.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with server_thread(f"unix:{path}", engine()) as address:
        assert address == f"unix:{path}"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == []


@pytest.mark.row("C4")
def test_a_full_server_refuses_and_recovers(tmp_path):
    small = Engine(100, {"counting": CountingDrafter(100)}, limits=Limits(max_sessions=2))
    with (
        server_thread(f"unix:{tmp_path}/s.sock", small) as address,
        grpc.insecure_channel(address) as channel,
    ):
        stub = DraftServiceStub(channel)
        ids = [stub.OpenSession(pb.OpenSessionRequest()).session_id for _ in range(2)]
        got = refusal(stub.OpenSession, pb.OpenSessionRequest())
        assert got[:2] == ("RESOURCE_EXHAUSTED", "LimitExceeded")
        stub.CloseSession(pb.CloseSessionRequest(session_id=ids[0]))
        stub.OpenSession(pb.OpenSessionRequest())


def engine():
    return Engine(100, {"counting": CountingDrafter(100)})


def test_a_live_socket_is_not_taken_over(tmp_path):
    path = tmp_path / "s.sock"
    with server_thread(f"unix:{path}", engine()) as address:
        with pytest.raises(ServiceUnavailable, match="a server listens there already"):
            serve(engine(), f"unix:{path}")
        with grpc.insecure_channel(address) as channel:
            assert health(channel) == SERVING


def test_a_file_in_the_way_is_kept(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("mine")
    with pytest.raises(InvalidRequest, match="no socket is in the way"):
        serve(engine(), f"unix:{path}")
    assert path.read_text() == "mine"


def test_a_stopping_server_leaves_its_successors_socket_alone(tmp_path):
    path = tmp_path / "s.sock"
    with server_thread(f"unix:{path}", engine()):
        path.unlink()
        successor = server_process(f"unix:{path}")
        _, address = successor.__enter__()
    with grpc.insecure_channel(address) as channel:
        assert health(channel) == SERVING
    successor.__exit__(None, None, None)


def test_a_taken_port_is_refused():
    with (
        server_thread("127.0.0.1:0", engine()) as address,
        pytest.raises(ServiceUnavailable, match="cannot listen"),
    ):
        serve(engine(), address)


BAD_ADDRESSES = [
    "",
    "localhost",
    "localhost:",
    ":80",
    "127.0.0.1:65536",
    "127.0.0.1:x",
    "unix:",
    "unix:/" + 107 * "x",
]


@pytest.mark.parametrize("listen", BAD_ADDRESSES)
def test_malformed_addresses_are_refused(listen):
    with pytest.raises(InvalidRequest, match=r"address|path"):
        listener(listen)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]"])
def test_anybody_may_listen_on_this_machine(host):
    place = TcpListener(f"{host}:0")
    expect_safe(place, ServerConfig())
    place.bind(lambda address: 4711)
    assert place.address == f"{host}:4711"


def test_listening_beyond_this_machine_needs_tls_or_a_word(caplog):
    caplog.set_level(logging.WARNING)
    place = TcpListener("0.0.0.0:0")
    for config in (ServerConfig(), ServerConfig(tokens="file")):
        with pytest.raises(InvalidRequest, match="--insecure"):
            expect_safe(place, config)
    tls = {"tls_certificate": "file", "tls_key": "file"}
    for config in (ServerConfig(tokens="file", insecure=True), ServerConfig(**tls, tls_client_ca="file")):
        expect_safe(place, config)
        warn_if_open(place, config)
    assert caplog.records == []
    expect_safe(place, ServerConfig(**tls))
    warn_if_open(place, ServerConfig(**tls))
    assert "nobody is asked" in caplog.text


def test_relative_and_double_slash_paths_name_the_same_socket(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    addresses = {
        listener(name).address
        for name in ("unix:s.sock", f"unix:{tmp_path}/s.sock", f"unix://{tmp_path}/s.sock")
    }
    assert addresses == {f"unix:{tmp_path}/s.sock"}


def test_the_server_needs_no_torch():
    code = (
        "import sys, retrieval_spec.service.server as server, tests.service_process as process\n"
        "server.warm_up(server.Servicer(process.session_engine()))\n"
        "print({'torch', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
