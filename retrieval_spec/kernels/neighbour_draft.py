"""Plants what followed the nearest neighbours of a state as one trie, each node with its probability."""

from __future__ import annotations

import math

import numpy as np

from retrieval_spec.fusion import FIRST_CHILD, NEXT_SIBLING, PARENT, PROB, SOURCE, TOKEN
from retrieval_spec.kernels.jit import inlined_kernel, kernel

WEIGHT, SIMILARITY, COUNT = range(3)
"""Rows of the sums of each node: of its neighbours' weights, the highest similarity, how many there are."""

_CERTAIN = 0.999
"""No share is believed to be larger."""


@inlined_kernel
def _child_of(trie, parent, token):
    """Returns the child with this token, or 0."""
    child = trie[FIRST_CHILD, parent]
    while child > 0 and trie[TOKEN, child] != token:
        child = trie[NEXT_SIBLING, child]
    return child


@inlined_kernel
def _worth_of(worth, share, similarity, count):
    """Returns P(a node is accepted | its parent is) by a logistic rule; see `drafters.dense`."""
    share = min(max(share, 1 - _CERTAIN), _CERTAIN)
    z = worth[0] + worth[1] * math.log(share) - worth[2] * math.log(1 - share)
    z += worth[3] * similarity + worth[4] * math.log2(count)
    return 1 / (1 + math.exp(-z))


@kernel
def plant(tokens, num_ids, starts, weights, similarities, max_depth, worth, trie, sums):
    """Fills an empty trie, laid out as in `fusion`; returns the number of columns in use.

    Args:
        tokens: int32[n]  continuations; whatever is no id ends one.
        num_ids: ids lie in `0 .. num_ids - 1`.
        starts: int64[m]  where in `tokens` each neighbour goes on, nearest first.
        weights: float64[m]  how much each counts, above 0.
        similarities: float64[m]  of each neighbour to the state.
        max_depth: tokens of a continuation that are read.
        worth: float64[5]  the rule of the probabilities.
        trie: int32[10, 1 + m * max_depth]  zeros; written.
        sums: float64[3, 1 + m * max_depth]  zeros; written.
    """
    size = 1
    for row in range(starts.shape[0]):
        node = 0
        sums[WEIGHT, 0] += weights[row]
        sums[SIMILARITY, 0] = max(sums[SIMILARITY, 0], similarities[row])
        sums[COUNT, 0] += 1
        for ahead in range(max_depth):
            at = starts[row] + ahead
            if at < 0 or at >= tokens.shape[0]:
                break
            token = np.int64(tokens[at])
            if token < 0 or token >= num_ids:
                break
            child = _child_of(trie, node, token)
            if child == 0:
                child = size
                size += 1
                trie[TOKEN, child] = token
                trie[PARENT, child] = node
                trie[SOURCE, child] = 1
                trie[NEXT_SIBLING, child] = trie[FIRST_CHILD, node]
                trie[FIRST_CHILD, node] = child
            sums[WEIGHT, child] += weights[row]
            sums[SIMILARITY, child] = max(sums[SIMILARITY, child], similarities[row])
            sums[COUNT, child] += 1
            node = child
    probs = trie[PROB].view(np.float32)
    for node in range(1, size):
        parent = trie[PARENT, node]
        share = sums[WEIGHT, node] / sums[WEIGHT, parent]
        probs[node] = _worth_of(worth, share, sums[SIMILARITY, parent], sums[COUNT, parent])
    return size
