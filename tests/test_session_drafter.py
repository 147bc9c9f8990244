"""The session drafter: trees from the own context, equal however the context arrived."""

from __future__ import annotations

import json
import time
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval_spec.drafters.base import Budget
from retrieval_spec.drafters.session import SessionDrafter
from retrieval_spec.tree import DraftTree
from tests.strategies import as_int32, token_streams

VOCAB_SIZE = 2**31 - 1
LARGE = 2**31 - 2


def drafted(tokens, max_nodes=16, max_depth_nodes=64):
    cursor = SessionDrafter.open(VOCAB_SIZE).start(as_int32(tokens))
    return cursor.propose(Budget(max_nodes, max_depth_nodes))


def ranked_path_probs(tree):
    """Path probabilities as the ranking computes them: rounded to float32 at every node."""
    path_probs = tree.probs.copy()
    for node, parent in enumerate(tree.parents.tolist()):
        if parent >= 0:
            path_probs[node] *= path_probs[parent]
    return path_probs


@given(token_streams(max_size=120, alphabet=4), st.integers(0, 70), st.integers(1, 9))
@settings(deadline=None)
def test_every_tree_keeps_the_contract(tokens, max_nodes, max_depth_nodes):
    tree = drafted(tokens, max_nodes, max_depth_nodes).check(VOCAB_SIZE)
    assert len(tree) <= max_nodes
    assert tree.depths().max(initial=0) <= max_depth_nodes
    assert tree.sources.tolist() == [1] * len(tree)
    path_probs = ranked_path_probs(tree)
    assert np.all(path_probs[1:] <= path_probs[:-1])
    assert set(tree.token_ids.tolist()) <= set(tokens)


@given(token_streams(max_size=80, alphabet=3))
@settings(deadline=None)
def test_ties_go_to_the_lower_depth_then_to_the_smaller_token(tokens):
    tree = drafted(tokens, 32)
    path_probs = ranked_path_probs(tree)
    ranks = list(zip((-path_probs).tolist(), tree.depths().tolist(), tree.token_ids.tolist(), strict=True))
    assert ranks == sorted(ranks)


@given(token_streams(max_size=150, alphabet=3), st.lists(st.integers(1, 20), min_size=1, max_size=6))
@settings(deadline=None)
def test_the_draft_depends_on_the_context_alone(tokens, sizes):
    cursor = SessionDrafter.open(VOCAB_SIZE).start(as_int32([]))
    at, turn = 0, 0
    while at < len(tokens):
        cursor.propose(Budget(5))
        size = sizes[turn % len(sizes)]
        cursor.observe(as_int32(tokens[at : at + size]))
        at, turn = at + size, turn + 1
    assert cursor.propose(Budget(24)) == drafted(tokens, 24)


def test_a_long_run_drafts_alike_in_steps_and_at_once():
    tokens = [9, *[4] * 3_000, 5, *[4] * 500]
    cursor = SessionDrafter.open(VOCAB_SIZE).start(as_int32(tokens[:1]))
    for token in tokens[1:]:
        cursor.observe(as_int32([token]))
    assert cursor.propose(Budget(16)) == drafted(tokens)


@given(token_streams(max_size=80, alphabet=3))
@settings(deadline=None)
def test_a_larger_budget_only_adds_nodes(tokens):
    assert drafted(tokens, 40).prefix(7) == drafted(tokens, 7)


@given(token_streams(max_size=60, alphabet=3))
@settings(deadline=None)
def test_every_first_token_followed_a_suffix_of_the_context(tokens):
    tree = drafted(tokens, 30)
    followers = {token for before, token in pairwise(tokens) if before == tokens[-1]}
    first = {int(token) for token, parent in zip(tree.token_ids, tree.parents, strict=True) if parent == -1}
    assert first <= followers
    assert bool(first) == bool(followers)


@pytest.mark.parametrize("tokens", [[], [5], [LARGE], [1, 2, 3], [1, 1, 2], [70_000, 4, 65_536]])
def test_no_draft_when_nothing_matches(tokens):
    assert len(drafted(tokens)) == 0


def test_no_draft_after_a_token_that_never_occurred():
    cursor = SessionDrafter.open(VOCAB_SIZE).start(as_int32([1, 2, 1, 2]))
    assert len(cursor.propose(Budget())) > 0
    cursor.observe(as_int32([LARGE]))
    assert len(cursor.propose(Budget())) == 0


