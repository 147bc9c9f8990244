"""The nearest occurrences in several corpora, with copies of what followed each of them.

Each segment in turn offers its occurrences. One that matches longer than the worst of those that are
kept takes its place and its row of the copies; so all segments are as one text, whatever their types.
"""

from __future__ import annotations

import numpy as np

from retrieval_spec.kernels.context_array import FOUND, LENGTH, SEEN_WORDS, nearest
from retrieval_spec.kernels.context_draft import NUM_NEIGHBOURS, SCRATCH_WORDS, SEEN
from retrieval_spec.kernels.context_sort import Column, code_at
from retrieval_spec.kernels.jit import allocation_free_kernel, inlined_kernel

MAX_ROW_TOKENS = 64
"""No more tokens of a continuation are copied."""
END = -1
"""Stands in a row where a document ended."""

# The scratch memory: what `best_first` works in, whose occurrences are those that are kept, then the
# occurrences that a segment offers, then a row of tokens for each that is kept.
OFFERED = SCRATCH_WORDS
ROWS = OFFERED + NUM_NEIGHBOURS * SEEN_WORDS
MERGE_WORDS = ROWS + NUM_NEIGHBOURS * MAX_ROW_TOKENS


@inlined_kernel
def copy_row(tokens, num_ids, start, block, row, num_tokens):
    """Copies what stands from `start` on, at most `num_tokens`, and an end where the document ends."""
    for ahead in range(num_tokens):
        at = start + ahead
        code = code_at(tokens, at, num_ids) if at < tokens.shape[0] else num_ids
        block[ROWS + row + ahead] = END if code == num_ids else code
        if code == num_ids:
            return


@inlined_kernel
def keep(block, num_kept, length):
    """Keeps an occurrence after those that match as long as it does; returns where its row starts.

    If there is no place left, the last one loses its own, and the row with it.
    """
    slot = SEEN + min(num_kept, NUM_NEIGHBOURS - 1) * SEEN_WORDS
    row = block[slot + FOUND] if num_kept == NUM_NEIGHBOURS else np.int64(num_kept * MAX_ROW_TOKENS)
    while slot > SEEN and block[slot - SEEN_WORDS + LENGTH] < length:
        block[slot + FOUND] = block[slot - SEEN_WORDS + FOUND]
        block[slot + LENGTH] = block[slot - SEEN_WORDS + LENGTH]
        slot -= SEEN_WORDS
    block[slot + FOUND] = row
    block[slot + LENGTH] = length
    return row


@allocation_free_kernel
def add_nearest(
    tokens: Column,
    positions: Column,
    buckets: Column,
    context: Column,
    depth_tokens: int,
    row_tokens: int,
    block: Column,
    num_kept: int,
) -> int:
    """Keeps the occurrences of one more segment that match longer than the worst; returns how many are kept.

    Args:
        tokens: uint16[n] or int32[n]  the segment's corpus.
        positions: uint32[m]  sorted by context.
        buckets: uint32[num_ids + 1]  where each last token's positions start.
        context: int32[c]  the tokens before the draft, the newest last.
        depth_tokens: how many tokens of a context the segment's order considers.
        row_tokens: tokens of each continuation that will be read, at most `MAX_ROW_TOKENS`.
        block: int64[MERGE_WORDS]  in and out, from `SEEN` on the occurrences that are kept, longest match
            first, `FOUND` counted from the start of the rows.
        num_kept: how many these are.
    """
    num_ids = np.int64(buckets.shape[0] - 1)
    worst = SEEN + (NUM_NEIGHBOURS - 1) * SEEN_WORDS
    floor = block[worst + LENGTH] if num_kept == NUM_NEIGHBOURS else np.int64(0)
    num_offered = nearest(
        tokens, positions, buckets, context, depth_tokens, NUM_NEIGHBOURS, block, OFFERED, floor
    )
    for offered in range(OFFERED, OFFERED + num_offered * SEEN_WORDS, SEEN_WORDS):
        length = block[offered + LENGTH]
        if num_kept == NUM_NEIGHBOURS and block[worst + LENGTH] >= length:
            break
        row = keep(block, num_kept, length)
        copy_row(tokens, num_ids, block[offered + FOUND], block, row, row_tokens)
        num_kept = min(num_kept + 1, NUM_NEIGHBOURS)
    return num_kept
