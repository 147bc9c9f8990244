"""Large steps in halves: the same trees whoever does them, and nobody waits for a busy thread."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
import weakref
from functools import partial

import numpy as np
import pytest

from retrieval_spec.drafters import stepping
from retrieval_spec.engine import Engine
from retrieval_spec.service import server as serving
from retrieval_spec.service.beside import Beside
from tests.stores import write_corpus
from tests.strategies import as_int32

VOCAB_SIZE = 70_000
NUM_SESSIONS = stepping.MANY_SESSIONS + 9


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    rng = np.random.default_rng(0)
    documents = [rng.integers(0, 40, 200).tolist() for _ in range(20)]
    return write_corpus(tmp_path_factory.mktemp("stores") / "corpus", documents, VOCAB_SIZE)


@pytest.fixture
def engine(store):
    return Engine(VOCAB_SIZE, datastores=[store])


@pytest.fixture
def beside(engine):
    beside = Beside(engine)
    yield beside
    beside.stop()


def stepped(engine, sessions, commits, total_nodes):
    """The trees after a step at once."""
    step = engine.step_batch(
        [session.seat for session in sessions],
        [session.context_length for session in sessions],
        [len(commit) for commit in commits],
        [16] * len(sessions),
        as_int32([token for commit in commits for token in commit]),
        total_nodes,
    )
    engine.learn(step)
    for at in step.due:
        sessions[at].tend()
    return step.forest.trees([engine.source_names] * len(sessions))


def test_large_steps_bring_the_same_trees_with_a_further_thread(engine, store, beside):
    rng, alone = np.random.default_rng(1), Engine(VOCAB_SIZE, datastores=[store])
    threads, both = set(), engine.both

    def watched(first, second):
        both(first, lambda: (threads.add(threading.get_ident()), second()))

    engine.both = watched
    prompts = [rng.integers(0, 40, 60).tolist() for _ in range(2 * NUM_SESSIONS)]
    sides = [[one.open_session(prompt) for prompt in prompts[:NUM_SESSIONS]] for one in (engine, alone)]
    num_nodes = 0
    for step in range(60):
        commits = [rng.integers(0, 40, rng.integers(0, 4)).tolist() for _ in range(NUM_SESSIONS)]
        trees, expected = (
            stepped(one, sessions, commits, 4 * NUM_SESSIONS)
            for one, sessions in zip((engine, alone), sides, strict=True)
        )
        assert trees == expected
        num_nodes += sum(map(len, trees))
        at = step % NUM_SESSIONS
        for one, sessions in zip((engine, alone), sides, strict=True):  # others learn what it wrote
            sessions[at].close()
            sessions[at] = one.open_session(prompts[NUM_SESSIONS + at])
            sessions[at].draft(4)
    assert num_nodes > 60 * NUM_SESSIONS
    assert threads - {threading.get_ident()}


def test_small_steps_wake_nobody(engine):
    engine.both = pytest.fail
    sessions = [engine.open_session([1, 2, 3]) for _ in range(stepping.MANY_SESSIONS - 1)]
    assert len(stepped(engine, sessions, [[4]] * len(sessions), 64)) == len(sessions)


def test_both_are_done_at_the_same_time(beside):
    meeting = threading.Barrier(2, timeout=10)
    beside.both(meeting.wait, meeting.wait)


def test_what_a_busy_thread_finds_no_time_for_is_done_by_who_asks(beside):
    is_busy, may_go_on, done = threading.Event(), threading.Event(), []

    def holding():
        is_busy.set()
        may_go_on.wait(10)

    other = threading.Thread(target=beside.both, args=(is_busy.wait, holding))
    other.start()
    assert is_busy.wait(10)
    beside.both(lambda: done.append("first"), lambda: done.append(threading.get_ident()))
    assert done == ["first", threading.get_ident()]
    may_go_on.set()
    other.join(10)
    beside.both(lambda: None, lambda: done.append("once more"))
    assert done[2:] == ["once more"]


def broken():
    raise MemoryError


def test_what_either_half_raises_is_raised_once_both_have_ended(beside):
    ended = []
    with pytest.raises(MemoryError):
        beside.both(broken, lambda: (time.sleep(0.05), ended.append("second")))
    with pytest.raises(MemoryError):
        beside.both(lambda: ended.append("first"), broken)
    assert ended == ["second", "first"]
    beside.both(lambda: ended.append("first"), lambda: ended.append("second"))
    assert sorted(ended[2:]) == ["first", "second"]


def test_the_thread_keeps_nothing_of_what_it_did(beside):
    holding = np.zeros(1)
    is_held = weakref.ref(holding)
    beside.both(lambda: None, partial(np.sum, holding))
    del holding
    deadline_s = time.monotonic() + 10
    while is_held() is not None and time.monotonic() < deadline_s:
        time.sleep(0.001)
    assert is_held() is None


def test_an_engine_goes_on_alone_once_the_thread_has_ended(engine):
    alone, before = engine.both, threading.active_count()
    beside = Beside(engine)
    assert threading.active_count() == before + 1
    assert engine.both == beside.both
    beside.stop()
    assert engine.both is alone
    done = []
    beside.both(lambda: done.append(1), lambda: done.append(2))
    assert done == [1, 2]


COMPILED = """
import retrieval_spec.service.server as server
from retrieval_spec.kernels import blend_steps, outcomes
from tests import service_process
from tests.strategies import as_int32

def compiled():
    steps = blend_steps
    kernels = steps.begin_steps, steps.draft_turns, steps.end_steps, steps.take_steps, outcomes.learn_outcomes
    return [len(kernel.signatures) for kernel in kernels]

servicer = server.Servicer(service_process.default_engine())
server.warm_up(servicer)
before = compiled()
sessions = [servicer.engine.open_session([1, 2, 3]) for _ in range(40)]
seats = [session.seat for session in sessions]
for length in (3, 4):
    step = servicer.engine.step_batch(seats, [length] * 40, [1] * 40, [4] * 40, as_int32([2] * 40), 80)
    servicer.engine.learn(step)
print(compiled() == before, min(before) > 0, sum(step.forest.counts) > 0)
"""


def test_the_first_large_message_of_a_server_compiles_nothing():
    command = [sys.executable, "-c", COMPILED]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True"] * 3


@pytest.mark.parametrize("num_cores", [1, 2])
def test_a_server_has_a_further_thread_where_it_has_a_further_core(engine, monkeypatch, num_cores, tmp_path):
    monkeypatch.setattr(serving, "num_cores", lambda: num_cores)
    alone = engine.both

    async def started_and_stopped():
        server = await serving.start_server(engine, f"unix:{tmp_path}/server.sock")
        is_alone = engine.both is alone
        await server.stop(grace_s=0)
        return is_alone

    assert asyncio.run(started_and_stopped()) == (num_cores == 1)
    assert engine.both is alone
