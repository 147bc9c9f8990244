from __future__ import annotations

import heapq
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval_spec.budget import MAX_CURVE_POINTS, CostCurve, cut, draft_paying, num_paying, share_nodes
from retrieval_spec.errors import InvalidRequest
from retrieval_spec.fusion import fuse
from retrieval_spec.tree import DraftTree
from tests.reference.node_budget import best_worth, cost_at, worth
from tests.strategies import draft_trees

best_first_trees = draft_trees().map(lambda tree: fuse([tree], 100))
small_trees = draft_trees(max_nodes=5).map(lambda tree: fuse([tree], 5))
# A grid, so that plateaus and ties happen.
costs = st.sampled_from([0.5, 1.0, 1.25, 1.5, 2.0, 4.0])


@st.composite
def cost_curves(draw, max_points=5):
    counts = draw(st.lists(st.integers(1, 40), unique=True, max_size=max_points - 1).map(sorted))
    return CostCurve((0, *counts), tuple(draw(costs) for _ in range(len(counts) + 1)))


def points(curve):
    return list(zip(curve.node_counts, curve.costs, strict=True))


@given(st.lists(best_first_trees, max_size=5), st.integers(0, 40))
@settings(max_examples=200, deadline=None)
def test_the_shared_budget_takes_the_most_probable_paths_of_all(trees, total_nodes):
    shared = share_nodes(trees, total_nodes)
    everything = [prob for tree in trees for prob in tree.path_probs().tolist()]
    kept = [prob for tree in shared for prob in tree.path_probs().tolist()]
    assert sorted(kept, reverse=True) == heapq.nlargest(total_nodes, everything)
    for before, after in zip(trees, shared, strict=True):
        assert after.check(5) == before.prefix(len(after))


@pytest.mark.parametrize("cost_curve", [None, CostCurve.linear(0.01)])
@pytest.mark.parametrize("total_nodes", [0, 1, 100])
def test_sessions_without_drafts_take_nothing(total_nodes, cost_curve):
    trees = [DraftTree.empty(), DraftTree.chain([1, 2])]
    sizes = [len(tree) for tree in share_nodes(trees, total_nodes, cost_curve)]
    assert sizes == [0, min(total_nodes, 2)]
    assert share_nodes([], total_nodes, cost_curve) == []


@given(st.lists(small_trees, min_size=1, max_size=2), cost_curves(), st.integers(0, 12))
@settings(max_examples=150, deadline=None)
def test_no_selection_yields_more_tokens_for_what_it_costs(trees, cost_curve, total_nodes):
    shared = share_nodes(trees, total_nodes, cost_curve)
    for before, after in zip(trees, shared, strict=True):
        assert after.check(5) == before.prefix(len(after))
    num_nodes = sum(map(len, shared))
    tokens = len(trees) + sum(float(tree.path_probs().sum()) for tree in shared)
    plain = [(tree.parents.tolist(), tree.path_probs().tolist()) for tree in trees]
    most, fewest = best_worth(plain, points(cost_curve), total_nodes)
    assert worth(tokens, cost_at(points(cost_curve), num_nodes)) == pytest.approx(most, rel=1e-6)
    assert num_nodes == fewest


@given(best_first_trees, cost_curves())
@settings(deadline=None)
def test_a_session_alone_is_a_batch_of_one_and_cutting_again_cuts_nothing(tree, cost_curve):
    alone = cut(tree, cost_curve)
    assert [alone] == share_nodes([tree], 100, cost_curve)
    assert cut(alone, cost_curve) == alone


@given(best_first_trees, cost_curves(), st.lists(st.integers(0, 3), min_size=200, max_size=200))
@settings(deadline=None)
def test_dearer_nodes_never_give_more_nodes(tree, cost_curve, steps):
    at = range(len(tree) + 1)
    dearer = cost_curve.up_to(len(tree)) * (1 + np.cumsum(steps[: len(at)]) / 8)
    assert len(cut(tree, CostCurve(tuple(at), tuple(dearer)))) <= len(cut(tree, cost_curve))


@given(best_first_trees, cost_curves(), st.sampled_from([0.001, 2.0, 1024.0]))
@settings(deadline=None)
def test_only_ratios_of_costs_matter(tree, cost_curve, unit):
    other = CostCurve(cost_curve.node_counts, tuple(cost * unit for cost in cost_curve.costs))
    probs = tree.path_probs() * np.float32(0.99)  # off the grid, where rounding would decide
    assert num_paying(probs, other) == num_paying(probs, cost_curve)


def test_a_sure_chain_is_kept_and_an_unlikely_one_is_not():
    curve = CostCurve.linear(0.03)
    assert len(cut(DraftTree.chain(range(64), [0.999] * 64), curve)) == 64
    assert len(cut(DraftTree.chain(range(64), [0.02] * 64), curve)) == 0
    # 0.5 ** 4 < 1.3 * 0.03 * 1.94 / 1.12
    assert len(cut(DraftTree.chain(range(64), [0.5] * 64), curve)) == 3


