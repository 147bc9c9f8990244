"""News of a session that is no longer what it was when they were asked for: answers, losses and pushes."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from retrieval_spec import wire
from retrieval_spec.client import DraftClient
from retrieval_spec.client.ahead import Foresight, Pushes
from retrieval_spec.client.steps import Counters, Question, Step
from retrieval_spec.service.servicer import Servicer
from retrieval_spec.tree import DraftTree
from retrieval_spec.v1 import draft_pb2 as pb
from tests.service_process import counting_engine, server_thread
from tests.strategies import as_int32

TIMEOUT_S = 20.0


class Seen(Servicer):
    """The real servicer, which keeps what it is told of sessions that end."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.closed = []

    def end(self, request, *owner):
        self.closed.append(request)
        super().end(request, *owner)


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setattr("retrieval_spec.service.server.Servicer", Seen)
    servers = []
    with server_thread(f"unix:{tmp_path}/s.sock", counting_engine(), servers=servers) as address:
        yield servers[0]._servicer, address


class Held:
    """A transport whose answers come when the test says so, or whose questions get lost."""

    def __init__(self, transport):
        self._transport = transport
        self.drop = transport.drop
        self.new_request = transport.new_request
        self.holds_answers = self.loses_questions = False

    def send(self, request, **options):
        if not self.loses_questions:
            self._transport.send(request, **options)

    def receive(self, timeout_s):
        return None if self.holds_answers else self._transport.receive(TIMEOUT_S)


@pytest.fixture
def held(server):
    """A client, its transport, and a session that was drafted for."""
    with DraftClient(server[1], timeout_s=TIMEOUT_S) as client:
        session = client.open_session([1])
        assert session.draft(2).token_ids.tolist() == [2, 3]
        client._asker._transport = transport = Held(client._asker._transport)
        yield client, transport, session


@pytest.mark.row("P1")
def test_an_answer_says_nothing_of_a_session_that_was_lost_meanwhile(held):
    client, transport, session = held
    transport.holds_answers = True
    session.commit([2])
    assert len(session.draft(2)) == 0
    session.truncate(1)  # nobody knows whether the server reads that before or after the question
    assert session.is_lost
    before = (session.server_length, session.sent_length, session.epoch)
    transport.holds_answers = False
    client.draft_batch([client.open_session([5])], 2)  # takes in the answer
    assert (session.server_length, session.sent_length, session.epoch) == before
    session.commit([8])
    assert session.draft(2).token_ids.tolist() == [9, 10]


@pytest.mark.row("P1")
def test_tokens_of_a_lost_question_are_told_when_the_session_ends(server, held):
    client, transport, session = held
    transport.loses_questions = transport.holds_answers = True
    session.commit([2, 3])
    assert len(session.draft(2)) == 0
    client._asker.drop()
    session.close()
    client.close()
    (told,) = server[0].closed
    assert (told.context_length, told.commit_token_ids) == (1, wire.token_bytes(as_int32([2, 3])))


def test_a_draft_ahead_is_not_used_in_a_context_that_was_cut_and_written_anew():
    session = SimpleNamespace(
        epoch=0, is_lost=False, sent_length=None, cutting=None, server_length=4, context_length=6,
        has_feedback=False, must_tell=lambda curve: False, context=as_int32([1, 2, 3, 4, 7, 8]),
    )  # fmt: skip
    question = Question(0.0, [0], [session], [0], [4], [2], 2)
    outcome, tree = as_int32([7, 8]), DraftTree.chain([9], [0.5])

    def foreseen():
        peer = SimpleNamespace(vocab_size=100, source_names=("one",), incarnation_seen=3)
        foresight = Foresight(peer, pushes := Pushes(), Counters(), 8)
        request, message = pb.DraftStreamRequest(), pb.DraftAhead()
        request.step.step_number = message.trees.step_number = 5
        message.trees.incarnation = 3
        wire.write_ahead(message, [outcome], [tree])
        foresight.ask(request, question)
        pushes.put(message)
        return foresight.tree_for(Step([session], [2], 2, None, [DraftTree.empty()], 0.0))

    assert foreseen() == DraftTree(tree.token_ids, tree.parents, tree.probs, tree.sources, ("one",))
    session.server_length = 2  # cut there, and as much was written anew since
    assert foreseen() is None


@pytest.mark.row("C6")
@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ("ABORTED", "ContextMismatch"),
        ("NOT_FOUND", "NotFound"),
        ("FAILED_PRECONDITION", "DatastoreError"),
        ("RESOURCE_EXHAUSTED", "LimitExceeded"),
        ("INVALID_ARGUMENT", "InvalidRequest"),
        ("UNAUTHENTICATED", "Unauthenticated"),
        ("ALREADY_EXISTS", "DatastoreExists"),
        ("DATA_LOSS", "DatastoreCorrupt"),
        ("UNAVAILABLE", "ServiceUnavailable"),
    ],
)
def test_a_status_that_comes_without_a_class_stands_for_the_same_trouble(status, expected):
    error = wire.error_from("", status, "said by a proxy")
    assert (type(error).__name__, str(error)) == (expected, "said by a proxy")
    assert error.grpc_status == status