def test_no_draft_without_a_budget():
    assert len(drafted([1, 2, 1], max_nodes=0)) == 0
    assert len(drafted([1, 2, 1], max_depth_nodes=0)) == 0


def test_a_repeated_passage_is_copied():
    passage = [65_536 + step for step in range(40)]
    tree = drafted([*passage, 3, *passage[:20]], max_nodes=10)
    assert tree.token_ids.tolist() == passage[20:30]
    assert tree.parents.tolist() == list(range(-1, 9))
    assert tree.probs.min() > 0.9


@pytest.mark.parametrize(("period", "repeats"), [([7], 30), ([7, 8], 20), ([7, 8, LARGE], 14), ([7], 3)])
def test_periodic_text_drafts_past_its_own_end(period, repeats):
    tree = drafted(period * repeats, max_nodes=len(period) * 16)
    longest = max(range(len(tree)), key=lambda node: len(tree.path_to(node)))
    chain = tree.token_ids[tree.path_to(longest)].tolist()
    assert chain == (period * 40)[: len(chain)]
    assert len(chain) >= (16 if repeats > 3 else 6)


def test_a_longer_match_and_a_more_frequent_continuation_are_more_probable():
    tree = drafted([0, 1, 2, 5, 0, 1, 2, 5, 0, 1, 2, 6, 3, 2, 9, 0, 1, 2])
    first = {
        int(t): float(p)
        for t, p, parent in zip(tree.token_ids, tree.probs, tree.parents, strict=True)
        if parent < 0
    }
    assert first[5] > first[6] > 0
    assert first[6] > first[9] > 0


@pytest.mark.row("A2")
def test_a_prompt_of_200_000_tokens_is_ready_in_under_a_second():
    rng = np.random.default_rng(3)
    words = [rng.integers(0, 151_936, size).astype(np.int32) for size in rng.integers(1, 30, 2_000)]
    prompt = np.concatenate([words[at] for at in rng.zipf(1.3, 60_000) % 2_000])[:200_000]
    drafter = SessionDrafter.open(151_936)
    drafter.start(prompt[:10]).propose(Budget())
    start = time.thread_time()
    tree = drafter.start(prompt).propose(Budget())
    assert time.thread_time() - start < 1
    assert prompt.size == 200_000
    assert len(tree) > 0


def prompt_lookup(context, max_nodes=16):
    """The chain after the leftmost occurrence of the longest of the last 5 to 1 tokens."""
    for size in range(5, 0, -1):
        windows = np.lib.stride_tricks.sliding_window_view(context, size)[:-1]
        found = np.flatnonzero((windows == context[-size:]).all(axis=1))
        if found.size:
            return DraftTree.chain(context[found[0] + size :][:max_nodes])
    return DraftTree.empty()


def num_accepted(tree, continuation):
    children, node = tree.children(), -1
    for depth, token in enumerate(continuation.tolist()):
        if token not in children.get(node, {}):
            return depth
        node = children[node][token]
    return len(continuation)


class PromptLookup:
    """A cursor whose drafts are those of `prompt_lookup`."""

    def __init__(self, context):
        self.context = context

    def observe(self, tokens):
        self.context = np.concatenate([self.context, tokens])

    def propose(self, budget):
        return prompt_lookup(self.context, budget.max_nodes)


def num_steps(cursor, output):
    """Steps that greedy verification takes to write `output`."""
    at = steps = 0
    while at < output.size:
        stop = at + num_accepted(cursor.propose(Budget(16)), output[at:]) + 1
        cursor.observe(output[at:stop])
        at, steps = stop, steps + 1
    return steps


def test_real_traces_are_drafted_better_than_by_prompt_lookup(data_dir):
    with (data_dir / "tok_qwen2" / "code.jsonl").open() as lines:
        items = [json.loads(next(lines)) for _ in range(12)]
    traces = [(as_int32(item["prompt_ids"]), as_int32(item["output_ids"])) for item in items]
    drafter = SessionDrafter.open(151_936)
    ours = sum(num_steps(drafter.start(prompt), output) for prompt, output in traces)
    theirs = sum(num_steps(PromptLookup(prompt), output) for prompt, output in traces)
    assert ours < 0.95 * theirs
