"""A growing suffix automaton in one int32 arena: appending, exact counts, look-up. No Python objects.

The arena holds a header, then the states, then a hash table of overflow edges.

    header    int32[16]         the words named below
    states    int32[n, 8]       length, link, token, target, overflow edge, first end, last end, count
    edges     int32[1 + k, 4]   own state, token, target (0 = free), next overflow edge of the same state

State 0 is the empty string; row 0 of the edges is unused, so that 0 can mean "no edge". The first edge
of a state sits in its record, and most states have no other. Further edges lie open-addressed by
(state, token), so that a look-up touches one cache line, and form a list, newest first. No input can
run past the buffers: `append` stops where they are full and goes on after the caller made room.

The kernels see the words unsigned, -1 as `NONE`: an index that cannot be negative needs no check for it.
"""

from __future__ import annotations

import numpy as np

from retrieval_spec.kernels.jit import allocation_free_kernel, inlined_kernel
from retrieval_spec.kernels.prefetch import prefetch

NUM_TOKENS, NUM_STATES, NUM_EDGES, LAST = 0, 1, 2, 3
EDGES_AT = 4
MAX_STATES, MAX_EDGES, NUM_ROWS = 5, 6, 7  # rows of the hash table, more than edges that may be in use
NEXT_BOUNDARY = 8  # context length at which counts become exact again
IS_LOWER_BOUND = 9  # 1 = some counts and last ends miss occurrences
WANTED_EDGES = 10  # NUM_EDGES that the token needs which found no room
RESUME_STATE = 11  # state at which to go on with that token, or -1
HEADER_WORDS = 16

STATE_WORDS, EDGE_WORDS = 8, 4
LENGTH, LINK, TOKEN, TARGET, OVERFLOW, FIRST_END, LAST_END, COUNT = range(8)
EDGE_OWN, EDGE_TOKEN, EDGE_TARGET, EDGE_NEXT = range(4)
NONE = 0xFFFFFFFF

SPARE_STATES, SPARE_EDGES = 64, 48
"""Where less room is left, who owns an arena should move it before a kernel stops for it."""

MAX_BUMP_HOPS = 64
"""Suffix links followed per appended token to keep counts exact; a run of one token has longer chains."""
FIRST_BOUNDARY = 1024
"""Boundaries lie a quarter apart from here on, so recounts cost a constant share of the appends."""


@inlined_kernel
def record_of(state):
    """Returns the first word of a state's record."""
    return HEADER_WORDS + np.int64(state) * STATE_WORDS


@inlined_kernel
def _row_of(words, index):
    return np.int64(words[EDGES_AT]) + np.int64(index) * EDGE_WORDS


@inlined_kernel
def _first_index(words, state, token):
    """Returns where the search for an overflow edge begins."""
    # States are below 2**31 and tokens below 2**32, so neither product reaches 2**63.
    mixed = (np.int64(state) * 0x9E3779B1 ^ np.int64(token) * 0x45EBCA77) & 0xFFFFFFFF
    return 1 + ((mixed * np.int64(words[NUM_ROWS])) >> 32)


@inlined_kernel
def _probe(words, state, token):
    """Returns the row that holds an overflow edge, or else the free one that it would take."""
    num_rows = np.int64(words[NUM_ROWS])
    index = _first_index(words, state, token)
    row = _row_of(words, index)
    while words[row + EDGE_TARGET] != 0:
        if words[row + EDGE_OWN] == state and words[row + EDGE_TOKEN] == token:
            break
        index = index + 1 if index < num_rows else np.int64(1)
        row = _row_of(words, index)
    return row


@inlined_kernel
def find(words, state, token):
    """Returns the word with the target of an edge; if it holds 0 there is none, and it is of a free row."""
    record = record_of(state)
    if words[record + TOKEN] == token:
        return record + TARGET
    return _probe(words, state, token) + EDGE_TARGET


@inlined_kernel
def seek(words, state, token):
    """Does as `find` where no edge is to be added: most states have one, and are not looked for elsewhere."""
    record = record_of(state)
    if words[record + TOKEN] == token:
        return record + TARGET
    if words[record + OVERFLOW] == 0:
        return record + OVERFLOW
    return _probe(words, state, token) + EDGE_TARGET


@inlined_kernel
def prefetch_edge(words, state, token):
    """Asks for what `seek` will read beside the state's record."""
    record = record_of(state)
    if words[record + TOKEN] != token and words[record + OVERFLOW] != 0:
        prefetch(words, _row_of(words, _first_index(words, state, token)))


