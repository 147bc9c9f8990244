"""A growing suffix automaton in one int32 arena: appending, exact counts, look-up. No Python objects.

The arena holds a header, then the states, then the overflow edges, then their hash slots.

    header    int32[16]      the words named below
    states    int32[n, 8]    length, link, first token, its target, overflow edge, first end, last end, count
    edges     int32[m, 4]    own state, token, target, next overflow edge of the same state
    slots     int32[k]       open addressing over (state, token): index of an overflow edge, 0 = empty

State 0 is the empty string, edge 0 is never used. Seven states in eight have one edge, which sits in
the state record itself. `append` checks the room for each token before it writes anything, so no
input can run past a buffer, and a caller that makes room goes on where `append` stopped.
"""

from __future__ import annotations

import numpy as np

from retrieval_spec.kernels.jit import kernel

NUM_TOKENS, NUM_STATES, NUM_EDGES, LAST = 0, 1, 2, 3
EDGES_AT, SLOTS_AT = 4, 5
MAX_STATES, MAX_EDGES, NUM_SLOTS = 6, 7, 8
NEXT_BOUNDARY = 9  # context length at which counts become exact again
QUIET_UNTIL = 10  # below this length a bulk load leaves the counts to the boundary's recount
IS_LOWER_BOUND = 11  # 1 = some counts and last ends miss occurrences
WANTED_EDGES = 12  # what the token that found no room needs
HEADER_WORDS = 16

STATE_WORDS, EDGE_WORDS = 8, 4
LENGTH, LINK, TOKEN, TARGET, OVERFLOW, FIRST_END, LAST_END, COUNT = range(8)
EDGE_OWN, EDGE_TOKEN, EDGE_TARGET, EDGE_NEXT = range(4)

MAX_BUMP_HOPS = 64
"""Suffix links followed per appended token to keep counts exact; a run of one token has longer chains."""
FIRST_BOUNDARY = 1024
"""Boundaries lie a quarter apart from here on, so recounts cost a constant share of the appends."""


@kernel
def slot_of(state, token, num_slots):
    """Returns where a probe for (state, token) begins; every step stays below 2**63."""
    mixed = (np.int64(state) * 0x9E3779B1 ^ np.int64(token) * 0x85EBCA77) & 0xFFFFFFFF
    mixed = ((mixed ^ (mixed >> 15)) * 0x2C1B3C6D) & 0xFFFFFFFF
    return (mixed * num_slots) >> 32


@kernel
def find_target(arena, state, token):
    """Returns the arena word that holds the target of an edge, or 0 if the state has no such edge."""
    record = HEADER_WORDS + np.int64(state) * STATE_WORDS
    if arena[record + TARGET] < 0:
        return np.int64(0)
    if arena[record + TOKEN] == token:
        return record + TARGET
    if arena[record + OVERFLOW] == 0:
        return np.int64(0)
    edges_at = np.int64(arena[EDGES_AT])
    # Most states with overflow have one such edge: its record answers without the slots.
    edge = edges_at + np.int64(arena[record + OVERFLOW]) * EDGE_WORDS
    if arena[edge + EDGE_TOKEN] == token:
        return edge + EDGE_TARGET
    if arena[edge + EDGE_NEXT] == 0:
        return np.int64(0)
    return _find_overflow(arena, state, token)


@kernel
def _find_overflow(arena, state, token):
    edges_at = np.int64(arena[EDGES_AT])
    slots_at = np.int64(arena[SLOTS_AT])
    num_slots = np.int64(arena[NUM_SLOTS])
    slot = slot_of(state, token, num_slots)
    while arena[slots_at + slot] != 0:
        edge = edges_at + np.int64(arena[slots_at + slot]) * EDGE_WORDS
        if arena[edge + EDGE_OWN] == state and arena[edge + EDGE_TOKEN] == token:
            return edge + EDGE_TARGET
        slot = slot + 1 if slot + 1 < num_slots else 0
    return np.int64(0)


@kernel
def _take_slot(arena, edge_index, state, token):
    slots_at = np.int64(arena[SLOTS_AT])
    num_slots = np.int64(arena[NUM_SLOTS])
    slot = slot_of(state, token, num_slots)
    while arena[slots_at + slot] != 0:
        slot = slot + 1 if slot + 1 < num_slots else 0
    arena[slots_at + slot] = edge_index


