"""Keeps each n-gram once in a context array, and says whether that was done.

Among sorted contexts all places with the same tokens before them are neighbours: one pass finds them.
Safe for any content of arrays of the right shape.
"""

from __future__ import annotations

import numpy as np

from retrieval_spec.kernels.context_array import bucket_range
from retrieval_spec.kernels.context_sort import Column, code_at
from retrieval_spec.kernels.corpus_stats import shared_length
from retrieval_spec.kernels.jit import inlined_kernel, kernel

NONE_REPEATED = -1


@inlined_kernel
def next_code(tokens, position, num_ids):
    """Returns the token at a position, or `num_ids` where a document ends (or the file is damaged)."""
    return code_at(tokens, position, num_ids) if position < tokens.shape[0] else num_ids


@kernel
def keep_first(
    tokens: Column,
    positions: Column,
    buckets: Column,
    context_tokens: int,
    kept: Column,
    kept_buckets: Column,
) -> int:
    """Keeps, of all positions with the same tokens before and at them, the first one; returns how many.

    Those with fewer than `context_tokens` before them, at the beginning of a document, are all kept.

    Args:
        tokens: uint16[n] or int32[n]  the corpus.
        positions: uint32[m]  sorted by context.
        buckets: uint32[num_ids + 1]  where each last token's positions start.
        context_tokens: how many tokens before a position count.
        kept: uint32[m]  written.
        kept_buckets: uint32[num_ids + 1]  written.
    """
    num_ids = np.int64(buckets.shape[0] - 1)
    last_seen = np.full(num_ids + 1, -1, np.int64)
    num_kept, stop = 0, np.int64(0)
    for bucket in range(num_ids):
        kept_buckets[bucket] = num_kept
        # Of damaged buckets some overlap, and more would be kept than there are.
        done = stop
        start, stop = bucket_range(positions, buckets, bucket)
        start, stop = max(start, done), max(stop, done)
        run, before = start, np.int64(0)
        for i in range(start, stop):
            here = np.int64(positions[i])
            if i > start and shared_length(tokens, before, here, context_tokens, num_ids) < context_tokens:
                run = i
            code = next_code(tokens, here, num_ids)
            if last_seen[code] < run:
                kept[num_kept] = here
                num_kept += 1
            last_seen[code] = i
            before = here
    kept_buckets[num_ids] = num_kept
    return num_kept


@kernel
def first_repeated(
    tokens: Column, positions: Column, num_ids: int, context_tokens: int, start: int, stop: int
) -> int:
    """Returns the first index in start..stop whose n-gram stands before it too, or `NONE_REPEATED`.

    Args:
        tokens: uint16[n] or int32[n]  the corpus.
        positions: uint32[m]  sorted by context.
        num_ids: every id of the corpus is below.
        context_tokens: how many tokens before a position count, with the one at it.
        start: the first index to look at.
        stop: the index to stop before, m at most.
    """
    last_seen = np.full(num_ids + 1, -1, np.int64)
    first = start
    while first > 0 and _same(tokens, positions, first, context_tokens, num_ids):
        first -= 1
    run = first
    for i in range(first, stop):
        if i > first and not _same(tokens, positions, i, context_tokens, num_ids):
            run = i
        code = next_code(tokens, np.int64(positions[i]), num_ids)
        if last_seen[code] >= run:
            return i
        last_seen[code] = i
    return NONE_REPEATED


@inlined_kernel
def _same(tokens, positions, i, context_tokens, num_ids):
    """Says whether a position has the same tokens before it as the one that sorts before it."""
    before, here = np.int64(positions[i - 1]), np.int64(positions[i])
    return shared_length(tokens, before, here, context_tokens, num_ids) == context_tokens
