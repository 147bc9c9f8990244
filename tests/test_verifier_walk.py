"""Layout, mask and acceptance walk against their readable twins."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
# ruff: noqa: E402
from retrieval_spec.tree import DraftTree
from retrieval_spec.verifier.acceptance import accept
from retrieval_spec.verifier.layout import lay_out
from retrieval_spec.verifier.mask import additive, ancestors, tree_mask
from tests.reference.acceptance import accept_by_paths, drafted_paths
from tests.strategies import draft_trees

pytestmark = pytest.mark.row("L1")

ROOT_ID = 99
NO_ENDS: frozenset[int] = frozenset()


def paths_of(layout) -> list[tuple[int, ...]]:
    """The tokens from below the root down to each node."""
    paths: list[tuple[int, ...]] = [()]
    for token_id, parent in zip(layout.token_ids[1:], layout.parents[1:], strict=True):
        paths.append((*paths[parent], token_id))
    return paths


def test_the_root_comes_first_and_children_know_their_place():
    layout = lay_out(ROOT_ID, DraftTree.from_lists([7, 8, 9], [-1, 0, 0]), 5, NO_ENDS)
    assert layout.token_ids == [ROOT_ID, 7, 8, 9]
    assert layout.parents == [-1, 0, 1, 1]
    assert layout.depths == [0, 1, 2, 2]
    assert layout.children == [{7: 1}, {8: 2, 9: 3}, {}, {}]


@given(draft_trees(), st.integers(0, 5), st.frozensets(st.integers(0, 4), max_size=2))
def test_the_layout_keeps_what_can_save_a_step(tree, max_depth_nodes, end_ids):
    layout = lay_out(ROOT_ID, tree, max_depth_nodes, end_ids)
    wanted = {
        path
        for path in drafted_paths(tree)
        if len(path) <= max_depth_nodes and not end_ids.intersection(path)
    }
    paths = paths_of(layout)
    assert set(paths) == wanted | {()}
    assert len(paths) == len(set(paths))
    assert layout.depths == [len(path) for path in paths]
    assert all(parent < node for node, parent in enumerate(layout.parents))
    for node, children in enumerate(layout.children):
        assert {paths[child] for child in children.values()} == {
            path for path in paths if path and path[:-1] == paths[node]
        }


@given(draft_trees())
def test_a_node_sees_its_own_path_and_nothing_else(tree):
    layout = lay_out(ROOT_ID, tree, 99, NO_ENDS)
    paths = paths_of(layout)
    visible = ancestors(layout.parents)
    for node, path in enumerate(paths):
        seen = {paths[other] for other in np.flatnonzero(visible[node])}
        assert seen == {path[:length] for length in range(len(path) + 1)}


@given(
    st.lists(st.tuples(draft_trees(), st.integers(0, 9)), min_size=1, max_size=3),
    st.integers(0, 4),
    st.data(),
)
def test_a_node_sees_its_row_and_its_path_and_nothing_else(rows, first, data):
    """Against the definition, place by place: rows of unequal length, padding, windows, dropped keys."""
    layouts = [lay_out(ROOT_ID, tree, 99, NO_ENDS) for tree, _ in rows]
    lengths = [max(first, 3) + length for _, length in rows]  # the prompts were padded to one length
    idle = data.draw(st.integers(-1, len(rows) - 1)) if len(rows) > 1 else -1
    if idle >= 0:
        layouts[idle] = None
    window = data.draw(st.none() | st.integers(1, 6))
    padding = data.draw(st.none() | st.just(np.arange(3) % 2 == 0))
    padded = None if padding is None else np.tile(padding, (len(rows), 1))
    num_nodes = max(len(layout) for layout in layouts if layout is not None)
    end = max(lengths)
    width = end - first + num_nodes + 2
    options = {"first": first, "window_tokens": window, "padding": padded}
    mask = tree_mask(layouts, lengths, width, **options).numpy()
    assert mask.shape == (len(rows), 1, num_nodes, width)
    for row, node, column in np.ndindex(len(rows), num_nodes, width):
        layout, place = layouts[row], first + column
        other = place - end
        if layout is None or node >= len(layout):
            wanted = other == node
        elif place < lengths[row]:
            is_padding = padding is not None and place < 3 and not padding[place]
            is_near = window is None or lengths[row] + layout.depths[node] - place < window
            wanted = is_near and not is_padding
        else:
            is_near = window is None or (
                0 <= other < len(layout) and (layout.depths[node] - layout.depths[other] < window)
            )
            wanted = 0 <= other < len(layout) and is_near and ancestors(layout.parents)[node, other]
        assert mask[row, 0, node, column] == wanted


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_additive_mask_is_0_to_attend_and_the_lowest_number_to_not(dtype):
    mask = additive(torch.tensor([[True, False]]), dtype)
    assert mask.dtype == dtype
    assert mask.tolist() == [[0.0, torch.finfo(dtype).min]]


@pytest.mark.quick
@given(draft_trees(), st.lists(st.integers(0, 4), min_size=14, max_size=14), st.integers(1, 14))
def test_the_walk_decides_what_plain_decoding_decides(tree, favourites, stop_length):
    """The target is any function of the path: here it depends on depth and on the tokens so far."""

    def target(path):
        return (favourites[len(path)] + sum(path)) % 5

    def stops_after(path):
        return len(path) >= stop_length

    layout = lay_out(ROOT_ID, tree, 99, NO_ENDS)
    paths = paths_of(layout)
    decided: list[int] = []
    asked: list[int] = []

    def choose(node):
        asked.append(node)
        assert paths[node] == tuple(decided)  # never a sibling, always the path itself
        return target(paths[node])

    def stops(token_id):
        decided.append(token_id)
        return stops_after(decided)

    outcome = accept(layout, choose, stops)
    expected_tokens, expected_accepted = accept_by_paths(tree, target, stops_after)
    assert outcome.token_ids == decided == expected_tokens
    assert outcome.num_accepted == expected_accepted
    assert outcome.path == asked
    assert len(outcome.path) == len(outcome.token_ids)
