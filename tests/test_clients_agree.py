"""One generation through `LocalClient` and through `DraftClient`: equal trees, node by node."""

from __future__ import annotations

import random

import numpy as np
import pytest

from retrieval_spec.budget import CostCurve
from retrieval_spec.client import DraftClient, DraftSession, DraftSource, LocalClient
from retrieval_spec.errors import (
    ContextMismatch,
    InvalidFeedback,
    InvalidRequest,
    InvalidTokens,
    LimitExceeded,
    UnknownSession,
)
from retrieval_spec.feedback import Feedback
from tests.service_process import LIMITS, VOCAB_SIZE, server_process, session_engine

pytestmark = pytest.mark.row("C6")

TIMEOUT_S = 20.0
"""Nothing here is about time, and a loaded machine must not look like a broken server."""


@pytest.fixture(scope="module", params=["unix", "tcp"])
def places(request, tmp_path_factory):
    """Where the same server is asked with gRPC and without."""
    folder = tmp_path_factory.mktemp("clients")
    listen = f"unix:{folder}/s.sock" if request.param == "unix" else "127.0.0.1:0"
    with server_process(listen, "session", frames=f"unix:{folder}/frames.sock") as (_, address):
        yield address, f"unix:{folder}/frames.sock"


@pytest.fixture(scope="module")
def address(places):
    return places[0]


@pytest.fixture(params=["stream", "unary", "frames"])
def remote(places, request):
    address, frames = places
    transport = frames if request.param == "frames" else request.param
    with DraftClient(address, timeout_s=TIMEOUT_S, transport=transport) as client:
        yield client


@pytest.fixture(scope="module")
def local():
    return LocalClient(session_engine())


@pytest.fixture(params=["local", "remote"])
def either(request, local, address):
    if request.param == "local":
        yield local
    else:
        with DraftClient(address, timeout_s=TIMEOUT_S) as client:
            yield client


def test_both_keep_the_interface(local, remote):
    for source in (local, remote):
        assert isinstance(source, DraftSource)
        session = source.open_session([1])
        assert isinstance(session, DraftSession)
        session.close()
    for name in ("vocab_size", "source_names", "wanted_topk"):
        assert getattr(local, name) == getattr(remote, name)
    assert remote.projection.equals(local.projection)


def some_tokens(rng, phrases):
    """Repetition, so that the trees are deep and branch, and now and then something new."""
    if rng.random() < 0.8:
        phrase = rng.choice(phrases)
        start = rng.randrange(len(phrase))
        return phrase[start : start + rng.randrange(6)]
    return [rng.randrange(VOCAB_SIZE) for _ in range(rng.randrange(3))]


def test_a_long_session_gets_equal_trees(local, remote):
    rng = random.Random(7)
    phrases = [[rng.randrange(60_000, VOCAB_SIZE) for _ in range(12)] for _ in range(5)]
    prompt = [token for _ in range(20) for token in rng.choice(phrases)]
    pair = [source.open_session(prompt) for source in (local, remote)]
    drafted = 0
    for _ in range(400):
        action = rng.choice(["draft", "draft", "draft", "commit", "commit", "truncate"])
        tokens, max_nodes = some_tokens(rng, phrases), rng.choice([0, 1, 5, 16, 300])
        length = max(0, pair[0].context_length - rng.choice([0, 1, 2, 9]))
        if action == "draft":
            trees = [session.draft(max_nodes) for session in pair]
            assert trees[0] == trees[1]
            drafted += len(trees[0])
        for session in pair:
            if action == "commit":
                session.commit(tokens)
            elif action == "truncate":
                session.truncate(length)
        assert pair[0].context_length == pair[1].context_length
    assert drafted > 1_000
    for session in pair:
        session.close()


