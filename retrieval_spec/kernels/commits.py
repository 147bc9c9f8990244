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
from retrieval_spec.kernels.steps import CARD, END, LENGTH, MAX_NODES


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
def commit_steps(steps, tokens, vocab_size):
    """Appends committed tokens to the contexts of sessions, if nothing about any is unusual; says whether.

    Unusual are: a context of another length than expected, one with tokens that wait to be worked in or
    without room for more, no room for the tree that is asked for, sources that kernels did not ask last time,
    an id outside the vocabulary, and numbers of tokens that do not fit. Then nothing is changed.

    Args:
        steps: int64[n, STEP_WORDS]  a row for each session, none twice: where its card lies, how long its
            context is taken to be, where its tokens end, and how many nodes its tree may have.
        tokens: int32[..]  of all sessions, one after the other.
        vocab_size: ids lie below it.
    """
    if not _can_commit(steps, tokens, vocab_size):
        return False
    begin = np.int64(0)
    for at in range(steps.shape[0]):
        context, end = context_of(card_at(steps[at, CARD])), steps[at, END]
        length = context[CONTEXT_LENGTH] + end - begin
        appended = tokens_between(context, context[CONTEXT_LENGTH], length)
        for token in range(end - begin):
            appended[token] = tokens[begin + token]
        context[CONTEXT_LENGTH] = length
        begin = end
    return True
