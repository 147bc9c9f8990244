"""A growing suffix automaton in one int32 arena: appending, exact counts, look-up. No Python objects.

The arena holds a header, then the states, then a hash table of overflow edges.

    header    int32[16]         the words named below
    states    int32[n, 8]       length, link, token, target, overflow edge, first end, last end, count
    edges     int32[1 + k, 4]   own state, token, target (0 = free), next overflow edge of the same state

State 0 is the empty string; row 0 of the edges is unused, so that 0 can mean "no edge". The first edge
of a state sits in its record, and most states have no other. Further edges lie open-addressed by
(state, token), so that a look-up touches one cache line, and form a list, newest first. No input can
run past the buffers: `append` stops where they are full and goes on after the caller made room.
"""

from __future__ import annotations

import numpy as np

from retrieval_spec.kernels.jit import kernel

NUM_TOKENS, NUM_STATES, NUM_EDGES, LAST = 0, 1, 2, 3
EDGES_AT = 4
MAX_STATES, MAX_EDGES, NUM_ROWS = 5, 6, 7  # rows of the hash table, more than edges that may be in use
NEXT_BOUNDARY = 8  # context length at which counts become exact again
IS_LOWER_BOUND = 9  # 1 = some counts and last ends miss occurrences
WANTED_EDGES = 10  # NUM_EDGES that the token needs which found no room
RESUME_STATE = 11  # state at which to go on with that token
NOWHERE = -2
HEADER_WORDS = 16

STATE_WORDS, EDGE_WORDS = 8, 4
LENGTH, LINK, TOKEN, TARGET, OVERFLOW, FIRST_END, LAST_END, COUNT = range(8)
EDGE_OWN, EDGE_TOKEN, EDGE_TARGET, EDGE_NEXT = range(4)

MAX_BUMP_HOPS = 64
"""Suffix links followed per appended token to keep counts exact; a run of one token has longer chains."""
FIRST_BOUNDARY = 1024
"""Boundaries lie a quarter apart from here on, so recounts cost a constant share of the appends."""


@kernel
def find_target(arena, state, token):
    """Returns the arena word that holds the target of an edge.

    If there is no such edge: 0, or minus the arena word of the free row that the edge would take.
    """
    record = HEADER_WORDS + np.int64(state) * STATE_WORDS
    if arena[record + TOKEN] == token:
        return record + TARGET if arena[record + TARGET] >= 0 else np.int64(0)
    if arena[record + OVERFLOW] == 0:
        return np.int64(0)
    edge = _first_row(arena, state, token)
    while arena[edge + EDGE_TARGET] != 0:
        if arena[edge + EDGE_OWN] == state and arena[edge + EDGE_TOKEN] == token:
            return edge + EDGE_TARGET
        edge = _next_row(arena, edge)
    return -edge


@kernel
def _first_row(arena, state, token):
    """Returns the arena word of the row where a probe for an edge begins."""
    # The multipliers are below 2**32 and the ids below 2**31, so no step reaches 2**63.
    mixed = (np.int64(state) * 0x9E3779B1 ^ np.int64(token) * 0x85EBCA77) & 0xFFFFFFFF
    row = 1 + ((mixed * np.int64(arena[NUM_ROWS])) >> 32)
    return np.int64(arena[EDGES_AT]) + row * EDGE_WORDS


@kernel
def _next_row(arena, edge):
    edges_at = np.int64(arena[EDGES_AT])
    if edge < edges_at + np.int64(arena[NUM_ROWS]) * EDGE_WORDS:
        return edge + EDGE_WORDS
    return edges_at + EDGE_WORDS


@kernel
def _free_row(arena, state, token):
    edge = _first_row(arena, state, token)
    while arena[edge + EDGE_TARGET] != 0:
        edge = _next_row(arena, edge)
    return edge


@kernel
def rehash(arena, old):
    """Enters the overflow edges of an old arena into an empty table, every list in the same order."""
    old_edges_at = np.int64(old[EDGES_AT])
    edges_at = np.int64(arena[EDGES_AT])
    for state in range(arena[NUM_STATES]):
        pointer = HEADER_WORDS + state * STATE_WORDS + OVERFLOW
        index = np.int64(arena[pointer])
        while index != 0:
            source = old_edges_at + index * EDGE_WORDS
            edge = _free_row(arena, state, old[source + EDGE_TOKEN])
            for word in range(EDGE_WORDS):
                arena[edge + word] = old[source + word]
            arena[pointer] = (edge - edges_at) // EDGE_WORDS
            pointer = edge + EDGE_NEXT
            index = np.int64(arena[pointer])


