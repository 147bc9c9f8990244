"""Drafts the most frequent continuations of one context: those of the longest span of it that occurs.

A node is the group of occurrences that go on alike. Only nodes that are taken are split further, and a
group is sorted by its next token first: groups lie side by side in the order of their paths, which is
how equally frequent paths are told apart.
"""

from __future__ import annotations

import numpy as np

from retrieval_spec.kernels.context_array import (
    LENGTH,
    SEEN_WORDS,
    bucket_range,
    first_at_least,
    nearest,
)
from retrieval_spec.kernels.context_sort import NUM_DIGITS, Column, bit_length, code_at, sort_keys
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

START, STOP, TOKEN = range(FIRST_OWN_WORD, FIRST_OWN_WORD + 3)
"""Further words of a node: where its occurrences start and stop, and its token."""

POSITION_BITS = 32
"""An occurrence is one number: its position below, and above it the token that was read last."""

HEADS = SEEN_WORDS
OCCURRENCES = HEADS + NUM_DIGITS
"""The scratch memory: the nearest occurrence, counters of the sort, the occurrences twice, the nodes."""


def scratch_words(max_occurrences: int, max_nodes: int) -> int:
    """Returns how many words of scratch memory a draft of that size works in."""
    return OCCURRENCES + 2 * max_occurrences + (max_nodes + 1) * (NODE_WORDS + 1)


@allocation_free_kernel
def longest_span(tokens, positions, buckets, context, max_span, block):
    """Returns how many of the last tokens of the context, at most `max_span`, occur in this order."""
    found = nearest(tokens, positions, buckets, context, max_span, 1, block, 0)
    return block[LENGTH] if found else 0


@allocation_free_kernel
def sample(tokens, positions, buckets, context, span, max_occurrences, block):
    """Takes the occurrences of the last `span` tokens, evenly strided if there are too many."""
    num_ids = buckets.shape[0] - 1
    start, stop = bucket_range(positions, buckets, context[context.shape[0] - 1])
    first = first_at_least(tokens, positions, start, stop, context, span, num_ids, 0)
    last = first_at_least(tokens, positions, first, stop, context, span, num_ids, 1)
    taken = min(last - first, max_occurrences)
    for i in range(taken):
        block[OCCURRENCES + i] = positions[first + i * (last - first) // taken]
    return taken


@allocation_free_kernel
def sort_by_next(tokens, num_ids, block, start, stop, ahead, swap):
    """Sorts the occurrences start..stop by the token `ahead` of their positions, which they then carry."""
    keys = block[start:stop]
    for i in range(stop - start):
        position = keys[i] & ((np.int64(1) << POSITION_BITS) - 1)
        at = position + ahead
        code = code_at(tokens, at, num_ids) if at < tokens.shape[0] else num_ids
        keys[i] = (code << POSITION_BITS) | position
    bits = bit_length(num_ids)
    heads = block[HEADS : HEADS + NUM_DIGITS]
    sort_keys(keys, block[swap:], stop - start, POSITION_BITS, POSITION_BITS + bits, heads)


@inlined_kernel
def split(block, floats, num_ids, ranking, waiting, capacity, start, stop, depth, parent, total):
    """Lets each token that sorted occurrences go on with wait for its place; returns how many wait then."""
    first = start
    for i in range(start + 1, stop + 1):
        code = block[first] >> POSITION_BITS
        if i < stop and block[i] >> POSITION_BITS == code:
            continue
        if code != num_ids:
            node = block[ranking + waiting]
            order, count = order_of(depth, first), np.float64(i - first)
            describe(block, floats, node, count, count / total, order, parent)
            block[node + START] = first
            block[node + STOP] = i
            block[node + TOKEN] = code
            waiting = enter(block, floats, ranking, waiting, capacity)
        first = i
    return waiting


@allocation_free_kernel
def frequent(tokens, num_ids, block, num_taken, max_occurrences, max_depth, token_ids, parents, probs):
    """Fills a draft tree with the most frequent prefixes of what follows; returns its size."""
    max_nodes = token_ids.shape[0]
    floats = block.view(np.float64)
    swap = OCCURRENCES + max_occurrences
    nodes = swap + max_occurrences
    ranking = nodes + (max_nodes + 1) * NODE_WORDS
    free_all(block, nodes, ranking, max_nodes + 1)
    start, stop, depth = np.int64(OCCURRENCES), np.int64(OCCURRENCES + num_taken), np.int64(0)
    size, waiting = 0, 0
    while size < max_nodes:
        if depth < max_depth:
            sort_by_next(tokens, num_ids, block, start, stop, depth, swap)
            waiting = split(
                block,
                floats,
                num_ids,
                ranking,
                waiting,
                max_nodes - size,
                start,
                stop,
                depth + 1,
                size - 1,
                stop - start,
            )
        if waiting == 0:
            break
        waiting -= 1
        best = block[ranking + waiting]
        start, stop = block[best + START], block[best + STOP]
        depth, _ = add_to_tree(block, floats, best, size, token_ids, parents, probs)
        token_ids[size] = block[best + TOKEN]  # its order tells where its occurrences start
        size += 1
    return size


@allocation_free_kernel
def draft(
    tokens: Column,
    positions: Column,
    buckets: Column,
    context: Column,
    longest: int,
    shortest: int,
    max_occurrences: int,
    max_depth: int,
    block: Column,
    token_ids: Column,
    parents: Column,
    probs: Column,
) -> int:
    """Fills a draft tree, most frequent paths first; returns its size.

    Args:
        tokens: uint16[n] or int32[n]  the corpus.
        positions: uint32[m]  sorted by context.
        buckets: uint32[num_ids + 1]  where each last token's positions start.
        context: int32[c]  the tokens before the draft, the newest last.
        longest: so many of its last tokens are looked for at most; the order considers as many.
        shortest: and so many at least. A span counts as found if one of its occurrences goes on.
        max_occurrences: so many are read at most.
        max_depth: nodes on one path at most.
        block: int64[scratch_words(max_occurrences, max_nodes)]  scratch memory.
        token_ids: int32[max_nodes]  written.
        parents: int32[max_nodes]  written: index of an earlier node, or -1.
        probs: float32[max_nodes]  written: the share of the parent's occurrences.
    """
    num_ids = np.int64(buckets.shape[0] - 1)
    span = longest_span(tokens, positions, buckets, context, longest, block)
    size = 0
    while size == 0 and span >= shortest:
        num_taken = sample(tokens, positions, buckets, context, span, max_occurrences, block)
        size = frequent(
            tokens, num_ids, block, num_taken, max_occurrences, max_depth, token_ids, parents, probs
        )
        span -= 1
    return size
