from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval_spec.errors import InvalidTokens, InvalidTree
from retrieval_spec.tree import DraftTree, as_tokens
from tests.strategies import draft_trees

VOCAB_SIZE = 151_936


@pytest.mark.row("C1")
@pytest.mark.parametrize(
    "values",
    [
        [0, 1, VOCAB_SIZE - 1],
        (65_535, 65_536, 65_537),
        np.array([5, 6], np.uint16),
        np.array([5, 6], np.int64)[::-1],
        [],
        np.zeros(0, np.float64),
    ],
)
def test_token_ids_of_any_integer_type_pass_the_door(values):
    tokens = as_tokens(values, VOCAB_SIZE)
    assert tokens.dtype == np.int32
    assert tokens.flags.c_contiguous
    assert tokens.tolist() == [int(value) for value in values]


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ([1, -1], "index 1"),
        ([VOCAB_SIZE], f"0 to {VOCAB_SIZE - 1}"),
        ([2**31], "index 0"),
        (np.array([1, 2**32 - 1], np.uint64), "index 1"),
        ([2**63 + 1, 2**64 - 1], "index 0"),
        ([-(2**31)], "index 0"),
        ([2**70], "integer"),
        ([1.5], "integer type"),
        (["a"], "integer type"),
        ([True, False], "integer type"),
        ([None], "integer type"),
        ([[1, 2]], "one dimension"),
        ([[1], [2, 3]], "flat list"),
        (5, "one dimension"),
    ],
)
def test_anything_else_is_refused_with_the_reason(values, says):
    with pytest.raises(InvalidTokens, match=says):
        as_tokens(values, VOCAB_SIZE)


def test_an_empty_tree_is_a_tree():
    tree = DraftTree.empty(("session",))
    assert len(tree.check(1)) == 0
    assert tree.depths().tolist() == []
    assert tree.path_probs().tolist() == []
    assert tree.children() == {}


def test_the_example_of_the_docstring():
    cat, sat, ran = 3, 4, 5
    tree = DraftTree.from_lists([cat, sat, ran], [-1, 0, 0], [0.5, 0.5, 0.25]).check(6)
    assert tree.depths().tolist() == [1, 2, 2]
    assert tree.path_probs().tolist() == [0.5, 0.25, 0.125]
    assert tree.path_to(2) == [0, 2]
    assert tree.children() == {-1: {cat: 0}, 0: {sat: 1, ran: 2}}


@given(draft_trees())
def test_depths_and_path_probs_follow_the_path(tree):
    tree.check(vocab_size=5)
    for node in range(len(tree)):
        path = tree.path_to(node)
        assert tree.depths()[node] == len(path)
        assert tree.path_probs()[node] == np.prod(tree.probs[path], dtype=np.float32)


@given(draft_trees(), st.integers(0, 14))
def test_a_prefix_of_a_tree_is_a_tree(tree, num_nodes):
    assert len(tree.prefix(num_nodes).check(5)) == min(num_nodes, len(tree))


@pytest.mark.parametrize(
    ("tree", "says"),
    [
        (DraftTree.from_lists([1, 2], [0, 0]), "node 0 does not precede"),
        (DraftTree.from_lists([1, 2], [-1, 1]), "node 1 does not precede"),
        (DraftTree.from_lists([1, 2], [-1, -2]), "node 1 does not precede"),
        (DraftTree.from_lists([1, 1], [-1, -1]), "siblings"),
        (DraftTree.from_lists([1], [-1], [float("nan")]), "probability"),
        (DraftTree.from_lists([1], [-1], [1.5]), "probability"),
        (DraftTree.from_lists([1], [-1], [-0.5]), "probability"),
        (DraftTree.from_lists([1, 2], [-1]), "length"),
        (
            DraftTree(np.array([1]), np.array([-1], np.int32), np.ones(1, np.float32), np.ones(1, np.uint16)),
            "int64",
        ),
    ],
)
def test_a_broken_tree_is_refused_with_the_reason(tree, says):
    with pytest.raises(InvalidTree, match=says):
        tree.check(VOCAB_SIZE)


def test_a_token_outside_the_vocabulary_is_refused_in_a_tree():
    with pytest.raises(InvalidTokens, match="index 1"):
        DraftTree.chain([1, VOCAB_SIZE]).check(VOCAB_SIZE)


def test_trees_compare_by_content():
    assert DraftTree.chain([1, 2]) == DraftTree.chain([1, 2])
    assert DraftTree.chain([1, 2]) != DraftTree.chain([1, 3])
    assert DraftTree.chain([1]) != DraftTree.chain([1], [0.5])
    assert DraftTree.chain([1]) != [1]


def test_a_tree_cannot_be_changed():
    tree = DraftTree.chain([1])
    for name in ("token_ids", "parents", "probs", "sources", "source_names", "other"):
        with pytest.raises((AttributeError, TypeError)):
            setattr(tree, name, None)


@given(draft_trees())
def test_no_path_of_a_tree_is_expected_to_bring_more_than_its_best_one(tree):
    path_probs = tree.path_probs()
    worth = {tuple(tree.path_to(node)): path_probs[tree.path_to(node)].sum() for node in range(len(tree))}
    best = tree.best_path()
    assert best == (tree.path_to(best[-1]) if best else [])
    assert bool(best) == bool(len(tree))
    assert not worth or worth[tuple(best)] >= max(worth.values()) - 1e-5


def test_the_best_path_is_not_the_one_that_begins_best():
    tree = DraftTree.from_lists([1, 2, 3, 4], [-1, -1, 1, 2], [0.5, 0.4, 1.0, 1.0])
    assert tree.best_path() == [1, 2, 3]
    assert DraftTree.from_lists([1, 2], [-1, -1], [0.5, 0.5]).best_path() == [0]
