"""Searches in a context array: where a context belongs among the sorted ones, and its nearest neighbours.

Safe for any content of arrays of the right shape: what a damaged file says is checked before it is
followed, and a token that is no token ends a document.
"""

from __future__ import annotations

import numpy as np

from retrieval_spec.kernels.context_sort import Column, code_at
from retrieval_spec.kernels.jit import kernel


@kernel
def compare_context(tokens, position, context, num_tokens, num_ids):
    """Returns the common length of a position's context and the last `num_tokens` of `context`, and a sign.

    The sign says how the position's context sorts: -1 before, 0 if all `num_tokens` agree, 1 after.
    """
    if position > tokens.shape[0]:
        return 0, 1
    last = context.shape[0] - 1
    for step in range(num_tokens):
        here = code_at(tokens, position - 1 - step, num_ids)
        asked = np.int64(context[last - step])
        if here == num_ids:  # also if that number was asked for: the end of a document is no token
            return step, 1
        if here != asked:
            return step, -1 if here < asked else 1
    return num_tokens, 0


@kernel
def bucket_range(positions, buckets, token):
    """Returns where the bucket of a token starts and ends; nothing if the token is unknown."""
    num_positions = np.int64(positions.shape[0])
    if token < 0 or token >= buckets.shape[0] - 1:
        return np.int64(0), np.int64(0)
    start = min(np.int64(buckets[token]), num_positions)
    stop = min(np.int64(buckets[token + 1]), num_positions)
    return start, max(start, stop)


@kernel
def first_at_least(tokens, positions, start, stop, context, num_tokens, num_ids, bound):
    """Returns the first index in start..stop whose context compares to the asked one at `bound` or above."""
    while start < stop:
        middle = (start + stop) >> 1
        _, sign = compare_context(tokens, np.int64(positions[middle]), context, num_tokens, num_ids)
        if sign < bound:
            start = middle + 1
        else:
            stop = middle
    return start


@kernel
def equal_range(tokens: Column, positions: Column, buckets: Column, context: Column) -> tuple[int, int]:
    """Returns the range of positions whose contexts end with all of `context`, which is not empty."""
    num_ids = buckets.shape[0] - 1
    num_tokens = context.shape[0]
    start, stop = bucket_range(positions, buckets, np.int64(context[num_tokens - 1]))
    first = first_at_least(tokens, positions, start, stop, context, num_tokens, num_ids, 0)
    last = first_at_least(tokens, positions, first, stop, context, num_tokens, num_ids, 1)
    return first, last


@kernel
def neighbour_length(tokens, positions, index, start, stop, context, limit, num_ids):
    """Returns how many tokens, up to `limit`, an entry's context shares with the asked one; 0 outside."""
    if index < start or index >= stop:
        return np.int64(0)
    length, _ = compare_context(tokens, np.int64(positions[index]), context, limit, num_ids)
    return np.int64(length)


@kernel
def nearest(tokens, positions, buckets, context, found, match_lengths):
    """Finds the occurrences whose contexts share most with `context` and returns how many these are.

    Sorted contexts share less and less on both sides of the place where `context` belongs, so the
    walk takes the better side each time; at equal lengths, the side that it took less from.

    Args:
        tokens: uint16[n] or int32[n]  the corpus.
        positions: uint32[m]  sorted by context.
        buckets: uint32[num_ids + 1]  where each last token's positions start.
        context: int32[c]  the last tokens, the newest at the end; c is not above the array's depth.
        found: int64[k]  out: positions in the corpus, best first.
        match_lengths: int64[k]  out: the tokens that each shares with the context; falls, and is above 0.
    """
    num_ids = buckets.shape[0] - 1
    num_tokens = context.shape[0]
    if num_tokens == 0:
        return 0
    start, stop = bucket_range(positions, buckets, np.int64(context[num_tokens - 1]))
    right = first_at_least(tokens, positions, start, stop, context, num_tokens, num_ids, 0)
    left = right - 1
    balance = 0
    left_length = neighbour_length(tokens, positions, left, start, stop, context, num_tokens, num_ids)
    right_length = neighbour_length(tokens, positions, right, start, stop, context, num_tokens, num_ids)
    for count in range(found.shape[0]):
        if left_length == 0 and right_length == 0:
            return count
        if right_length > left_length or (right_length == left_length and balance <= 0):
            found[count] = positions[right]
            match_lengths[count] = right_length
            right += 1
            balance += 1
            right_length = neighbour_length(
                tokens, positions, right, start, stop, context, right_length, num_ids
            )
        else:
            found[count] = positions[left]
            match_lengths[count] = left_length
            left -= 1
            balance -= 1
            left_length = neighbour_length(
                tokens, positions, left, start, stop, context, left_length, num_ids
            )
    return found.shape[0]
