"""Drafts the most probable continuations of one context by their shares, a few of them at every depth.

A node is the group of occurrences that go on alike, as in `kernels.frequency_draft`, from which the search
and the sort are. Here a node has few children, a depth few nodes, and the best ones are kept apart from
those that were taken first because a full depth leaves room for others.
"""

from __future__ import annotations

import numpy as np

from retrieval_spec.kernels.context_sort import Column
from retrieval_spec.kernels.frequency_draft import (
    OCCURRENCES,
    POSITION_BITS,
    START,
    STOP,
    sample,
    sort_by_next,
)
from retrieval_spec.kernels.jit import allocation_free_kernel, inlined_kernel
from retrieval_spec.kernels.ranking import (
    NODE_WORDS,
    ORDER,
    add_to_tree,
    depth_of,
    describe,
    enter,
    free_all,
    order_of,
)


def scratch_words(max_occurrences: int, width: int, max_nodes: int) -> int:
    """Returns how many words of scratch memory a draft of that size works in."""
    num_records = width * max_nodes + 1
    return OCCURRENCES + 2 * max_occurrences + 2 * width + max_nodes + 1 + num_records * (NODE_WORDS + 1)


@inlined_kernel
def _keep_largest(block, groups, num_groups, width, start, stop):
    """Enters a group among the `width` largest ones, largest first; of equal ones the earlier is kept."""
    place = num_groups
    while place > 0 and stop - start > block[groups + 2 * place - 1] - block[groups + 2 * place - 2]:
        place -= 1
    if place == width:
        return num_groups
    num_groups = min(num_groups + 1, width)
    for later in range(num_groups - 1, place, -1):
        block[groups + 2 * later] = block[groups + 2 * later - 2]
        block[groups + 2 * later + 1] = block[groups + 2 * later - 1]
    block[groups + 2 * place] = start
    block[groups + 2 * place + 1] = stop
    return num_groups


@inlined_kernel
def _largest_groups(block, num_ids, start, stop, groups, width):
    """Finds the commonest next tokens of sorted occurrences, ties by token; returns how many."""
    num_groups = 0
    first = start
    for i in range(start + 1, stop + 1):
        code = block[first] >> POSITION_BITS
        if i < stop and block[i] >> POSITION_BITS == code:
            continue
        if code != num_ids:
            num_groups = _keep_largest(block, groups, num_groups, width, first, i)
        first = i
    return num_groups


@inlined_kernel
def _enter_groups(queue, waiting, groups, num_groups, total, parent):
    """Lets the children of a node wait for their place; returns how many nodes wait then.

    `queue` is the scratch memory, as words and as floats, and where its ranking is; `parent` the node's
    index, depth and path probability.
    """
    block, floats, ranking = queue
    index, depth, path_prob = parent
    for group in range(groups, groups + 2 * num_groups, 2):
        start, stop = block[group], block[group + 1]
        own_prob = np.float32((stop - start) / total)
        node = block[ranking + waiting]
        order = order_of(depth + 1, block[start] >> POSITION_BITS)
        describe(block, floats, node, np.float32(own_prob * path_prob), own_prob, order, index)
        block[node + START] = start
        block[node + STOP] = stop
        waiting = enter(block, floats, ranking, waiting, waiting + 1)
    return waiting


@inlined_kernel
def _drop_full_depths(block, ranking, waiting, taken, width):
    """Takes the best waiting nodes off whose depths are full; returns how many wait then."""
    while waiting > 0 and block[taken + depth_of(block[block[ranking + waiting - 1] + ORDER])] >= width:
        waiting -= 1
    return waiting


@allocation_free_kernel
def probable(tokens, num_ids, block, num_taken, width, max_occurrences, max_depth, token_ids, parents, probs):
    """Fills a draft tree with the most probable prefixes of what follows; returns its size."""
    max_nodes = token_ids.shape[0]
    floats = block.view(np.float64)
    swap = OCCURRENCES + max_occurrences
    groups = swap + max_occurrences
    taken = groups + 2 * width
    nodes = taken + max_nodes + 1
    ranking = nodes + (width * max_nodes + 1) * NODE_WORDS
    free_all(block, nodes, ranking, width * max_nodes + 1)
    for depth in range(max_nodes + 1):
        block[taken + depth] = 0
    queue = block, floats, ranking
    start, stop, depth = np.int64(OCCURRENCES), np.int64(OCCURRENCES + num_taken), np.int64(0)
    size, waiting, path_prob = 0, 0, 1.0
    while size < max_nodes:
        if depth < max_depth:
            sort_by_next(tokens, num_ids, block, start, stop, depth, swap)
            num_groups = _largest_groups(block, num_ids, start, stop, groups, width)
            parent = size - 1, depth, path_prob
            waiting = _enter_groups(queue, waiting, groups, num_groups, stop - start, parent)
        waiting = _drop_full_depths(block, ranking, waiting, taken, width)
        if waiting == 0:
            break
        waiting -= 1
        best = block[ranking + waiting]
        start, stop = block[best + START], block[best + STOP]
        depth, path_prob = add_to_tree(block, floats, best, size, token_ids, parents, probs)
        block[taken + depth] += 1
        size += 1
    return size


@allocation_free_kernel
def draft(
    tokens: Column,
    positions: Column,
    buckets: Column,
    context: Column,
    match_length: int,
    width: int,
    max_occurrences: int,
    max_depth: int,
    block: Column,
    token_ids: Column,
    parents: Column,
    probs: Column,
) -> int:
    """Fills a draft tree, most probable paths first; returns its size.

    Args:
        tokens: uint16[n] or int32[n]  the corpus.
        positions: uint32[m]  sorted by context.
        buckets: uint32[num_ids + 1]  where each last token's positions start.
        context: int32[c]  the tokens before the draft, the newest last.
        match_length: how many of its last tokens are looked for; they occur.
        width: children of a node, and nodes at one depth, at most.
        max_occurrences: so many are read at most, evenly strided.
        max_depth: nodes on one path at most.
        block: int64[scratch_words(max_occurrences, width, max_nodes)]  scratch memory.
        token_ids: int32[max_nodes]  written.
        parents: int32[max_nodes]  written: index of an earlier node, or -1.
        probs: float32[max_nodes]  written: the share of the parent's occurrences.
    """
    num_ids = np.int64(buckets.shape[0] - 1)
    num_taken = sample(tokens, positions, buckets, context, match_length, max_occurrences, block)
    return probable(
        tokens, num_ids, block, num_taken, width, max_occurrences, max_depth, token_ids, parents, probs
    )
