"""The commonest continuations of states with many: what would take too long to look for in every draft.

A table of rows, each for one state, found by its number; a later state takes an earlier one's row. The first
row is the root's alone: the commonest tokens of all. A table of one row is for the root only. Drafts write
into tables, so a text that sessions share has one for each part of a step (`kernels.steps`).

    rows    int32[n, ROW_WORDS]    state, its count then, edges, pairs; then pairs of token and count, the
                                   commonest first, of equals the one whose edge comes first

A row is written anew when the state has become an eighth more frequent, so that writing costs a
constant share of the appends, however long the list of edges.
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
    NUM_TOKENS,
    OVERFLOW,
    TARGET,
    TOKEN,
    record_of,
)
from retrieval_spec.kernels.jit import inlined_kernel

COMMON_COUNT = 64
"""States that came less often have so few edges that they are read as they are."""
MAX_PAIRS = 48
STATE, TOTAL, NUM_EDGES, NUM_PAIRS, PAIRS = range(5)
ROW_WORDS = PAIRS + 2 * MAX_PAIRS


@inlined_kernel
def _count_of(words, state):
    """Returns how often a state came: the root with every token."""
    return np.int64(words[record_of(state) + COUNT]) if state > 0 else np.int64(words[NUM_TOKENS])


@inlined_kernel
def _keep(rows, row, num, token, count):
    """Enters a pair where it ranks, if it is among the commonest; returns how many pairs there are then."""
    at = PAIRS + 2 * num
    if num < MAX_PAIRS:
        num += 1
    elif count > rows[row, at - 1]:
        at -= 2
    else:
        return num
    while at > PAIRS and rows[row, at - 1] < count:
        rows[row, at] = rows[row, at - 2]
        rows[row, at + 1] = rows[row, at - 1]
        at -= 2
    rows[row, at] = token
    rows[row, at + 1] = count
    return num


@inlined_kernel
def _fill(words, rows, row, state):
    record = record_of(state)
    token, target = words[record + TOKEN], words[record + TARGET]
    edge = words[record + OVERFLOW]
    num, num_edges = 0, 0
    while True:
        count = np.int64(words[record_of(target) + COUNT])
        if count > 0:
            num = _keep(rows, row, num, token, count)
            num_edges += 1
        if edge == 0:
            break
        at = np.int64(words[EDGES_AT]) + np.int64(edge) * EDGE_WORDS
        token, target = words[at + EDGE_TOKEN], words[at + EDGE_TARGET]
        edge = words[at + EDGE_NEXT]
    rows[row, STATE] = state
    rows[row, TOTAL] = _count_of(words, state)
    rows[row, NUM_EDGES] = num_edges
    rows[row, NUM_PAIRS] = num


@inlined_kernel
def row_of(words, rows, state):
    """Returns the row of a state that has edges, written anew if it is another one's or out of date."""
    row = np.int64(0)
    if state > 0:
        mixed = (np.uint64(state) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(32)
        row = 1 + np.int64(mixed) % (rows.shape[0] - 1)
    count, known = _count_of(words, state), np.int64(rows[row, TOTAL])
    if rows[row, STATE] != state or not known <= count < known + known // 8 + 1:
        _fill(words, rows, row, state)
    return row
