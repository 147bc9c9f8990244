"""Ranked rows of tokens, such as phrases of a pool, as one draft tree, and a tree as its rows again.

Knows nothing of where rows come from. A row's mass is the probability that it is the right one; rows
with one beginning share its nodes and add up there.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from retrieval_spec.drafters.base import Budget, own_source
from retrieval_spec.tree import CONTEXT, TOKEN, DraftTree

Row = tuple[int, ...]


def tree_of_rows(
    rows: Sequence[Row], masses: Sequence[float], survivals: Sequence[Sequence[float]], budget: Budget
) -> DraftTree:
    """Returns the rows merged by common beginnings, best first; equal nodes go by depth, then by token.

    Rows of one length and survival end in leaves that stand in the order of their masses.

    Args:
        rows: the best first.
        masses: one a row: P(it begins with the right token, and no better row does); together at most 1.
        survivals: one a row: P(it is right up to its first, second, ... token | its first one is right);
            falling, 1 at the first.
        budget: nodes and depth of the tree at most.
    """
    edges: dict[tuple[int, int], int] = {}
    tokens, parents, depths, path_probs = [-1], [-1], [0], [1.0]
    for row, mass, survival in zip(rows, masses, survivals, strict=True):
        node = 0
        for token, survives in zip(row[: budget.max_depth_nodes], survival, strict=False):
            child = edges.get((node, token))
            if child is None:
                child = edges[node, token] = len(tokens)
                tokens.append(token)
                parents.append(node)
                depths.append(depths[node] + 1)
                path_probs.append(0.0)
            path_probs[child] += mass * survives
            node = child
    order = sorted(range(1, len(tokens)), key=lambda node: (-path_probs[node], depths[node], tokens[node]))
    return _selected(order[: budget.max_nodes], tokens, parents, path_probs)


def _selected(order: list[int], tokens: list[int], parents: list[int], path_probs: list[float]) -> DraftTree:
    if not order:
        return DraftTree.empty()
    place = {0: CONTEXT} | {node: position for position, node in enumerate(order)}
    return DraftTree(
        np.array([tokens[node] for node in order], TOKEN),
        np.array([place[parents[node]] for node in order], np.int32),
        np.array([min(1.0, path_probs[node] / path_probs[parents[node]]) for node in order], np.float32),
        own_source(len(order)),
    )


def rows_of_tree(tree: DraftTree) -> list[list[int]]:
    """Returns the nodes from the context's child down to each leaf, the leaf that stands first first."""
    inner = set(tree.parents.tolist())
    return [tree.path_to(leaf) for leaf in range(len(tree)) if leaf not in inner]
