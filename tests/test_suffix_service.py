"""Rows without names, over gRPC: the same trees, little sent, and nothing worse than no draft."""

from __future__ import annotations

import random
import time

import grpc
import numpy as np
import pytest

from retrieval_spec import wire
from retrieval_spec.client import DraftClient, LocalClient, SuffixSource
from retrieval_spec.client.suffixes import SENT_TOKENS, KnownRows
from retrieval_spec.errors import InvalidTokens, ServiceUnavailable
from retrieval_spec.service.config import ServerConfig
from retrieval_spec.tree import DraftTree
from retrieval_spec.v1 import draft_pb2 as pb
from retrieval_spec.v1.draft_pb2_grpc import DraftServiceStub
from tests.service_process import VOCAB_SIZE, server_process, server_thread, session_engine
from tests.test_suffixes import Generations, facts

TIMEOUT_S = 20.0


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    with server_thread(f"unix:{tmp_path_factory.mktemp('suffixes')}/s.sock", session_engine()) as address:
        yield address


@pytest.fixture
def stub(address):
    with grpc.insecure_channel(address) as channel:
        yield DraftServiceStub(channel)


class Recorded:
    """A method of a client, and how many tokens of each row its calls carried."""

    def __init__(self, method):
        self._method = method
        self.sent = []

    def begin(self, request, timeout_s, **options):
        self.sent.append(np.frombuffer(request.suffix_lengths, "<i4").tolist())
        return self._method.begin(request, timeout_s, **options)


def recorded(client):
    client._suffixes._method = Recorded(client._suffixes._method)
    return client._suffixes._method.sent


@pytest.mark.parametrize("pad_to_nodes", [0, 8])
def test_a_client_gets_the_trees_of_a_local_one_and_sends_rows_whole_but_once(address, pad_to_nodes):
    local = LocalClient(session_engine())
    generations, num_nodes = Generations(2, 5), 0
    for name in generations.texts:
        generations.texts[name] *= 10
    with DraftClient(address, timeout_s=TIMEOUT_S, pad_to_nodes=pad_to_nodes) as client:
        assert isinstance(client, SuffixSource)
        sent = recorded(client)
        for _ in range(60):
            rows = [generations.texts[name] for name in generations.step()]
            namespace = f"twin-{pad_to_nodes}"
            found = client.draft_suffixes(rows, max_nodes=8, namespace=namespace)
            expected = local.draft_suffixes(rows, max_nodes=8, namespace=namespace)
            assert list(map(facts, found)) == list(map(facts, expected))
            num_nodes += sum(map(len, found))
    assert num_nodes > 300
    whole = [length for lengths in sent for length in lengths if length > SENT_TOKENS]
    # Each row once when it is new, and once after it was cut.
    assert 5 <= len(whole) <= 5 + 20
    assert sum(map(len, sent)) > 100


@pytest.mark.row("P1")
def test_a_server_that_does_not_know_a_row_is_told_all_of_it_in_the_next_step(address):
    with DraftClient(address, timeout_s=TIMEOUT_S) as client:
        sent = recorded(client)
        text = list(range(300))
        client._suffixes._known.replace([np.array(text, np.int32)])  # as if another process had it
        for added in ([], [7], [7, 8]):
            client.draft_suffixes([[*text, *added]], namespace="told")
        assert sent == [[SENT_TOKENS], [301], [SENT_TOKENS]]


def test_rows_with_costs_and_without_nodes_are_answered(address):
    with DraftClient(address, timeout_s=TIMEOUT_S) as client:
        assert client.draft_suffixes([]) == []
        empty, full = client.draft_suffixes([[], [1, 2, 3] * 5])
        assert len(full) > 0
        assert isinstance(empty, DraftTree)
        assert list(map(len, client.draft_suffixes([[1, 2, 3] * 5], max_nodes=0))) == [0]
        with pytest.raises(InvalidTokens):
            client.draft_suffixes([[VOCAB_SIZE]])
    with pytest.raises(ServiceUnavailable), DraftClient("unix:/nowhere", timeout_s=0.1) as client:
        client.draft_suffixes([[1]])


def request_of(*rows, **fields):
    request = pb.DraftSuffixesRequest(**fields)
    wire.write_suffixes(request, [wire.Suffix(np.array(t, np.int32), length, 4) for t, length in rows], 64)
    return request


def columns(**changes):
    request = request_of(([1, 2], 2), ([3], 9), namespace="door")
    for name, value in changes.items():
        setattr(request, name, value)
    return request


def I32(*values):
    return np.array(values, "<i4").tobytes()


def I64(*values):
    return np.array(values, "<i8").tobytes()


