"""Counts of what followed each of the last tokens' sequences, in one int32 arena. No Python objects.

    header    int32[16]                the words named below
    rows      int32[rows, row words]   one context each: shorter context, older token, total, distinct,
                                       and the most frequent successors, (token, count), best first
    index     int32[slots]             hash table of rows by (shorter context, older token); 0 = free
    spilled   int32[slots, 3]          hash table of the successors that a row has no place for:
                                       row, token, count; row 0 = free

A context is found through the next shorter one: row 0 is the empty context, and the row of `a b c`
has the row of `b c` and the token `a` as its key. So every key is checked in full, and of any text
the rows of all its last contexts are found on one walk. A row orders its successors by count, then by
token, and since counts only rise, a successor outside can enter only when it is itself counted: what a
row keeps is exactly its most frequent successors.

No input can run past the buffers: `learn` stops where one is full, and no search tries more than
`MAX_PROBES` slots. What finds no slot within reach is not learned.
"""

from __future__ import annotations

import numpy as np

from retrieval_spec.kernels.jit import allocation_free_kernel, inlined_kernel

NUM_ROWS, MAX_ROWS, NUM_SLOTS, INDEX_AT = 0, 1, 2, 3
NUM_SPILLED, MAX_SPILLED, NUM_SPILL_SLOTS, SPILLED_AT = 4, 5, 6, 7
MIN_CONTEXT, MAX_CONTEXT = 8, 9  # tokens; contexts that are shorter have no successors
MAX_KEPT, ROW_WORDS = 10, 11
HEADER_WORDS = 16

SHORTER, OLDER_TOKEN, TOTAL, DISTINCT, SUCCESSORS = range(5)
SUCCESSOR_WORDS = 2
SPILL_WORDS = 3
SPILLED_ROW, SPILLED_TOKEN, SPILLED_COUNT = range(3)

MAX_CONTEXT_TOKENS = 8
MAX_KEPT_SUCCESSORS = 16
MAX_PROBES = 128
MAX_TOTAL = 2**30
"""Occurrences of one context that are counted."""
NO_TOKEN = -1
"""Stands between documents: in no context and never a successor."""
NOWHERE = -1
"""In place of a row: the arena does not hold the context."""


@inlined_kernel
def record_of(arena, row):
    """Returns the address of a row."""
    return HEADER_WORDS + np.int64(row) * np.int64(arena[ROW_WORDS])


@inlined_kernel
def _home_of(row, token, num_slots):
    # Rows and tokens are below 2**31, so neither product reaches 2**63.
    mixed = (np.int64(row) * 0x9E3779B1 ^ np.int64(token) * 0x45EBCA77) & 0xFFFFFFFF
    return (mixed * np.int64(num_slots)) >> 32


@allocation_free_kernel
def _slot_of(arena, shorter, token):
    """Returns the address of the slot that holds a context, or else of its free one; -1 = out of reach."""
    num_slots = np.int64(arena[NUM_SLOTS])
    slot = _home_of(shorter, token, num_slots)
    found = np.int64(-1)
    for _ in range(MAX_PROBES):
        address = arena[INDEX_AT] + slot
        row = arena[address]
        record = record_of(arena, row)
        if row == 0 or (arena[record + OLDER_TOKEN] == token and arena[record + SHORTER] == shorter):
            found = np.int64(address)
            break
        slot = slot + 1 if slot + 1 < num_slots else np.int64(0)
    return found


@allocation_free_kernel
def longer(arena, row, token):
    """Returns the row of the context that has one older token more, or `NOWHERE`."""
    if row == NOWHERE:
        return np.int64(NOWHERE)
    slot = _slot_of(arena, row, token)
    if slot < 0 or arena[slot] == 0:
        return np.int64(NOWHERE)
    return np.int64(arena[slot])


@inlined_kernel
def num_kept(arena, record):
    """Returns how many successors stand in the row itself."""
    return min(arena[record + DISTINCT], arena[MAX_KEPT])


