"""Messages that are lost, repeated, late, confused: contexts agree again at once, and no token is another."""

from __future__ import annotations

import tempfile
import time

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from retrieval_spec.client import DraftClient, LocalClient
from retrieval_spec.drafters.session import SessionDrafter
from retrieval_spec.engine import Engine
from tests import standin
from tests.lossy import FAULTS, lossy_server, without_pauses

VOCAB_SIZE = 1_000
PATIENCE_S, WAIT_S = 20.0, 0.03
"""For an answer: lost ones are waited for in vain, and a late one may come in time or not."""
TOKENS = st.lists(st.sampled_from([[1, 2, 3], [1, 2, 0], [3, 1], [2]]), max_size=4).map(
    lambda lists: [token for some in lists for token in some]
)
MAX_NODES = 6


def engine() -> Engine:
    """Drafts that depend on every token of the context."""
    return Engine(VOCAB_SIZE, {"session": SessionDrafter.open(vocab_size=VOCAB_SIZE)})


@pytest.fixture(scope="module")
def lossy():
    with (
        tempfile.TemporaryDirectory() as folder,
        lossy_server(f"unix:{folder}/s.sock", engine()) as (servicer, address),
        DraftClient(address, timeout_s=WAIT_S) as client,
    ):
        yield servicer, client


class Protocol(RuleBasedStateMachine):
    """One session through a bad network beside one in this process: equal trees, or none for a moment."""

    servicer = client = None
    num_trees = num_empty = num_faults = 0

    def __init__(self):
        super().__init__()
        self.local = LocalClient(engine())
        self.session = self.twin = None
        self.is_faulty = False

    @initialize(prompt=TOKENS)
    def begin(self, prompt):
        self.session, self.twin = self.client.open_session(prompt), self.local.open_session(prompt)

    @rule(tokens=TOKENS)
    def commit(self, tokens):
        for session in (self.session, self.twin):
            session.commit(tokens)

    @rule(share=st.floats(0, 1))
    def go_back(self, share):
        length = round(share * self.twin.context_length)
        for session in (self.session, self.twin):
            session.truncate(length)

    @rule()
    def step(self):
        self.commit([1, 2])
        self.draft()

    @rule()
    def draft(self):
        expected, found = self.twin.draft(MAX_NODES), self.session.draft(MAX_NODES)
        if not len(found):
            type(self).num_empty += 1
        else:
            assert found == expected
            type(self).num_trees += len(found) > 0
        self.is_faulty = False

    @rule(fault=st.sampled_from(FAULTS))
    def next_message_suffers(self, fault):
        self.servicer.next_fault = fault
        type(self).num_faults += 1
        self.is_faulty = True

    @rule()
    def server_restarts(self):
        self.servicer.restart()
        type(self).num_faults += 1

    @rule()
    def server_loses_the_session(self):
        self.servicer.lose_a_session()
        type(self).num_faults += 1

    @precondition(lambda self: not self.is_faulty)
    @rule(prompt=TOKENS)
    def close_and_begin_anew(self, prompt):
        self.session.close()
        self.twin.close()
        self.begin(prompt)

    def teardown(self):
        self.servicer.next_fault = ""
        if self.session is None:
            return
        expected, opened = self.twin.draft(MAX_NODES), self.servicer.num_opened
        deadline_s = time.monotonic() + PATIENCE_S
        while self.session.draft(MAX_NODES) != expected:
            assert time.monotonic() < deadline_s, "still apart, long after the last fault"
            time.sleep(0.002)
        assert self.servicer.num_opened - opened <= 2
        self.session.close()


@pytest.mark.row("P1")
@pytest.mark.parametrize(
    ("machines", "steps"),
    [
        pytest.param(5, 40, marks=pytest.mark.quick),
        (30, 50),
        pytest.param(3_000, 100, marks=[pytest.mark.long, pytest.mark.timeout(3_000)]),
    ],
    ids=["quick", "short", "long"],
)
def test_whatever_happens_to_messages_both_sides_agree_again(lossy, machines, steps):
    Protocol.servicer, Protocol.client = lossy
    Protocol.num_trees = Protocol.num_empty = Protocol.num_faults = 0
    wanted = settings(
        max_examples=machines,
        stateful_step_count=steps,
        deadline=None,
        derandomize=machines < 100,
        suppress_health_check=list(HealthCheck),
    )
    with without_pauses():
        run_state_machine_as_test(Protocol, settings=wanted)
    print(f"{Protocol.num_trees} trees, {Protocol.num_empty} none, {Protocol.num_faults} faults")
    assert Protocol.num_trees > machines
    assert Protocol.num_faults > machines


def repetitive(num_tokens: int, seed: int) -> list[int]:
    """A text of which much can be drafted from the text itself."""
    rng = np.random.default_rng(seed)
    phrases = [rng.integers(0, VOCAB_SIZE, 12).tolist() for _ in range(6)]
    return [token for _ in range(num_tokens // 12) for token in phrases[rng.integers(6)]]


def accepted_share(address: str, texts: list[list[int]], step_s: float) -> float:
    """Accepted tokens a step, over generations of these texts; each is checked token by token."""
    accepted = steps = 0
    for text in texts:
        with DraftClient(address, timeout_s=WAIT_S) as client:
            run = standin.generate(client, text, step_s, prompt_tokens=24, vocab_size=VOCAB_SIZE)
        assert run.output == text
        accepted += run.accepted_tokens
        steps += len(text) - 24 - run.accepted_tokens
    return accepted / steps


@pytest.mark.row("P1")
def test_a_question_that_is_never_answered_does_not_end_drafts_for_good(lossy):
    servicer, client = lossy
    session = client.open_session([1, 2, 3])
    session.commit([1, 2])
    with without_pauses():
        for fault in ("question lost", "answer lost"):
            servicer.next_fault = fault
            session.commit([3, 1, 2])
            deadline_s = time.monotonic() + PATIENCE_S
            while servicer.next_fault or not len(session.draft(MAX_NODES)):
                assert time.monotonic() < deadline_s
                session.draft(MAX_NODES)
                time.sleep(0.002)
    session.close()


@pytest.mark.row("P2/P3")
@pytest.mark.parametrize(
    "generations",
    [4, pytest.param(60, marks=[pytest.mark.long, pytest.mark.timeout(1_800)])],
    ids=["short", "long"],
)
def test_generation_while_messages_are_lost_and_late(tmp_path, generations):
    step_s = 0.001 if generations < 10 else 0.02
    texts = [repetitive(180, seed) for seed in range(generations)]
    with lossy_server(f"unix:{tmp_path}/s.sock", engine()) as (servicer, address):
        clean = accepted_share(address, texts, step_s)
        assert clean > 1.0
        found = []
        for servicer.share in (0.01, 0.1):
            found.append(accepted_share(address, texts, step_s) / clean)
        assert sum(servicer.made.values()) >= generations
    print(f"accepted a step: {clean:.3f}; of that at 1 %: {found[0]:.2f}, at 10 %: {found[1]:.2f}")
    assert min(found) > 0.0
