"""Drafts ahead over gRPC: the same trees without waiting, hostile messages dropped, work that is bounded."""

from __future__ import annotations

import asyncio
import time
from itertools import count

import numpy as np
import pytest

from retrieval_spec import wire
from retrieval_spec.client import DraftClient, LocalClient
from retrieval_spec.client.ahead import Pushes
from retrieval_spec.engine import Engine
from retrieval_spec.errors import InvalidRequest, InvalidTokens, InvalidTree
from retrieval_spec.feedback import Feedback
from retrieval_spec.limits import Limits
from retrieval_spec.service import ahead
from retrieval_spec.service.ahead import MOST_CREDIT_S, Ahead, Allowance, Arrivals, Task
from retrieval_spec.service.sessions import SessionTable
from retrieval_spec.tree import DraftTree
from retrieval_spec.v1 import draft_pb2 as pb
from tests.service_process import server_thread
from tests.strategies import as_int32
from tests.test_ahead import VOCAB_SIZE, decided, some_text

TIMEOUT_S = 20.0


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    servers = []
    listen = f"unix:{tmp_path_factory.mktemp('ahead')}/s.sock"
    engine = Engine(VOCAB_SIZE, limits=Limits(max_ahead_outcomes=8))
    with server_thread(listen, engine, servers=servers) as address:
        yield address, servers[0]._servicer


@pytest.fixture
def client(server):
    with DraftClient(server[0], timeout_s=TIMEOUT_S, ahead_outcomes=8) as client:
        yield client


def until(condition) -> None:
    deadline_s = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.001)


def generate(source, text: list[int], namespace: str, between=lambda: None) -> list[DraftTree]:
    session, at, trees = source.open_session(text[:60], namespace), 60, []
    while at < len(text):
        trees.append(session.draft(12))
        between()
        tokens = decided(trees[-1], text[at:])
        session.commit(tokens)
        at += len(tokens)
    session.close()
    return trees


def test_trees_are_the_same_and_some_were_there_before_the_question(server, client):
    servicer = server[1]
    ahead, pushes = servicer.ahead, client._asker._foresight._pushes
    steps, sent = count(ahead.steps + 1), [ahead.messages]

    def between() -> None:
        """Waits until the server is done with the step, and what it drafted ahead has come."""
        done = next(steps)
        until(lambda: ahead.steps >= done)
        until(lambda: ahead.messages == sent[0] or pushes._kept is not None)
        sent[0] = ahead.messages

    text = some_text(5, 400)
    expected = generate(LocalClient(Engine(VOCAB_SIZE)), text, "one")
    assert generate(client, text, "one", between) == expected
    counters = client.counters
    assert counters.foreseen > 3
    assert counters.asked == len(expected)
    assert (counters.ahead_dropped, counters.missed, counters.bugs, counters.failures) == (0, 0, 0, 0)
    assert servicer.ahead.hits >= counters.foreseen


def test_trees_are_the_same_where_questions_come_at_once(client):
    text = some_text(6, 400)
    assert generate(client, text, "two") == generate(LocalClient(Engine(VOCAB_SIZE)), text, "two")


def foreseeing(client):
    """A session that copies, and the tokens that will be committed as foreseen."""
    session = client.open_session([*range(40)] * 2, "copies")
    tokens = decided(session.draft(8), [*range(40)])
    pushes = client._asker._foresight._pushes
    until(lambda: pushes._kept is not None)
    session.commit(tokens)
    return session


def test_a_foreseen_answer_is_not_waited_for_and_the_server_is_told_all_the_same(server, client):
    session = foreseeing(client)
    assert client._asker._question is None
    tree = session.draft(8)
    assert client.counters.foreseen == 1
    assert client._asker._question is not None  # on its way
    assert tree.token_ids.tolist()[:3] == [9, 10, 11]
    session.commit([7])
    assert session.draft(4) is not None
    assert session.server_length == 90


@pytest.mark.parametrize(
    "change",
    [
        lambda session: session.draft(7),
        lambda session: session.commit([30]),
        lambda session: session.truncate(session.context_length - 1),
        lambda session: session._client.draft_batch([session, session._client.open_session([1])], 8),
    ],
    ids=["other nodes", "more tokens", "fewer tokens", "another session too"],
)
def test_another_question_is_asked_as_ever(client, change):
    session = foreseeing(client)
    change(session)
    session.draft(8)
    assert client.counters.foreseen == 0


def test_feedback_makes_another_question(server, client):
    session = client.open_session([*range(40)] * 2, "feedback")
    tokens = decided(session.draft(8), [*range(40)])
    until(lambda: client._asker._foresight._pushes._kept is not None)
    session.commit(tokens, Feedback(as_int32([39]), as_int32([-1])))
    session.draft(8)
    assert client.counters.foreseen == 0


def test_a_client_asks_for_drafts_ahead_only_where_they_can_come():
    for options in ({"transport": "unary"}, {"pad_to_nodes": 4}):
        with pytest.raises(InvalidRequest):
            DraftClient("unix:/nowhere", ahead_outcomes=4, **options)
    with pytest.raises(InvalidRequest):
        DraftClient("unix:/nowhere", ahead_outcomes=65)


def message_of(outcomes=((1,), (2, 3)), step_number=1, **columns) -> pb.DraftAhead:
    message = pb.DraftAhead()
    message.trees.step_number = step_number
    trees = [DraftTree.chain([5, 6], [0.5, 0.5]) for _ in outcomes]
    wire.write_ahead(message, [as_int32(outcome) for outcome in outcomes], trees)
    for name, value in columns.items():
        setattr(message if name.startswith("outcome") else message.trees, name, value)
    return message


