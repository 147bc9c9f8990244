"""Rows of likely next tokens, by the last token and by the last two, in one block of memory.

The arena holds a header, then one row for every token of the vocabulary, then a hash table of records
for pairs of tokens. All zeros is the state in which nothing is known: ids are stored plus one.
"""

from __future__ import annotations

import numpy as np

from retrieval_spec.kernels.jit import allocation_free_kernel, inlined_kernel

NUM_IDS, NUM_RECORDS, CLOCK = range(3)
HEADER_WORDS = 16

WIDTH = 8
"""Ids in a row, the most probable one first; 0 is an entry that is not known."""
LEVELS = WIDTH
"""The word after a row's ids: a level of four bits for each, the lowest bits for the first one."""
ROW_WORDS = WIDTH + 1

# A record of two tokens, each stored plus one so that 0 is free, when it was written, and its row.
PREVIOUS, TOKEN, WRITTEN, ROW = range(4)
RECORD_WORDS = ROW + ROW_WORDS
PROBES = 8
"""Places where a record may stand; when all are taken, the one written longest ago gives way."""
MAX_CLOCK = 0x7FFFFFFF

LEVEL_BITS = 4
MAX_LEVEL = 15
LEVELS_PER_ROOT_NAT = 6.0
"""Level 0: no log-probability was told. Level n from 1: its root is about (n - 1/2) / 6."""

# How a candidate was found: by two tokens, by the last one alone, or by the last one behind those by two.
BY_TWO, BY_ONE, BEHIND_TWO = range(3)
CLASSES_A_KIND = WIDTH + MAX_LEVEL
"""A candidate counts by its rank if its level is 0, else by its level."""
NUM_CLASSES = 3 * CLASSES_A_KIND
SEEN, RIGHT = range(2)
"""Rows of the counts: how often a class was offered, and how often it came."""

NO_ROW = 0


@inlined_kernel
def row_of(token):
    """Returns where the row of a token begins."""
    return HEADER_WORDS + token * ROW_WORDS


@inlined_kernel
def level_at(arena, row, rank):
    """Returns the level of an entry."""
    return (np.int64(arena[row + LEVELS]) >> (LEVEL_BITS * rank)) & MAX_LEVEL


@inlined_kernel
def class_of(kind, rank, level):
    """Returns the class in which a candidate is counted."""
    return kind * CLASSES_A_KIND + (rank if level == 0 else WIDTH - 1 + level)


@inlined_kernel
def _record_at(arena, previous, token, probe):
    num_records = np.int64(arena[NUM_RECORDS])
    mixed = ((previous + 1) * 0x9E3779B1 ^ (token + 1) * 0x45EBCA77) & 0xFFFFFFFF
    mixed = ((mixed ^ (mixed >> 15)) * 0x2C1B3C6D) & 0xFFFFFFFF
    index = ((mixed ^ (mixed >> 13)) + probe) & (num_records - 1)
    return HEADER_WORDS + np.int64(arena[NUM_IDS]) * ROW_WORDS + index * RECORD_WORDS


@inlined_kernel
def find(arena, previous, token):
    """Returns where the row of two tokens begins, `NO_ROW` if there is none; `previous` may be -1."""
    if arena[NUM_RECORDS] == 0 or previous < 0:
        return NO_ROW
    for probe in range(PROBES):
        record = _record_at(arena, previous, token, probe)
        if arena[record + TOKEN] == 0:
            return NO_ROW
        if arena[record + TOKEN] == token + 1 and arena[record + PREVIOUS] == previous + 1:
            return record + ROW
    return NO_ROW


