"""How long answers are held back, with a clock that stands still unless told."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from retrieval_spec.service.callers import MAX_NEW, caller_of, price_s
from retrieval_spec.service.door import (
    CREDIT_S,
    CROWD_CALLS,
    CROWD_S,
    LONGEST_S,
    MAX_CALLERS,
    OPENED_S,
    REFUSED_S,
    Door,
)
from retrieval_spec.service.sessions import SessionTable
from retrieval_spec.v1 import draft_pb2 as pb
from tests.service_process import counting_engine

pytestmark = pytest.mark.row("C4")


class Clock:
    now_s = 1_000.0

    def __call__(self):
        return self.now_s


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def door(clock):
    return Door(clock)


def test_what_is_within_the_credit_is_not_held(door):
    assert [door.wait_s("a", OPENED_S) for _ in range(int(CREDIT_S / OPENED_S))] == pytest.approx([0.0] * 125)


def test_further_refusals_come_one_after_the_other(door):
    waits = [door.wait_s("a", REFUSED_S) for _ in range(60)]
    assert waits[24] == pytest.approx(0.0)
    assert waits[25:] == pytest.approx([REFUSED_S * turn for turn in range(1, 36)])


def test_no_caller_waits_for_another(door):
    for _ in range(500):
        door.wait_s("a", REFUSED_S)
    assert door.wait_s("b", REFUSED_S) == 0.0


def test_time_pays_and_no_credit_is_saved_up_beyond_its_bound(door, clock):
    for _ in range(25):
        door.wait_s("a", REFUSED_S)
    clock.now_s += 10 * REFUSED_S
    assert [door.wait_s("a", REFUSED_S) > 1e-6 for _ in range(11)] == [False] * 10 + [True]
    clock.now_s += 1_000
    assert [door.wait_s("a", REFUSED_S) > 1e-6 for _ in range(26)] == [False] * 25 + [True]


def test_nothing_is_held_for_longer_than_the_bound(door):
    assert max(door.wait_s("a", REFUSED_S) for _ in range(10_000)) == LONGEST_S


def test_the_callers_that_are_remembered_are_bounded_and_the_longest_unused_go_first(door):
    door.wait_s("early", 10 * CREDIT_S)
    for number in range(MAX_CALLERS - 1):
        door.wait_s(str(number), REFUSED_S)
    assert door.wait_s("early", REFUSED_S) > 0
    for number in range(MAX_CALLERS):
        door.wait_s(f"other {number}", REFUSED_S)
    assert len(door._paid_s) == MAX_CALLERS
    assert door.wait_s("early", REFUSED_S) == 0.0


def test_only_a_crowd_of_calls_of_one_caller_costs_something(door):
    async def call(caller, held):
        with door.inside(caller):
            await asyncio.sleep(0)
            before = door.wait_s(caller, 0.0)
            await door.hold(caller)
            held.append(door.wait_s(caller, 0.0) - before)

    async def calls(count):
        held = []
        door.wait_s("a", CREDIT_S)  # all that it has
        await asyncio.gather(*[call("a", held) for _ in range(count)])
        return held

    assert asyncio.run(calls(CROWD_CALLS)) == [0.0] * CROWD_CALLS
    assert max(asyncio.run(calls(CROWD_CALLS + 1))) >= CROWD_S / 2
    assert door._num_calls == {}


def test_callers_are_told_apart_by_tenant_connection_or_what_they_name():
    sessions = SessionTable(counting_engine())
    ours = sessions.open(np.array([1, 2], np.int32), "ours/x")
    opening = pb.OpenSessionRequest(namespace="theirs/" + 1_000 * "y")
    draft = pb.DraftRequest(step=pb.DraftStep(session_ids=ours.to_bytes(8, "little")))
    assert caller_of(opening, "tenant", "unix:", sessions) == "tenant"
    assert caller_of(opening, "", "ipv4:127.0.0.1:5", sessions) == "ipv4:127.0.0.1:5"
    assert caller_of(opening, "", "unix:", sessions) == "theirs"
    assert caller_of(draft, "", "unix:", sessions) == "ours"
    assert caller_of(pb.CloseSessionRequest(session_id=ours), "", "unix:", sessions) == "ours"
    for nobody in (
        pb.DraftRequest(),
        pb.CloseSessionRequest(session_id=ours + 1),
        pb.GetInfoRequest(),
        object(),
    ):
        assert caller_of(nobody, "", "unix:", sessions) == ""
    assert len(caller_of(pb.OpenSessionRequest(namespace=10_000 * "y"), "", "unix:", sessions)) == 64


def test_answers_cost_what_they_are():
    sessions = SessionTable(counting_engine())
    error = pb.SessionError(session_index=0, type="UnknownSession")
    refused = pb.DraftResponse(result=pb.DraftStepResult(statuses=bytes(4), errors=[error]))
    partly = pb.DraftResponse(result=pb.DraftStepResult(statuses=bytes(8), errors=[error]))
    answers = (refused, partly, pb.DraftResponse(), pb.GetInfoResponse())
    assert [price_s(answer, sessions) for answer in answers] == [REFUSED_S, 0.0, 0.0, 0.0]


def test_sessions_cost_more_where_many_are_opened_and_none_is_used():
    sessions = SessionTable(counting_engine())

    def price(namespace="ours/x"):
        opened.append(sessions.open(np.array([1, 2], np.int32), namespace))
        return price_s(pb.OpenSessionResponse(session_id=opened[-1]), sessions)

    opened = []
    assert [price() for _ in range(MAX_NEW + 1)] == [OPENED_S] * MAX_NEW + [REFUSED_S]
    assert price("theirs/x") == OPENED_S
    sessions.get(opened[0])
    sessions.get(opened[0])
    assert price() == REFUSED_S
    for session_id in opened[:6]:
        sessions.get(session_id)
    assert price() == OPENED_S
    for session_id in opened:
        sessions.close(session_id)
    assert sessions.num_new("ours") == sessions.num_new("theirs") == 0
