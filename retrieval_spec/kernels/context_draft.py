"""Drafts from a context array: the nearest occurrences' continuations as a trie, its best nodes first.

Only nodes that are taken grow children, and the groups of occurrences behind the waiting nodes never
overlap: a draft costs in proportion to its budget, and no queue outgrows the occurrences.
"""

from __future__ import annotations

import numpy as np

from retrieval_spec.kernels.context_array import CODE, FOUND, LENGTH, SEEN_WORDS, nearest
from retrieval_spec.kernels.context_sort import Column, code_at
from retrieval_spec.kernels.jit import allocation_free_kernel, inlined_kernel
from retrieval_spec.kernels.ranking import (
    FIRST_OWN_WORD,
    NODE_WORDS,
    add_to_tree,
    describe,
    enter,
    free_all,
    order_of,
)

NUM_NEIGHBOURS = 32
"""Twice as many raise the mean acceptance length by 1 in 100 and cost half as much again."""

# Further words of a node: where the occurrences behind it start and stop, what they weigh and their
# longest match.
START, STOP, WEIGHT, LONGEST = range(FIRST_OWN_WORD, NODE_WORDS)

# The scratch memory: the occurrences, records of nodes, and their ranking. The groups do not overlap, so
# no more nodes wait than there are occurrences; one more record is for the node that is being entered.
SEEN = 0
NODES = SEEN + NUM_NEIGHBOURS * SEEN_WORDS
_NUM_NODES = NUM_NEIGHBOURS + 1
RANKING = NODES + _NUM_NODES * NODE_WORDS
SCRATCH_WORDS = RANKING + _NUM_NODES


@inlined_kernel
def weight_of(length):
    """Returns what an occurrence counts; powers from 1 to 3 of the match length differ by half a percent."""
    return length * length


@inlined_kernel
def all_seen(block, num_seen):
    """Returns the group of all occurrences, those behind the root: start, stop, weight, longest match."""
    stop = np.int64(SEEN + num_seen * SEEN_WORDS)
    weight = np.int64(0)
    for seen in range(SEEN, stop, SEEN_WORDS):
        weight += weight_of(block[seen + LENGTH])
    return np.int64(SEEN), stop, weight, block[SEEN + LENGTH]


@inlined_kernel
def read_on(tokens, num_ids, block, start, stop, depth):
    """Reads the token at `depth` of the continuations start..stop; `num_ids` says that one has ended.

    Tells whether all go on alike.
    """
    num_unlike = 0
    for seen in range(start, stop, SEEN_WORDS):
        at = block[seen + FOUND] + depth
        block[seen + CODE] = code_at(tokens, at, num_ids) if at < tokens.shape[0] else num_ids
        num_unlike += block[seen + CODE] != block[start + CODE]
    return num_unlike == 0


@inlined_kernel
def gather(block, start, stop):
    """Moves the occurrences that go on like the first one next to it.

    Returns where they start and end, their weight and their longest match.
    """
    end = start + SEEN_WORDS
    code = block[start + CODE]
    longest = block[start + LENGTH]
    weight = weight_of(longest)
    for seen in range(end, stop, SEEN_WORDS):
        if block[seen + CODE] == code:
            weight += weight_of(block[seen + LENGTH])
            longest = max(longest, block[seen + LENGTH])
            for word in range(SEEN_WORDS):
                block[seen + word], block[end + word] = block[end + word], block[seen + word]
            end += SEEN_WORDS
    return start, end, weight, longest


@inlined_kernel
def add_child(block, floats, waiting, capacity, reliability, group, total, depth, parent, path_prob):
    """Lets the node that a group goes on with wait for its place; returns how many wait then.

    Its probability is the group's share of the weight of all that went on so far, those that end here
    included, times what such a share is worth after the longest match behind it.
    """
    start, stop, weight, longest = group
    trust = reliability[min(longest + depth - 1, reliability.shape[0] - 1)]
    own_prob = np.float32(weight / total * trust)
    node = block[RANKING + waiting]
    order = order_of(depth, block[start + CODE])
    describe(block, floats, node, np.float32(own_prob * path_prob), own_prob, order, parent)
    block[node + START] = start
    block[node + STOP] = stop
    block[node + WEIGHT] = weight
    block[node + LONGEST] = longest
    return enter(block, floats, RANKING, waiting, capacity)


