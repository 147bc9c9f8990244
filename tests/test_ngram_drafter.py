"""The n-gram drafter: trees on back-off probabilities from what a namespace wrote."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval_spec.drafters.base import Budget
from retrieval_spec.drafters.ngram import Chain, NGramDrafter
from retrieval_spec.errors import InvalidRequest, TokenizerMismatch
from retrieval_spec.structures.ngram_table import MAX_CORPUS_CONTEXTS
from tests.stores import write_corpus
from tests.strategies import as_int32, token_streams
from tests.threads import in_threads

VOCAB_SIZE = 151_936


def opened(**params):
    return NGramDrafter.open(VOCAB_SIZE, **params)


def first_probs(tree):
    columns = zip(tree.token_ids.tolist(), tree.parents.tolist(), tree.probs.tolist(), strict=True)
    return {token: prob for token, parent, prob in columns if parent < 0}


@given(token_streams(max_size=120, alphabet=4), st.integers(0, 70), st.integers(1, 9), st.integers(2, 6))
@settings(deadline=None)
def test_every_tree_keeps_the_contract(tokens, max_nodes, max_depth_nodes, max_order):
    cursor = opened(max_order=max_order).start(as_int32(tokens))
    tree = cursor.propose(Budget(max_nodes, max_depth_nodes)).check(VOCAB_SIZE)
    assert len(tree) <= max_nodes
    assert tree.depths().max(initial=0) <= max_depth_nodes
    assert set(tree.token_ids.tolist()) <= set(tokens)
    assert cursor.propose(Budget(max_nodes, max_depth_nodes)) == tree


@given(token_streams(max_size=80, alphabet=3))
@settings(deadline=None)
def test_a_larger_budget_only_adds_nodes(tokens):
    cursor = opened().start(as_int32(tokens))
    assert cursor.propose(Budget(40)).prefix(7) == cursor.propose(Budget(7))


def test_the_children_of_a_node_are_at_most_certain_together():
    rng = np.random.default_rng(0)
    cursor = opened().start(as_int32(rng.integers(0, 12, 3_000).tolist()))
    tree = cursor.propose(Budget(200))
    sums = {}
    for parent, prob in zip(tree.parents.tolist(), tree.probs.tolist(), strict=True):
        sums[parent] = sums.get(parent, 0) + prob
    assert max(sums.values()) <= 1 + 1e-6


def test_the_longest_context_comes_first_and_shorter_ones_fill_up():
    text = [1, 2, 3, 4, 9, 8, 3, 5, 9, 8, 3, 5, 9, 8, 3, 5, 9, 1, 2, 3]
    probs = first_probs(opened().start(as_int32(text)).propose(Budget(32)))
    assert probs[4] > probs[5] > 0


def test_what_is_counted_more_often_is_more_probable():
    probs = first_probs(opened().start(as_int32([1, 5, 1, 5, 1, 5, 1, 6, 1])).propose(Budget(8)))
    assert probs[5] > probs[6] > 0


def test_sessions_of_a_namespace_learn_from_each_other_at_once():
    drafter = opened()
    passage = [11, 12, 13, 14, 15, 16]
    writing = drafter.start(as_int32(passage))
    assert drafter.start(as_int32([11, 12])).propose(Budget(4)).token_ids.tolist() == [13, 14, 15, 16]
    writing.observe(as_int32([17]))
    assert 17 in drafter.start(as_int32([11, 12])).propose(Budget(8)).token_ids
    assert len(drafter.start(as_int32([11, 12]), "another").propose(Budget(4))) == 0


@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_a_corpus_is_what_every_namespace_starts_from(tmp_path, dtype):
    store = write_corpus(
        tmp_path / "store", [[5, 6, 7, 8], [7, 9]], VOCAB_SIZE if dtype == np.int32 else 60_000, dtype
    )
    drafter = opened(path=store)
    for namespace in ("first", "second"):
        tree = drafter.start(as_int32([6]), namespace).propose(Budget(8))
        assert {7, 8} <= set(tree.token_ids.tolist())
        assert 9 in tree.token_ids
        assert 5 not in tree.token_ids  # no context reaches over the end of a document
    assert drafter.tokenizer_fingerprint.startswith("sha256:")
    assert not hasattr(opened(), "tokenizer_fingerprint")


def test_a_corpus_of_another_vocabulary_is_refused(tmp_path):
    store = write_corpus(tmp_path / "store", [[5, 6, 7]], 1_000)
    with pytest.raises(TokenizerMismatch):
        NGramDrafter.open(100, path=store)


@pytest.mark.parametrize("max_order", [0, 1, 10])
def test_orders_out_of_range_are_refused(max_order):
    with pytest.raises(InvalidRequest, match="out of range"):
        opened(max_order=max_order)


@pytest.mark.parametrize("max_contexts", [-1, 0, MAX_CORPUS_CONTEXTS + 1, 2**62])
def test_numbers_of_contexts_out_of_range_are_refused(max_contexts):
    with pytest.raises(InvalidRequest, match="number of contexts out of range"):
        opened(max_contexts=max_contexts)


@pytest.mark.parametrize("max_nodes", [0, -3])
def test_chains_without_tokens_are_refused(max_nodes):
    with pytest.raises(InvalidRequest, match="out of range"):
        Chain(max_nodes)


def test_a_chain_runs_on_through_its_own_draft():
    cursor = opened(chain=Chain(max_nodes=9)).start(as_int32([4, 5, 6] * 3))
    assert cursor.propose(Budget(16)).token_ids.tolist() == [4, 5, 6] * 3
    assert cursor.propose(Budget(16, max_depth_nodes=2)).token_ids.tolist() == [4, 5]
    assert cursor.propose(Budget(1)).parents.tolist() == [-1]


def test_threads_share_one_namespace():
    drafter = opened(max_contexts=1_024)
    text = np.random.default_rng(0).integers(0, 40, 20_000).astype(np.int32)

    def write(part):
        cursor = drafter.start(part[:10])
        for at in range(10, part.shape[0], 5):
            cursor.propose(Budget(16)).check(VOCAB_SIZE)
            cursor.observe(part[at : at + 5])

    in_threads(write, np.split(text, 4))