@kernel
def fill_slots(arena):
    """Enters every overflow edge into empty slots, after the slots moved to a larger buffer."""
    edges_at = np.int64(arena[EDGES_AT])
    for edge_index in range(1, arena[NUM_EDGES]):
        edge = edges_at + edge_index * EDGE_WORDS
        _take_slot(arena, edge_index, arena[edge + EDGE_OWN], arena[edge + EDGE_TOKEN])


@kernel
def _add_edge(arena, state, token, target):
    record = HEADER_WORDS + np.int64(state) * STATE_WORDS
    if arena[record + TARGET] < 0:
        arena[record + TOKEN] = token
        arena[record + TARGET] = target
        return
    edge_index = np.int64(arena[NUM_EDGES])
    edge = np.int64(arena[EDGES_AT]) + edge_index * EDGE_WORDS
    arena[edge + EDGE_OWN] = state
    arena[edge + EDGE_TOKEN] = token
    arena[edge + EDGE_TARGET] = target
    arena[edge + EDGE_NEXT] = arena[record + OVERFLOW]
    arena[record + OVERFLOW] = edge_index
    arena[NUM_EDGES] = edge_index + 1
    _take_slot(arena, edge_index, state, token)


@kernel
def _clone(arena, source, length):
    """Returns a new state with the edges, ends and count of `source`, put between it and its link."""
    clone = np.int64(arena[NUM_STATES])
    arena[NUM_STATES] = clone + 1
    old = HEADER_WORDS + np.int64(source) * STATE_WORDS
    new = HEADER_WORDS + clone * STATE_WORDS
    for word in range(STATE_WORDS):
        arena[new + word] = arena[old + word]
    arena[new + LENGTH] = length
    arena[new + OVERFLOW] = 0
    arena[old + LINK] = clone
    edges_at = np.int64(arena[EDGES_AT])
    edge = edges_at + np.int64(arena[old + OVERFLOW]) * EDGE_WORDS
    while edge != edges_at:
        _add_edge(arena, clone, arena[edge + EDGE_TOKEN], arena[edge + EDGE_TARGET])
        edge = edges_at + np.int64(arena[edge + EDGE_NEXT]) * EDGE_WORDS
    return clone


@kernel
def _num_overflow(arena, state):
    edges_at = np.int64(arena[EDGES_AT])
    count = 0
    edge_index = np.int64(arena[HEADER_WORDS + np.int64(state) * STATE_WORDS + OVERFLOW])
    while edge_index != 0:
        count += 1
        edge_index = np.int64(arena[edges_at + edge_index * EDGE_WORDS + EDGE_NEXT])
    return count


@kernel
def _has_room(arena, wanted_edges):
    arena[WANTED_EDGES] = wanted_edges
    return arena[NUM_STATES] + 2 <= arena[MAX_STATES] and wanted_edges <= arena[MAX_EDGES]


@kernel
def _add_token(arena, token):
    """Adds one token; returns the new state, or -1 with nothing changed if it might not fit."""
    last = np.int64(arena[LAST])
    forks = 0
    state = last
    found = np.int64(0)
    while state >= 0:
        found = find_target(arena, state, token)
        if found != 0:
            break
        forks += 1
        state = np.int64(arena[HEADER_WORDS + state * STATE_WORDS + LINK])
    target = np.int64(arena[found]) if found != 0 else np.int64(0)
    stop = state
    length = np.int64(arena[HEADER_WORDS + max(stop, 0) * STATE_WORDS + LENGTH]) + 1
    splits = found != 0 and arena[HEADER_WORDS + target * STATE_WORDS + LENGTH] != length
    new_edges = forks + (_num_overflow(arena, target) if splits else 0)
    if not _has_room(arena, arena[NUM_EDGES] + new_edges):
        return np.int64(-1)
    new = _new_state(arena, np.int64(arena[HEADER_WORDS + last * STATE_WORDS + LENGTH]) + 1)
    state = last
    while state != stop:
        _add_edge(arena, state, token, new)
        state = np.int64(arena[HEADER_WORDS + state * STATE_WORDS + LINK])
    link = target
    if splits:
        link = _clone(arena, target, length)
        _redirect(arena, stop, token, target, link)
    arena[HEADER_WORDS + new * STATE_WORDS + LINK] = link
    arena[LAST] = new
    return new


@kernel
def _new_state(arena, length):
    state = np.int64(arena[NUM_STATES])
    position = arena[NUM_TOKENS]
    arena[NUM_STATES] = state + 1
    arena[NUM_TOKENS] = position + 1
    record = HEADER_WORDS + state * STATE_WORDS
    arena[record + LENGTH] = length
    arena[record + TOKEN] = -1
    arena[record + TARGET] = -1
    arena[record + OVERFLOW] = 0
    arena[record + FIRST_END] = position
    arena[record + LAST_END] = position
    arena[record + COUNT] = 1
    return state


