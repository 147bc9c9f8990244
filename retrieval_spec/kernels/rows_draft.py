"""Merges ranked rows of tokens into one draft tree: rows with one beginning share its nodes."""

from __future__ import annotations

import numpy as np

from retrieval_spec.kernels.context_sort import Column
from retrieval_spec.kernels.jit import allocation_free_kernel

NODE_TOKEN, PARENT, DEPTH, FIRST_CHILD, NEXT_SIBLING, PATH_PROB, PLACE, NODE_WORDS = range(8)
"""Words of a node in the scratch memory; the path probability is a float64, seen through a view."""


@allocation_free_kernel
def child_of(nodes, floats, parent, token, size):
    """Returns the child of a node with that token, a new one at `size` if there is none."""
    child = nodes[parent, FIRST_CHILD]
    while child > 0 and nodes[child, NODE_TOKEN] != token:
        child = nodes[child, NEXT_SIBLING]
    if child == 0:
        child = np.int64(size)
        nodes[child, NODE_TOKEN] = token
        nodes[child, PARENT] = parent
        nodes[child, DEPTH] = nodes[parent, DEPTH] + 1
        nodes[child, FIRST_CHILD] = 0
        nodes[child, NEXT_SIBLING] = nodes[parent, FIRST_CHILD]
        nodes[child, PLACE] = -1
        floats[child, PATH_PROB] = 0.0
        nodes[parent, FIRST_CHILD] = child
    return child


@allocation_free_kernel
def insert_rows(rows, mass, next_rank, survival, max_depth, nodes, floats):
    """Adds every row, worth `next_rank` of the one before; returns how many nodes are in use."""
    nodes[0, DEPTH] = nodes[0, FIRST_CHILD] = 0
    nodes[0, PLACE] = -1
    floats[0, PATH_PROB] = 1.0
    size = 1
    start = 0
    while start < rows.shape[0]:
        stop = min(start + 1 + rows[start], rows.shape[0])
        node = np.int64(0)
        for i in range(start + 1, min(stop, start + 1 + max_depth)):
            node = child_of(nodes, floats, node, rows[i], size)
            size = max(size, node + 1)
            floats[node, PATH_PROB] += mass * survival[min(i - start, survival.shape[0]) - 1]
        start = stop
        mass *= next_rank
    return size


@allocation_free_kernel
def ranks_before(nodes, floats, node, other):
    """Orders nodes as `fusion.best_first` does: path probability, then depth, then token."""
    if floats[node, PATH_PROB] != floats[other, PATH_PROB]:
        return floats[node, PATH_PROB] > floats[other, PATH_PROB]
    if nodes[node, DEPTH] != nodes[other, DEPTH]:
        return nodes[node, DEPTH] < nodes[other, DEPTH]
    return nodes[node, NODE_TOKEN] < nodes[other, NODE_TOKEN]


@allocation_free_kernel
def draft(
    rows: Column,
    first_mass: float,
    next_rank: float,
    survival: Column,
    max_depth: int,
    nodes: Column,
    token_ids: Column,
    parents: Column,
    probs: Column,
) -> int:
    """Fills a draft tree, most probable paths first; returns its size.

    Args:
        rows: int32[r]  for each row its length, and then its tokens; the best row first.
        first_mass: P(the first row is right at its first token).
        next_rank: what a row is worth beside the one before.
        survival: float64[s]  P(a row is right up to its first, second, ... token | its first one is right).
        max_depth: nodes on one path at most.
        nodes: int64[r + 1, NODE_WORDS]  scratch memory.
        token_ids: int32[max_nodes]  written.
        parents: int32[max_nodes]  written: index of an earlier node, or -1.
        probs: float32[max_nodes]  written.
    """
    floats = nodes.view(np.float64)
    num_nodes = insert_rows(rows, first_mass, next_rank, survival, max_depth, nodes, floats)
    for place in range(min(token_ids.shape[0], num_nodes - 1)):
        best = 0
        for node in range(1, num_nodes):
            if nodes[node, PLACE] < 0 and (best == 0 or ranks_before(nodes, floats, node, best)):
                best = node
        parent = nodes[best, PARENT]
        nodes[best, PLACE] = place
        token_ids[place] = nodes[best, NODE_TOKEN]
        parents[place] = nodes[parent, PLACE]
        probs[place] = min(1.0, floats[best, PATH_PROB] / floats[parent, PATH_PROB])
    return min(token_ids.shape[0], num_nodes - 1)
