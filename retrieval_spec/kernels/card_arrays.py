"""The arrays that cards name, for kernels that step over cards (`kernels.cards`)."""

from __future__ import annotations

import numpy as np

from retrieval_spec.kernels.anchor import ANCHOR_WORDS
from retrieval_spec.kernels.blend_tables import NUM_CELLS, OWN
from retrieval_spec.kernels.cards import (
    ARENA,
    ARENA_WORDS,
    CARD_WORDS,
    CONTEXT,
    CONTEXT_AT,
    CONTEXT_WORDS,
    DRAFTED,
    DRAFTED_ROOM,
    NUM_ROWS,
    PLACE_WORDS,
    PLACES,
    RECORDS,
    RECORDS_WORDS,
    ROWS,
    TABLE_BYTES,
    TABLES,
    TEXT_WORDS,
    TEXTS,
    array_at,
)
from retrieval_spec.kernels.commonest import ROW_WORDS
from retrieval_spec.kernels.jit import expanded_kernel


@expanded_kernel
def card_at(address):
    """Returns a card by its address."""
    return array_at(address, (np.int64(CARD_WORDS),), np.int64)


@expanded_kernel
def context_of(card):
    """Returns the words of the context."""
    return array_at(card[CONTEXT], (np.int64(CONTEXT_WORDS),), np.int64)


@expanded_kernel
def tokens_between(context, begin, end):
    """Returns tokens of a context, by their positions."""
    return array_at(context[CONTEXT_AT] + 4 * begin, (end - begin,), np.int32)


@expanded_kernel
def newest_tokens(context, end, num_tokens):
    """Returns the last of the first `end` tokens, at most so many."""
    return tokens_between(context, max(end - num_tokens, np.int64(0)), end)


@expanded_kernel
def text_of(card, kind):
    """Returns the words of a text."""
    return array_at(card[TEXTS + kind], (np.int64(TEXT_WORDS),), np.int64)


@expanded_kernel
def arena_of(card, kind):
    """Returns the automaton of a text."""
    text = text_of(card, kind)
    return array_at(text[ARENA], (text[ARENA_WORDS],), np.int32)


@expanded_kernel
def rows_of(card, kind, part):
    """Returns the commonest continuations of a text, in the table of a part of a step."""
    text = text_of(card, kind)
    address, shape = text[ROWS] + part * text[TABLE_BYTES], (text[NUM_ROWS], np.int64(ROW_WORDS))
    return array_at(address, shape, np.int32)


@expanded_kernel
def place_of(card, kind):
    """Returns where the context stands in a text."""
    words = np.int64(ANCHOR_WORDS if kind == OWN else PLACE_WORDS)
    return array_at(card[PLACES + kind], (words,), np.int64)


@expanded_kernel
def tables_of(card):
    """Returns what the namespace learned."""
    return array_at(card[TABLES], (np.int64(NUM_CELLS),), np.float32)


@expanded_kernel
def records_of(card, side):
    """Returns what is to be learned from."""
    words = card[RECORDS_WORDS]
    return array_at(card[RECORDS] + 4 * side * words, (words,), np.int32)


@expanded_kernel
def drafted_of(card, side):
    """Returns token ids, parents and path probabilities, each with room for the largest tree."""
    room = card[DRAFTED_ROOM]
    address, words = card[DRAFTED] + 12 * side * room, (room,)
    return (
        array_at(address, words, np.int32),
        array_at(address + 4 * room, words, np.int32),
        array_at(address + 8 * room, words, np.float32),
    )
