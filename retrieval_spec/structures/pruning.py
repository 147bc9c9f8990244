"""A context array that holds each n-gram once: fewer positions over the same tokens.

What followed a context is all there, how often it did is not: the order is sorted as before, and a search
finds other tokens in place of the same ones again.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from retrieval_spec.errors import DatastoreCorrupt, InvalidRequest
from retrieval_spec.kernels.context_prune import NONE_REPEATED, first_repeated, keep_first
from retrieval_spec.structures.context_array import ContextArray
from retrieval_spec.structures.context_order import Pieces

NGRAM_TOKENS = 5
MIN_NGRAM_TOKENS = 2


def check_ngram_tokens(ngram_tokens: int, depth_tokens: int) -> None:
    """Accepts a size of n-grams that an order of this depth brings together; 0 is none.

    Raises:
        InvalidRequest: another number.
    """
    if ngram_tokens and not MIN_NGRAM_TOKENS <= ngram_tokens <= depth_tokens + 1:
        raise InvalidRequest(
            "the tokens of an n-gram that is kept once are out of range",
            got=ngram_tokens,
            expected=f"{MIN_NGRAM_TOKENS} to {depth_tokens + 1}, one more than the depth",
        )


def pruned(array: ContextArray, ngram_tokens: int) -> ContextArray:
    """Returns the array without those places whose n-gram stands before them in the order too.

    The last token of an n-gram is the one at the place. Takes 4 bytes a position.

    Raises:
        InvalidRequest: a size out of range.
    """
    check_ngram_tokens(ngram_tokens, array.depth_tokens)
    kept, buckets = np.empty_like(array.positions), np.empty_like(array.buckets)
    num_kept = keep_first(array.tokens, array.positions, array.buckets, ngram_tokens - 1, kept, buckets)
    return ContextArray(array.tokens, kept[:num_kept], buckets, array.depth_tokens)


def check_pruned(
    array: ContextArray, ngram_tokens: int, pieces: Pieces, advance: Callable[[int], None]
) -> None:
    """Accepts positions of which no two have one n-gram; the array is in order.

    Args:
        array: the positions and the corpus.
        ngram_tokens: tokens of an n-gram.
        pieces: ranges of positions to look at.
        advance: told the number of positions after every range.

    Raises:
        DatastoreCorrupt: an n-gram stands there twice.
    """
    for start, stop in pieces:
        found = first_repeated(array.tokens, array.positions, array.num_ids, ngram_tokens - 1, start, stop)
        if found != NONE_REPEATED:
            raise DatastoreCorrupt(
                f"column 'positions' is not pruned at index {found}",
                got=int(array.positions[found]),
                expected=f"each {ngram_tokens} tokens in a row once",
                remedy="build the datastore again",
            )
        advance(stop - start)
