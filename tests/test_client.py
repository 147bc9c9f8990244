"""`DraftClient` when all is not well: whatever the server does, a generation goes on."""

from __future__ import annotations

import logging
import random
import signal
import threading
import time

import grpc
import numpy as np
import pytest

from retrieval_spec import wire
from retrieval_spec.budget import CostCurve
from retrieval_spec.client import DraftClient, LocalClient, asking, breaker
from retrieval_spec.client import session as session_module
from retrieval_spec.engine import Engine
from retrieval_spec.errors import InvalidRequest, ServiceUnavailable, TokenizerMismatch, UnknownSession
from retrieval_spec.service import server
from retrieval_spec.service.config import ServerConfig
from retrieval_spec.service.peers import ANYBODY
from retrieval_spec.service.servicer import Servicer
from retrieval_spec.tree import DraftTree
from retrieval_spec.v1 import draft_pb2 as pb
from retrieval_spec.v1.draft_pb2_grpc import DraftServiceStub
from tests.fake_drafters import CountingDrafter
from tests.service_process import LIMITS, counting_engine, frames_of, server_process, server_thread, way

PATIENCE_S = 20.0
"""For waits that are about outcome, not time: the machine may be busy."""

all_transports = pytest.mark.parametrize("transport", ["stream", "unary", "frames"])


class Scripted(Servicer):
    """The real servicer, with a hook for what a broken or hostile server does."""

    latest: Scripted

    def __init__(self, engine, peers):
        super().__init__(engine, peers)
        self.spoil = lambda step, result: None
        self.steps = []
        self.opened = []
        self.closed = []
        Scripted.latest = self

    def answer(self, step, result, owner=ANYBODY):
        answered = super().answer(step, result, owner)
        self.steps.append(step)
        self.spoil(step, result)
        return answered

    def open_session(self, request, owner=ANYBODY):
        self.opened.append(request)
        return super().open_session(request, owner)

    def end(self, request, owner=ANYBODY):
        self.closed.append(request)
        super().end(request, owner)


@pytest.fixture
def scripted(tmp_path, monkeypatch):
    """A server whose answers the test can spoil, and its address."""
    monkeypatch.setattr(server, "Servicer", Scripted)
    listen = f"unix:{tmp_path}/s.sock"
    with server_thread(listen, counting_engine(), ServerConfig(frames=frames_of(listen))) as address:
        servicer = Scripted.latest
        servicer.steps.clear()
        servicer.opened.clear()
        servicer.closed.clear()
        yield servicer, address


@pytest.fixture
def quick_retries(monkeypatch):
    """Failures are forgotten at once, so that tests need not wait."""
    monkeypatch.setattr(breaker, "FIRST_PAUSE_S", 0.02)
    monkeypatch.setattr(breaker, "LONGEST_PAUSE_S", 0.02)


