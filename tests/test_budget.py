from __future__ import annotations

import heapq

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval_spec.budget import share_nodes
from retrieval_spec.fusion import fuse
from retrieval_spec.tree import DraftTree
from tests.strategies import draft_trees

best_first_trees = draft_trees().map(lambda tree: fuse([tree], 100))


@given(st.lists(best_first_trees, max_size=5), st.integers(0, 40))
@settings(max_examples=200, deadline=None)
def test_the_shared_budget_takes_the_most_probable_paths_of_all(trees, total_nodes):
    shared = share_nodes(trees, total_nodes)
    everything = [prob for tree in trees for prob in tree.path_probs().tolist()]
    kept = [prob for tree in shared for prob in tree.path_probs().tolist()]
    assert sorted(kept, reverse=True) == heapq.nlargest(total_nodes, everything)
    for before, after in zip(trees, shared, strict=True):
        assert after.check(5) == before.prefix(len(after))


@pytest.mark.parametrize("total_nodes", [0, 1, 100])
def test_sessions_without_drafts_take_nothing(total_nodes):
    sizes = [len(tree) for tree in share_nodes([DraftTree.empty(), DraftTree.chain([1, 2])], total_nodes)]
    assert sizes == [0, min(total_nodes, 2)]
