"""Ranked rows of tokens, such as phrases of a pool, as one draft tree, and a tree as its rows again.

Knows nothing of where rows come from.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from operator import eq, mul

import numpy as np
from numpy.typing import NDArray

from retrieval_spec.drafters.base import MAX_DEPTH_NODES, Budget
from retrieval_spec.drafters.columns import new_columns, tree_of
from retrieval_spec.kernels.rows_draft import NODE_WORDS, draft
from retrieval_spec.tree import CONTEXT, DraftTree

Row = tuple[int, ...]
Survival = NDArray[np.float64]
_NEXT_RANK = 0.5
"""What a row is worth beside the next better one."""


def survival(goes_on: Sequence[float]) -> Survival:
    """Returns P(a row is right up to its first, second, ... token | the first one is right).

    Args:
        goes_on: P(the second, third, ... token is right | those before it are); the last one holds on.
    """
    steps = [*goes_on, *[goes_on[-1]] * (MAX_DEPTH_NODES - len(goes_on) - 1)]
    return np.array(list(accumulate(steps, mul, initial=1.0)))


def tree_of_rows(rows: Sequence[Row], worth: float, survives: Survival, budget: Budget) -> DraftTree:
    """Returns the rows merged by common beginnings, best first; equal nodes go by depth, then by token.

    A row counts half of the one before, and rows with one beginning add up there. Rows of one length
    end in leaves that stand in the order of the rows.

    Args:
        rows: the best first, none twice.
        worth: P(one of the rows begins with the right token).
        survives: from `survival`.
        budget: nodes and depth of the tree at most.
    """
    flat: list[int] = []
    for row in rows:
        flat.append(len(row))
        flat += row
    max_nodes = min(budget.max_nodes, len(flat))
    columns = new_columns(max_nodes)
    nodes = np.empty((len(flat) + 1, NODE_WORDS), np.int64)
    first_mass = worth * (1 - _NEXT_RANK) / (1 - _NEXT_RANK ** max(len(rows), 1))
    size = draft(
        np.array(flat, np.int32),
        first_mass,
        _NEXT_RANK,
        survives,
        budget.max_depth_nodes,
        nodes,
        *columns,
    )
    return tree_of(columns, size)


def is_known(row: Row, kept: Sequence[Row]) -> bool:
    """Returns whether a kept row begins like `row`, as far as both go."""
    return any(all(map(eq, row, other)) for other in kept)


def rows_of_tree(tree: DraftTree) -> list[list[int]]:
    """Returns the nodes from the context's child down to each leaf, the leaf that stands first first."""
    inner = set(tree.parents.tolist())
    return [tree.path_to(leaf) for leaf in range(len(tree)) if leaf not in inner]


def with_nodes(tree: DraftTree, nodes: set[int]) -> DraftTree:
    """Returns the tree of some nodes, with which their parents are."""
    kept = sorted(nodes)
    place = {CONTEXT: CONTEXT} | {node: position for position, node in enumerate(kept)}
    parents = np.array([place[int(tree.parents[node])] for node in kept], np.int32)
    return DraftTree(tree.token_ids[kept], parents, tree.probs[kept], tree.sources[kept], tree.source_names)
