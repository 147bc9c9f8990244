"""Committing to many sessions in one call: the usual case, of which nothing needs to be said."""

from __future__ import annotations

import numpy as np

from retrieval_spec.kernels.card_arrays import card_at, context_of, tokens_between
from retrieval_spec.kernels.cards import (
    CONTEXT_LENGTH,
    CONTEXT_ROOM,
    DRAFTED_ROOM,
    NUM_WORKED_IN,
    TRIE_COLUMNS,
)
from retrieval_spec.kernels.jit import allocation_free_kernel, inlined_kernel
from retrieval_spec.kernels.steps import CARD, END, FIRST, LENGTH, MAX_NODES

SEATS, LENGTHS, NUM_COMMITTED, CAPS = range(4)
"""Columns of what a step asks for: where sessions sit, how long contexts are taken to be, how many tokens
each commits, and how many nodes each tree may have."""

UNUSUAL = -1


@inlined_kernel
def _lay_out(steps, cards, columns, most_nodes):
    """Fills in what was asked for; returns how many nodes all trees may have."""
    end = first = np.int64(0)
    for at in range(steps.shape[0]):
        end += columns[NUM_COMMITTED, at]
        steps[at, CARD] = cards[columns[SEATS, at]]
        steps[at, LENGTH], steps[at, END] = columns[LENGTHS, at], end
        steps[at, FIRST], steps[at, MAX_NODES] = first, max(min(columns[CAPS, at], most_nodes), 0)
        first += steps[at, MAX_NODES]
    return first


@inlined_kernel
def _can_commit(steps, tokens, vocab_size):
    begin = np.int64(0)
    for token in tokens:
        if token < 0 or token >= vocab_size:
            return False
    if steps[-1, END] != tokens.shape[0]:
        return False
    for at in range(steps.shape[0]):
        if steps[at, END] < begin:
            return False
        card = card_at(steps[at, CARD])
        context = context_of(card)
        length = context[CONTEXT_LENGTH] + steps[at, END] - begin
        begin = steps[at, END]
        is_known = card[NUM_WORKED_IN] == context[CONTEXT_LENGTH] == steps[at, LENGTH]
        has_room = length <= context[CONTEXT_ROOM] and steps[at, MAX_NODES] <= card[DRAFTED_ROOM]
        if not is_known or not has_room or card[TRIE_COLUMNS] > 0:
            return False
    return True


@allocation_free_kernel
def commit_steps(steps, cards, columns, most_nodes, tokens, vocab_size):
    """Appends committed tokens to the contexts of sessions, if nothing about any is unusual.

    Returns how many nodes all trees may have together, or `UNUSUAL`; then nothing is changed. Unusual are: a
    context of another length than expected, one with tokens that wait to be worked in or without room for
    more, no room for the tree that is asked for, sources that kernels did not ask last time, an id outside
    the vocabulary, and numbers of tokens that do not fit.

    Args:
        steps: int64[n, STEP_WORDS]  written: a row for each session (`kernels.steps`).
        cards: int64[..]  where cards lie, by seats.
        columns: int64[4, n]  `SEATS`, none twice, `LENGTHS`, `NUM_COMMITTED` and `CAPS`.
        most_nodes: of any tree, whatever its cap.
        tokens: int32[..]  of all sessions, one after the other.
        vocab_size: ids lie below it.
    """
    num_nodes = _lay_out(steps, cards, columns, most_nodes)
    if not _can_commit(steps, tokens, vocab_size):
        return np.int64(UNUSUAL)
    begin = np.int64(0)
    for at in range(steps.shape[0]):
        context, end = context_of(card_at(steps[at, CARD])), steps[at, END]
        length = context[CONTEXT_LENGTH] + end - begin
        appended = tokens_between(context, context[CONTEXT_LENGTH], length)
        for token in range(end - begin):
            appended[token] = tokens[begin + token]
        context[CONTEXT_LENGTH] = length
        begin = end
    return num_nodes
