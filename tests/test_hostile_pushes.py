"""A server that pushes what nobody asked for: no unsound tree, no hang, no memory, and the same output."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import pytest

from retrieval_spec import wire
from retrieval_spec.client import DraftClient, breaker
from retrieval_spec.service import server
from retrieval_spec.service.servicer import Servicer
from retrieval_spec.tree import DraftTree
from retrieval_spec.v1 import draft_pb2 as pb
from tests.service_process import VOCAB_SIZE, counting_engine, server_thread
from tests.standin import verified
from tests.test_client import node_column

pytestmark = pytest.mark.row("V3")

MAX_NODES = 4
TIMEOUT_S = 5.0
TEXT = [7, 8, 9, 10, 40, 41, 42, 90, 11, 12, 13, 500, 501, 7, 8, 9]


class Liar(Servicer):
    """Answers as it should, and around each answer sends what the test says."""

    latest: Liar

    def __init__(self, engine, peers):
        super().__init__(engine, peers)
        self.before = self.after = lambda request, result: ()
        self.num_sent = 0
        Liar.latest = self

    async def DraftStream(self, request_iterator, context):
        async for request in request_iterator:
            if request.ended:
                continue
            response = pb.DraftStreamResponse()
            self.answer(request.step, response.result)
            is_empty = not request.step.session_ids
            for message in () if is_empty else self.before(request, response.result):
                self.num_sent += 1
                yield message
            yield response
            for message in () if is_empty else self.after(request, response.result):
                self.num_sent += 1
                yield message


@pytest.fixture(scope="module")
def liar(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setattr(server, "Servicer", Liar)
    patch.setattr(breaker, "FIRST_PAUSE_S", 0.01)
    patch.setattr(breaker, "LONGEST_PAUSE_S", 0.01)
    with server_thread(f"unix:{tmp_path_factory.mktemp('liar')}/s.sock", counting_engine()) as address:
        patch.undo()
        yield Liar.latest, address


def push(result, outcomes, trees) -> pb.DraftStreamResponse:
    """What a server may send after an answer, about any outcomes."""
    message = pb.DraftStreamResponse()
    wire.write_ahead(message.ahead, [np.array(one, np.int32) for one in outcomes], trees)
    message.ahead.trees.step_number, message.ahead.trees.incarnation = result.step_number, result.incarnation
    return message


def likely(result, num_outcomes: int = 3) -> pb.DraftStreamResponse:
    """A sound push about what may come next: half of it comes true, its trees are of another session."""
    outcomes = [[token] for token in TEXT] + [[token, token + 1] for token in TEXT[:num_outcomes]]
    return push(result, outcomes, [DraftTree.chain([1_000, 1_001], [0.5, 0.5])] * len(outcomes))


def spoilt(change):
    """A push that is sound but for one thing."""

    def messages(request, result):
        message = likely(result)
        change(message.ahead)
        return (message,)

    return messages


def of_trees(name, values, dtype):
    def change(ahead):
        count = len(ahead.outcome_lengths) // 4
        node_column(name, values * count, dtype)(None, ahead.trees)

    return change


def lengths(values):
    def change(ahead):
        ahead.outcome_lengths = np.array(values, "<i4").tobytes()

    return change


def other_step(difference):
    def change(ahead):
        ahead.trees.step_number += difference

    return change


def other_process(ahead):
    ahead.trees.incarnation ^= 1


def cut(ahead):
    ahead.trees.token_ids = ahead.trees.token_ids[:-2]


def nothing(ahead):
    ahead.Clear()


SOUND = {"trees of another session", "the next step", "twice", "thousands"}
"""Those that may be believed: they cost no more than a bad draft does."""

AFTER = {
    "trees of another session": spoilt(lambda ahead: None),
    "an earlier step": spoilt(other_step(-1)),
    "a later step": spoilt(other_step(7)),
    "another process": spoilt(other_process),
    "own parent": spoilt(of_trees("parents", [-1, 1], "<i4")),
    "later parent": spoilt(of_trees("parents", [1, -1], "<i4")),
    "least parent": spoilt(of_trees("parents", [-(2**31), 0], "<i4")),
    "token past the vocabulary": spoilt(of_trees("token_ids", [1, VOCAB_SIZE], "<i4")),
    "negative token": spoilt(of_trees("token_ids", [-1, 1], "<i4")),
    "no number": spoilt(of_trees("probs", [0.5, float("nan")], "<f4")),
    "probability above one": spoilt(of_trees("probs", [0.5, 1.5], "<f4")),
    "unknown source": spoilt(of_trees("sources", [1, 64], "<u2")),
    "huge counts": spoilt(of_trees("node_counts", [2**31 - 1], "<i4")),
    "negative counts": spoilt(of_trees("node_counts", [-2], "<i4")),
    "failed trees": spoilt(of_trees("statuses", [13], "<i4")),
    "more nodes than asked for": lambda request, result: (
        push(result, [[token] for token in TEXT], [DraftTree.chain([*range(2 * MAX_NODES)])] * len(TEXT)),
    ),
    "equal siblings": spoilt(
        lambda ahead: (
            of_trees("parents", [-1, -1], "<i4")(ahead),
            of_trees("token_ids", [3, 3], "<i4")(ahead),
        )
    ),
    "cut column": spoilt(cut),
    "endless outcome": spoilt(lengths([2**31 - 1] * 19)),
    "negative outcome": spoilt(lengths([-1] * 19)),
    "too many outcomes": spoilt(lengths([1] * 4_000)),
    "nothing at all": spoilt(nothing),
    "the next step": spoilt(other_step(1)),
    "twice": lambda request, result: (likely(result), likely(result)),
    "thousands": lambda request, result: (likely(result) for _ in range(400)),
}


def expect_sound(tree: DraftTree) -> None:
    """Whether a tree keeps its contract, looked at node by node."""
    assert len(tree) <= MAX_NODES
    siblings = list(zip(tree.parents.tolist(), tree.token_ids.tolist(), strict=True))
    assert len(set(siblings)) == len(siblings)
    for node, (parent, token) in enumerate(siblings):
        assert -1 <= parent < node
        assert 0 <= token < VOCAB_SIZE
        assert 0.0 <= tree.probs[node] <= 1.0


def generate(client: DraftClient, text: list[int] = TEXT) -> int:
    """Writes the text; returns how many drafted tokens were accepted."""
    session = client.open_session([1], "pushed")
    written, accepted = [], 0
    while len(written) < len(text):
        began_s = time.monotonic()
        tree = session.draft(MAX_NODES)
        assert time.monotonic() - began_s < TIMEOUT_S + 1.0
        expect_sound(tree)
        decided = verified(tree, text[len(written) :])
        session.commit(decided)
        written += decided
        accepted += len(decided) - 1
    assert written == text
    session.close()
    return accepted


@pytest.mark.parametrize("kind", AFTER)
def test_no_push_makes_a_tree_unsound_or_a_step_hang(liar, kind):
    servicer, address = liar
    servicer.before, servicer.after = lambda request, result: (), AFTER[kind]
    servicer.num_sent = 0
    with DraftClient(address, timeout_s=TIMEOUT_S, ahead_outcomes=8) as client:
        accepted = generate(client)
        assert client.counters.bugs == client.counters.missed == 0
        assert servicer.num_sent > 3
        if kind not in SOUND:
            assert client.counters.foreseen == 0
            assert accepted == 9, "what the session itself drafts is used all the same"


def test_a_sound_push_is_used_so_that_a_lie_about_it_would_show(liar):
    servicer, address = liar
    servicer.before, servicer.after = lambda request, result: (), AFTER["trees of another session"]
    with DraftClient(address, timeout_s=TIMEOUT_S, ahead_outcomes=8) as client:
        session = client.open_session([1])
        session.draft(MAX_NODES)
        pushes = client._asker._foresight._pushes
        deadline_s = time.monotonic() + TIMEOUT_S
        while pushes._kept is None:
            assert time.monotonic() < deadline_s
        session.commit([7])
        assert session.draft(MAX_NODES).token_ids.tolist() == [1_000, 1_001]


def test_pushes_before_the_answer_and_for_sessions_that_are_closed_come_to_nothing(liar):
    servicer, address = liar
    servicer.after = lambda request, result: ()
    servicer.before = lambda request, result: (likely(result) for _ in range(10))
    with DraftClient(address, timeout_s=TIMEOUT_S, ahead_outcomes=8) as client:
        generate(client)
        first, second = client.open_session([1]), client.open_session([1])
        first.draft(MAX_NODES)
        first.close()
        second.commit([7])
        assert second.draft(MAX_NODES).token_ids.tolist() == [8, 9, 10, 11], "of its own"
        assert client.counters.bugs == 0


def test_pushes_without_end_in_place_of_an_answer_cost_one_wait(liar):
    servicer, address = liar
    servicer.after = lambda request, result: ()
    with DraftClient(address, timeout_s=0.2, ahead_outcomes=8) as client:
        session = client.open_session([1])

        def endless(request, result):
            while True:
                yield likely(result)

        servicer.before = endless
        began_s = time.monotonic()
        assert len(session.draft(MAX_NODES)) == 0
        for token in range(200):
            session.commit([token])
            assert len(session.draft(MAX_NODES)) == 0
        assert time.monotonic() - began_s < 2.0
        assert client.counters.bugs == 0


@pytest.mark.skipif(sys.platform != "linux", reason="reads resident memory from /proc")
def test_pushes_take_no_memory(liar):
    servicer, address = liar
    servicer.before = lambda request, result: ()
    size = wire.MAX_AHEAD_BYTES // 2

    def large(request, result):
        message = likely(result)
        message.ahead.outcome_token_ids += bytes(size)
        return (message for _ in range(200))

    with DraftClient(address, timeout_s=TIMEOUT_S, ahead_outcomes=8) as client:
        generate(client)
        servicer.after = large
        before, servicer.num_sent = resident_bytes(), 0
        while servicer.num_sent * size < 150 << 20:
            generate(client)
        assert resident_bytes() - before < 48 << 20


def resident_bytes() -> int:
    """Of this process, in which client and server are."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) * 1024
