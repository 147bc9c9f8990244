"""Drafts a chain from n-gram counts as long as each token is frequent enough after its context."""

from __future__ import annotations

import numpy as np

from retrieval_spec.kernels.jit import allocation_free_kernel, inlined_kernel
from retrieval_spec.kernels.ngram import (
    NOWHERE,
    SUCCESSOR_WORDS,
    SUCCESSORS,
    TOTAL,
    count_of,
    longer,
    num_kept,
    record_of,
)
from retrieval_spec.kernels.ngram_draft import KNOWN, KNOWN_ROW, KNOWN_WORDS, find_known, source_of

NO_TOKEN = -1
STATIC_CONTEXT_TOKENS = 2
STATIC_WEIGHT = 100
"""What an occurrence in the static counts multiplies with, where those of the text count once."""

MIN_SAMPLES, MIN_PERCENT = range(2)
"""First index of the thresholds; the second is the context's length, less one."""


@inlined_kernel
def _worth_of(static, static_row, token, count):
    """Returns the successor's count, multiplied if it stands among the static ones."""
    static_count = np.int64(0)
    if static_row != NOWHERE:
        static_count = count_of(static, static_row, token)
    return count * (STATIC_WEIGHT * static_count if static_count > 0 else np.int64(1))


@allocation_free_kernel
def _best_successor(source, row, static, static_row):
    """Returns the successor of the largest worth, the smallest token of several, and its count.

    One that is neither among the most frequent of `source` nor among those of `static` is not seen; it
    could not meet a threshold, but hide one that does.
    """
    best, best_count, best_worth = np.int64(NO_TOKEN), np.int64(0), np.int64(0)
    record = record_of(source, row)
    for place in range(num_kept(source, record)):
        at = record + SUCCESSORS + place * SUCCESSOR_WORDS
        token, count = np.int64(source[at]), np.int64(source[at + 1])
        worth = _worth_of(static, static_row, token, count)
        if worth > best_worth or (worth == best_worth and token < best):
            best, best_count, best_worth = token, count, worth
    if static_row != NOWHERE:
        static_record = record_of(static, static_row)
        for place in range(num_kept(static, static_record)):
            at = static_record + SUCCESSORS + place * SUCCESSOR_WORDS
            token, count = np.int64(static[at]), count_of(source, row, static[at])
            worth = STATIC_WEIGHT * np.int64(static[at + 1]) * count
            if worth > best_worth or (worth == best_worth and count > 0 and token < best):
                best, best_count, best_worth = token, count, worth
    return best, best_count


@allocation_free_kernel
def _next_token(counts, limits, static, static_row, path, block):
    """Returns the token that passes after the longest context, and its share; `NO_TOKEN` if none does.

    `counts` are the newest, the older and no counts; `path` is the context, the tokens and parents of the
    nodes, and which of them is asked for its next token.
    """
    arena, older, base = counts
    context, token_ids, parents, node = path
    length = find_known(arena, older, base, context, token_ids, parents, node, block)
    while length > 0:
        source, record = source_of(arena, older, base, block, length)
        row = block[KNOWN + (length - 1) * KNOWN_WORDS + KNOWN_ROW]
        token, count = _best_successor(source, row, static, static_row)
        total = np.int64(source[record + TOTAL])
        enough = total >= limits[MIN_SAMPLES, length - 1]
        if token != NO_TOKEN and enough and 100 * count >= limits[MIN_PERCENT, length - 1] * total:
            return token, count / total
        length -= 1
    return np.int64(NO_TOKEN), 0.0


@inlined_kernel
def _static_row_of(static, context, token_ids, size):
    """Returns the static row of the last two tokens, drafted ones included, or `NOWHERE`."""
    row = np.int64(0)
    for back in range(1, STATIC_CONTEXT_TOKENS + 1):
        if back <= size:
            row = longer(static, row, token_ids[size - back])
        elif back - size <= context.shape[0]:
            row = longer(static, row, context[context.shape[0] - (back - size)])
        else:
            row = np.int64(NOWHERE)
    return row


@inlined_kernel
def _static_token(static, static_row, limits):
    """Returns the most frequent static successor and its share, or `NO_TOKEN` if it does not pass."""
    token, share = np.int64(NO_TOKEN), 0.0
    if static_row != NOWHERE:
        record = record_of(static, static_row)
        total, count = np.int64(static[record + TOTAL]), np.int64(static[record + SUCCESSORS + 1])
        enough = total >= limits[MIN_SAMPLES, STATIC_CONTEXT_TOKENS - 1]
        if enough and 100 * count >= limits[MIN_PERCENT, STATIC_CONTEXT_TOKENS - 1] * total:
            token, share = np.int64(static[record + SUCCESSORS]), count / total
    return token, share


@allocation_free_kernel
def draft_cached(
    arena,
    older,
    lax,
    dynamic,
    dynamic_older,
    strict,
    static,
    empty,
    context,
    block,
    token_ids,
    parents,
    probs,
):
    """Fills a chain from the session's counts, else from earlier outputs', else from static ones.

    Returns its length: it ends where no token passes its thresholds.

    Args:
        arena: int32[words]  counts of the session's text (`kernels.ngram`).
        older: int32[words]  those of its older generation.
        lax: int32[2, contexts]  smallest total and percentage for a successor in the session's or the
            static counts, by the length of its context.
        dynamic: int32[words]  counts of earlier outputs.
        dynamic_older: int32[words]  those of their older generation.
        strict: int32[2, contexts]  the same for the counts of earlier outputs.
        static: int32[words]  counts after two tokens.
        empty: int32[words]  no counts.
        context: int32[c]  the tokens before the draft, the newest last.
        block: int64[kernels.ngram_draft.scratch_words(0)]  scratch memory.
        token_ids: int32[max_nodes]  written.
        parents: int32[max_nodes]  written: the node before.
        probs: float32[max_nodes]  written: the token's share of what followed its context.
    """
    own, others = (arena, older, empty), (dynamic, dynamic_older, empty)
    size = 0
    while size < token_ids.shape[0]:
        path = context, token_ids, parents, np.int64(size - 1)
        static_row = _static_row_of(static, context, token_ids, size)
        token, share = _next_token(own, lax, static, static_row, path, block)
        if token == NO_TOKEN:
            token, share = _next_token(others, strict, static, static_row, path, block)
        if token == NO_TOKEN:
            token, share = _static_token(static, static_row, lax)
        if token == NO_TOKEN:
            break
        token_ids[size] = token
        parents[size] = size - 1
        probs[size] = share
        size += 1
    return size
