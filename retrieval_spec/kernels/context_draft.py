"""Drafts from a context array: the nearest occurrences' continuations as a trie, its best nodes first.

Only nodes that are taken grow children, and the groups of occurrences behind the waiting nodes never
overlap: a draft costs in proportion to its budget, and no queue outgrows the occurrences.
"""

from __future__ import annotations

import numpy as np

from retrieval_spec.kernels.context_array import nearest
from retrieval_spec.kernels.context_sort import Column, code_at
from retrieval_spec.kernels.jit import kernel

# Rows of `seen`: an occurrence's position, its match length, and the token that goes on here.
FOUND, LENGTH, CODE = range(3)
# Rows of `waiting`: a node that could be drafted next, with the occurrences START..STOP behind it.
RANK, PARENT, DEPTH, START, STOP, WEIGHT = range(6)
# Rows of `probs`: that node's probability after its parent, and that of its whole path.
OWN, PATH = range(2)
# Rows of a drafted tree; the probabilities stand there as the bits of float32.
TOKENS, PARENTS, PROBS = range(3)

TOKEN_BITS, DEPTH_BITS = 21, 7
MAX_DEPTH = (1 << DEPTH_BITS) - 1


@kernel
def rank_of(path_prob_bits, depth, token):
    """Returns a number that is largest for the best node: probable path, then low depth, then low token.

    The bits of non-negative floats sort like the floats.
    """
    inverted = ((MAX_DEPTH - depth) << TOKEN_BITS) | ((1 << TOKEN_BITS) - 1 - token)
    return (np.int64(path_prob_bits) << (TOKEN_BITS + DEPTH_BITS)) | inverted


@kernel
def read_on(tokens, num_ids, seen, start, stop, depth):
    """Reads the token at `depth` of the continuations start..stop; `num_ids` says that one has ended."""
    for i in range(start, stop):
        at = seen[FOUND, i] + depth
        seen[CODE, i] = code_at(tokens, at, num_ids) if at < tokens.shape[0] else num_ids


@kernel
def gather_group(seen, weights, start, stop):
    """Moves the occurrences that go on like the first one next to it.

    Returns where they end, their weight and their longest match.
    """
    end = start + 1
    code = seen[CODE, start]
    longest = seen[LENGTH, start]
    weight = weights[longest]
    for i in range(end, stop):
        if seen[CODE, i] == code:
            weight += weights[seen[LENGTH, i]]
            longest = max(longest, seen[LENGTH, i])
            for row in range(3):
                seen[row, i], seen[row, end] = seen[row, end], seen[row, i]
            end += 1
    return end, weight, longest


@kernel
def grow(seen, waiting, probs, bits, num_ids, weights, reliability, size, parent):
    """Adds the children of the node in the last column to the waiting ones; returns their new number.

    A child's probability is its share of the weight of all that went on so far, those that end here
    included, times what such a share is worth after the longest match behind it.
    """
    depth = waiting[DEPTH, -1]
    start, stop = waiting[START, -1], waiting[STOP, -1]
    while start < stop:
        end, weight, longest = gather_group(seen, weights, start, stop)
        if seen[CODE, start] != num_ids:
            trust = reliability[min(longest + depth, reliability.shape[0] - 1)]
            probs[OWN, size] = weight / waiting[WEIGHT, -1] * trust
            probs[PATH, size] = probs[OWN, size] * probs[PATH, -1]
            waiting[RANK, size] = rank_of(bits[PATH, size], depth + 1, seen[CODE, start])
            waiting[PARENT, size] = parent
            waiting[DEPTH, size] = depth + 1
            waiting[START, size] = start
            waiting[STOP, size] = end
            waiting[WEIGHT, size] = weight
            size += 1
        start = end
    return size


@kernel
def take_best(waiting, probs, size):
    """Moves the best waiting node to the last column and the last waiting one to its place.

    Of equal ranks the earlier parent comes first.
    """
    best = 0
    for i in range(1, size):
        if waiting[RANK, i] > waiting[RANK, best] or (
            waiting[RANK, i] == waiting[RANK, best] and waiting[PARENT, i] < waiting[PARENT, best]
        ):
            best = i
    for row in range(waiting.shape[0]):
        waiting[row, -1] = waiting[row, best]
        waiting[row, best] = waiting[row, size - 1]
    for row in range(probs.shape[0]):
        probs[row, -1] = probs[row, best]
        probs[row, best] = probs[row, size - 1]


@kernel
def draft(
    tokens: Column,
    positions: Column,
    buckets: Column,
    context: Column,
    weights: Column,
    reliability: Column,
    num_neighbours: int,
    max_nodes: int,
    max_depth: int,
) -> Column:
    """Returns a draft tree as int32[3, k]: token ids, parents, and the bits of the float32 probabilities.

    Args:
        tokens: uint16[n] or int32[n]  the corpus.
        positions: uint32[m]  sorted by context.
        buckets: uint32[num_ids + 1]  where each last token's positions start.
        context: int32[c]  the tokens before the draft, the newest last.
        weights: int64[depth + 1]  what an occurrence counts, by the length of its match.
        reliability: float32[..]  what a share of 1.0 is worth, by the length of the match.
        num_neighbours: how many occurrences are looked at.
        max_nodes: nodes of the tree at most.
        max_depth: nodes on one path at most, itself at most `MAX_DEPTH`.
    """
    num_ids = np.int64(buckets.shape[0] - 1)
    max_depth = min(max_depth, MAX_DEPTH)
    max_nodes = min(max_nodes, num_neighbours * max_depth)
    seen = np.empty((3, num_neighbours), np.int64)
    # The groups do not overlap, so at most `num_neighbours` nodes wait; the last column is the one taken.
    waiting = np.empty((6, num_neighbours + 1), np.int64)
    probs = np.empty((2, num_neighbours + 1), np.float32)
    bits = probs.view(np.int32)
    tree = np.empty((3, max_nodes), np.int32)
    num_seen = nearest(tokens, positions, buckets, context, weights.shape[0] - 1, seen[FOUND], seen[LENGTH])
    # The root stands in the last column: all occurrences are behind it.
    probs[PATH, -1] = 1
    waiting[DEPTH, -1] = waiting[START, -1] = waiting[WEIGHT, -1] = 0
    waiting[STOP, -1] = num_seen
    for i in range(num_seen):
        waiting[WEIGHT, -1] += weights[seen[LENGTH, i]]
    size = 0
    for count in range(max_nodes):
        if waiting[DEPTH, -1] < max_depth:
            read_on(tokens, num_ids, seen, waiting[START, -1], waiting[STOP, -1], waiting[DEPTH, -1])
            size = grow(seen, waiting, probs, bits, num_ids, weights, reliability, size, count - 1)
        if size == 0:
            return tree[:, :count]
        take_best(waiting, probs, size)
        size -= 1
        tree[TOKENS, count] = seen[CODE, waiting[START, -1]]
        tree[PARENTS, count] = waiting[PARENT, -1]
        tree[PROBS, count] = bits[OWN, -1]
    return tree