@kernel
def _redirect(arena, state, token, old, new):
    while state >= 0:
        found = find_target(arena, state, token)
        if found == 0 or arena[found] != old:
            return
        arena[found] = new
        state = np.int64(arena[HEADER_WORDS + state * STATE_WORDS + LINK])


@kernel
def _bump(arena, state):
    """Counts one more end for all suffixes of `state`, nearest first, and notes if the cap cut it off."""
    end = arena[HEADER_WORDS + state * STATE_WORDS + FIRST_END]
    state = np.int64(arena[HEADER_WORDS + state * STATE_WORDS + LINK])
    for _ in range(MAX_BUMP_HOPS):
        if state == 0:
            return
        record = HEADER_WORDS + state * STATE_WORDS
        arena[record + COUNT] += 1
        arena[record + LAST_END] = end
        state = np.int64(arena[record + LINK])
    if state != 0:
        arena[IS_LOWER_BOUND] = 1


@kernel
def recount(arena):
    """Makes all counts and last ends exact: every state passes its own to its link, leaves first."""
    num_states = arena[NUM_STATES]
    waiting = np.zeros(num_states, np.int32)  # children in the link tree that have not passed theirs
    for state in range(1, num_states):
        record = HEADER_WORDS + state * STATE_WORDS
        # A state made by its own token is as long as the text was; a clone is shorter.
        is_prefix = arena[record + FIRST_END] + 1 == arena[record + LENGTH]
        arena[record + COUNT] = 1 if is_prefix else 0
        arena[record + LAST_END] = arena[record + FIRST_END]
        waiting[arena[record + LINK]] += 1
    for leaf in range(1, num_states):
        state = np.int64(leaf)
        while state != 0 and waiting[state] == 0:
            waiting[state] = -1
            record = HEADER_WORDS + state * STATE_WORDS
            state = np.int64(arena[record + LINK])
            above = HEADER_WORDS + state * STATE_WORDS
            if state != 0:
                arena[above + COUNT] += arena[record + COUNT]
                arena[above + LAST_END] = max(arena[above + LAST_END], arena[record + LAST_END])
            waiting[state] -= 1
    arena[IS_LOWER_BOUND] = 0


@kernel
def _next_boundary(boundary):
    return boundary + boundary // 4


@kernel
def _plan_bulk(arena, num_tokens):
    """Decides whether the next tokens may skip the bumps because a recount follows them anyway."""
    length = np.int64(arena[NUM_TOKENS])
    boundary = np.int64(arena[NEXT_BOUNDARY])
    if length < arena[QUIET_UNTIL] or boundary > length + num_tokens or 2 * num_tokens < length:
        return
    while _next_boundary(boundary) <= length + num_tokens:
        boundary = _next_boundary(boundary)
    arena[QUIET_UNTIL] = boundary
    arena[NEXT_BOUNDARY] = boundary
    arena[IS_LOWER_BOUND] = 1


@kernel
def append(arena, tokens, start):
    """Appends `tokens[start:]` and returns how many of `tokens` are in: fewer if the buffers are full.

    Counts and ends are a function of the text alone, however it was cut into calls: exact at every
    boundary, and from there until a link chain longer than `MAX_BUMP_HOPS` appears.

    Args:
        arena: int32[words]  see the module.
        tokens: int32[n]  any values.
        start: tokens before it are in already.
    """
    num_tokens = tokens.shape[0]
    _plan_bulk(arena, num_tokens - start)
    for at in range(start, num_tokens):
        state = _add_token(arena, tokens[at])
        if state < 0:
            return at
        if arena[NUM_TOKENS] > arena[QUIET_UNTIL]:
            _bump(arena, state)
        if arena[NUM_TOKENS] == arena[NEXT_BOUNDARY]:
            if arena[IS_LOWER_BOUND]:
                recount(arena)
            arena[NEXT_BOUNDARY] = _next_boundary(arena[NEXT_BOUNDARY])
    return num_tokens


@kernel
def walk(arena, tokens):
    """Returns the state of the string `tokens`, or -1 if it does not occur."""
    state = np.int64(0)
    for token in tokens:
        found = find_target(arena, state, token)
        if found == 0:
            return np.int64(-1)
        state = np.int64(arena[found])
    return state