def test_a_batch_gets_equal_trees(local, remote):
    rng = random.Random(3)
    phrase = [rng.randrange(VOCAB_SIZE) for _ in range(30)]
    groups = [[source.open_session(phrase[: 5 + index]) for index in range(24)] for source in (local, remote)]
    for step in range(12):
        tokens = [some_tokens(rng, [phrase]) for _ in groups[0]]
        for sessions in groups:
            for session, committed in zip(sessions, tokens, strict=True):
                session.commit(committed)
        total = [0, 1, 40, 5_000][step % 4]
        batches = [local.draft_batch(groups[0], total), remote.draft_batch(groups[1], total)]
        assert batches[0] == batches[1]
        assert sum(map(len, batches[1])) <= total
    for session in [*groups[0], *groups[1]]:
        session.close()


def test_each_tree_of_a_batch_keeps_to_its_own_bound(local, remote):
    groups = [[source.open_session([1, 2, 3, 4] * size) for size in (2, 9)] for source in (local, remote)]
    batches = [local.draft_batch(groups[0], 20, max_nodes=3), remote.draft_batch(groups[1], 20, max_nodes=3)]
    assert batches[0] == batches[1]
    assert max(map(len, batches[1])) == 3
    for session in [*groups[0], *groups[1]]:
        session.close()


CURVES = (None, CostCurve.linear(0.03), CostCurve.linear(0.3), CostCurve((0, 7, 8), (3.1, 3.2, 4.7)))


def test_cost_curves_cut_equally_whenever_they_change(local, remote):
    rng = random.Random(5)
    phrase = [rng.randrange(VOCAB_SIZE) for _ in range(30)]
    groups = [[source.open_session(phrase[: 5 + index]) for index in range(3)] for source in (local, remote)]
    sizes = {curve: 0 for curve in CURVES}
    for step, curve in enumerate(curve for _ in range(20) for curve in [rng.choice(CURVES)] * 3):
        tokens = [some_tokens(rng, [phrase]) for _ in groups[0]]
        trees = []
        for source, sessions in zip((local, remote), groups, strict=True):
            for session, committed in zip(sessions, tokens, strict=True):
                session.commit(committed)
            trees.append([*source.draft_batch(sessions[:2], 40, curve), sessions[step % 3].draft(16, curve)])
        assert trees[0] == trees[1]
        sizes[curve] += sum(map(len, trees[1]))
    assert 0 < sizes[CURVES[2]] < sizes[CURVES[1]]
    for session in [*groups[0], *groups[1]]:
        session.close()


def test_an_empty_batch_is_legal(either):
    assert either.draft_batch([], 10) == []


def some_feedback(rng):
    """One of every kind: with and without log-probabilities, states and phrases."""
    told = (rng.integers(1, 4), 2)
    return Feedback(
        rng.integers(0, 1_000, told[0]).astype(np.int32),
        np.arange(-1, told[0] - 1, dtype=np.int32),
        rng.integers(0, 70_000, told).astype(np.int32),
        -rng.random(told if rng.random() < 0.5 else (0, 0), np.float32),
        rng.integers(0, 9, 3 * rng.integers(0, 2)).astype(np.float32),
        rng.integers(0, 70_000, (rng.integers(0, 3), 2)).astype(np.int32),
    )


def test_feedback_travels_with_the_tokens_that_it_is_about(local, remote):
    rng = np.random.default_rng(5)
    sessions = [source.open_session([1, 2]) for source in (local, remote)]
    heard = 0
    for step in range(60):
        feedback = some_feedback(rng) if step % 3 else None
        for session in sessions:
            session.commit([step], feedback)
        expected, found = (session.draft(16) for session in sessions)
        assert expected == found
        heard += bool((found.sources & 4).any())
    assert heard >= 40


def test_feedback_on_an_older_step_is_not_sent(remote):
    session = remote.open_session([1, 2])
    session.commit([3], some_feedback(np.random.default_rng(1)))
    session.commit([4])
    assert not (session.draft(16).sources & 4).any()
    session.commit([5])
    session.commit([6], some_feedback(np.random.default_rng(1)))
    assert not (session.draft(16).sources & 4).any()