@kernel
def _add_overflow(arena, state, token, target, free_row):
    """Adds an edge to a state that has one already; `free_row` may be 0: not looked for yet."""
    record = HEADER_WORDS + np.int64(state) * STATE_WORDS
    edge = free_row if free_row != 0 else _free_row(arena, state, token)
    arena[edge + EDGE_OWN] = state
    arena[edge + EDGE_TOKEN] = token
    arena[edge + EDGE_TARGET] = target
    arena[edge + EDGE_NEXT] = arena[record + OVERFLOW]
    arena[record + OVERFLOW] = (edge - np.int64(arena[EDGES_AT])) // EDGE_WORDS
    arena[NUM_EDGES] += 1


@kernel
def _clone(arena, source, clone, length):
    """Makes state `clone` with the edges, ends and count of `source`, between it and its link."""
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
        _add_overflow(arena, clone, arena[edge + EDGE_TOKEN], arena[edge + EDGE_TARGET], 0)
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
def _begin(arena, token):
    """Writes the record of the next state and its edge from the last one, but does not count it yet."""
    last = HEADER_WORDS + np.int64(arena[LAST]) * STATE_WORDS
    new = HEADER_WORDS + np.int64(arena[NUM_STATES]) * STATE_WORDS
    arena[new + LENGTH] = arena[last + LENGTH] + 1
    arena[new + LINK] = 0
    arena[new + TOKEN] = -1
    arena[new + TARGET] = -1
    arena[new + OVERFLOW] = 0
    arena[new + FIRST_END] = arena[last + LENGTH]
    arena[new + LAST_END] = arena[last + LENGTH]
    arena[new + COUNT] = 1
    arena[last + TOKEN] = token
    arena[last + TARGET] = arena[NUM_STATES]
    return np.int64(arena[last + LINK])


@kernel
def _add_token(arena, token):
    """Adds one token; returns the new state, or -1 if there is no room: then call again with more."""
    state = np.int64(arena[RESUME_STATE])
    if state == NOWHERE:
        if arena[NUM_STATES] + 2 > arena[MAX_STATES]:
            return np.int64(-1)
        state = _begin(arena, token)
    new = np.int64(arena[NUM_STATES])
    found = np.int64(0)
    while state >= 0:
        found = find_target(arena, state, token)
        if found > 0:
            break
        if not _has_edge_room(arena, state, 1):
            return np.int64(-1)
        record = HEADER_WORDS + state * STATE_WORDS
        _add_overflow(arena, state, token, new, -found)
        state = np.int64(arena[record + LINK])
    link = np.int64(0)
    clones = 0
    if state >= 0:
        link = np.int64(arena[found])
        length = arena[HEADER_WORDS + state * STATE_WORDS + LENGTH] + 1
        if arena[HEADER_WORDS + link * STATE_WORDS + LENGTH] != length:
            if not _has_edge_room(arena, state, _num_overflow(arena, link)):
                return np.int64(-1)
            clones = 1
            target = link
            link = _clone(arena, target, new + 1, length)
            arena[found] = link
            _redirect(arena, np.int64(arena[HEADER_WORDS + state * STATE_WORDS + LINK]), token, target, link)
    arena[HEADER_WORDS + new * STATE_WORDS + LINK] = link
    arena[NUM_STATES] = new + 1 + clones
    arena[NUM_TOKENS] += 1
    arena[LAST] = new
    arena[RESUME_STATE] = NOWHERE
    return new


@kernel
def _has_edge_room(arena, state, num_edges):
    """Tells whether so many overflow edges fit, and notes where to go on if they do not."""
    wanted = arena[NUM_EDGES] + num_edges
    if wanted <= arena[MAX_EDGES]:
        return True
    arena[WANTED_EDGES] = wanted
    arena[RESUME_STATE] = state
    return False


@kernel
def _redirect(arena, state, token, old, new):
    while state >= 0:
        found = find_target(arena, state, token)
        if found <= 0 or arena[found] != old:
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
def append(arena, tokens, start):
    """Appends `tokens[start:]` and returns how many of `tokens` are in: fewer if the buffers are full.

    Counts and ends are a function of the text alone, however it was cut into calls: exact at every
    boundary, and from there until a link chain longer than `MAX_BUMP_HOPS` appears.

    Args:
        arena: int32[words]  see the module.
        tokens: int32[n]  any values.
        start: tokens before it are in already.
    """
    for at in range(start, tokens.shape[0]):
        state = _add_token(arena, tokens[at])
        if state < 0:
            return at
        _bump(arena, state)
        if arena[NUM_TOKENS] == arena[NEXT_BOUNDARY]:
            if arena[IS_LOWER_BOUND]:
                recount(arena)
            arena[NEXT_BOUNDARY] += arena[NEXT_BOUNDARY] // 4
    return tokens.shape[0]


@kernel
def walk(arena, tokens):
    """Returns the state of the string `tokens`, or -1 if it does not occur."""
    state = np.int64(0)
    for token in tokens:
        found = find_target(arena, state, token)
        if found <= 0:
            return np.int64(-1)
        state = np.int64(arena[found])
    return state
