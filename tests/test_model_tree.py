"""Trees grown and drawn from distributions, their checks, and pruning by a draft model."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from retrieval_spec.errors import InvalidDistribution
from retrieval_spec.fusion import Pruning, prune
from retrieval_spec.model_tree import DraftModel, Growth, Predictions, check_probs, draw, grow
from retrieval_spec.tree import DraftTree
from tests.pseudo_models import PseudoModel, hashed_law
from tests.reference.fusion import paths_of
from tests.reference.opt_tree import opt_tree
from tests.strategies import draft_trees

VOCAB_SIZE = 7


def predictions_of(context, law):
    started = PseudoModel(VOCAB_SIZE, law).start()
    started.observe(np.array(context, np.int32))
    return started


@given(
    context=st.lists(st.integers(0, VOCAB_SIZE - 1), min_size=1, max_size=6),
    max_nodes=st.integers(1, 20),
    gain=st.sampled_from([0.0, 0.1, 0.5]),
    depth=st.integers(1, 4),
    sharpness=st.sampled_from([0.0, 0.5, 2.0, 40.0]),
)
@example(
    context=[2], max_nodes=14, gain=0.0, depth=2, sharpness=40.0
)  # (4, 0) is too improbable for a float32
@settings(max_examples=200, deadline=None)
def test_a_grown_tree_holds_the_paths_of_the_reference(context, max_nodes, gain, depth, sharpness):
    law = hashed_law(VOCAB_SIZE, sharpness)
    expected = opt_tree(law, context, max_nodes, gain, depth)
    grown = grow(predictions_of(context, law), VOCAB_SIZE, max_nodes, Growth(gain, depth))
    tree = grown.tree.check(VOCAB_SIZE)
    found = paths_of(tree)
    assert list(found) == list(expected)
    assert [prob for prob, _ in found.values()] == list(expected.values())
    assert np.array_equal(grown.first_probs, law(context).astype(np.float32))
    assert grown.proposals == {}


def test_a_layer_asks_only_for_nodes_that_are_among_the_best():
    predictions = predictions_of([1, 2, 3], hashed_law(VOCAB_SIZE))
    tree = grow(predictions, VOCAB_SIZE, 5, Growth(0.0, 4)).tree
    asked = {path for call in predictions.calls[1:] for path in call}
    assert predictions.calls[0] == [()]
    assert all(len(call) <= 5 for call in predictions.calls)
    inner = {path[:-1] for path in paths_of(tree) if len(path) > 1}
    assert inner <= asked


@given(st.lists(st.integers(1, 3), min_size=1, max_size=4), st.integers(1, 12), st.integers(0, 50))
@settings(deadline=None)
def test_a_drawn_tree_keeps_budget_and_branching_and_says_what_it_drew(branching, max_nodes, seed):
    law = hashed_law(VOCAB_SIZE, 0.7)
    generator = np.random.default_rng(seed)
    drawn = draw(predictions_of([1, 2], law), VOCAB_SIZE, max_nodes, branching, generator)
    tree = drawn.tree.check(VOCAB_SIZE)
    assert 0 < len(tree) <= max_nodes
    assert tree.path_probs().tolist() == sorted(tree.path_probs().tolist(), reverse=True)
    for path, (prob, _) in paths_of(tree).items():
        proposal = drawn.proposals[path[:-1]].check(VOCAB_SIZE)
        assert path[-1] in proposal.token_ids
        assert prob == proposal.q[path[-1]] == law([1, 2, *path[:-1]]).astype(np.float32)[path[-1]]
    for path, proposal in drawn.proposals.items():
        assert proposal.token_ids.size == branching[len(path)]


def test_equal_generators_draw_equal_trees():
    law = hashed_law(VOCAB_SIZE, 0.7)
    first, again, other = (
        draw(predictions_of([1], law), VOCAB_SIZE, 9, (3, 2), np.random.default_rng(seed)).tree
        for seed in (1, 1, 2)
    )
    assert first == again != other


def test_the_pseudo_model_keeps_the_protocol():
    model = PseudoModel(VOCAB_SIZE, hashed_law(VOCAB_SIZE))
    assert isinstance(model, DraftModel)
    assert isinstance(model.start(), Predictions)


BROKEN = {
    "sum below 1": np.full((1, 3), 0.3, np.float32),
    "sum above 1": np.full((1, 3), 0.4, np.float32),
    "not a number": np.array([[0.5, np.nan, 0.5]], np.float32),
    "infinite": np.array([[np.inf, 0, 0]], np.float32),
    "negative": np.array([[1.2, -0.2, 0]], np.float32),
    "another vocabulary": np.full((1, 4), 0.25, np.float32),
    "another number of rows": np.full((2, 3), 1 / 3, np.float32),
    "one dimension": np.full(3, 1 / 3, np.float32),
    "integers": np.array([[1, 0, 0]]),
    "no array": [[1.0, 0.0, 0.0]],
    "nothing": None,
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_no_distribution_is_refused(name):
    with pytest.raises(InvalidDistribution, match="the draft model's probabilities"):
        check_probs(BROKEN[name], 1, 3)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_distributions_of_any_float_are_welcome(dtype):
    checked = check_probs(np.array([[0.25, 0.75, 0.0], [0.0, 1.0, 0.0]], dtype), 2, 3)
    assert checked.dtype == np.float32
    assert checked.tolist() == [[0.25, 0.75, 0.0], [0.0, 1.0, 0.0]]


FIRST_PROBS = st.lists(st.integers(0, 4), min_size=5, max_size=5).map(lambda w: np.array(w, np.float32) / 10)


@given(draft_trees(), FIRST_PROBS, st.integers(0, 6), st.sampled_from([0.0, 0.1, 0.2]))
def test_pruning_keeps_the_paths_whose_first_token_the_model_expects(tree, first_probs, top_k, min_prob):
    ranked = sorted(range(5), key=lambda token: (-first_probs[token], token))[:top_k]
    likely = {token for token in ranked if first_probs[token] >= np.float32(min_prob)}
    pruned = prune(tree, first_probs, Pruning(top_k, min_prob)).check(5)
    assert list(paths_of(pruned).items()) == [
        (path, value) for path, value in paths_of(tree).items() if path[0] in likely
    ]


def test_a_token_past_the_model_s_vocabulary_is_not_expected():
    tree = DraftTree.from_lists([1, 9, 2], [-1, -1, 1])
    assert prune(tree, np.full(5, 0.2, np.float32), Pruning()).token_ids.tolist() == [1]
