"""When the client waits for drafts: worth, regret and return, on simulated steps."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval_spec.client.economy import (
    FIRST_WAIT_S,
    JITTER_S,
    LONGEST_GAP_STEPS,
    MOST_CREDIT_S,
    PROBING_NODES,
    Economy,
    FixedWait,
    Move,
)

pytestmark = pytest.mark.row("V1")

CEILING_S = 0.1
STEP_S = 0.005


class World:
    """A target and a server as they are; counts what the policy makes of them."""

    def __init__(self, step_s=STEP_S, latency_s=0.0006, accepted=0.0, verifying_s=0.0):
        self.policy = Economy(CEILING_S)
        self.step_s, self.latency_s, self.accepted, self.verifying_s = (
            step_s,
            latency_s,
            accepted,
            verifying_s,
        )
        self.waited_s = self.spent_s = 0.0
        self.moves = []
        self.max_nodes = []

    def step(self):
        move = self.policy.plan()
        self.moves.append(move)
        waited_s, in_time = None, False
        if move is Move.ASK:
            in_time = self.latency_s <= self.policy.limit_s
            waited_s = min(self.latency_s, self.policy.limit_s)
            self.waited_s += waited_s
        if move is not Move.REST:
            self.policy.heard(self.latency_s)
        if move is Move.LISTEN:
            self.policy.judged(self.accepted, self.latency_s, is_final=True)
        self.max_nodes.append(min(self.policy.max_nodes, 16))
        # A pass over few nodes is cheaper, though not by as much as there are fewer.
        share = 1.0 if self.max_nodes[-1] == 16 else 0.5
        extra_s = share * self.verifying_s if in_time else 0.0
        self.spent_s += extra_s
        accepted = self.accepted if in_time else 0.0
        self.policy.stepped(self.step_s + extra_s, accepted, waited_s, drafted=in_time)

    def steps(self, count):
        for _ in range(count):
            self.step()
        return self


@pytest.mark.parametrize(("step_s", "gap_steps"), [(0.001, 32), (0.005, 32), (0.02, 8), (0.1, 1)])
def test_useless_drafts_cost_10_ms_and_little_more_however_long_it_goes_on(step_s, gap_steps):
    world = World(step_s=step_s).steps(2_000)
    assert world.waited_s <= min(max(2 * step_s, 0.002), 0.01) + world.latency_s
    assert world.moves[-500:].count(Move.ASK) == 0
    assert 0 <= world.moves[-500:].count(Move.LISTEN) - 500 // gap_steps <= 1


@given(st.floats(0.0, 1.0), st.floats(0.0005, 0.2))
def test_no_server_however_slow_costs_more_than_its_account_and_one_wait(latency_s, step_s):
    world = World(step_s=step_s, latency_s=latency_s).steps(600)
    assert world.waited_s <= MOST_CREDIT_S + FIRST_WAIT_S + JITTER_S


def test_drafts_that_pay_are_always_asked_for():
    world = World(accepted=1.5).steps(500)
    assert set(world.moves) == {Move.ASK}


def test_few_accepted_tokens_pay_where_steps_are_long():
    assert World(step_s=0.005, accepted=0.08).steps(500).policy.is_backed_off
    assert not World(step_s=0.05, accepted=0.08).steps(500).policy.is_backed_off


def test_drafts_that_cost_more_to_verify_than_they_bring_are_not_asked_for():
    dear = World(step_s=0.02, accepted=0.4, verifying_s=0.012).steps(300)
    assert dear.policy.is_backed_off
    assert not World(step_s=0.02, accepted=0.4, verifying_s=0.004).steps(300).policy.is_backed_off


@pytest.mark.parametrize("step_s", [0.005, 0.02])
def test_useless_drafts_are_verified_two_or_three_times(step_s):
    world = World(step_s=step_s, verifying_s=2 * step_s).steps(400)
    assert world.moves[:5] == [Move.ASK] * 2 + [Move.REST] * 3, "then it is known what they cost"
    assert world.max_nodes[:2] == [16, PROBING_NODES]
    assert world.moves.count(Move.ASK) <= 3
    assert world.spent_s <= 4 * step_s


def test_first_passes_that_take_long_do_not_end_drafting_for_good():
    world = World(step_s=0.02, verifying_s=0.5).steps(20)
    assert world.policy.is_backed_off
    world.accepted, world.verifying_s = 1.0, 0.001
    world.moves.clear()
    assert world.steps(300).moves.count(Move.ASK) > 250


def test_drafts_that_cost_nothing_to_verify_are_tried_for_longer():
    world = World(step_s=0.02, latency_s=0.0002).steps(100)
    assert world.moves.count(Move.ASK) > 20


def test_drafts_that_come_true_are_never_small():
    world = World(accepted=0.5, verifying_s=0.0005).steps(500)
    assert set(world.max_nodes) == {16}
    for _ in range(2):
        world.accepted = 0.0
        world.step()
    assert world.max_nodes[-2:] == [16, 16], "two in vain say little where others were of use"


def test_one_that_comes_true_among_the_first_ends_the_probing():
    world = World(verifying_s=0.001).steps(1)
    world.accepted = 1.0
    world.steps(2)
    assert world.max_nodes == [16, PROBING_NODES, 16]


def test_drafts_that_pay_much_may_cost_more_than_the_account_holds():
    world = World(step_s=0.5, accepted=1.5, verifying_s=0.1).steps(300)
    assert world.moves.count(Move.ASK) == 300


@pytest.mark.parametrize("accepted", [1.0, 3.0])
def test_when_drafts_pay_again_the_client_is_back_within_the_longest_gap(accepted):
    world = World().steps(3_000)
    world.accepted = accepted
    world.moves.clear()
    world.steps(LONGEST_GAP_STEPS + 2)
    assert Move.ASK in world.moves
    world.moves.clear()
    assert world.steps(300).moves.count(Move.ASK) >= 290, "but for a plain step now and then, to compare"


def test_a_new_generation_listens_at_once():
    world = World().steps(3_000)
    world.policy.opened()
    world.moves.clear()
    world.step()
    assert world.moves == [Move.LISTEN]


def test_a_slow_server_is_waited_for_where_it_is_worth_it():
    world = World(step_s=0.02, latency_s=0.03, accepted=4.0).steps(400)
    assert world.moves[-300:].count(Move.ASK) == 300
    assert World(step_s=0.005, latency_s=0.03, accepted=4.0).steps(400).policy.is_backed_off


@given(st.lists(st.tuples(st.floats(0, 20), st.floats(0, 1), st.floats(0, 5), st.booleans()), max_size=60))
def test_whatever_it_is_told_waits_are_bounded_and_moves_are_legal(history):
    policy = Economy(CEILING_S)
    for accepted, latency_s, elapsed_s, drafted in history:
        move = policy.plan()
        assert 0.0 < policy.limit_s <= CEILING_S
        assert policy.rest() >= 0
        policy.heard(latency_s)
        policy.stepped(elapsed_s, accepted, latency_s if move is Move.ASK else None, drafted=drafted)
        policy.judged(accepted, latency_s, is_final=drafted)


def test_a_fixed_wait_knows_no_economy():
    policy = FixedWait(0.25)
    for _ in range(50):
        policy.stepped(0.001, 0.0, 0.25, drafted=True)
        assert (policy.plan(), policy.limit_s, policy.rest()) == (Move.ASK, 0.25, 0)
    assert policy.judged(0.0, 1.0, is_final=False)
