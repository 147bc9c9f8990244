"""The circuit breaker against the readable model of `tests/reference/breaker.py`."""

from __future__ import annotations

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval_spec.client import breaker
from retrieval_spec.client.breaker import Breaker, State
from retrieval_spec.errors import ServiceUnavailable
from tests.reference.breaker import state_after

pytestmark = pytest.mark.row("V1")

GONE = ServiceUnavailable("gone")
EVENTS = st.lists(
    st.tuples(
        st.sampled_from([0.0, 0.05, 0.3, 2.0, 6.0]), st.sampled_from(["failed", "struck", "succeeded"])
    ),
    max_size=40,
)


class Driven:
    """A breaker, its clock, and all that happened to it."""

    def __init__(self):
        self.now = 100.0
        self.guard = Breaker("here", clock=lambda: self.now)
        self.events = []

    def happen(self, event):
        self.events.append((self.now, event))
        if event in ("failed", "struck"):
            getattr(self.guard, event)(GONE)
        else:
            getattr(self.guard, event)()


@given(EVENTS)
def test_it_is_in_the_state_that_its_history_says(steps):
    driven = Driven()
    for passed_s, event in steps:
        driven.now += passed_s
        if driven.guard.wants_probe:
            driven.happen("probed")
        driven.happen(event)
        state, retry_at = state_after(
            driven.events,
            breaker.STRIKES,
            (breaker.FIRST_PAUSE_S, breaker.LONGEST_PAUSE_S),
            breaker.CALM_S,
        )
        assert driven.guard.state.value == state
        assert driven.guard.allows == (state == "closed")
        assert driven.guard.wants_probe == (state == "open" and driven.now >= retry_at)


@given(EVENTS)
def test_it_never_stays_away_from_a_server_that_answers(steps):
    driven = Driven()
    for passed_s, event in steps:
        driven.now += passed_s
        driven.happen(event)
    driven.now += breaker.LONGEST_PAUSE_S
    if driven.guard.wants_probe:
        driven.happen("probed")
    driven.happen("succeeded")
    assert driven.guard.allows


def test_pauses_grow_while_a_server_does_not_recover_and_begin_anew_when_it_has():
    driven, pauses = Driven(), []
    for calm_s in (0.0, 1.0, 1.0, 1.0, breaker.CALM_S, 0.0):
        driven.now += calm_s
        driven.happen("failed")
        failed_at = driven.now
        while not driven.guard.wants_probe:
            driven.now += 0.01
        pauses.append(round(driven.now - failed_at, 1))
        driven.happen("probed")
        driven.happen("succeeded")
    assert pauses == [0.1, 0.2, 0.4, 0.4, 0.1, 0.2]


def test_a_shut_one_never_opens_again():
    driven = Driven()
    driven.guard.shut()
    driven.now += 1e9
    assert not driven.guard.wants_probe
    driven.guard.succeeded()
    assert driven.guard.state is State.OPEN


def test_one_line_is_logged_for_each_change_and_four_a_minute_at_most(caplog):
    driven = Driven()
    for _ in range(10):
        for _ in range(3):
            driven.happen("failed")
        driven.happen("succeeded")
        driven.happen("succeeded")
    lines = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert ["are back" in line.message for line in lines] == [False, True, False, True]
    driven.now += 61.0
    driven.happen("failed")
    assert len([record for record in caplog.records if record.levelno == logging.WARNING]) == 5
