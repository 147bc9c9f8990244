"""What continuations that were found are worth together: P(one of them comes next), from a fitted table."""

from __future__ import annotations

import numpy as np

from retrieval_spec.kernels.jit import inlined_kernel

ONE_CONTINUATION, MORE_CONTINUATIONS, SHORTER_MATCH = range(3)
"""First index of the table: how many followed the longest match, or that only a shorter one has them."""


@inlined_kernel
def worth_of(worth, kind, match_length, total):
    """Returns P(the next token is among these continuations), which came `total` times together.

    Args:
        worth: float32[3, lengths, bits]  the table; its last length and count stand for all larger ones.
        kind: of the continuations.
        match_length: tokens of the context that they followed.
        total: their count.
    """
    bits = 0
    while total > 1 and bits < worth.shape[2] - 1:
        total >>= 1
        bits += 1
    return np.float64(worth[kind, min(match_length, worth.shape[1] - 1), bits])
