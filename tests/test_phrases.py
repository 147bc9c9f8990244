"""Pools of phrases, the source over them, and the commonest phrases of earlier outputs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval_spec.drafters import frequent, phrases
from retrieval_spec.drafters.base import Budget
from retrieval_spec.drafters.combination import FillInOrder
from retrieval_spec.drafters.corpus import CorpusDrafter
from retrieval_spec.drafters.corpus_rows import Rows
from retrieval_spec.drafters.frequent import FrequentDrafter
from retrieval_spec.drafters.phrase_pool import PhrasePool
from retrieval_spec.drafters.phrases import PhrasesDrafter, Pooling, Suffixes
from retrieval_spec.drafters.rows import survival, tree_of_rows
from retrieval_spec.engine import Engine
from retrieval_spec.errors import InvalidRequest
from retrieval_spec.feedback import Feedback
from retrieval_spec.structures.context_array import ContextArray
from retrieval_spec.tree import DraftTree
from tests.reference.acceptance import drafted_paths
from tests.reference.phrases import ReferencePool, merged_rows, prefixes
from tests.strategies import as_int32, token_streams
from tests.threads import in_threads

VOCAB_SIZE = 151_936
ONE_TOKEN = Pooling(key_tokens=1, phrase_tokens=3, min_phrase_tokens=3, max_phrases=3)


def cursor_of(rule, context=(), drafter=None):
    return (drafter or PhrasesDrafter.open(VOCAB_SIZE, rule)).start(as_int32(list(context)))


def rejecting(root, drafted, argmax, client_phrases=()):
    """Feedback about one drafted chain."""
    nodes = [root, *drafted]
    ngrams = np.array(client_phrases or np.zeros((0, 0)), np.int32)
    parents = as_int32(list(range(-1, len(drafted))))
    return Feedback(as_int32(nodes), parents, as_int32(argmax)[:, None], phrases=ngrams).check(VOCAB_SIZE)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=80), st.integers(1, 4))
def test_a_pool_is_the_twins_lists(pairs, size):
    pool, twin = PhrasePool(max_keys=100, max_phrases=size), ReferencePool(level=2, size=size)
    for key, token in pairs:
        pool.add((key,), (token,))
        twin.insert((key, token))
    for key in range(4):
        assert pool.newest((key,), 9) == twin.guesses([key])[::-1]
        assert pool.newest((key,), 2) == twin.guesses([key])[::-1][:2]


def test_a_pool_forgets_the_key_that_came_longest_ago():
    pool = PhrasePool(max_keys=2, max_phrases=2)
    for key in (1, 2, 1, 3):
        pool.add((key,), (9,))
    assert len(pool) == 2
    assert [pool.newest((key,), 9) for key in (1, 2, 3)] == [[(9,)], [], [(9,)]]


@given(st.lists(token_streams(max_size=30, alphabet=3), max_size=4), st.integers(1, 3))
@settings(deadline=None)
def test_text_fills_a_pool_like_the_twins(parts, size):
    rule = Pooling(key_tokens=1, phrase_tokens=2, min_phrase_tokens=2, max_phrases=size, scope="session")
    cursor, twin, text = cursor_of(rule), ReferencePool(level=3, size=size), []
    for part in parts:
        cursor.observe(as_int32(part))
        for token in part:
            text.append(token)
            twin.insert(tuple(text[-3:]))
        tree = cursor.propose(Budget(64)).check(VOCAB_SIZE)
        assert drafted_paths(tree) == prefixes(twin.guesses(text))


@given(token_streams(max_size=60, alphabet=3), st.integers(0, 20), st.integers(0, 9))
@settings(deadline=None)
def test_trees_keep_the_contract(tokens, max_nodes, max_depth_nodes):
    cursor = cursor_of(Pooling(), tokens)
    tree = cursor.propose(Budget(max_nodes, max_depth_nodes)).check(VOCAB_SIZE)
    assert len(tree) <= max_nodes
    assert tree.depths().max(initial=0) <= max_depth_nodes
    assert np.all(np.diff(tree.path_probs()) <= 1e-6)


def test_the_longest_known_key_decides():
    text = [1, 2, 10, 11, 12, 3, 2, 20, 21, 22, 0, 0, 0, 0]
    paths = [
        drafted_paths(cursor_of(Pooling(phrase_tokens=3), [*text, *end]).propose(Budget(64)))
        for end in ([1, 2], [3, 2], [9, 2])
    ]
    assert paths == [prefixes([(10, 11, 12)]), prefixes([(20, 21, 22)]), paths[0] | paths[1]]


def test_the_newer_phrase_is_the_more_probable():
    tree = cursor_of(Pooling(phrase_tokens=2), [1, 7, 7, 1, 8, 8, 1, 9, 9, 9, 1]).propose(Budget(64))
    assert tree.token_ids[tree.parents == -1].tolist() == [9, 8, 7]


def test_a_phrase_that_the_text_has_only_begun_is_drafted_too():
    tree = cursor_of(Pooling(phrase_tokens=8), [5, 6, 7, 5]).propose(Budget(64))
    assert tree.token_ids.tolist() == [6, 7, 5]
    assert len(cursor_of(Pooling(phrase_tokens=8, min_phrase_tokens=8), [5, 6, 7, 5]).propose(Budget(9))) == 0


def test_what_the_target_says_along_a_rejected_draft_becomes_a_phrase():
    cursor = cursor_of(ONE_TOKEN, [1])
    # Drafted 5 6 7; the target says 2 instead of 5, but agrees with 6 and 7 after it and goes on with 8.
    cursor.observe(as_int32([2]), rejecting(1, [5, 6, 7], [2, 6, 7, 8]))
    cursor.observe(as_int32([5]))
    assert cursor.propose(Budget(9)).token_ids.tolist() == [6, 7, 8]


def test_a_run_that_is_too_short_is_no_phrase():
    cursor = cursor_of(ONE_TOKEN, [1])
    cursor.observe(as_int32([2]), rejecting(1, [5, 6, 7], [2, 6, 9, 8]))
    cursor.observe(as_int32([5]))
    assert len(cursor.propose(Budget(9))) == 0


def test_keys_of_a_run_reach_back_into_the_context():
    cursor = cursor_of(Pooling(key_tokens=3, min_phrase_tokens=1), [3, 1])
    cursor.observe(as_int32([2]), rejecting(1, [5], [2, 6]))
    pool = cursor._shared.pool
    for key in ((5,), (1, 5), (3, 1, 5)):
        assert pool.newest(key, 9) == [(6,)]


def test_accepted_drafts_teach_no_runs():
    cursor = cursor_of(Pooling(key_tokens=1, phrase_tokens=2, from_text=False), [1])
    cursor.observe(as_int32([5, 6, 7, 8]), rejecting(1, [5, 6, 7], [5, 6, 7, 8]))
    cursor.observe(as_int32([5]))
    assert len(cursor.propose(Budget(9))) == 0


def test_phrases_of_the_verifier_are_divided_after_every_key():
    cursor = cursor_of(Pooling(key_tokens=2, phrase_tokens=3, from_text=False), [0])
    cursor.observe(as_int32([1]), rejecting(0, [], [1], [[1, 2, 3, 4, 5]]))
    assert cursor.propose(Budget(9)).token_ids.tolist() == [2, 3, 4]
    cursor.observe(as_int32([2]))
    assert cursor.propose(Budget(9)).token_ids.tolist() == [3, 4, 5]


@pytest.mark.parametrize("width", [0, 1, 2])
def test_phrases_too_short_to_have_a_key_and_a_rest_teach_nothing(width):
    cursor = cursor_of(Pooling(), [1])
    cursor.observe(as_int32([]), Feedback(phrases=np.ones((3, width), np.int32)).check(VOCAB_SIZE))
    assert len(cursor.propose(Budget(9))) == 0


def test_a_verified_guess_is_overwritten_by_what_the_target_says_along_it():
    rule = Pooling(
        key_tokens=1, phrase_tokens=3, min_phrase_tokens=3, from_text=False, suffixes=Suffixes(num_phrases=1)
    )
    cursor = cursor_of(rule, [1])
    cursor.observe(as_int32([]), rejecting(1, [], [2], [[1, 5, 6, 7]]))
    assert cursor.propose(Budget(9)).token_ids.tolist() == [5, 6, 7]
    cursor.observe(as_int32([1]), rejecting(1, [5, 6, 7], [1, 8, 9, 3]))
    assert cursor._shared.pool.newest((1,), 9) == [(1, 8, 9)]


def test_namespaces_share_nothing_and_sessions_of_one_share_their_pool():
    drafter = PhrasesDrafter.open(VOCAB_SIZE, Pooling(phrase_tokens=3))
    drafter.start(as_int32([1, 2, 3, 4]), "a")
    assert len(drafter.start(as_int32([1]), "a").propose(Budget(9))) > 0
    assert len(drafter.start(as_int32([1]), "b").propose(Budget(9))) == 0


def test_a_pool_of_the_session_ends_with_it():
    drafter = PhrasesDrafter.open(VOCAB_SIZE, Pooling(phrase_tokens=3, scope="session"))
    drafter.start(as_int32([1, 2, 3, 4]))
    assert len(drafter.start(as_int32([1])).propose(Budget(9))) == 0


def test_of_a_long_text_the_end_is_learned(monkeypatch):
    monkeypatch.setattr(phrases, "MAX_LEARNED_TOKENS", 6)
    cursor = cursor_of(Pooling(min_phrase_tokens=8), [1, 2])
    cursor.observe(as_int32(list(range(2, 40))))
    assert len(cursor._shared.pool) == 0
    cursor.observe(as_int32([40, 41, 42, 1]))
    assert len(cursor.propose(Budget(9))) == 0  # 1 2 3 .. would join what does not belong together


def test_a_pool_is_bounded(monkeypatch):
    monkeypatch.setattr(phrases, "MAX_KEYS", 50)
    cursor = cursor_of(Pooling(max_phrases=2), np.random.default_rng(0).integers(0, 999, 5_000).tolist())
    assert len(cursor._shared.pool) == 50


@pytest.mark.parametrize(
    "parameters",
    [
        {"key_tokens": 0},
        {"key_tokens": 4},
        {"key_tokens": 2, "suffixes": Suffixes()},
        {"phrase_tokens": 17},
        {"min_phrase_tokens": 9},
        {"max_phrases": 0},
        {"key_tokens": 1, "suffixes": Suffixes(chain_tokens=33)},
    ],
    ids=str,
)
def test_rules_out_of_range_are_refused(parameters):
    with pytest.raises(InvalidRequest, match="out of range"):
        PhrasesDrafter.open(VOCAB_SIZE, Pooling(**parameters))
    with pytest.raises(InvalidRequest, match="out of range"):
        FrequentDrafter.open(VOCAB_SIZE, phrase_tokens=17)
    with pytest.raises(InvalidRequest, match="out of range"):
        Rows(span_tokens=0)
    with pytest.raises(InvalidRequest, match="out of range"):
        Rows(max_occurrences=0)


def test_top_k_is_wanted_where_rejected_drafts_teach():
    wanted = {name: Engine(VOCAB_SIZE, preset=name).wanted_topk for name in ("lookahead-pool", "hierarchy")}
    assert wanted == {"lookahead-pool": 0, "hierarchy": 0}
    assert Engine(VOCAB_SIZE, preset="ouroboros-pool").wanted_topk == 1


ROWS = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=5).map(tuple), max_size=8, unique=True)


@given(ROWS, st.floats(0.1, 1.0), st.integers(0, 20), st.integers(0, 6))
@settings(deadline=None)
def test_rows_are_merged_like_in_the_twin(rows, worth, max_nodes, max_depth_nodes):
    survives = survival((0.4, 0.6, 0.7))
    tree = tree_of_rows(rows, worth, survives, Budget(max_nodes, max_depth_nodes)).check(VOCAB_SIZE)
    expected = merged_rows(rows, worth, survives, 99, max_depth_nodes)
    drafted = [tuple(tree.token_ids[tree.path_to(node)].tolist()) for node in range(len(tree))]
    assert len(tree) == min(max_nodes, len(expected))
    probs = dict(expected)
    assert tree.path_probs() == pytest.approx([probs[path] for path in drafted], abs=1e-6)
    assert tree.path_probs() == pytest.approx([prob for _, prob in expected[:max_nodes]], abs=1e-6)


def test_equal_nodes_go_by_depth_then_by_token():
    tree = tree_of_rows([(3, 1), (3, 0)], 0.9, survival((2 / 3,)), Budget(9))
    assert tree.token_ids.tolist() == [3, 1, 0]
    equal = tree_of_rows([(9, 9), (4, 1)], 0.9, survival((0.5,)), Budget(9))
    assert equal.token_ids.tolist() == [9, 4, 9, 1]  # 9 9 and 4 are equally probable


def test_rows_of_one_length_end_in_leaves_in_their_order():
    rows = [(1, 2, 3), (1, 2, 4), (5, 2, 3)]
    tree = tree_of_rows(rows, 0.7, survival((0.6,)), Budget(64))
    assert tree.token_ids.tolist() == [1, 2, 3, 5, 4, 2, 3]
    assert tree.path_probs() == pytest.approx([0.6, 0.36, 0.144, 0.1, 0.072, 0.06, 0.036], abs=1e-6)


def taught(*outputs, **parameters):
    drafter = FrequentDrafter.open(VOCAB_SIZE, **parameters)
    for output in outputs:
        cursor = drafter.start(as_int32([]))
        cursor.observe(as_int32(list(output)))
        cursor.close()
    return drafter


def test_the_commonest_phrases_of_finished_outputs_are_drafted():
    drafter = taught([1, 7, 7], [1, 8, 8, 0, 1, 8, 8], phrase_tokens=2, max_phrases=1)
    assert drafter.start(as_int32([1])).propose(Budget(9)).token_ids.tolist() == [8, 8]
    assert len(drafter.start(as_int32([1]), "other").propose(Budget(9))) == 0


def test_prompts_and_open_sessions_teach_nothing():
    drafter = FrequentDrafter.open(VOCAB_SIZE, phrase_tokens=2)
    cursor = drafter.start(as_int32([1, 2, 3, 4]))
    cursor.observe(as_int32([1, 2, 3]))
    assert len(drafter.start(as_int32([1])).propose(Budget(9))) == 0
    cursor.close()
    assert drafter.start(as_int32([1])).propose(Budget(9)).token_ids.tolist() == [2, 3]


def test_counts_are_bounded(monkeypatch):
    monkeypatch.setattr(frequent, "MAX_KEYS", 2)
    monkeypatch.setattr(frequent, "MAX_COUNTED", 2)
    drafter = taught([1, 5, 1, 5, 1, 6, 1, 7], [3, 0], phrase_tokens=1, max_phrases=2)
    firsts = [drafter.start(as_int32([key])).propose(Budget(9)).token_ids.tolist() for key in (1, 5, 6, 3)]
    assert firsts == [[5, 7], [], [], [0]]


class Fixed:
    """A cursor that always drafts the same, and remembers whether it was asked."""

    def __init__(self, rows):
        self.rows, self.asked = rows, False

    def propose(self, budget):
        self.asked = True
        return tree_of_rows(self.rows, 0.5, survival((0.5,)), budget)


def test_rows_fill_up_in_the_order_of_the_sources():
    first, second, third = Fixed([(1, 2), (1, 3)]), Fixed([(1, 3), (4, 4), (5, 5)]), Fixed([(6, 6)])
    trees = FillInOrder(max_rows=3, row_tokens=2)([first, second, third], Budget(64))
    assert [drafted_paths(tree) for tree in trees] == [
        prefixes([(1, 2), (1, 3)]),
        prefixes([(4, 4)]),
        set(),
    ]
    assert second.asked
    assert not third.asked


def test_a_row_that_begins_like_a_kept_one_adds_nothing():
    trees = FillInOrder(max_rows=9, row_tokens=3)([Fixed([(1, 2, 3)]), Fixed([(1, 2)])], Budget(64))
    assert trees[1] == DraftTree.empty()


def test_a_corpus_is_asked_with_two_tokens_and_then_with_one():
    text = [1, 2, 7, 8, 3, 2, 9, 9, 2, 5]
    drafter = CorpusDrafter(ContextArray.build(as_int32([*text, 2**31 - 1])), rule=Rows(row_tokens=2))
    tree = drafter.start(as_int32([0, 1, 2])).propose(Budget(64)).check(VOCAB_SIZE)
    assert drafted_paths(tree) == prefixes([(7, 8), (9, 9)])  # 2 5 is cut short by the document's end
    assert tree.token_ids.tolist() == [7, 9, 8, 9]
    limited = drafter.start(as_int32([1, 2])).propose(Budget(64, max_depth_nodes=1))
    assert limited.token_ids.tolist() == [7, 9]
    assert len(drafter.start(as_int32([4])).propose(Budget(64))) == 0


def test_a_damaged_corpus_gives_other_rows_but_no_crash():
    array = ContextArray.build(as_int32([1, 2, 3, 2**31 - 1] * 50))
    positions = np.full_like(array.positions, 2**32 - 1)
    for tokens in (array.tokens, array.tokens[:5]):
        broken = ContextArray(tokens, positions, array.buckets, array.depth_tokens)
        CorpusDrafter(broken, rule=Rows()).start(as_int32([1, 2])).propose(Budget(64)).check(VOCAB_SIZE)


def test_threads_share_one_pool():
    drafter = PhrasesDrafter.open(VOCAB_SIZE, Pooling(max_phrases=2))

    def work(seed):
        rng = np.random.default_rng(seed)
        cursor = drafter.start(as_int32([1]))
        for _ in range(300):
            cursor.observe(as_int32(rng.integers(0, 4, 3).tolist()))
            cursor.propose(Budget(16)).check(VOCAB_SIZE)

    in_threads(work, range(4))