@inlined_kernel
def _claim(arena, previous, token):
    """Returns where the row of two tokens begins, making room for it; `NO_ROW` if none are kept."""
    if arena[NUM_RECORDS] == 0 or previous < 0:
        return NO_ROW
    now = np.int64(arena[CLOCK])
    oldest, age = np.int64(0), np.int64(-1)
    is_new = True
    for probe in range(PROBES):
        record = _record_at(arena, previous, token, probe)
        if arena[record + TOKEN] == 0:
            oldest = record
            break
        if arena[record + TOKEN] == token + 1 and arena[record + PREVIOUS] == previous + 1:
            oldest, is_new = record, False
            break
        own_age = (now - np.int64(arena[record + WRITTEN])) & MAX_CLOCK
        if own_age > age:
            oldest, age = record, own_age
    if is_new:
        for word in range(RECORD_WORDS):
            arena[oldest + word] = 0
        arena[oldest + PREVIOUS] = previous + 1
        arena[oldest + TOKEN] = token + 1
    arena[oldest + WRITTEN] = now
    arena[CLOCK] = (now + 1) & MAX_CLOCK
    return oldest + ROW


@inlined_kernel
def _level_of(logprob):
    return 1 + min(MAX_LEVEL - 1, np.int64(LEVELS_PER_ROOT_NAT * np.sqrt(max(-np.float64(logprob), 0.0))))


@inlined_kernel
def _write_row(arena, row, topk_ids, topk_logprobs, node):
    """Replaces a row; an id that came before in it stays unknown, and so does what is not told."""
    levels = np.int64(0)
    for rank in range(WIDTH):
        entry = np.int32(0)
        if rank < topk_ids.shape[1]:
            entry = np.int32(topk_ids[node, rank] + 1)
            for earlier in range(rank):
                if arena[row + earlier] == entry:
                    entry = np.int32(0)
                    break
            if entry != 0 and rank < topk_logprobs.shape[1]:
                # Infinitely improbable is as improbable as the last level says.
                logprob = max(topk_logprobs[node, rank], np.float32(-100.0))
                levels |= _level_of(logprob) << (LEVEL_BITS * rank)
        arena[row + rank] = entry
    arena[row + LEVELS] = np.int32(levels - (1 << 32) if levels >> 31 else levels)


@allocation_free_kernel
def update(arena, node_token_ids, node_parents, topk_ids, topk_logprobs, previous):
    """Replaces the rows of all verified nodes; of several nodes with one row the last one wins.

    Args:
        arena: int32[words]  see the module.
        node_token_ids: int32[m]  the nodes' tokens, the root first.
        node_parents: int32[m]  index of an earlier node; -1 for the root.
        topk_ids: int32[m, k]  the most probable next tokens after each node, best first.
        topk_logprobs: float32[m, k]  their log-probabilities; of no width if not told.
        previous: the token before the root, -1 if there is none.
    """
    for node in range(topk_ids.shape[0]):
        token = np.int64(node_token_ids[node])
        before = np.int64(previous)
        if node_parents[node] >= 0:
            before = np.int64(node_token_ids[node_parents[node]])
        own_row = row_of(token)
        _write_row(arena, own_row, topk_ids, topk_logprobs, node)
        row = _claim(arena, before, token)
        if row != NO_ROW:
            for word in range(ROW_WORDS):
                arena[row + word] = arena[own_row + word]


@inlined_kernel
def _place_of(arena, row, entry):
    """Returns the rank of an entry, `WIDTH` if a row does not hold it."""
    rank = 0
    while rank < WIDTH and arena[row + rank] != entry:
        rank += 1
    return rank


@inlined_kernel
def is_in(arena, row, entry):
    """Tells whether a row holds an entry."""
    return _place_of(arena, row, entry) < WIDTH


@inlined_kernel
def _count_row(arena, row, kind, above, next_token, counts):
    """Counts what a row offers, without what the row `above` offers already; tells whether it was right."""
    for rank in range(WIDTH):
        entry = arena[row + rank]
        if entry == 0 or (above != NO_ROW and is_in(arena, above, entry)):
            continue
        counted = class_of(kind, rank, level_at(arena, row, rank))
        counts[SEEN, counted] += 1
        if entry == next_token + 1:
            counts[RIGHT, counted] += 1