def test_a_step_in_the_curve_is_jumped_where_what_lies_behind_pays():
    knee = CostCurve((0, 7, 8, 16), (1.0, 1.0, 1.5, 1.5))
    assert len(cut(DraftTree.chain(range(16), [0.99] * 16), knee)) == 16
    assert len(cut(DraftTree.chain(range(16), [0.8] * 16), knee)) == 7


def test_more_sessions_in_a_pass_leave_fewer_nodes_to_each():
    # Flat up to 16 nodes, then every node costs as much as 1/20 of the pass.
    curve = CostCurve((0, 16, 116), (1.0, 1.0, 6.0))
    tree = DraftTree.chain(range(8), [0.7] * 8)
    sizes = [[len(t) for t in share_nodes([tree] * count, 10_000, curve)] for count in (1, 2, 16, 64)]
    assert [max(few) for few in sizes] == sorted([max(few) for few in sizes], reverse=True)
    assert sizes[0] == [8]
    assert max(sizes[-1]) <= 2


def test_drafting_ends_where_no_node_pays():
    curve = CostCurve.linear(1.0)
    assert len(cut(DraftTree.chain([1, 2], [0.95, 0.95]), curve)) == 0
    assert len(cut(DraftTree.empty(), curve)) == 0


class Asked:
    """Drafts the first nodes of one tree, and keeps how many it was asked for."""

    def __init__(self, tree):
        self.tree, self.num_nodes = tree, []

    def __call__(self, max_nodes):
        self.num_nodes.append(max_nodes)
        return self.tree.prefix(max_nodes)


@given(best_first_trees, st.floats(0.001, 0.5), st.integers(0, 64))
@settings(deadline=None)
def test_on_a_straight_curve_asking_for_few_finds_what_asking_for_all_finds(tree, cost_per_node, num_paid):
    curve = CostCurve.linear(cost_per_node)
    assert draft_paying(Asked(tree), 64, curve, num_paid) == cut(tree.prefix(64), curve)


def test_few_more_nodes_are_asked_for_than_paid_and_more_while_all_of_them_pay():
    curve = CostCurve.linear(0.03)
    unlikely = Asked(DraftTree.chain(range(64), [0.5] * 64))
    assert len(draft_paying(unlikely, 64, curve, 3)) == 3
    assert unlikely.num_nodes == [7]
    sure = Asked(DraftTree.chain(range(64), [0.999] * 64))
    assert len(draft_paying(sure, 64, curve, 3)) == 64
    assert sure.num_nodes == [7, 14, 28, 56, 64]
    assert len(draft_paying(sure, 10, curve, 30)) == 10


def test_what_lies_behind_a_step_in_the_curve_is_asked_for():
    knee = CostCurve((0, 7, 8, 64), (1.0, 1.0, 1.5, 1.5))
    assert len(draft_paying(Asked(DraftTree.chain(range(64), [0.99] * 64)), 64, knee, 0)) == 64


@given(cost_curves(), st.integers(0, 100))
def test_costs_between_and_beyond_the_points(cost_curve, num_nodes):
    table = cost_curve.up_to(num_nodes)
    expected = [cost_at(points(cost_curve), count) for count in range(num_nodes + 1)]
    assert table.tolist() == pytest.approx(expected)
    assert cost_curve.at(num_nodes) == pytest.approx(expected[-1])
    assert not table.flags.writeable


@given(st.lists(costs, min_size=1, max_size=8))
def test_costs_that_fall_are_pooled(measured):
    curve = CostCurve(tuple(range(len(measured))), tuple(measured))
    assert list(curve.costs) == sorted(curve.costs)
    assert sum(curve.costs) == pytest.approx(sum(measured))
    if measured == sorted(measured):
        assert list(curve.costs) == measured
    assert CostCurve(curve.node_counts, curve.costs) == curve
    # No other rising sequence is nearer: blocks of equal costs hold the mean of what they replace.
    for level in set(curve.costs):
        block = [before for before, after in zip(measured, curve.costs, strict=True) if after == level]
        assert level == pytest.approx(sum(block) / len(block))


@pytest.mark.parametrize(
    ("counts", "values"),
    [
        ((), ()),
        ((0, 1), (1.0,)),
        ((1, 2), (1.0, 2.0)),
        ((0, 2, 2), (1.0, 2.0, 3.0)),
        ((0, 3, 2), (1.0, 2.0, 3.0)),
        ((0, 1.5), (1.0, 2.0)),
        ((0, 2**31), (1.0, 2.0)),
        ((-1, 0), (1.0, 2.0)),
        (range(MAX_CURVE_POINTS + 1), [1.0] * (MAX_CURVE_POINTS + 1)),
        ((0,), (0.0,)),
        ((0, 1), (1.0, -1.0)),
        ((0, 1), (1.0, math.nan)),
        ((0, 1), (1.0, math.inf)),
        ((0, 1), (1.0, "dear")),
        ((0, 1), (1.0, None)),
        (None, (1.0,)),
        ((0,), 1.0),
    ],
)
def test_what_is_no_cost_curve_is_refused(counts, values):
    with pytest.raises(InvalidRequest):
        CostCurve(counts, values)
