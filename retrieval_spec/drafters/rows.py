"""Ranked rows of tokens, such as phrases of a pool, as one draft tree, and a tree as its rows again.

Knows nothing of where rows come from. A row's mass is the probability that it is the right one; rows
with one beginning share its nodes and add up there.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from operator import eq, mul

import numpy as np

from retrieval_spec.drafters.base import MAX_DEPTH_NODES, Budget, own_source
from retrieval_spec.tree import CONTEXT, TOKEN, DraftTree

Row = tuple[int, ...]
_NEXT_RANK = 0.5
"""What a row is worth beside the next better one."""


def falling_masses(num_rows: int, worth: float) -> list[float]:
    """Returns one mass a row, each half of the one before, together the probability that any is right."""
    shares = [_NEXT_RANK**rank for rank in range(num_rows)]
    scale = worth / max(sum(shares), 1.0)
    return [scale * share for share in shares]


def survival(goes_on: Sequence[float]) -> list[float]:
    """Returns P(a row is right up to its first, second, ... token | the first one is right).

    Args:
        goes_on: P(the second, third, ... token is right | those before it are); the last one holds on.
    """
    steps = [*goes_on, *[goes_on[-1]] * (MAX_DEPTH_NODES - len(goes_on) - 1)]
    return list(accumulate(steps, mul, initial=1.0))


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