def drafts_come_back(session, max_nodes=2) -> DraftTree:
    """Asks until there are nodes again."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        tree = session.draft(max_nodes)
        if len(tree):
            return tree
        time.sleep(0.02)
    raise AssertionError("no drafts came back")


def warnings(caplog):
    return [record.message for record in caplog.records if record.levelno == logging.WARNING]


def test_a_step_is_one_round_trip(scripted):
    servicer, address = scripted
    with DraftClient(address, timeout_s=PATIENCE_S) as client:
        session = client.open_session([1])
        for step in range(5):
            session.commit([step])
            session.commit([step + 1])
            assert session.draft(1).token_ids.tolist() == [step + 2]
        batch = [session, client.open_session([1])]
        assert [len(tree) for tree in client.draft_batch(batch, 4)] == [2, 2]
        session.draft(0)
        session.close()
    assert len(servicer.steps) == 6
    assert len(servicer.opened) == 2


CHEAP, DEAR = CostCurve.linear(0.03), CostCurve.linear(0.3)


def test_a_cost_curve_travels_only_when_the_server_may_not_know_it(scripted):
    servicer, address = scripted

    def told():
        steps = [step.HasField("cost_curve") for step in servicer.steps]
        servicer.steps.clear()
        return steps

    with DraftClient(address, timeout_s=PATIENCE_S) as client:
        session, other = client.open_session([1]), client.open_session([2])
        sizes = [len(session.draft(8, curve)) for curve in (None, CHEAP, CHEAP, DEAR, DEAR, None, None)]
        assert sizes == [8, 8, 8, 3, 3, 8, 8]
        assert told() == [False, True, False, True, False, True, False]
        for _ in range(2):
            assert [len(tree) for tree in client.draft_batch([session, other], 16, DEAR)] == [1, 0]
        assert len(other.draft(8, DEAR)) == 3
        session.truncate(1)
        assert len(session.draft(8, DEAR)) == 3
        assert told() == [True, False, False, False]
        session.lose()  # a session opened again knows nothing
        assert len(session.draft(8, DEAR)) == 3
        assert told() == [True]


def test_a_curve_of_a_step_without_answer_is_told_again(scripted):
    servicer, address = scripted
    with DraftClient(address, timeout_s=PATIENCE_S) as client:
        session = client.open_session([1])
        servicer.spoil = lambda step, result: result.ClearField("statuses")
        assert len(session.draft(8, DEAR)) == 0
        servicer.spoil = lambda step, result: None
        client._breaker.succeeded()
        assert len(session.draft(8, DEAR)) == 3
        assert [step.HasField("cost_curve") for step in servicer.steps] == [True, True]


@all_transports
def test_every_step_is_counted(scripted, transport):
    servicer, address = scripted
    with DraftClient(address, timeout_s=PATIENCE_S, transport=way(transport, address)) as client:
        session = client.open_session([1, 2])
        before = servicer.meter.steps, servicer.meter.committed_tokens
        for _ in range(3):
            session.commit([3, 4])
            session.draft(1)
        client.ping()  # behind what is counted once an answer is under way
        assert servicer.meter.steps >= before[0] + 3
        assert servicer.meter.committed_tokens == before[1] + 6


@pytest.mark.row("P1")
def test_closing_tells_the_last_tokens(scripted):
    servicer, address = scripted
    with DraftClient(address, timeout_s=PATIENCE_S) as client:
        session = client.open_session([1, 2])
        session.draft(1)
        session.commit([5, 6])
        session.close()
    (request,) = servicer.closed
    assert request.context_length == 2
    assert np.frombuffer(request.commit_token_ids, "<i4").tolist() == [5, 6]


@pytest.mark.row("V1")
@all_transports
def test_without_a_server_opening_says_what_to_do(tmp_path, transport):
    address = f"unix:{tmp_path}/s.sock"
    with DraftClient(address, transport=way(transport, address)) as client:
        for call in (lambda: client.open_session([1]), client.ping, lambda: client.vocab_size):
            with pytest.raises(ServiceUnavailable, match="retrieval-spec serve"):
                call()


@pytest.mark.row("V1", "V4")
@all_transports
def test_a_killed_server_costs_empty_trees_until_its_successor_is_up(
    tmp_path, transport, caplog, quick_retries
):
    listen = f"unix:{tmp_path}/s.sock"
    local = LocalClient(counting_engine()).open_session([1, 2])
    with server_process(listen, frames=frames_of(listen)) as (process, address):
        client = DraftClient(address, timeout_s=PATIENCE_S, transport=way(transport, address))
        session = client.open_session([1, 2])
        assert session.draft(4) == local.draft(4)
        process.kill()
        process.wait()
        for token in range(20):
            session.commit([token])
            local.commit([token])
            assert session.draft(4) == DraftTree.empty(client.source_names)
        session.truncate(15)
        local.truncate(15)
    with server_process(listen, frames=frames_of(listen)):
        drafts_come_back(session)
        for token in range(20):
            session.commit([token])
            local.commit([token])
            assert session.draft(4) == local.draft(4)
    client.close()
    assert len(warnings(caplog)) == 2, "one line when drafts stop, one when they are back"


@pytest.mark.row("V4")
@all_transports
def test_all_sessions_come_back_at_once(tmp_path, transport, quick_retries):
    """One outage, however many sessions it hit, is one failure."""
    listen = f"unix:{tmp_path}/s.sock"
    client = DraftClient(listen, timeout_s=PATIENCE_S, transport=way(transport, listen))
    with server_thread(listen, counting_engine(), ServerConfig(frames=frames_of(listen))):
        sessions = [client.open_session([token]) for token in range(16)]
        assert sum(map(len, client.draft_batch(sessions, 16))) == 16
    for opened in sessions:
        opened.lose()
    for _ in range(4):
        assert sum(map(len, client.draft_batch(sessions, 16))) == 0
        time.sleep(0.03)
    with server_thread(listen, counting_engine(), ServerConfig(frames=frames_of(listen))):
        drafts_come_back(sessions[0])
        trees = client.draft_batch(sessions, 16)
        assert [tree.token_ids.tolist() for tree in trees] == [[token + 1] for token in range(16)]
    client.close()


@pytest.mark.row("V1")
@all_transports
def test_a_hung_server_is_waited_for_once(tmp_path, transport, caplog, monkeypatch):
    monkeypatch.setattr(asking, "STALE_S", 0.3)
    listen = f"unix:{tmp_path}/s.sock"
    with server_process(listen, frames=frames_of(listen)) as (process, address):
        client = DraftClient(address, timeout_s=0.2, transport=way(transport, address))
        session = client.open_session([1])
        drafts_come_back(session)
        process.send_signal(signal.SIGSTOP)
        session.commit([5])
        start = time.monotonic()
        assert len(session.draft(4)) == 0
        assert time.monotonic() - start < 5
        start = time.monotonic()
        for token in range(200):
            session.commit([token])
            assert len(session.draft(4)) == 0
        assert time.monotonic() - start < 0.15, "a server in trouble is left alone"
        time.sleep(0.3)
        assert len(session.draft(4)) == 0
        process.send_signal(signal.SIGCONT)
        session.truncate(3)
        assert drafts_come_back(session).token_ids.tolist() == [1, 2]
        client.close()
    assert len(warnings(caplog)) >= 2


def node_column(name, values, dtype):
    def spoil(step, result):
        setattr(result, name, np.array(values, dtype).tobytes())

    return spoil


def wrong_number(step, result):
    result.step_number = step.step_number + 1


def cut_column(step, result):
    result.parents = result.parents[:-1]


def one_session_more(step, result):
    result.statuses += b"\0\0\0\0"
    result.node_counts += b"\0\0\0\0"


def endless_tree(step, result):
    wire.write_result(result, [DraftTree.chain([1] * 100)])


def negative_count(step, result):
    result.node_counts = np.array([-2], "<i4").tobytes()


def crash(step, result):
    raise KeyError("a bug")


def former_incarnation(step, result):
    result.incarnation ^= 1


def endless_names(step, result):
    result.statuses = np.array([77], "<i4").tobytes()
    result.node_counts = np.array([2], "<i4").tobytes()
    result.errors.add(session_index=-5, type="\x1b[2J" * 1_000, message="no\nsuch\rline" * 1_000)


def huge_count(step, result):
    result.node_counts = np.array([2**31 - 1], "<i4").tobytes()


HOSTILE = {
    "wrong step number": wrong_number,
    "own parent": node_column("parents", [-1, 1], "<i4"),
    "later parent": node_column("parents", [1, -1], "<i4"),
    "parent below the context": node_column("parents", [-2, 0], "<i4"),
    "least parent": node_column("parents", [-(2**31), 0], "<i4"),
    "token past the vocabulary": node_column("token_ids", [1, 70_000], "<i4"),
    "negative token": node_column("token_ids", [-1, 1], "<i4"),
    "largest token": node_column("token_ids", [1, 2**31 - 1], "<i4"),
    "equal siblings": lambda step, result: (
        node_column("parents", [-1, -1], "<i4")(step, result),
        node_column("token_ids", [3, 3], "<i4")(step, result),
    ),
    "no number": node_column("probs", [0.5, float("nan")], "<f4"),
    "probability above one": node_column("probs", [0.5, 1.5], "<f4"),
    "negative probability": node_column("probs", [0.5, -0.1], "<f4"),
    "infinite probability": node_column("probs", [float("inf"), 0.5], "<f4"),
    "unknown source": node_column("sources", [1, 4], "<u2"),
    "cut column": cut_column,
    "no columns": lambda step, result: result.ClearField("token_ids"),
    "another number of sessions": one_session_more,
    "more nodes than asked for": endless_tree,
    "negative count": negative_count,
    "huge count": huge_count,
    "status with nodes": node_column("statuses", [13], "<i4"),
    "unknown status and endless names": endless_names,
    "another server's answer": former_incarnation,
    "an empty message": lambda step, result: result.Clear(),
    "a crash": crash,
}


UNARY_TOO = {"wrong step number", "token past the vocabulary", "cut column", "an empty message", "a crash"}


@pytest.mark.row("V3")
@pytest.mark.parametrize(
    ("kind", "transport"),
    [(kind, transport) for kind in HOSTILE for transport in ("stream", "frames")]
    + [(kind, "unary") for kind in sorted(UNARY_TOO)],
)
def test_a_hostile_answer_is_dropped(scripted, kind, transport, caplog, quick_retries):
    spoil = HOSTILE[kind]
    servicer, address = scripted
    with DraftClient(address, timeout_s=PATIENCE_S, transport=way(transport, address)) as client:
        session = client.open_session([1])
        drafts_come_back(session)
        caplog.clear()
        servicer.spoil = spoil
        for token in range(3):
            session.commit([token])
            assert session.draft(2) == DraftTree.empty(client.source_names)
            time.sleep(0.03)
        assert sum("generation goes on without" in line for line in warnings(caplog)) == 1
        assert client.counters.bad_answers + client.counters.failures > 0
        assert client.counters.bugs == 0
        servicer.spoil = lambda step, result: None
        session.commit([7])
        assert drafts_come_back(session).token_ids.tolist() == [8, 9]


@pytest.mark.row("P1")
def test_a_late_answer_is_not_taken_for_the_one_awaited(scripted, quick_retries):
    servicer, address = scripted
    with DraftClient(address, timeout_s=0.05) as client:
        session = client.open_session([1])
        drafts_come_back(session)
        servicer.spoil = lambda step, result: time.sleep(0.3)
        session.commit([10])
        assert len(session.draft(2)) == 0
        servicer.spoil = lambda step, result: None
        session.commit([20])
        assert drafts_come_back(session).token_ids.tolist() == [21, 22]


KEPT, GONE = DraftTree.chain([3], [0.5]), UnknownSession("gone")


@pytest.fixture
def under_way(scripted, quick_retries):
    """A session of 1, 2 whose question after 10 was not answered yet, and what lets the server answer."""
    servicer, address = scripted
    answer = threading.Event()
    with DraftClient(address, timeout_s=0.05) as client:
        session = client.open_session([1, 2])
        drafts_come_back(session)
        servicer.spoil = lambda step, result: answer.wait(PATIENCE_S)
        session.commit([10])
        assert len(session.draft(2)) == 0
        yield session, answer
        answer.set()


def test_nothing_is_drafted_from_what_was_cut_while_it_was_under_way(under_way):
    session, answer = under_way
    session.truncate(2)
    answer.set()
    assert drafts_come_back(session).token_ids.tolist() == [3, 4]


def test_a_session_that_is_closed_while_a_question_is_under_way_is_learned_whole(scripted, under_way):
    (servicer, _), (session, answer) = scripted, under_way
    session.commit([20])
    session.close()
    answer.set()
    deadline = time.monotonic() + PATIENCE_S
    while not servicer.closed and time.monotonic() < deadline:
        time.sleep(0.01)
    (request,) = servicer.closed
    assert request.context_length == 3
    assert np.frombuffer(request.commit_token_ids, "<i4").tolist() == [20]


def test_a_server_that_loses_a_session_in_every_step_is_not_sent_its_context_in_every_step(scripted):
    servicer, address = scripted
    with DraftClient(address, timeout_s=PATIENCE_S) as client:
        session, healthy = client.open_session([1]), client.open_session([2])

        def lose(step, result):
            result.Clear()
            result.step_number, result.incarnation = step.step_number, servicer.desk.incarnation
            ids = np.frombuffer(step.session_ids, "<u8")
            wire.write_result(result, [KEPT if one == healthy.server_id else GONE for one in ids])

        servicer.spoil = lose
        servicer.opened.clear()
        for token in range(20):
            session.commit([token])
            assert [len(tree) for tree in client.draft_batch([healthy, session], 4)] == [1, 0]
        assert 1 <= len(servicer.opened) <= 3


@pytest.mark.row("P1")
@pytest.mark.parametrize("damage", ["closed", "cut", "grown"])
def test_a_session_that_the_server_lost_is_opened_again_unseen(scripted, damage):
    servicer, address = scripted
    with DraftClient(address, timeout_s=PATIENCE_S) as client, grpc.insecure_channel(address) as channel:
        session, other = client.open_session([1, 2]), client.open_session([50])
        stub = DraftServiceStub(channel)
        lost = session.server_id
        if damage == "closed":
            stub.CloseSession(pb.CloseSessionRequest(session_id=lost, context_length=2))
        elif damage == "cut":
            stub.TruncateSession(pb.TruncateSessionRequest(session_id=lost, context_length=2, kept_length=1))
        else:
            step = pb.DraftStep()
            wire.write_step(step, [wire.SessionStep(lost, 2, np.array([9], np.int32), 0)], 0)
            stub.Draft(pb.DraftRequest(step=step))
        session.commit([3])
        assert session.draft(2).token_ids.tolist() == [4, 5]
        trees = client.draft_batch([session, other], 4)
        assert [tree.token_ids.tolist() for tree in trees] == [[4, 5], [51, 52]]
        assert servicer.opened[-1].replaced_session_id == lost
        assert len(servicer.opened) == 3


def damages(servicer, session, address):
    """What makes server and client disagree about a session, by name."""
    table = servicer.sessions
    lost = session.server_id

    def restart():
        servicer.desk.incarnation ^= 1
        servicer.info.incarnation = servicer.desk.incarnation
        for session_id in tuple(table._entries):
            table.close(session_id)

    return {
        "closed": lambda: table.close(lost),
        "cut": lambda: table.get(lost).truncate(1),
        "grown by a repeated message": lambda: table.get(lost).commit(np.array([9], np.int32)),
        "restarted": restart,
        "nothing": lambda: None,
    }


@pytest.mark.quick
@pytest.mark.row("P1")
def test_whatever_happens_to_a_session_it_is_right_again_within_two_round_trips(scripted):
    servicer, address = scripted
    generator = random.Random(11)
    with DraftClient(address, timeout_s=PATIENCE_S) as client:
        session = client.open_session([1, 2])
        for _ in range(200):
            name, damage = generator.choice(list(damages(servicer, session, address).items()))
            damage()
            servicer.steps.clear()
            servicer.opened.clear()
            session.commit([token := generator.randrange(60_000)])
            if generator.random() < 0.2:
                session.truncate(session.context_length - 1)
                session.commit([token])
            assert session.draft(2).token_ids.tolist() == [token + 1, token + 2], name
            assert len(servicer.opened) <= 1
            assert len(servicer.steps) <= 2
        assert client.counters.reopened > 50
        assert client.counters.failures == client.counters.bad_answers == client.counters.bugs == 0


@pytest.mark.row("V3")
def test_an_answer_that_nobody_asked_for_ends_the_stream(scripted, quick_retries):
    """Else a server could fill the memory of its client."""
    _, address = scripted
    with DraftClient(address, timeout_s=PATIENCE_S) as client:
        session = client.open_session([1])
        drafts_come_back(session)
        stream = client._asker._transport._stream
        assert not stream._deliver(pb.DraftStepResult(step_number=0))
        assert not stream._deliver(pb.DraftStepResult(step_number=1))
        assert stream._answers.empty()


@pytest.mark.row("V4")
def test_opening_again_does_not_hold_up_the_generation(scripted):
    servicer, address = scripted
    with DraftClient(address, timeout_s=0.2) as client:
        session = client.open_session([1])
        drafts_come_back(session)
        session.lose()
        # A server that takes long for a long context, and does so where it blocks nobody else's calls.
        answered = []
        real = client._opener._open_session
        client._opener._open_session = Deferred(real, answered)
        session.commit([2])
        assert len(session.draft(2)) == 0
        session.commit([3])
        start = time.monotonic()
        assert len(session.draft(2)) == 0
        assert time.monotonic() - start < 0.1, "only the step that begins to open waits"
        answered.append(True)
        assert drafts_come_back(session).token_ids.tolist() == [4, 5]
    assert len(servicer.opened) == 2


class Deferred:
    """A call whose answer arrives when the test says so."""

    def __init__(self, call, answered):
        self.call = call
        self.answered = answered

    def begin(self, request, timeout_s):
        inner, answered = self.call.begin(request, timeout_s), self.answered

        class Future:
            def result(self, timeout):
                if not answered:
                    time.sleep(timeout)
                    raise grpc.FutureTimeoutError
                return inner.result(PATIENCE_S)

            def cancel(self):
                inner.cancel()

        return Future()


@pytest.mark.row("C1")
def test_a_context_that_outgrows_the_server_goes_on_without_drafts(scripted, caplog):
    _, address = scripted
    with DraftClient(address, timeout_s=PATIENCE_S) as client:
        session = client.open_session(np.zeros(LIMITS.max_context_tokens - 1, np.int32))
        other = client.open_session([1])
        session.commit([1, 2])
        for _ in range(3):
            assert len(session.draft(2)) == 0
            session.commit([3])
        assert other.draft(2).token_ids.tolist() == [2, 3], "one session's trouble is its own"
        assert ["1 session(s) without drafts" in line for line in warnings(caplog)] == [True]
        session.truncate(1_000)
        assert session.draft(2).token_ids.tolist() == [1, 2]


@pytest.mark.row("V4")
def test_a_parked_session_is_tried_again(scripted, monkeypatch):
    monkeypatch.setattr(session_module, "PARKED_S", 0.0)
    servicer, address = scripted
    with DraftClient(address, timeout_s=PATIENCE_S) as client:
        opened = client.open_session([1])
        servicer.spoil = lambda step, result: wire.write_result(result, [ServiceUnavailable("not now")])
        assert len(opened.draft(2)) == 0
        servicer.spoil = lambda step, result: None
        assert opened.draft(2).token_ids.tolist() == [2, 3]


@pytest.mark.row("V4")
def test_a_successor_with_another_vocabulary_is_not_believed(tmp_path, quick_retries):
    listen = f"unix:{tmp_path}/s.sock"
    with server_thread(listen, counting_engine()):
        client = DraftClient(listen, timeout_s=PATIENCE_S)
        opened = client.open_session([1])
        drafts_come_back(opened)
    wide = Engine(100_000, {"half": CountingDrafter(100_000)})
    with server_thread(listen, wide):
        deadline = time.monotonic() + 1.0
        while time.monotonic() < deadline:
            assert len(opened.draft(2)) == 0
            time.sleep(0.05)
        with pytest.raises(TokenizerMismatch, match="another vocabulary"):
            client.open_session([1])
    client.close()


@all_transports
def test_a_closed_client_drafts_nothing(scripted, transport):
    _, address = scripted
    client = DraftClient(address, timeout_s=PATIENCE_S, transport=way(transport, address))
    opened = client.open_session([1])
    assert len(opened.draft(2)) == 2
    client.close()
    client.close()
    opened.commit([2])
    assert len(opened.draft(2)) == 0
    for call in (client.ping, lambda: client.open_session([1])):
        with pytest.raises(ServiceUnavailable, match="client is closed"):
            call()
    opened.close()


@all_transports
def test_an_empty_call_takes_the_way_of_drafts(scripted, transport):
    servicer, address = scripted
    with DraftClient(address, timeout_s=PATIENCE_S, transport=way(transport, address)) as client:
        assert 0 < client.ping() < PATIENCE_S
    assert [step.session_ids for step in servicer.steps] == [b""]


@pytest.mark.parametrize("options", [{"transport": "pigeon"}, {"timeout_s": 0}, {"timeout_s": float("nan")}])
def test_malformed_options_are_refused(options):
    with pytest.raises(InvalidRequest):
        DraftClient("127.0.0.1:1", **options)
