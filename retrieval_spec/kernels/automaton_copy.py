"""Where a suffix automaton's text may be copied from: the first, the latest or the commonest continuation.

All start at the state of a match, the longest suffix of the text, or of its last few tokens, that
occurred before. Such a state always has an edge, because an earlier occurrence went on.
"""

from __future__ import annotations

import numpy as np

from retrieval_spec.kernels.automaton import (
    COUNT,
    EDGE_NEXT,
    EDGE_TARGET,
    EDGE_TOKEN,
    EDGE_WORDS,
    EDGES_AT,
    FIRST_END,
    LAST,
    LAST_END,
    LENGTH,
    LINK,
    NONE,
    NUM_TOKENS,
    OVERFLOW,
    TARGET,
    TOKEN,
    record_of,
    walk,
)
from retrieval_spec.kernels.jit import allocation_free_kernel, inlined_kernel


@allocation_free_kernel
def match(arena, tail):
    """Returns the state and the length of the longest suffix that occurred before, of `tail` at most.

    Args:
        arena: int32[words]  see `kernels.automaton`.
        tail: int32[n]  the last tokens of the text.
    """
    words = arena.view(np.uint32)
    state = np.int64(words[record_of(words[LAST]) + LINK])
    if state == NONE:
        return np.int64(0), np.int64(0)
    length = np.int64(words[record_of(state) + LENGTH])
    if length <= tail.shape[0]:
        return state, length
    # A run of one token has as many shorter matches as tokens: walking there costs the tail alone.
    return walk(arena, tail), np.int64(tail.shape[0])


@allocation_free_kernel
def first_end(arena, state, num_tokens, min_length):
    """Returns where the string of a state ended first, and which length of it that holds for.

    As long as fewer than `num_tokens` followed there, the next shorter suffix is asked, but none
    shorter than `min_length`, which is at least 1.
    """
    words = arena.view(np.uint32)
    record = record_of(state)
    latest = np.int64(words[NUM_TOKENS]) - 1 - num_tokens
    while np.int64(words[record + FIRST_END]) > latest:
        link = record_of(words[record + LINK])
        if np.int64(words[link + LENGTH]) < min_length:
            break
        record = link
    return np.int64(words[record + FIRST_END]), np.int64(words[record + LENGTH])


@inlined_kernel
def _best_edge(words, state, word):
    """Returns the token and target whose `word` is largest, ties by token; target 0 if there are no edges."""
    record = record_of(state)
    token, target, index = words[record + TOKEN], words[record + TARGET], words[record + OVERFLOW]
    if target == NONE:
        return token, np.int64(0)
    best_token, best, most = token, np.int64(target), words[record_of(target) + word]
    while index != 0:
        edge = np.int64(words[EDGES_AT]) + np.int64(index) * EDGE_WORDS
        token, target, index = words[edge + EDGE_TOKEN], words[edge + EDGE_TARGET], words[edge + EDGE_NEXT]
        here = words[record_of(target) + word]
        if here > most or (here == most and token < best_token):
            best_token, best, most = token, np.int64(target), here
    return best_token, best


@allocation_free_kernel
def latest_end(arena, state):
    """Returns where the string of a state ended last before the end of the text.

    The state's own last end is the end of the text; a target's, one earlier, is one that went on.
    """
    words = arena.view(np.uint32)
    _, target = _best_edge(words, state, LAST_END)
    return np.int64(words[record_of(target) + LAST_END]) - 1


@allocation_free_kernel
def commonest(arena, state, token_ids):
    """Fills a chain with the token that came most often at each step, ties by token; returns its size.

    Args:
        arena: int32[words]  see `kernels.automaton`.
        state: of the match to continue.
        token_ids: int32[n]  written.
    """
    words = arena.view(np.uint32)
    for size in range(token_ids.shape[0]):
        token, target = _best_edge(words, state, COUNT)
        if target == 0:
            return size
        token_ids[size] = token
        state = target
    return token_ids.shape[0]
