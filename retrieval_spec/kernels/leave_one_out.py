"""Occurrences of a context outside of given documents, and how much of a draft a text confirms."""

from __future__ import annotations

import numpy as np

from retrieval_spec.kernels.context_array import bucket_range, common_length, first_at_least, known_length
from retrieval_spec.kernels.context_sort import Column
from retrieval_spec.kernels.jit import allocation_free_kernel, inlined_kernel

MAX_LEFT_OUT = 1 << 16
"""Occurrences that are left out on each side of a context before the search ends there."""


@inlined_kernel
def _is_inside(position, starts, stops):
    """Says whether a position stands in one of the ranges, which are sorted and do not overlap."""
    low, high = 0, starts.shape[0]
    while low < high:
        middle = (low + high) >> 1
        if starts[middle] <= position:
            low = middle + 1
        else:
            high = middle
    return low > 0 and position < stops[low - 1]


@allocation_free_kernel
def _walk(tokens, positions, at, end, step, context, length, ranges, found, slot):
    """Writes the occurrences from `at` on, outside of the ranges, from `slot` on; returns the slot after."""
    starts, stops = ranges
    num_left_out = 0
    while at != end and 0 <= slot < found.shape[0] and num_left_out < MAX_LEFT_OUT:
        position = np.int64(positions[at])
        length = common_length(tokens, position, context, length)
        if length == 0:
            break
        if _is_inside(position, starts, stops):
            num_left_out += 1
        else:
            found[slot] = position
            slot += step
        at += step
    return slot


@allocation_free_kernel
def nearest_elsewhere(
    tokens: Column,
    positions: Column,
    buckets: Column,
    context: Column,
    depth_tokens: int,
    starts: Column,
    stops: Column,
    found: Column,
) -> tuple[int, int]:
    """Finds the occurrences nearest to a context on both sides, without those inside of some ranges.

    Returns where in `found` the first one stands and where behind the last one: in the order of their
    contexts, as many below and from the context's place on as half of `found` has room for. Those are
    all that a search for half as many can see of a corpus without the ranges.

    Args:
        tokens: uint16[n] or int32[n]  the corpus.
        positions: uint32[m]  sorted by context.
        buckets: uint32[num_ids + 1]  where each last token's positions start.
        context: int32[c]  the tokens before the draft, the newest last; not empty.
        depth_tokens: how many tokens of it count.
        starts: int64[r]  where the ranges begin, rising.
        stops: int64[r]  where they end.
        found: uint32[2 k]  written.
    """
    middle = found.shape[0] >> 1
    num_ids = buckets.shape[0] - 1
    num_tokens = known_length(context, num_ids, depth_tokens)
    if num_tokens == 0:
        return middle, middle
    start, stop = bucket_range(positions, buckets, context[context.shape[0] - 1])
    at = first_at_least(tokens, positions, start, stop, context, num_tokens, num_ids, 0)
    ranges = starts, stops
    first = _walk(tokens, positions, at - 1, start - 1, -1, context, num_tokens, ranges, found, middle - 1)
    last = _walk(tokens, positions, at, stop, 1, context, num_tokens, ranges, found, middle)
    return first + 1, last


@allocation_free_kernel
def num_confirmed(token_ids: Column, parents: Column, text: Column) -> int:
    """Returns how many tokens of `text` a draft tree foretold, from its first token on."""
    node, length = -1, 0
    for i in range(token_ids.shape[0]):  # children stand behind their parents
        if length == text.shape[0]:
            break
        if parents[i] == node and token_ids[i] == text[length]:
            node = i
            length += 1
    return length


@allocation_free_kernel
def mark_equal(tokens: Column, starts: Column, lengths: Column, document: Column, is_equal: Column) -> None:
    """Marks the documents that have exactly the tokens of `document`.

    Args:
        tokens: uint16[n] or int32[n]  the corpus.
        starts: int64[d]  where its documents start.
        lengths: int64[d]  how many tokens each has; all lie within the corpus.
        document: int32[c]  the tokens to compare.
        is_equal: bool[d]  written.
    """
    for i in range(starts.shape[0]):
        same = lengths[i] == document.shape[0]
        at = 0
        while same and at < lengths[i]:
            same = np.int64(tokens[starts[i] + at]) == np.int64(document[at])
            at += 1
        is_equal[i] = same