@pytest.mark.row("C1")
@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"context_lengths": I64(2)}, "INVALID_ARGUMENT"),
        ({"context_lengths": I64(2, 9)[:-1]}, "INVALID_ARGUMENT"),
        ({"context_lengths": I64(1, 9)}, "INVALID_ARGUMENT"),
        ({"context_lengths": I64(-1, 9)}, "INVALID_ARGUMENT"),
        ({"context_lengths": I64(*[1] * 1_025)}, "RESOURCE_EXHAUSTED"),
        ({"suffix_lengths": I32(2)}, "INVALID_ARGUMENT"),
        ({"suffix_lengths": I32(4, -1)}, "INVALID_ARGUMENT"),
        (
            {"suffix_lengths": I32(2**31 - 1, 2**31 - 1), "context_lengths": I64(2**62, 2**62)},
            "INVALID_ARGUMENT",
        ),
        ({"suffix_token_ids": I32(1, 2, 3, 4)}, "INVALID_ARGUMENT"),
        ({"suffix_token_ids": b"12345"}, "INVALID_ARGUMENT"),
        ({"max_nodes": I32(1)}, "INVALID_ARGUMENT"),
        ({"max_nodes": I32(-5, 2**31 - 1), "total_nodes": 2**31 - 1}, "OK"),
        ({"total_nodes": -1}, "OK"),
        ({"pad_to_nodes": -1}, "OK"),
        ({"pad_to_nodes": 2**31 - 1}, "OK"),
        ({"namespace": "door"}, "OK"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused_at_the_door(stub, changes, code):
    call = stub.DraftSuffixes.future(columns(**changes))
    assert call.code().name == code
    again = stub.DraftSuffixes(columns()).result
    assert np.frombuffer(again.statuses, "<i4").tolist() == [0, 0]


@pytest.mark.row("C1")
def test_rows_that_cannot_be_are_refused_one_by_one(stub):
    rows = [([VOCAB_SIZE], 1), ([-1], 1), ([1], 2**62), ([1], 1)]
    response = stub.DraftSuffixes(request_of(*rows, namespace="rows"))
    assert np.frombuffer(response.result.statuses, "<i4").tolist() == [3, 3, 8, 0]
    assert [error.type for error in response.result.errors] == [
        "InvalidTokens",
        "InvalidTokens",
        "LimitExceeded",
    ]
    assert np.frombuffer(response.missing_tokens, "<i8").tolist() == [1, 1, 2**62, 0]
    refused = stub.DraftSuffixes(request_of(([1], 1), namespace="no name"))
    assert np.frombuffer(refused.result.statuses, "<i4").tolist() == [3]


@pytest.mark.row("T1")
def test_a_tenant_reaches_only_rows_of_its_own(tmp_path):
    tokens = {name: f"{name}-and-its-long-token" for name in ("alpha", "bravo")}
    (tmp_path / "tokens").write_text("".join(f"{name} {token}\n" for name, token in tokens.items()))
    (tmp_path / "tokens").chmod(0o600)
    engine = session_engine()
    config = ServerConfig(tokens=str(tmp_path / "tokens"))
    text = list(range(100))
    with (
        server_thread(f"unix:{tmp_path}/s.sock", engine, config) as address,
        grpc.insecure_channel(address) as channel,
    ):
        ask = DraftServiceStub(channel).DraftSuffixes
        missing = []
        for name, row in (("alpha", (text, 100)), ("bravo", (text[-20:], 100)), ("alpha", (text[-20:], 100))):
            metadata = (("authorization", f"Bearer {tokens[name]}"),)
            response = ask(request_of(row, namespace="same"), metadata=metadata)
            missing.append(np.frombuffer(response.missing_tokens, "<i8").tolist())
        assert missing == [[0], [80], [0]]
        for namespace in ("alpha/same", "bravo/same"):
            metadata = (("authorization", f"Bearer {tokens['alpha']}"),)
            response = ask(request_of((text[-20:], 100), namespace=namespace), metadata=metadata)
            assert np.frombuffer(response.result.statuses, "<i4").tolist() == [3], "no name has two slashes"
        call = ask.future(request_of((text, 100)))
        assert call.code() is grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.row("V1", "V4")
def test_a_server_that_dies_costs_drafts_and_no_exception_and_is_found_again(tmp_path):
    listen, text = f"unix:{tmp_path}/s.sock", [1, 2, 3] * 70
    with DraftClient(listen, timeout_s=2.0) as client:
        with server_process(listen) as (process, _):
            assert len(client.draft_suffixes([text])[0]) > 0
            process.kill()
            process.wait()
            assert [len(client.draft_suffixes([text])[0]) for _ in range(50)] == [0] * 50
        with server_process(listen):
            tree = first_draft(client, text)
            assert tree.token_ids[0] == 4


def first_draft(client, text):
    give_up_s = time.monotonic() + 20
    while time.monotonic() < give_up_s:
        tree = client.draft_suffixes([text], max_nodes=8, namespace="hostile")[0]
        if len(tree):
            return tree
    pytest.fail("drafts did not come back")


def answered(change):
    """A method whose answers are changed on their way."""

    class Done:
        def __init__(self, response):
            self._response = response

        def result(self, timeout=None):
            return self._response

        def done(self):
            return True

    class Changed:
        def __init__(self, method):
            self._method = method

        def begin(self, request, timeout_s, **options):
            response = self._method.begin(request, timeout_s, **options).result(timeout=timeout_s)
            change(response)
            return Done(response)

    return Changed


def set_to(name, value):
    return lambda response: setattr(response.result, name, value)


@pytest.mark.row("V3")
@pytest.mark.parametrize(
    "change",
    [
        lambda response: setattr(response, "missing_tokens", b""),
        lambda response: setattr(response, "missing_tokens", bytes(16)),
        set_to("token_ids", I32(*[VOCAB_SIZE] * 8)),
        set_to("token_ids", b""),
        set_to("parents", I32(*range(8))),
        set_to("probs", np.full(8, np.nan, "<f4").tobytes()),
        set_to("node_counts", I32(2**31 - 1)),
        set_to("node_counts", I32(-1)),
        set_to("statuses", I32(0, 0)),
        set_to("incarnation", 5),
    ],
    ids=range(10),
)
def test_hostile_answers_to_rows_are_dropped(address, change):
    with DraftClient(address, timeout_s=TIMEOUT_S) as client:
        text = [1, 2, 3] * 5
        assert len(client.draft_suffixes([text], max_nodes=8, namespace="hostile")[0]) == 8
        true = client._suffixes._method
        client._suffixes._method = answered(change)(true)
        assert len(client.draft_suffixes([text], max_nodes=8, namespace="hostile")[0]) == 0
        client._suffixes._method = true
        assert len(first_draft(client, text)) == 8


def test_sources_that_come_while_the_server_runs_are_learned_with_the_next_row_that_is_new(address):
    with DraftClient(address, timeout_s=TIMEOUT_S) as client:
        assert len(client.draft_suffixes([[1, 2, 3] * 5], max_nodes=8, namespace="more")[0]) == 8
        names = client._peer.source_names
        client._peer.info = pb.ServerInfo.FromString(client._peer.info.SerializeToString())
        del client._peer.info.source_names[1:]
        client._peer.source_names = names[:1]
        found = client.draft_suffixes([[1, 2, 3] * 5, [4, 5, 6] * 5], max_nodes=8, namespace="more")
        assert client._peer.source_names == names
        assert [len(tree) for tree in found] == [8, 8]


@pytest.mark.row("V1")
def test_a_late_answer_holds_nobody_up_twice(address):
    class Never:
        cancelled_ = False

        def begin(self, request, timeout_s, **options):
            return self

        def result(self, timeout=None):
            raise grpc.FutureTimeoutError

        def done(self):
            return False

        def cancel(self):
            self.cancelled_ = True

    never = Never()
    with DraftClient(address, timeout_s=TIMEOUT_S) as client:
        client.draft_suffixes([[1, 2]])
        client._suffixes._method = never
        assert [len(client.draft_suffixes([[1, 2]])[0]) for _ in range(3)] == [0, 0, 0]
    assert never.cancelled_


def test_what_is_known_of_rows_follows_them_and_is_bounded(monkeypatch):
    known, rng = KnownRows(), random.Random(0)
    rows = [np.array([rng.randrange(100) for _ in range(200)], np.int32) for _ in range(20)]
    assert not any(map(known.knows, rows))
    for _ in range(30):
        known.replace(rows)
        assert all(map(known.knows, rows))
        rows = [
            np.append(row, np.array(rng.choices(range(100), k=rng.randrange(100)), np.int32)) for row in rows
        ]
        assert all(map(known.knows, rows))
    assert known._count <= 20
    known.forget(rows[0])
    assert [known.knows(row) for row in rows[:2]] == [False, True]
    assert not known.knows(np.append(rows[1], np.arange(200, dtype=np.int32)))
    monkeypatch.setattr("retrieval_spec.client.suffixes.MAX_KNOWN", 30)
    for number in range(100):
        known.replace([np.array([number, 5], np.int32)])
        assert known._count <= 31
    known.clear()
    assert not any(map(known.knows, rows))
