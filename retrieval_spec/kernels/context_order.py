"""Whether the positions of a context array stand where their contexts sort.

Safe for any content of arrays of the right shape.
"""

from __future__ import annotations

import numpy as np

from retrieval_spec.kernels.context_sort import Column, code_at
from retrieval_spec.kernels.jit import allocation_free_kernel

IN_ORDER = -1


@allocation_free_kernel
def sorts_before(tokens, first, second, depth_tokens, num_ids):
    """Says whether one position belongs before another: by their contexts, then by place."""
    for step in range(1, depth_tokens + 1):
        one = code_at(tokens, first - step, num_ids)
        other = code_at(tokens, second - step, num_ids)
        if one != other:
            return one < other
        if one == num_ids:
            break
    return first < second


@allocation_free_kernel
def first_out_of_order(
    tokens: Column, positions: Column, buckets: Column, depth_tokens: int, start: int, stop: int
) -> int:
    """Returns the first index in start..stop that is not right after the one before it, or `IN_ORDER`.

    Each position must lie in the corpus, in the bucket of the token before it, and behind its neighbour.
    As many positions as have a context, in a strictly rising order, are those of the format and no others.

    Args:
        tokens: uint16[n] or int32[n]  the corpus.
        positions: uint32[m]  what is checked.
        buckets: uint32[num_ids + 1]  where each last token's positions start.
        depth_tokens: how many tokens of a context count.
        start: the first index that is checked, against the one before it.
        stop: the index to stop before, m at most.
    """
    num_tokens, num_ids = tokens.shape[0], np.int64(buckets.shape[0] - 1)
    for i in range(start, stop):
        here = np.int64(positions[i])
        if not 1 <= here < num_tokens:
            return i
        token = code_at(tokens, here - 1, num_ids)
        if token == num_ids or not buckets[token] <= i < buckets[token + 1]:
            return i
        if i > buckets[token]:
            before = np.int64(positions[i - 1])
            if before >= num_tokens or not sorts_before(tokens, before, here, depth_tokens, num_ids):
                return i
    return IN_ORDER
