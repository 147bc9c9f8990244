from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval_spec.fusion import PLAIN, fuse, fuse_sources
from retrieval_spec.kernels.fusion import COMPILED
from retrieval_spec.tree import DraftTree
from tests.reference.fusion import fuse_reference, paths_of
from tests.strategies import draft_trees

STEPS = {"plain": PLAIN, "compiled": COMPILED}


@pytest.fixture(params=STEPS)
def steps(request):
    return STEPS[request.param]


@given(trees=st.lists(draft_trees(), max_size=4), max_nodes=st.integers(0, 40))
@settings(max_examples=300, deadline=None)
def test_fusion_keeps_the_paths_that_the_reference_keeps(trees, max_nodes):
    fused = fuse(trees, max_nodes, COMPILED).check(vocab_size=5)
    expected = fuse_reference(trees, max_nodes)
    found = paths_of(fused)
    assert len(fused) == len(expected)
    # Paths that tie in probability, depth and token are interchangeable at the cut; the rest is fixed.
    assert [(len(path), path[-1]) for path in found] == [(len(path), path[-1]) for path, _, _ in expected]
    everything = {path: (prob, sources) for path, prob, sources in fuse_reference(trees, 10_000)}
    assert all(everything[path] == value for path, value in found.items())
    assert fused.path_probs().tolist() == sorted(fused.path_probs().tolist(), reverse=True)


@given(trees=st.lists(draft_trees(), max_size=4), max_nodes=st.integers(0, 40))
@settings(max_examples=200, deadline=None)
def test_both_forms_of_the_same_source_agree(trees, max_nodes):
    assert fuse(trees, max_nodes) == fuse(trees, max_nodes, COMPILED)


@given(trees=st.lists(draft_trees(), max_size=4), max_nodes=st.integers(0, 40))
@settings(max_examples=200, deadline=None)
def test_the_sources_of_a_fused_tree_are_the_places_of_its_drafters(trees, max_nodes):
    names = ("a", "b", "c", "d")
    best_first = [from_source(0, fuse([tree], 100)) for tree in trees]
    labelled = [from_source(bit, tree, names) for bit, tree in enumerate(best_first)]
    found = fuse_sources(best_first, max_nodes, names, COMPILED)
    assert found == (fuse(labelled, max_nodes) if labelled else DraftTree.empty(names))


def from_source(bit, tree, names=()):
    sources = np.full(len(tree), 1 << bit, np.uint16)
    return DraftTree(tree.token_ids, tree.parents, tree.probs, sources, names)


def test_a_path_is_inserted_along_the_longest_prefix_that_is_there(steps):
    first = DraftTree.from_lists([1, 2], [-1, 0], [0.5, 0.5], [1, 1], ("a", "b"))
    second = DraftTree.from_lists([1, 2, 3], [-1, 0, 1], [0.25, 1.0, 0.5], [2, 2, 2], ("a", "b"))
    fused = fuse([first, second], 8, steps)
    assert fused.token_ids.tolist() == [1, 2, 3]
    assert fused.parents.tolist() == [-1, 0, 1]
    assert fused.probs.tolist() == [0.5, 1.0, 0.5]
    assert fused.sources.tolist() == [3, 3, 2]
    assert fused.source_names == ("a", "b")


def test_ties_go_to_the_lower_depth_then_to_the_smaller_token(steps):
    tree = DraftTree.from_lists([7, 5, 9], [-1, -1, 0], [0.5, 0.5, 1.0])
    assert fuse([tree], 3, steps).token_ids.tolist() == [5, 7, 9]


@pytest.mark.parametrize("first", [3, 4])
def test_of_nodes_that_are_alike_the_earlier_tree_s_is_kept(steps, first):
    trees = [DraftTree.from_lists([root, 7], [-1, 0], [0.5, 0.5]) for root in (first, 7 - first)]
    fused = fuse(trees, 3, steps)
    assert fused.token_ids.tolist() == [3, 4, 7]
    assert fused.parents.tolist() == [-1, -1, fused.token_ids.tolist().index(first)]


def test_no_nodes_are_a_legal_answer(steps):
    tree = DraftTree.chain([1, 2])
    assert len(fuse([tree], 0, steps)) == 0
    assert len(fuse([], 4, steps)) == 0
    assert len(fuse([DraftTree.empty(), DraftTree.empty()], 4, steps)) == 0


def test_large_token_ids_survive(steps):
    ids = [65_536, 151_935, 2**31 - 2]
    fused = fuse([DraftTree.chain(ids), DraftTree.chain(ids[:1])], 8, steps)
    assert fused.token_ids.tolist() == ids
    assert fused.token_ids.dtype == np.int32