BAD_FEEDBACK = [
    Feedback(topk_ids=np.ones((1, 2), np.int32)),
    Feedback(phrases=np.array([[70_000]], np.int32)),
    Feedback(hidden_state=np.ones(4, np.float32)),
    Feedback(hidden_state=np.array([1, np.nan, 2], np.float32)),
]


@pytest.mark.parametrize("feedback", BAD_FEEDBACK)
def test_bad_feedback_is_refused_and_the_session_goes_on(either, feedback):
    session = either.open_session([1, 2])
    with pytest.raises(InvalidFeedback):
        session.commit([3], feedback)
    assert session.context_length == 2
    session.commit([3])
    assert session.draft(1).token_ids.tolist() == [4]


@pytest.mark.row("C6", "P1")
@pytest.mark.parametrize("sent", [0, 1, 2, 3])
@pytest.mark.parametrize("length", [0, 2, 3, 4, 5])
def test_truncating_works_whatever_the_server_has_seen(local, remote, sent, length):
    """Tokens may be committed and sent, committed and not sent, or cut before they were ever sent."""
    trees = []
    for source in (local, remote):
        session = source.open_session([1, 2, 3])
        for index, token in enumerate([1, 2]):
            if index < sent:
                session.draft(4)
            session.commit([token])
        if sent == 3:
            session.draft(4)
        session.truncate(length)
        session.commit([2])
        trees.append(session.draft(8))
        assert session.context_length == length + 1
        session.close()
    assert trees[0] == trees[1]


def test_a_prompt_of_200_000_tokens(local, remote):
    prompt = (np.arange(200_000) % 66_000).astype(np.int64)
    pair = [source.open_session(prompt) for source in (local, remote)]
    for session in pair:
        session.commit([66_001, 5])
    trees = [session.draft(16) for session in pair]
    assert trees[0] == trees[1]
    assert trees[0].token_ids[0] == 6
    for session in pair:
        session.close()


BAD_TOKENS = [[-1], [VOCAB_SIZE], [2**32 - 1], [2**70], [1.5], [[1]], ["1"], [None]]


@pytest.mark.row("C1", "C6")
@pytest.mark.parametrize("tokens", BAD_TOKENS, ids=repr)
def test_bad_tokens_are_refused_at_the_door(either, tokens):
    with pytest.raises(InvalidTokens):
        either.open_session(tokens)
    session = either.open_session([1, 2])
    with pytest.raises(InvalidTokens):
        session.commit(tokens)
    assert session.context_length == 2
    assert session.draft(1).token_ids.tolist() == [3]
    session.close()


def test_other_bad_input_is_refused_alike(either):
    with pytest.raises(InvalidRequest, match="malformed namespace"):
        either.open_session([1], namespace="a/b/c")
    with pytest.raises(LimitExceeded, match="context too long"):
        either.open_session(np.zeros(LIMITS.max_context_tokens + 1, np.int32))
    session = either.open_session([1, 2])
    for length in (-1, 3):
        with pytest.raises(ContextMismatch, match="cannot cut the context"):
            session.truncate(length)
    session.close()


def test_a_closed_session_is_unknown(either):
    session = either.open_session([1])
    session.close()
    session.close()
    calls = [
        lambda: session.draft(),
        lambda: session.commit([1]),
        lambda: session.truncate(0),
        lambda: either.draft_batch([session], 4),
    ]
    for call in calls:
        with pytest.raises(UnknownSession):
            call()


def test_two_clients_do_not_disturb_each_other(local, address):
    with (
        DraftClient(address, timeout_s=TIMEOUT_S) as first,
        DraftClient(address, timeout_s=TIMEOUT_S) as second,
    ):
        pairs = [
            (client.open_session([5, 6, 5]), local.open_session([5, 6, 5])) for client in (first, second)
        ]
        for step in range(20):
            for number, pair in enumerate(pairs):
                for session in pair:
                    session.commit([5 + number * (step % 3)])
                assert pair[0].draft(6) == pair[1].draft(6)
        for session in [*pairs[0], *pairs[1]]:
            session.close()
