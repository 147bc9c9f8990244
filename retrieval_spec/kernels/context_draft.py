"""Drafts from a context array: the nearest occurrences' continuations as a trie, its best nodes first.

Only nodes that are taken grow children, and the groups of occurrences behind the waiting nodes never
overlap: a draft costs in proportion to its budget, and no queue outgrows the occurrences.
"""

from __future__ import annotations

import numpy as np

from retrieval_spec.kernels.context_array import nearest
from retrieval_spec.kernels.context_sort import Column, code_at
from retrieval_spec.kernels.jit import kernel

# Columns of `waiting`: a node that could be drafted next, and the occurrences that speak for it.
TOKEN, PARENT, DEPTH, START, STOP = range(5)
PROB, PATH_PROB = range(2)


@kernel
def read_tokens(tokens, found, start, stop, depth, num_ids, codes):
    """Reads the token at `depth` of every occurrence's continuation; `num_ids` says that it has ended."""
    for i in range(start, stop):
        at = found[i] + depth
        codes[i] = code_at(tokens, at, num_ids) if at < tokens.shape[0] else num_ids


@kernel
def gather_group(codes, found, lengths, start, stop):
    """Moves the occurrences that go on like the first one next to it and returns where they end."""
    end = start + 1
    for i in range(start + 1, stop):
        if codes[i] == codes[start]:
            codes[i], codes[end] = codes[end], codes[i]
            found[i], found[end] = found[end], found[i]
            lengths[i], lengths[end] = lengths[end], lengths[i]
            end += 1
    return end


@kernel
def total_weight(lengths, weights, start, stop):
    """Returns the summed weight of occurrences and the longest match among them."""
    total = np.int64(0)
    longest = np.int64(0)
    for i in range(start, stop):
        total += weights[lengths[i]]
        longest = max(longest, lengths[i])
    return total, longest


@kernel
def grow(waiting, probs, size, parent, depth, path_prob, codes, found, lengths, span, num_ids, tables):
    """Adds the children of a node to the waiting ones and returns their new number."""
    start, stop = span
    weights, reliability = tables
    total, _ = total_weight(lengths, weights, start, stop)
    while start < stop:
        end = gather_group(codes, found, lengths, start, stop)
        if codes[start] != num_ids:
            weight, longest = total_weight(lengths, weights, start, end)
            trust = reliability[min(longest + depth, reliability.shape[0] - 1)]
            waiting[size, TOKEN] = codes[start]
            waiting[size, PARENT] = parent
            waiting[size, DEPTH] = depth + 1
            waiting[size, START] = start
            waiting[size, STOP] = end
            probs[size, PROB] = weight / total * trust
            probs[size, PATH_PROB] = probs[size, PROB] * path_prob
            size += 1
        start = end
    return size


@kernel
def is_better(waiting, probs, one, other):
    """Says which of two waiting nodes comes first: the more probable path, then depth, token and parent."""
    if probs[one, PATH_PROB] != probs[other, PATH_PROB]:
        return probs[one, PATH_PROB] > probs[other, PATH_PROB]
    if waiting[one, DEPTH] != waiting[other, DEPTH]:
        return waiting[one, DEPTH] < waiting[other, DEPTH]
    if waiting[one, TOKEN] != waiting[other, TOKEN]:
        return waiting[one, TOKEN] < waiting[other, TOKEN]
    return waiting[one, PARENT] < waiting[other, PARENT]


@kernel
def best_waiting(waiting, probs, size):
    """Returns the index of the waiting node that comes first."""
    best = 0
    for i in range(1, size):
        if is_better(waiting, probs, i, best):
            best = i
    return best


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
) -> tuple[Column, Column, Column, Column]:
    """Returns the columns of a draft tree: token_ids int32[k], parents int32[k], probs float32[k], sources.

    Args:
        tokens: uint16[n] or int32[n]  the corpus.
        positions: uint32[m]  sorted by context.
        buckets: uint32[num_ids + 1]  where each last token's positions start.
        context: int32[c]  the last tokens, the newest at the end.
        weights: int64[depth + 1]  what an occurrence counts, by the length of its match.
        reliability: float32[..]  what a share of 1.0 is worth, by the length of the match.
        num_neighbours: how many occurrences are looked at.
        max_nodes: nodes of the tree at most.
        max_depth: nodes on one path at most.
    """
    num_ids = np.int64(buckets.shape[0] - 1)
    context = context[max(0, context.shape[0] - weights.shape[0] + 1) :]
    max_nodes = min(max_nodes, num_neighbours * max_depth)
    found = np.empty(num_neighbours, np.int64)
    lengths = np.empty(num_neighbours, np.int64)
    codes = np.empty(num_neighbours, np.int64)
    waiting = np.empty((num_neighbours, 5), np.int64)
    probs = np.empty((num_neighbours, 2), np.float32)
    out_tokens = np.empty(max_nodes, np.int32)
    out_parents = np.empty(max_nodes, np.int32)
    out_probs = np.empty(max_nodes, np.float32)
    parent = -1
    depth = np.int64(0)
    path_prob = np.float32(1)
    span = (np.int64(0), np.int64(nearest(tokens, positions, buckets, context, found, lengths)))
    size = 0
    count = 0
    while count < max_nodes:
        if depth < max_depth:
            read_tokens(tokens, found, span[0], span[1], depth, num_ids, codes)
            size = grow(
                waiting, probs, size, parent, depth, path_prob, codes, found, lengths, span, num_ids,
                (weights, reliability),
            )  # fmt: skip
        if size == 0:
            break
        best = best_waiting(waiting, probs, size)
        out_tokens[count] = waiting[best, TOKEN]
        out_parents[count] = waiting[best, PARENT]
        out_probs[count] = probs[best, PROB]
        parent, depth, path_prob = count, waiting[best, DEPTH], probs[best, PATH_PROB]
        span = (waiting[best, START], waiting[best, STOP])
        count += 1
        size -= 1
        waiting[best] = waiting[size]
        probs[best] = probs[size]
    return out_tokens[:count], out_parents[:count], out_probs[:count], np.ones(count, np.uint16)
