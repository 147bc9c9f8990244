"""Searches in a context array: where a context belongs among the sorted ones, and its nearest neighbours.

Safe for any content of arrays of the right shape: what a damaged file says is checked before it is
followed, and a token that is no token ends a document.
"""

from __future__ import annotations

import numpy as np

from retrieval_spec.kernels.context_sort import Column, code_at
from retrieval_spec.kernels.jit import allocation_free_kernel, inlined_kernel
from retrieval_spec.kernels.prefetch import prefetch

# Words of an occurrence: its position, its match length, and the token that goes on here.
FOUND, LENGTH, CODE, SEEN_WORDS = range(4)

AHEAD_STEPS = 3
"""Steps of a search wait for memory one after the other; what the next few may need is asked for at once."""
AHEAD_NEIGHBOURS = 8
"""So many of the next occurrences on each side are asked for before it is known which are the nearest."""
MANY_POSITIONS = 16
"""So few lie together, and their contexts are about to be read anyway."""


@allocation_free_kernel
def known_length(context, num_ids, limit):
    """Returns how many of the last tokens, at most `limit`, are ids that the corpus may hold."""
    length = 0
    last = context.shape[0] - 1
    while length < min(limit, last + 1) and 0 <= context[last - length] < num_ids:
        length += 1
    return length


@allocation_free_kernel
def common_length(tokens, position, context, limit):
    """Returns how many of the last tokens of `context`, at most `limit`, stand before a position.

    They are known ids, so none of them equals the end of a document.
    """
    if position > tokens.shape[0]:
        return 0
    limit = min(limit, position)
    last = context.shape[0] - 1
    length = 0
    while length < limit and np.int64(tokens[position - 1 - length]) == np.int64(context[last - length]):
        length += 1
    return length


@allocation_free_kernel
def compare_context(tokens, position, context, num_tokens, num_ids):
    """Returns -1, 0 or 1: how a position's context sorts against the last `num_tokens` of `context`."""
    length = common_length(tokens, position, context, num_tokens)
    if length == num_tokens:
        return 0
    if position > tokens.shape[0]:
        return 1
    here = code_at(tokens, position - 1 - length, num_ids)
    return -1 if here < context[context.shape[0] - 1 - length] else 1


@allocation_free_kernel
def bucket_range(positions, buckets, token):
    """Returns where the bucket of a token starts and ends, whatever the directory says."""
    num_positions = np.int64(positions.shape[0])
    start = min(np.int64(buckets[token]), num_positions)
    stop = min(np.int64(buckets[token + 1]), num_positions)
    return start, max(start, stop)


@inlined_kernel
def _prefetch_context(tokens, positions, at):
    """Asks for the last tokens before a position, the one in its bucket's name left out."""
    prefetch(tokens, np.int64(positions[at]) - 2)


@inlined_kernel
def _prefetch_steps(tokens, positions, start, stop):
    """Asks for what the next `AHEAD_STEPS` steps of a search may compare."""
    for part in range(1, 1 << AHEAD_STEPS):
        _prefetch_context(tokens, positions, start + ((stop - start) * part >> AHEAD_STEPS))


@allocation_free_kernel
def first_at_least(tokens, positions, start, stop, context, num_tokens, num_ids, bound):
    """Returns the first index in start..stop whose context compares to the asked one at `bound` or above."""
    step = 0
    while start < stop:
        if stop - start > MANY_POSITIONS and step % AHEAD_STEPS == 0:
            _prefetch_steps(tokens, positions, start, stop)
        step += 1
        middle = (start + stop) >> 1
        if compare_context(tokens, np.int64(positions[middle]), context, num_tokens, num_ids) < bound:
            start = middle + 1
        else:
            stop = middle
    return start


@allocation_free_kernel
def equal_range(tokens: Column, positions: Column, buckets: Column, context: Column) -> tuple[int, int]:
    """Returns the range of positions whose contexts end with all of `context`, which is not empty."""
    num_ids = buckets.shape[0] - 1
    num_tokens = known_length(context, num_ids, context.shape[0])
    if num_tokens < context.shape[0]:
        return 0, 0
    start, stop = bucket_range(positions, buckets, context[num_tokens - 1])
    first = first_at_least(tokens, positions, start, stop, context, num_tokens, num_ids, 0)
    last = first_at_least(tokens, positions, first, stop, context, num_tokens, num_ids, 1)
    return first, last


@allocation_free_kernel
def nearest(tokens, positions, buckets, context, max_tokens, num_neighbours, block, seen, floor=0):
    """Finds the occurrences whose contexts share most with `context` and returns how many these are.

    Sorted contexts share less and less on both sides of the place where `context` belongs, so the
    walk takes the better side each time; at equal lengths, the side that it took less from.

    Args:
        tokens: uint16[n] or int32[n]  the corpus.
        positions: uint32[m]  sorted by context.
        buckets: uint32[num_ids + 1]  where each last token's positions start.
        context: int32[c]  the tokens before the draft, the newest last.
        max_tokens: how many tokens of it count: those after the last unknown one, up to this.
        num_neighbours: how many occurrences are looked for.
        block: int64[..]  out, from `seen` on, `SEEN_WORDS` for each occurrence, best first: the `FOUND`
            position in the corpus and the `LENGTH` that it shares with the context, falling, above 0.
        seen: where in the block.
        floor: the walk ends where nothing shares more than so many tokens.
    """
    num_ids = buckets.shape[0] - 1
    num_tokens = known_length(context, num_ids, max_tokens)
    if num_tokens <= floor:
        return 0
    start, stop = bucket_range(positions, buckets, context[context.shape[0] - 1])
    right = first_at_least(tokens, positions, start, stop, context, num_tokens, num_ids, 0)
    left = right - 1
    left_length = right_length = num_tokens
    left_at = right_at = np.int64(0)
    fresh_left = fresh_right = True
    balance = 0
    for ahead in range(1, AHEAD_NEIGHBOURS):
        if right + ahead < stop:
            _prefetch_context(tokens, positions, right + ahead)
        if left - ahead >= start:
            _prefetch_context(tokens, positions, left - ahead)
    for count in range(num_neighbours):
        if fresh_left:
            left_at = np.int64(positions[left]) if left >= start else 0
            if left - AHEAD_NEIGHBOURS >= start:
                _prefetch_context(tokens, positions, left - AHEAD_NEIGHBOURS)
            left_length = common_length(tokens, left_at, context, left_length)
        if fresh_right:
            right_at = np.int64(positions[right]) if right < stop else 0
            if right + AHEAD_NEIGHBOURS < stop:
                _prefetch_context(tokens, positions, right + AHEAD_NEIGHBOURS)
            right_length = common_length(tokens, right_at, context, right_length)
        if max(left_length, right_length) <= floor:
            return count
        fresh_right = right_length > left_length or (right_length == left_length and balance <= 0)
        fresh_left = not fresh_right
        block[seen + count * SEEN_WORDS + FOUND] = right_at if fresh_right else left_at
        block[seen + count * SEEN_WORDS + LENGTH] = right_length if fresh_right else left_length
        right += fresh_right
        left -= fresh_left
        balance += 1 if fresh_right else -1
    return num_neighbours
