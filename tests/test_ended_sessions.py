"""Sessions that end are told of on the stream: nothing is answered or lost, and room is there at once."""

from __future__ import annotations

import grpc
import pytest

from retrieval_spec import wire
from retrieval_spec.client import DraftClient
from retrieval_spec.engine import Engine
from retrieval_spec.limits import Limits
from retrieval_spec.service import server
from retrieval_spec.service.peers import ANYBODY
from retrieval_spec.service.servicer import Servicer
from retrieval_spec.v1 import draft_pb2 as pb
from retrieval_spec.v1.draft_pb2_grpc import DraftServiceStub
from tests.service_process import server_thread
from tests.strategies import as_int32

VOCAB_SIZE = 1_000
PATIENCE_S = 20.0


class Watched(Servicer):
    """The real servicer, which says how sessions end."""

    latest: Watched
    knows_of_ends = True

    def __init__(self, engine, peers):
        super().__init__(engine, peers)
        self.on_calls, self.ended = [], []
        Watched.latest = self

    def refresh_info(self):
        super().refresh_info()
        self.info.takes_ended = self.knows_of_ends

    async def CloseSession(self, request, context):
        self.on_calls.append(request)
        return await super().CloseSession(request, context)

    def end(self, request, owner=ANYBODY):
        super().end(request, owner)
        self.ended.append(request.session_id)


@pytest.fixture
def watched(tmp_path, monkeypatch):
    """A server with room for two sessions that are used, and its address."""
    monkeypatch.setattr(server, "Servicer", Watched)
    engine = Engine(VOCAB_SIZE, limits=Limits(max_sessions=2, max_tenant_sessions=2))
    with server_thread(f"unix:{tmp_path}/s.sock", engine) as address:
        yield Watched.latest, address


@pytest.mark.row("P1")
def test_an_ended_session_makes_room_and_teaches_without_a_call_of_its_own(watched):
    servicer, address = watched
    with DraftClient(address, timeout_s=PATIENCE_S) as client:
        staying = client.open_session([1, 2])
        for turn in range(30):
            session = client.open_session([turn, 7, 8])  # refused where the one before were still open
            session.draft(4)
            session.commit([100 + turn, 200 + turn, 300 + turn])
            session.close()
        learned = client.open_session([9, 129, 229]).draft(16)
    assert staying.is_open
    assert 329 in learned.token_ids.tolist()
    assert servicer.on_calls == []
    assert len(set(servicer.ended)) == len(servicer.ended) == 30


@pytest.mark.row("P1")
def test_a_client_that_ends_waits_until_the_last_session_was_heard_of(watched):
    servicer, address = watched
    for turn in range(10):
        client = DraftClient(address, timeout_s=PATIENCE_S)
        session = client.open_session([1, 2, 3])
        session.draft(2)
        session.commit([4, 5])
        session.close()
        client.close()
        assert len(servicer.ended) == turn + 1
    assert servicer.on_calls == []


def test_a_server_that_hears_nothing_on_streams_is_called(watched, monkeypatch):
    servicer, address = watched
    monkeypatch.setattr(Watched, "knows_of_ends", False)
    servicer.refresh_info()
    with DraftClient(address, timeout_s=PATIENCE_S) as client:
        session = client.open_session([1, 2, 3])
        session.draft(2)
        session.close()
    assert len(servicer.on_calls) == len(servicer.ended) == 1


def test_too_many_at_once_are_refused_and_none_is_ended(watched):
    servicer, address = watched
    mine = servicer.sessions.open(as_int32([1, 2]), "default")
    endings = [pb.CloseSessionRequest(session_id=mine, context_length=2)] * (wire.MAX_ENDED + 1)
    with grpc.insecure_channel(address) as channel:
        stub = DraftServiceStub(channel)
        for ask in (
            lambda: list(stub.DraftStream(iter([pb.DraftStreamRequest(ended=endings)]))),
            lambda: stub.OpenSession(pb.OpenSessionRequest(ended=endings)),
        ):
            with pytest.raises(grpc.RpcError) as refused:
                ask()
            assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert len(servicer.sessions) == 1


def test_what_cannot_be_ended_is_no_error_and_asks_nothing(watched):
    servicer, address = watched
    mine = servicer.sessions.open(as_int32([1, 2]), "default")
    endings = [
        pb.CloseSessionRequest(session_id=12_345),
        pb.CloseSessionRequest(session_id=mine, context_length=9),  # ends, but commits nothing
        pb.CloseSessionRequest(session_id=mine, commit_token_ids=b"abc"),
    ]
    questions = [
        pb.DraftStreamRequest(ended=endings, step=pb.DraftStep(step_number=1)),
        pb.DraftStreamRequest(step=pb.DraftStep(step_number=2)),
    ]
    with grpc.insecure_channel(address) as channel:
        answers = list(DraftServiceStub(channel).DraftStream(iter(questions)))
    assert [answer.result.step_number for answer in answers] == [2]
    assert len(servicer.sessions) == 0