@inlined_kernel
def prefetch_edges(words, state):
    """Asks for what reading the first edges of a state will read beside its record."""
    record = record_of(state)
    if words[record + TARGET] != NONE:
        prefetch(words, record_of(words[record + TARGET]))
    if words[record + OVERFLOW] != 0:
        prefetch(words, _row_of(words, words[record + OVERFLOW]))


@allocation_free_kernel
def rehash(arena, old):
    """Enters the overflow edges of an old arena into an empty table, every list in the same order."""
    words, old_words = arena.view(np.uint32), old.view(np.uint32)
    for state in range(words[NUM_STATES]):
        pointer = record_of(state) + OVERFLOW
        while words[pointer] != 0:
            source = _row_of(old_words, words[pointer])
            row = _probe(words, state, old_words[source + EDGE_TOKEN])
            for word in range(EDGE_WORDS):
                words[row + word] = old_words[source + word]
            words[pointer] = (row - np.int64(words[EDGES_AT])) // EDGE_WORDS
            pointer = row + EDGE_NEXT


@inlined_kernel
def add_overflow(words, state, token, target, row):
    """Adds an edge to a state that has one already, in a free row."""
    pointer = record_of(state) + OVERFLOW
    words[row + EDGE_OWN] = state
    words[row + EDGE_TOKEN] = token
    words[row + EDGE_TARGET] = target
    words[row + EDGE_NEXT] = words[pointer]
    words[pointer] = (row - np.int64(words[EDGES_AT])) // EDGE_WORDS
    words[NUM_EDGES] += np.uint32(1)


@inlined_kernel
def add_clone(words, source, clone, length):
    """Makes state `clone` with the edges, ends and count of `source`, between it and its link."""
    old, new = record_of(source), record_of(clone)
    for word in range(STATE_WORDS):
        words[new + word] = words[old + word]
    words[new + LENGTH] = length
    words[new + OVERFLOW] = 0
    words[old + LINK] = clone
    index = words[old + OVERFLOW]
    while index != 0:
        row = _row_of(words, index)
        token = words[row + EDGE_TOKEN]
        add_overflow(words, clone, token, words[row + EDGE_TARGET], _probe(words, clone, token))
        index = words[row + EDGE_NEXT]


@inlined_kernel
def num_overflow(words, state):
    """Returns how many edges a state has beside its first one."""
    count = 0
    index = words[record_of(state) + OVERFLOW]
    while index != 0:
        count += 1
        index = words[_row_of(words, index) + EDGE_NEXT]
    return count


@inlined_kernel
def _begin(words, token):
    """Writes the record of the next state and its edge from the last one, but does not count it yet."""
    last, new = record_of(words[LAST]), record_of(words[NUM_STATES])
    end = words[NUM_TOKENS]
    words[new + LENGTH] = end + np.uint32(1)
    words[new + LINK] = 0
    words[new + TOKEN] = NONE
    words[new + TARGET] = NONE
    words[new + OVERFLOW] = 0
    words[new + FIRST_END] = end
    words[new + LAST_END] = end
    words[new + COUNT] = 1
    words[last + TOKEN] = token
    words[last + TARGET] = words[NUM_STATES]
    return np.int64(words[last + LINK])


@inlined_kernel
def _add_token(words, token):
    """Adds one token; tells whether there was room: if not, call again with more."""
    state = np.int64(words[RESUME_STATE])
    if state == NONE:
        if np.int64(words[NUM_STATES]) + 2 > np.int64(words[MAX_STATES]):
            return False
        state = _begin(words, token)
    new = np.int64(words[NUM_STATES])
    num_states = new + 1
    found = np.int64(0)
    while state != NONE:  # a suffix that occurs elsewhere too, so it has an edge
        found = find(words, state, token)
        if words[found] != 0:
            break
        if not has_edge_room(words, state, 1):
            return False
        add_overflow(words, state, token, new, found - EDGE_TARGET)
        state = np.int64(words[record_of(state) + LINK])
    link = np.int64(0)
    if state != NONE:
        link = np.int64(words[found])
        record = record_of(state)
        length = np.int64(words[record + LENGTH]) + 1
        if np.int64(words[record_of(link) + LENGTH]) != length:
            if not has_edge_room(words, state, num_overflow(words, link)):
                return False
            target, link = link, num_states
            num_states += 1
            add_clone(words, target, link, length)
            words[found] = link
            redirect(words, np.int64(words[record + LINK]), token, target, link)
    words[record_of(new) + LINK] = link
    words[NUM_STATES] = num_states
    words[NUM_TOKENS] += np.uint32(1)
    words[LAST] = new
    words[RESUME_STATE] = NONE
    return True


