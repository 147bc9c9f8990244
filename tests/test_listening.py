"""How far tokens followed a tree."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval_spec.client import DraftClient
from retrieval_spec.client.listening import Match, match
from retrieval_spec.client.steps import MANY_SESSIONS
from retrieval_spec.tree import DraftTree
from tests.service_process import counting_engine, server_thread
from tests.strategies import draft_trees

TREE = DraftTree.from_lists([1, 2, 3, 4, 5], [-1, -1, 0, 0, 3])
"""1 -> (3, 4 -> 5), and 2."""


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ([], Match(0, False)),
        ([9], Match(0, True)),
        ([2], Match(1, True)),
        ([1], Match(1, False)),
        ([1, 4], Match(2, False)),
        ([1, 4, 5], Match(3, True)),
        ([1, 4, 5, 6], Match(3, True)),
        ([1, 9, 4], Match(1, True)),
    ],
)
def test_a_match_ends_at_a_leaf_or_at_another_token(tokens, expected):
    assert match(TREE, tokens) == expected


@given(draft_trees(max_nodes=12, vocab_size=3), st.lists(st.integers(0, 2), max_size=8))
def test_it_is_the_longest_path_that_the_tokens_begin_with(tree, tokens):
    paths = [tuple(tree.token_ids[tree.path_to(node)].tolist()) for node in range(len(tree))]
    begun = [len(path) for path in paths if tuple(tokens[: len(path)]) == path]
    found = match(tree, tokens)
    assert found.num_tokens == max(begun, default=0)
    has_more = any(len(path) > len(tokens) and path[: len(tokens)] == tuple(tokens) for path in paths)
    assert found.is_final == (not has_more)


class Noting:
    """A policy, and what it is told of steps."""

    def __init__(self, policy):
        self._policy = policy
        self.accepted = []

    def __getattr__(self, name):
        return getattr(self._policy, name)

    def stepped(self, elapsed_s, accepted, waited_s, *, drafted):
        assert drafted
        assert waited_s > 0
        self.accepted.append(accepted)
        self._policy.stepped(elapsed_s, accepted, waited_s, drafted=drafted)


@pytest.mark.parametrize("num_sessions", [1, MANY_SESSIONS - 1, MANY_SESSIONS, 3 * MANY_SESSIONS])
def test_each_step_is_booked_once_whether_its_sessions_are_few_or_many(num_sessions, tmp_path):
    with (
        server_thread(f"unix:{tmp_path}/s.sock", counting_engine()) as address,
        DraftClient(address, timeout_s=20.0) as client,
    ):
        client._asker._policy = noting = Noting(client._asker._policy)
        sessions = [client.open_session([100 * number]) for number in range(num_sessions)]
        for step in range(4):
            trees = client.draft_batch(sessions, 2 * num_sessions, max_nodes=2)
            assert len(noting.accepted) == step
            for session, tree in zip(sessions, trees, strict=True):
                session.commit([*tree.token_ids.tolist(), int(tree.token_ids[-1]) + 1])
        assert noting.accepted == [2.0, 2.0, 2.0]