@inlined_kernel
def grow(tokens, num_ids, reliability, block, floats, waiting, capacity, behind, depth, parent, path_prob):
    """Adds the nodes that the occurrences behind a node go on with; returns how many nodes wait then."""
    start, stop, total, _ = behind
    alike = read_on(tokens, num_ids, block, start, stop, depth - 1)
    while start < stop:
        group = behind if alike else gather(block, start, stop)
        if block[start + CODE] != num_ids:
            waiting = add_child(
                block, floats, waiting, capacity, reliability, group, total, depth, parent, path_prob
            )
        start = group[1]
    return waiting


@allocation_free_kernel
def best_first(tokens, num_ids, num_seen, reliability, max_depth, block, token_ids, parents, probs):
    """Fills a tree with what the occurrences in the block went on with; returns its size.

    Args:
        tokens: uint16[n] or int32[n]  the text that they stand in.
        num_ids: ids lie below; whatever else stands in the text ends a continuation.
        num_seen: occurrences in the block.
        reliability: float32[..]  what a share of 1.0 is worth, by the length of the match.
        max_depth: nodes on one path at most.
        block: int64[SCRATCH_WORDS]  the occurrences from `SEEN` on, their order is lost; scratch memory.
        token_ids: int32[max_nodes]  written.
        parents: int32[max_nodes]  written: index of an earlier node, or -1.
        probs: float32[max_nodes]  written: P(node accepted | parent accepted).
    """
    max_nodes = token_ids.shape[0]
    floats = block.view(np.float64)
    free_all(block, NODES, RANKING, _NUM_NODES)
    behind = all_seen(block, num_seen)
    size, waiting, depth, path_prob = 0, 0, np.int64(0), 1.0
    while size < max_nodes:
        if depth < max_depth:
            waiting = grow(
                tokens,
                num_ids,
                reliability,
                block,
                floats,
                waiting,
                max_nodes - size,
                behind,
                depth + 1,
                size - 1,
                path_prob,
            )
        if waiting == 0:
            break
        waiting -= 1
        best = block[RANKING + waiting]
        behind = block[best + START], block[best + STOP], block[best + WEIGHT], block[best + LONGEST]
        depth, path_prob = add_to_tree(block, floats, best, size, token_ids, parents, probs)
        size += 1
    return size


@allocation_free_kernel
def draft(
    tokens: Column,
    positions: Column,
    buckets: Column,
    context: Column,
    reliability: Column,
    depth_tokens: int,
    max_depth: int,
    block: Column,
    token_ids: Column,
    parents: Column,
    probs: Column,
) -> int:
    """Fills a draft tree, best nodes first; returns its size.

    Args:
        tokens: uint16[n] or int32[n]  the corpus.
        positions: uint32[m]  sorted by context.
        buckets: uint32[num_ids + 1]  where each last token's positions start.
        context: int32[c]  the tokens before the draft, the newest last.
        reliability: float32[..]  what a share of 1.0 is worth, by the length of the match.
        depth_tokens: how many tokens of a context the order considers.
        max_depth: nodes on one path at most.
        block: int64[SCRATCH_WORDS]  scratch memory.
        token_ids: int32[max_nodes]  written.
        parents: int32[max_nodes]  written: index of an earlier node, or -1.
        probs: float32[max_nodes]  written: P(node accepted | parent accepted).
    """
    num_ids = np.int64(buckets.shape[0] - 1)
    num_seen = nearest(tokens, positions, buckets, context, depth_tokens, NUM_NEIGHBOURS, block, SEEN)
    return best_first(tokens, num_ids, num_seen, reliability, max_depth, block, token_ids, parents, probs)