@inlined_kernel
def has_edge_room(words, state, num_edges):
    """Tells whether so many overflow edges fit, and notes where to go on if they do not."""
    wanted = np.int64(words[NUM_EDGES]) + num_edges
    has_room = wanted <= np.int64(words[MAX_EDGES])
    if not has_room:
        words[WANTED_EDGES] = wanted
        words[RESUME_STATE] = state
    return has_room


@inlined_kernel
def redirect(words, state, token, old, new):
    """Lets the edges of a state and of its suffixes that led to `old` lead to `new`."""
    while state != NONE:
        found = find(words, state, token)
        if words[found] != old:
            break
        words[found] = new
        state = np.int64(words[record_of(state) + LINK])


@inlined_kernel
def _bump(words):
    """Counts one more end for all suffixes of the text, longest first, and notes if the cap cut it off."""
    end = words[NUM_TOKENS] - np.uint32(1)
    state = words[record_of(words[LAST]) + LINK]
    for _ in range(MAX_BUMP_HOPS):
        if state == 0:
            break
        record = record_of(state)
        words[record + COUNT] += np.uint32(1)
        words[record + LAST_END] = end
        state = words[record + LINK]
    if state != 0:
        words[IS_LOWER_BOUND] = 1


@inlined_kernel
def _is_prefix(words, record):
    # A state made by its own token is as long as the text was; a clone is shorter.
    return words[record + FIRST_END] + np.uint32(1) == words[record + LENGTH]


@allocation_free_kernel
def recount(arena):
    """Makes all counts and last ends exact."""
    words = arena.view(np.uint32)
    _sum_counts(words)
    _spread_last_ends(words)
    words[IS_LOWER_BOUND] = 0


@inlined_kernel
def _sum_counts(words):
    """Lets every state pass its count to its link, leaves first; leaves all last ends at `NONE`."""
    num_states = np.int64(words[NUM_STATES])
    waiting = LAST_END  # meanwhile: children in the link tree that have not passed theirs
    for state in range(1, num_states):
        record = record_of(state)
        words[record + waiting] = 0
        words[record + COUNT] = 1 if _is_prefix(words, record) else 0
    words[HEADER_WORDS + waiting] = 1  # for ever: the empty string has none to pass to
    for state in range(1, num_states):
        words[record_of(words[record_of(state) + LINK]) + waiting] += np.uint32(1)
    for state in range(1, num_states):
        record = record_of(state)
        while words[record + waiting] == 0:
            words[record + waiting] = NONE
            count = words[record + COUNT]
            record = record_of(words[record + LINK])
            words[record + COUNT] += count
            words[record + waiting] -= np.uint32(1)
    words[HEADER_WORDS + COUNT] = 0


@inlined_kernel
def _spread_last_ends(words):
    """Gives every prefix's end to those of its suffixes that have none yet, longest prefix first."""
    words[HEADER_WORDS + LAST_END] = 0
    for state in range(np.int64(words[NUM_STATES]) - 1, 0, -1):
        record = record_of(state)
        if _is_prefix(words, record):
            end = words[record + FIRST_END]
            while words[record + LAST_END] == NONE:
                words[record + LAST_END] = end
                record = record_of(words[record + LINK])
    words[HEADER_WORDS + LAST_END] = NONE


@allocation_free_kernel
def append(arena, tokens, start):
    """Appends `tokens[start:]` and returns how many of `tokens` are in: fewer if the buffers are full.

    Counts and ends are a function of the text alone, however it was cut into calls: exact at every
    boundary, and from there until a link chain longer than `MAX_BUMP_HOPS` appears.

    Args:
        arena: int32[words]  see the module.
        tokens: int32[n]  any values.
        start: tokens before it are in already.
    """
    words = arena.view(np.uint32)
    for at in range(start, tokens.shape[0]):
        if not _add_token(words, np.uint32(tokens[at])):
            return at
        _bump(words)
        if words[NUM_TOKENS] == words[NEXT_BOUNDARY]:
            if words[IS_LOWER_BOUND] != 0:
                recount(arena)
            words[NEXT_BOUNDARY] += words[NEXT_BOUNDARY] // np.uint32(4)
    return tokens.shape[0]


@allocation_free_kernel
def is_nearly_full(arena):
    """Whether a few dozen more tokens may find no room."""
    has_states = arena[NUM_STATES] + SPARE_STATES <= arena[MAX_STATES]
    return not has_states or arena[NUM_EDGES] + SPARE_EDGES > arena[MAX_EDGES]


@allocation_free_kernel
def walk(arena, tokens):
    """Returns the state of the string `tokens`, or -1 if it does not occur."""
    words = arena.view(np.uint32)
    state = np.int64(0)
    for token in tokens:
        found = seek(words, state, np.uint32(token))
        if words[found] == 0 or words[found] == NONE:
            return np.int64(-1)
        state = np.int64(words[found])
    return state