@allocation_free_kernel
def _spill_slot_of(arena, row, token):
    """Returns the address of a spilled successor, or else of its free place; -1 = out of reach."""
    num_slots = np.int64(arena[NUM_SPILL_SLOTS])
    slot = _home_of(row, token, num_slots)
    found = np.int64(-1)
    for _ in range(MAX_PROBES):
        address = arena[SPILLED_AT] + slot * SPILL_WORDS
        owner = arena[address + SPILLED_ROW]
        if owner == 0 or (owner == row and arena[address + SPILLED_TOKEN] == token):
            found = np.int64(address)
            break
        slot = slot + 1 if slot + 1 < num_slots else np.int64(0)
    return found


@allocation_free_kernel
def count_of(arena, row, token):
    """Returns how often a token followed a context."""
    record = record_of(arena, row)
    count = np.int64(0)
    for place in range(num_kept(arena, record)):
        successor = record + SUCCESSORS + place * SUCCESSOR_WORDS
        if arena[successor] == token:
            count = np.int64(arena[successor + 1])
    if count == 0 and arena[record + DISTINCT] > arena[MAX_KEPT]:
        address = _spill_slot_of(arena, row, token)
        if address >= 0 and arena[address + SPILLED_ROW] != 0:
            count = np.int64(arena[address + SPILLED_COUNT])
    return count


@allocation_free_kernel
def _spill(arena, row, token, count):
    """Writes a successor's count beside the row; tells whether there was a place."""
    address = _spill_slot_of(arena, row, token)
    if address < 0:
        return False
    if arena[address + SPILLED_ROW] == 0:
        arena[address + SPILLED_ROW] = row
        arena[address + SPILLED_TOKEN] = token
        arena[NUM_SPILLED] += 1
    arena[address + SPILLED_COUNT] = count
    return True


@inlined_kernel
def _settle(arena, record, place):
    """Moves the successor at `place` before those that rank lower."""
    at = record + SUCCESSORS + place * SUCCESSOR_WORDS
    token, count = arena[at], arena[at + 1]
    while at > record + SUCCESSORS:
        other, others = arena[at - 2], arena[at - 1]
        if others > count or (others == count and other < token):
            break
        arena[at], arena[at + 1] = other, others
        at -= SUCCESSOR_WORDS
    arena[at], arena[at + 1] = token, count


@inlined_kernel
def _count_outside(arena, row, record, token):
    """Counts a successor that the row has no place for; it takes the last one's place if it outranks it."""
    before = count_of(arena, row, token)
    count = before + 1
    if not _spill(arena, row, token, count):
        return
    if before == 0:
        arena[record + DISTINCT] += 1
    last = record + SUCCESSORS + (arena[MAX_KEPT] - 1) * SUCCESSOR_WORDS
    kept, kept_count = arena[last], arena[last + 1]
    if count < kept_count or (count == kept_count and token > kept):
        return
    if _spill(arena, row, kept, kept_count):
        arena[last], arena[last + 1] = token, count
        _settle(arena, record, arena[MAX_KEPT] - 1)


@allocation_free_kernel
def count_once(arena, row, token):
    """Counts one more occurrence of a token after a context."""
    record = record_of(arena, row)
    if arena[record + TOTAL] >= MAX_TOTAL:
        return
    arena[record + TOTAL] += 1
    kept = num_kept(arena, record)
    place = 0
    while place < kept and arena[record + SUCCESSORS + place * SUCCESSOR_WORDS] != token:
        place += 1
    if place == arena[MAX_KEPT]:
        _count_outside(arena, row, record, token)
        return
    successor = record + SUCCESSORS + place * SUCCESSOR_WORDS
    if place == kept:
        arena[record + DISTINCT] += 1
        arena[successor], arena[successor + 1] = token, 0
    arena[successor + 1] += 1
    _settle(arena, record, place)