@inlined_kernel
def _move_to_front(arena, row, token):
    """Makes a token the first one of a row: it leaves its place, takes a free one or that of the last."""
    entry = np.int32(token + 1)
    place = _place_of(arena, row, entry)
    if place == WIDTH:
        place = min(_place_of(arena, row, np.int32(0)), WIDTH - 1)
    if place == 0:
        arena[row] = entry
        return
    known = arena[row + place] == entry
    levels = np.int64(arena[row + LEVELS]) & 0xFFFFFFFF
    level = (levels >> (LEVEL_BITS * place)) & MAX_LEVEL if known else np.int64(0)
    behind = (levels >> (LEVEL_BITS * (place + 1))) << (LEVEL_BITS * (place + 1))
    before = levels & ((np.int64(1) << (LEVEL_BITS * place)) - 1)
    levels = behind | (before << LEVEL_BITS) | level
    while place > 0:
        arena[row + place] = arena[row + place - 1]
        place -= 1
    arena[row] = entry
    arena[row + LEVELS] = np.int32(levels - (1 << 32) if levels >> 31 else levels)


@allocation_free_kernel
def find_row(arena, previous, token):
    """Returns where the row of two tokens begins, `NO_ROW` if there is none."""
    return find(arena, np.int64(previous), np.int64(token))


@allocation_free_kernel
def learn(arena, text, begin, counts):
    """Moves every token of a text from `begin` on to the front of the rows of what stands before it.

    Args:
        arena: int32[words]  see the module.
        text: int32[n]  token ids.
        begin: the first token that is new; those before it are context.
        counts: int64[2, NUM_CLASSES]  counted up first: what the rows offered and what was right; of no
            width if the text is no test of them.
    """
    for at in range(max(begin, 1), text.shape[0]):
        before = np.int64(text[at - 2]) if at > 1 else np.int64(-1)
        token, next_token = np.int64(text[at - 1]), np.int64(text[at])
        if counts.shape[1] > 0:
            row = find(arena, before, token)
            if row == NO_ROW:
                _count_row(arena, row_of(token), BY_ONE, NO_ROW, next_token, counts)
            else:
                _count_row(arena, row, BY_TWO, NO_ROW, next_token, counts)
                _count_row(arena, row_of(token), BEHIND_TWO, row, next_token, counts)
        _move_to_front(arena, row_of(token), next_token)
        row = _claim(arena, before, token)
        if row != NO_ROW:
            _move_to_front(arena, row, next_token)


@allocation_free_kernel
def find_homes(arena, keys, homes):
    """Writes the number of the first record that each pair of tokens may stand in.

    Args:
        arena: int32[words]  see the module.
        keys: int32[n, 2]  pairs of tokens.
        homes: int64[n]  written.
    """
    first_record = HEADER_WORDS + np.int64(arena[NUM_IDS]) * ROW_WORDS
    for pair in range(keys.shape[0]):
        record = _record_at(arena, np.int64(keys[pair, 0]), np.int64(keys[pair, 1]), 0)
        homes[pair] = (record - first_record) // RECORD_WORDS


@allocation_free_kernel
def restore_pairs(arena, keys, rows, order):
    """Writes rows of pairs into an arena without any; what does not fit forgets the oldest.

    Args:
        arena: int32[words]  see the module.
        keys: int32[n, 2]  pairs of tokens, the one written longest ago first.
        rows: int32[n, ROW_WORDS]  their rows.
        order: int64[n]  the order in which they take their places.
    """
    arena[CLOCK] = keys.shape[0]
    for at in range(order.shape[0]):
        pair = order[at]
        row = _claim(arena, np.int64(keys[pair, 0]), np.int64(keys[pair, 1]))
        arena[row - ROW + WRITTEN] = pair
        for word in range(ROW_WORDS):
            arena[row + word] = rows[pair, word]
    arena[CLOCK] = keys.shape[0]