def read(message: pb.DraftAhead) -> dict[bytes, DraftTree]:
    return wire.read_ahead(message, 4, VOCAB_SIZE, ("a",))


def test_a_message_holds_a_tree_for_each_outcome():
    trees = read(message_of())
    assert [np.frombuffer(tokens, np.int32).tolist() for tokens in trees] == [[1], [2, 3]]
    assert all(tree.token_ids.tolist() == [5, 6] for tree in trees.values())
    assert read(message_of(())) == {}


@pytest.mark.row("V3")
@pytest.mark.parametrize(
    "columns",
    [
        {"outcome_lengths": b"\1\0\0\0\2\0\0"},
        {"outcome_lengths": b"\1\0\0\0\3\0\0\0"},
        {"outcome_lengths": b"\0\0\0\0\3\0\0\0"},
        {"outcome_lengths": b"\xff\xff\xff\xff\4\0\0\0"},
        {"outcome_lengths": b"\1\0\0\0" * 65, "outcome_token_ids": b"\0" * 260},
        {"node_counts": b"\5\0\0\0\2\0\0\0"},
        {"parents": b"\1\0\0\0" * 4},
        {"token_ids": b"\x32\0\0\0" * 4},
        {"probs": b"\xff" * 16},
        {"sources": b"\2\0" * 4},
        {"statuses": b""},
    ],
)
def test_hostile_messages_are_refused(columns):
    with pytest.raises((InvalidRequest, InvalidTree, InvalidTokens)):
        read(message_of(**columns))


def test_messages_are_kept_only_where_one_is_waited_for():
    pushes = Pushes()
    pushes.put(message_of())  # unasked
    pushes.expect(1, read)
    pushes.put(message_of(step_number=2))  # of another step
    pushes.put(message_of())
    pushes.put(message_of())  # twice
    assert pushes.num_dropped == 3
    assert len(pushes.take()) == 2
    pushes.put(message_of())  # late
    pushes.expect(2, read)
    pushes.put(message_of())
    pushes.put(message_of(step_number=2, parents=b""))  # malformed
    large = message_of(((1,) * 70_000,), step_number=2)
    pushes.put(large)
    assert pushes.num_dropped == 7
    assert pushes.take() is None


def test_whatever_reading_a_message_raises_the_reading_thread_goes_on():
    def fail(message: pb.DraftAhead) -> dict[bytes, DraftTree]:
        raise RuntimeError

    pushes = Pushes()
    pushes.expect(1, fail)
    pushes.put(message_of())
    assert pushes.num_dropped == 1


class Messages:
    """Messages of a stream, as they are let through."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[int | None] = asyncio.Queue()

    def __aiter__(self) -> Messages:
        return self

    async def __anext__(self) -> int:
        message = await self.queue.get()
        if message is None:
            raise StopAsyncIteration
        return message


def new_ahead(clock=time.perf_counter) -> Ahead:
    return Ahead(SessionTable(Engine(VOCAB_SIZE)), 8, clock, settle_s=0.0)


def drafted_ahead(ahead: Ahead, messages=(), session=None) -> list[ahead.Drafted]:
    """What is drafted ahead for a session while messages come."""

    async def main() -> list[ahead.Drafted]:
        stream = Messages()
        arrivals = Arrivals(stream)
        assert not arrivals.has_next
        for message in messages:
            stream.queue.put_nowait(message)
        tree = session.draft(8)
        found = await ahead.draft(Task(session, tree, 8, None, 4), "tenant", arrivals)
        if messages:
            assert [message async for message in arrivals] == list(messages[:-1])
        arrivals.close()
        return found

    return asyncio.run(main())


def copying_session(length: int = 100):
    return Engine(VOCAB_SIZE).open_session([*range(40)] * (length // 40))


def test_the_next_message_ends_it_and_is_not_lost():
    ahead = new_ahead()
    assert drafted_ahead(ahead, (7, 8, None), copying_session()) == []
    assert (ahead.cancelled, ahead.trees) == (1, 0)
    assert 0 < len(drafted_ahead(ahead, (), copying_session())) <= 4


def test_it_ends_with_its_session_and_has_none_of_very_long_ones(monkeypatch):
    session = copying_session()
    tree = session.draft(8)
    task = Task(session, tree, 8, None, 4)
    assert task.is_current
    session.commit([1])
    assert not task.is_current
    assert len(list(Task(session, tree, 8, None, 4).pieces())) == 1  # none is run, so no outcome is found
    monkeypatch.setattr(ahead, "MAX_CONTEXT_TOKENS", session.context_length - 1)
    assert not list(Task(session, tree, 8, None, 4).pieces())
    assert not list(Task(copying_session(), tree, 0, None, 4).pieces())


def test_it_takes_no_more_than_its_share_of_the_time():
    now_s = [0.0]

    def clock() -> float:  # every look at it takes a tenth of what may be spent at once
        now_s[0] += MOST_CREDIT_S / 10
        return now_s[0]

    ahead = new_ahead(clock)
    for _ in range(40):
        drafted_ahead(ahead, (), copying_session())
    assert ahead.refused > 0
    assert ahead.seconds <= 0.3 * now_s[0] + MOST_CREDIT_S


def test_an_allowance_fills_with_the_clock_up_to_its_limit():
    allowance = Allowance(0.25, 0.0)
    allowance.spend(0.1)
    assert allowance.left_s(0.1) == pytest.approx(MOST_CREDIT_S - 0.1 + 0.025)
    assert allowance.left_s(100.0) == MOST_CREDIT_S