@inlined_kernel
def _promote(arena, record, source, other):
    """Starts a fresh row with half of what an older arena knows of its context, rounded up."""
    if arena[MAX_KEPT] != source[MAX_KEPT]:
        return
    kept = num_kept(source, other)
    for place in range(kept):
        at = SUCCESSORS + place * SUCCESSOR_WORDS
        arena[record + at] = source[other + at]
        arena[record + at + 1] = (source[other + at + 1] + 1) >> 1
        arena[record + TOTAL] += arena[record + at + 1]
        arena[record + DISTINCT] += 1
        _settle(arena, record, place)


@allocation_free_kernel
def enter(arena, shorter, token):
    """Returns the row of a context, a fresh one if it had none, or `NOWHERE` if there is no slot for it."""
    slot = _slot_of(arena, shorter, token)
    if slot < 0:
        return np.int64(NOWHERE)
    row = np.int64(arena[slot])
    if row == 0:
        row = np.int64(arena[NUM_ROWS])
        arena[NUM_ROWS] += 1
        arena[slot] = row
        record = record_of(arena, row)
        arena[record + SHORTER], arena[record + OLDER_TOKEN] = shorter, token
        arena[record + TOTAL], arena[record + DISTINCT] = 0, 0
    return row


@inlined_kernel
def _learn_one(arena, older, base, text, at):
    row, older_row, base_row = np.int64(0), np.int64(0), np.int64(0)
    for length in range(1, min(np.int64(arena[MAX_CONTEXT]), at) + 1):
        token = text[at - length]
        if token == NO_TOKEN or row == NOWHERE:
            break
        num_rows = arena[NUM_ROWS]
        row = enter(arena, row, token)
        older_row, base_row = longer(older, older_row, token), longer(base, base_row, token)
        if row == NOWHERE or length < arena[MIN_CONTEXT]:
            continue
        if arena[NUM_ROWS] > num_rows:
            if older_row != NOWHERE:
                _promote(arena, record_of(arena, row), older, record_of(older, older_row))
            elif base_row != NOWHERE:
                _promote(arena, record_of(arena, row), base, record_of(base, base_row))
        count_once(arena, row, text[at])


@allocation_free_kernel
def learn(arena, older, base, text, start):
    """Counts each token of `text` from `start` on after its contexts, which may begin before `start`.

    Returns the index of the first token that was not learned, because the arena is full, or the length.

    Args:
        arena: int32[words]  written.
        older: int32[words]  what a fresh row starts with half of; an arena of no rows if nothing.
        base: int32[words]  the same, for contexts that `older` does not hold.
        text: int32[n]  tokens; `NO_TOKEN` ends a document.
        start: index of the first token to learn.
    """
    max_context = arena[MAX_CONTEXT]
    for at in range(start, text.shape[0]):
        if arena[NUM_ROWS] + max_context > arena[MAX_ROWS]:
            return at
        if arena[NUM_SPILLED] + 2 * max_context > arena[MAX_SPILLED]:
            return at
        if text[at] != NO_TOKEN:
            _learn_one(arena, older, base, text, np.int64(at))
    return text.shape[0]


@allocation_free_kernel
def rebuild_index(arena, old):
    """Enters the rows of a larger arena, and the spilled successors of the smaller one, in empty tables."""
    for row in range(1, arena[NUM_ROWS]):
        record = record_of(arena, row)
        slot = _slot_of(arena, arena[record + SHORTER], arena[record + OLDER_TOKEN])
        if slot >= 0:
            arena[slot] = row
    for slot in range(old[NUM_SPILL_SLOTS]):
        address = np.int64(old[SPILLED_AT]) + slot * SPILL_WORDS
        if old[address + SPILLED_ROW] != 0:
            _spill(
                arena,
                old[address + SPILLED_ROW],
                old[address + SPILLED_TOKEN],
                old[address + SPILLED_COUNT],
            )


@allocation_free_kernel
def walk(arena, context):
    """Returns the row of a context, or `NOWHERE`; the empty one's is 0."""
    row = np.int64(0)
    for back in range(1, context.shape[0] + 1):
        row = longer(arena, row, context[context.shape[0] - back])
    return row
