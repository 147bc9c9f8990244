"""What repeats in a corpus, read off a context array: runs of equal contexts, and the longest repeats.

Safe for any content of arrays of the right shape.
"""

from __future__ import annotations

import numpy as np

from retrieval_spec.kernels.context_array import (
    bucket_range,
    common_length,
    first_at_least,
    known_length,
)
from retrieval_spec.kernels.context_sort import Column, code_at
from retrieval_spec.kernels.jit import allocation_free_kernel, inlined_kernel, kernel

ANY_POSITION = -1


@allocation_free_kernel
def shared_length(tokens, first, second, limit, num_ids):
    """Returns how many tokens, at most `limit`, stand before both positions, inside their documents."""
    if max(first, second) > tokens.shape[0]:
        return 0
    limit = min(limit, first, second)
    length = 0
    while length < limit:
        code = code_at(tokens, first - 1 - length, num_ids)
        if code == num_ids or code != code_at(tokens, second - 1 - length, num_ids):
            break
        length += 1
    return length


@inlined_kernel
def _keep_if_frequent(counts, starts, count, start):
    """Puts a run in place of the shortest one that is kept, the first of several, if it is longer."""
    least = 0
    for other in range(1, counts.shape[0]):
        if counts[other] < counts[least]:
            least = other
    if count > counts[least]:
        counts[least] = count
        starts[least] = start


@kernel
def count_repeats(
    tokens: Column,
    positions: Column,
    num_ids: int,
    sizes: Column,
    start: int,
    stop: int,
    runs: Column,
    counts: Column,
    starts: Column,
) -> None:
    """Keeps the most frequent n-grams of each size: equal ones are neighbours among sorted contexts.

    Called for 0..m + 1 in pieces, in order: index m only ends the runs that are open.

    Args:
        tokens: uint16[n] or int32[n]  the corpus.
        positions: uint32[m]  sorted by context.
        num_ids: every id of the corpus is below.
        sizes: int64[s]  tokens of an n-gram, at most the depth of the order.
        start: the first index to look at.
        stop: the index to stop before.
        runs: int64[s]  where the open runs began; zeros before the first call.
        counts: int64[s, k]  how often the kept ones occur; ones before the first call.
        starts: int64[s, k]  where among the positions their runs begin.
    """
    longest = 0
    for size in sizes:
        longest = max(longest, size)
    for i in range(max(start, 1), stop):
        shared = 0
        if i < positions.shape[0]:
            shared = shared_length(
                tokens, np.int64(positions[i - 1]), np.int64(positions[i]), longest, num_ids
            )
        for s in range(sizes.shape[0]):
            if shared < sizes[s]:
                if i - runs[s] > 1:
                    _keep_if_frequent(counts[s], starts[s], i - runs[s], runs[s])
                runs[s] = i


@allocation_free_kernel
def longest_elsewhere(tokens, positions, buckets, context, depth_tokens, own):
    """Returns how many last tokens of `context` stand before a position that is not `own`."""
    num_ids = buckets.shape[0] - 1
    num_tokens = known_length(context, num_ids, depth_tokens)
    if num_tokens == 0:
        return 0
    start, stop = bucket_range(positions, buckets, context[context.shape[0] - 1])
    at = first_at_least(tokens, positions, start, stop, context, num_tokens, num_ids, 0)
    length = 0
    # Of what sorts at or above the context one position may be its own, of what sorts below none.
    for other in range(max(start, at - 1), min(stop, at + 2)):
        position = np.int64(positions[other])
        if position != own:
            length = max(length, common_length(tokens, position, context, num_tokens))
    return length


@kernel
def longest_repeats(
    source: Column,
    source_ids: int,
    sample: Column,
    tokens: Column,
    positions: Column,
    buckets: Column,
    depth_tokens: int,
    is_own: bool,
    lengths: Column,
) -> None:
    """Raises each length to that of the longest context of a position that occurs in a corpus too.

    Args:
        source: uint16[n] or int32[n]  the corpus that the positions are of.
        source_ids: every id of it is below.
        sample: int64[k]  positions.
        tokens: uint16[..] or int32[..]  the corpus that is searched, or the same one.
        positions: uint32[m]  its order.
        buckets: uint32[num_ids + 1]  where each last token's positions start.
        depth_tokens: how many tokens of a context count.
        is_own: whether the corpus is the same one: a position is no repeat of itself.
        lengths: int64[k]  changed.
    """
    context = np.empty(depth_tokens, np.int32)
    for i in range(sample.shape[0]):
        position = min(sample[i], np.int64(source.shape[0]))
        size = 0
        while size < depth_tokens:
            code = code_at(source, position - 1 - size, source_ids)
            if code == source_ids:
                break
            size += 1
            context[depth_tokens - size] = code
        own = position if is_own else ANY_POSITION
        found = longest_elsewhere(
            tokens, positions, buckets, context[depth_tokens - size :], depth_tokens, own
        )
        lengths[i] = max(lengths[i], found)
