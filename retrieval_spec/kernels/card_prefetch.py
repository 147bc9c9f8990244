"""Asking for what the next sessions of a message will read, before their turn comes.

What a card names can be asked for now, what that names once it is there, and so on: three stages, each for a
session whose turn comes sooner (software-pipelined prefetching; Chen et al., 2004).
"""

from __future__ import annotations

import numpy as np

from retrieval_spec.kernels.automaton import LAST, record_of
from retrieval_spec.kernels.blend_tables import NUM_TEXTS, OUTPUTS, OWN
from retrieval_spec.kernels.card_arrays import arena_of, card_at, context_of, place_of, records_of, text_of
from retrieval_spec.kernels.cards import (
    ARENA,
    CONTEXT,
    CONTEXT_AT,
    CONTEXT_LENGTH,
    DRAFTED,
    DRAFTED_ROOM,
    PLACES,
    RECORDS,
    RECORDS_WORDS,
    ROWS,
    SIDE,
    TEXTS,
    array_at,
)
from retrieval_spec.kernels.jit import inlined_kernel
from retrieval_spec.kernels.prefetch import prefetch
from retrieval_spec.kernels.records import STARTS
from retrieval_spec.kernels.shared_automaton import STATE

LINE_BYTES = 64
RECORD_LINES = 4
"""Of the records of a tree: those of its first places are read most."""


@inlined_kernel
def _prefetch_line(address):
    prefetch(array_at(address, (np.int64(1),), np.int64), np.int64(0))


@inlined_kernel
def prefetch_named(address):
    """Asks for what a card names, where it begins."""
    card = card_at(address)
    _prefetch_line(card[CONTEXT])
    for kind in range(NUM_TEXTS):
        _prefetch_line(card[TEXTS + kind])
        _prefetch_line(card[PLACES + kind])
    for row in range(3):
        _prefetch_line(card[DRAFTED] + 4 * (3 * card[SIDE] + row) * card[DRAFTED_ROOM])
    _prefetch_line(card[RECORDS] + 4 * card[SIDE] * card[RECORDS_WORDS])


@inlined_kernel
def prefetch_ends(address):
    """Asks for the end of the context, the beginning of the own text, and where records are written."""
    card = card_at(address)
    context, own = context_of(card), text_of(card, OWN)
    _prefetch_line(context[CONTEXT_AT] + 4 * context[CONTEXT_LENGTH] - 4)
    _prefetch_line(own[ARENA])
    _prefetch_line(own[ROWS])
    side = card[SIDE]
    first_record = card[RECORDS] + 4 * (side * card[RECORDS_WORDS] + records_of(card, side)[STARTS])
    for line in range(RECORD_LINES):
        _prefetch_line(first_record + LINE_BYTES * line)


@inlined_kernel
def prefetch_states(address):
    """Asks for the states in which the context stands."""
    card = card_at(address)
    own = arena_of(card, OWN)
    prefetch(own, record_of(own[LAST]))
    for kind in range(OUTPUTS, NUM_TEXTS):
        prefetch(arena_of(card, kind), record_of(place_of(card, kind)[STATE]))
