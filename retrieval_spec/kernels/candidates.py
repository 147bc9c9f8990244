"""Candidates of one place: the tokens that may come next, read from texts and trees context by context.

Each context adds the tokens that no earlier one knew; their counts become probabilities later
(`kernels.evidence`).
"""

from __future__ import annotations

import numpy as np

from retrieval_spec.fusion import FIRST_CHILD, NEXT_SIBLING, PROB
from retrieval_spec.fusion import TOKEN as TRIE_TOKEN
from retrieval_spec.kernels.automaton import (
    COUNT,
    EDGE_NEXT,
    EDGE_TARGET,
    EDGE_TOKEN,
    EDGE_WORDS,
    EDGES_AT,
    OVERFLOW,
    TARGET,
    TOKEN,
    record_of,
)
from retrieval_spec.kernels.commonest import (
    COMMON_COUNT,
    NUM_EDGES,
    NUM_PAIRS,
    PAIRS,
    TOTAL,
    row_of,
)
from retrieval_spec.kernels.jit import allocation_free_kernel, inlined_kernel

MAX_CANDIDATES = 48
MAX_EDGES = 128
"""Continuations that are read of one context: the oldest one and the newest ones."""

CANDIDATE, CANDIDATE_PROB, CANDIDATE_SOURCES, CANDIDATE_WORDS = range(4)
"""Words of a candidate; the second is float64, seen through a view of the block."""
CANDIDATES = 0
"""Where the candidates begin in a block of scratch memory."""
CANDIDATES_WORDS = MAX_CANDIDATES * CANDIDATE_WORDS


@inlined_kernel
def _is_known(block, num_known, token):
    at = CANDIDATES
    for _ in range(num_known):
        if block[at + CANDIDATE] == token:
            return True
        at += CANDIDATE_WORDS
    return False


@inlined_kernel
def _add_candidate(block, floats, first, num, token, count):
    """Adds a continuation, in place of the rarest one of this context if there are enough."""
    at = CANDIDATES + num * CANDIDATE_WORDS
    if num == MAX_CANDIDATES:
        if first == num:
            return num
        at = CANDIDATES + first * CANDIDATE_WORDS
        for other in range(first + 1, num):
            place = CANDIDATES + other * CANDIDATE_WORDS
            if floats[place + CANDIDATE_PROB] < floats[at + CANDIDATE_PROB]:
                at = place
        if count <= floats[at + CANDIDATE_PROB]:
            return num
        num -= 1
    block[at + CANDIDATE] = token
    floats[at + CANDIDATE_PROB] = count
    return num + 1


@allocation_free_kernel
def _read_edges(words, state, block, floats, first, rarest):
    """Adds the new continuations of a state that came at least `rarest` times.

    Returns how many candidates there are then, how often and how many new continuations came.
    """
    record = record_of(state)
    token, target = np.int64(words[record + TOKEN]), words[record + TARGET]
    edge = words[record + OVERFLOW]
    num, total, num_new, known = first, np.int64(0), 0, np.int64(0)
    for _ in range(MAX_EDGES):
        count = np.int64(words[record_of(target) + COUNT])
        if _is_known(block, first, token):
            known += count
        elif count > 0:
            total += count
            num_new += 1
            if count >= rarest:
                num = _add_candidate(block, floats, first, num, token, np.float64(count))
        if edge == 0:
            return num, total, num_new
        row = np.int64(words[EDGES_AT]) + np.int64(edge) * EDGE_WORDS
        token, target = np.int64(words[row + EDGE_TOKEN]), words[row + EDGE_TARGET]
        edge = words[row + EDGE_NEXT]
    # Edges were left out, so the state's own count tells the total.
    return num, max(total, np.int64(words[record + COUNT]) - known), num_new


@allocation_free_kernel
def _read_commonest(words, commonest, state, block, floats, first, rarest):
    """Does as `_read_edges`, but reads a row of `kernels.commonest` in place of many edges."""
    row = row_of(words, commonest, state)
    num, num_new, known = first, np.int64(commonest[row, NUM_EDGES]), np.int64(0)
    for at in range(PAIRS, PAIRS + 2 * commonest[row, NUM_PAIRS], 2):
        token, count = np.int64(commonest[row, at]), np.int64(commonest[row, at + 1])
        if count < rarest or num == MAX_CANDIDATES:
            break
        if _is_known(block, first, token):
            known += count
            num_new -= 1
        else:
            num = _add_candidate(block, floats, first, num, token, np.float64(count))
    return num, max(np.int64(commonest[row, TOTAL]) - known, np.int64(1)), num_new


@inlined_kernel
def read_state(words, commonest, state, block, floats, first, rarest):
    """Adds the new continuations of a state, as `_read_edges` does."""
    if state == 0 or (commonest.shape[0] > 1 and words[record_of(state) + COUNT] >= COMMON_COUNT):
        return _read_commonest(words, commonest, state, block, floats, first, rarest)
    return _read_edges(words, state, block, floats, first, rarest)


@allocation_free_kernel
def read_node(trie, node, block, floats, first):
    """Adds the new children of a node in the trees; returns how many candidates, their total and number."""
    probs = trie.view(np.float32)
    num, total, num_new = first, 0.0, 0
    child = trie[FIRST_CHILD, node]
    for _ in range(MAX_CANDIDATES):
        if child == 0:
            break
        token, prob = np.int64(trie[TRIE_TOKEN, child]), np.float64(probs[PROB, child])
        if prob > 0.0 and not _is_known(block, first, token):
            num = _add_candidate(block, floats, first, num, token, prob)
            total += prob
            num_new += 1
        child = trie[NEXT_SIBLING, child]
    return num, total, num_new
