"""The suffix automaton of several texts that grow side by side: appending to one of them, and following.

The arena is that of `kernels.automaton`, but there is no last state: every text keeps its own. A text
that repeats what another one said goes along its states and makes none, so equal outputs cost their
states once. No string of two texts exists, so no match crosses from one text into another.

First and last ends are numbers of the token over all texts, in the order in which they came.
"""

from __future__ import annotations

import numpy as np

from retrieval_spec.kernels.automaton import (
    COUNT,
    EDGE_TARGET,
    FIRST_END,
    LAST_END,
    LENGTH,
    LINK,
    MAX_STATES,
    NONE,
    NUM_STATES,
    NUM_TOKENS,
    OVERFLOW,
    RESUME_STATE,
    TARGET,
    TOKEN,
    add_clone,
    add_overflow,
    find,
    has_edge_room,
    num_overflow,
    record_of,
    redirect,
    seek,
    walk,
)
from retrieval_spec.kernels.jit import allocation_free_kernel, inlined_kernel

STATE, MATCH, TEXT_LAST = range(3)
"""Words of a place: where a context stands in the automaton, and how many of its last tokens match. A text
has one more, its own last state."""


@inlined_kernel
def _begin(words, last):
    """Writes the record of the next state, but does not count it yet."""
    new = record_of(words[NUM_STATES])
    words[new + LENGTH] = words[record_of(last) + LENGTH] + np.uint32(1)
    words[new + LINK] = 0
    words[new + TOKEN] = NONE
    words[new + TARGET] = NONE
    words[new + OVERFLOW] = 0
    words[new + FIRST_END] = words[NUM_TOKENS]
    words[new + LAST_END] = words[NUM_TOKENS]
    words[new + COUNT] = 0


@inlined_kernel
def _target_of(words, state, token, found):
    """Returns the state of this edge's string with all its suffixes in it, cloned if need be; or `NONE`."""
    target = np.int64(words[found])
    record = record_of(state)
    length = np.int64(words[record + LENGTH]) + 1
    if np.int64(words[record_of(target) + LENGTH]) == length:
        return target
    if not has_edge_room(words, state, num_overflow(words, target)):
        return np.int64(NONE)
    clone = np.int64(words[NUM_STATES])
    words[NUM_STATES] += np.uint32(1)
    add_clone(words, target, clone, length)
    words[found] = clone
    redirect(words, np.int64(words[record + LINK]), token, target, clone)
    return clone


@inlined_kernel
def _link_new(words, state, token):
    """Gives the new state, which comes first of the uncounted ones, its edges from `state` and its suffixes.

    Returns its link, or `NONE` if there was no room. The new state is counted before its link is cloned.
    """
    new = np.int64(words[NUM_STATES])
    while state != NONE:
        found = find(words, state, token)
        if words[found] != 0:
            break
        record = record_of(state)
        if words[record + TARGET] == NONE:
            words[record + TOKEN] = token
            words[record + TARGET] = new
        elif has_edge_room(words, state, 1):
            add_overflow(words, state, token, new, found - EDGE_TARGET)
        else:
            return np.int64(NONE)
        state = np.int64(words[record + LINK])
    if state == NONE:
        words[NUM_STATES] = new + 1
        return np.int64(0)
    words[NUM_STATES] = new + 1
    link = _target_of(words, state, token, found)
    if link == NONE:
        words[NUM_STATES] = new
    return link


@inlined_kernel
def _add_token(words, last, token):
    """Adds one token to the text that ends in `last`; returns where it ends then, or `NONE` without room."""
    state = np.int64(words[RESUME_STATE])
    if state == NONE:
        if np.int64(words[NUM_STATES]) + 2 > np.int64(words[MAX_STATES]):
            return np.int64(NONE)
        found = find(words, last, token)
        if words[found] != 0:
            known = _target_of(words, last, token, found)
            words[RESUME_STATE] = NONE  # nothing was changed yet
            return known
        _begin(words, last)
        state = last
    new = np.int64(words[NUM_STATES])
    link = _link_new(words, state, token)
    if link == NONE:
        return link
    words[record_of(new) + LINK] = link
    words[RESUME_STATE] = NONE
    return new


@inlined_kernel
def _settled(words, state, length):
    """Returns the state of a string: since it was found, a shorter state may have been made for it."""
    link = np.int64(words[record_of(state) + LINK])
    while link != NONE and length <= np.int64(words[record_of(link) + LENGTH]):
        state = link
        link = np.int64(words[record_of(state) + LINK])
    return state


@inlined_kernel
def _count(words, state, change):
    """Changes the counts of a string and of its suffixes, longest first; a string has at most its length."""
    while state != 0:
        record = record_of(state)
        words[record + COUNT] += change
        words[record + LAST_END] = words[NUM_TOKENS]
        state = np.int64(words[record + LINK])


@allocation_free_kernel
def append(arena, text, tokens, start, counted_tokens):
    """Appends `tokens[start:]` to a text and returns how many of `tokens` are in: fewer if it is full.

    Args:
        arena: int32[words]  see the module.
        text: int64[3]  `STATE` and `MATCH` of the text's last `counted_tokens`, and `LAST`, the state of
            all of it; zeros for an empty one; moved on.
        tokens: int32[n]  no negative ones.
        start: tokens before it are in already.
        counted_tokens: longer strings are not counted, so that a token costs no more steps than that.
    """
    words = arena.view(np.uint32)
    last, state, length = np.int64(text[TEXT_LAST]), np.int64(text[STATE]), np.int64(text[MATCH])
    num_added = tokens.shape[0]
    for at in range(start, tokens.shape[0]):
        token = np.uint32(tokens[at])
        after = _add_token(words, last, token)
        if after == NONE:
            num_added = at
            break
        last = after
        state = np.int64(words[find(words, _settled(words, state, length), token)])
        length = min(length + 1, counted_tokens)
        state = _settled(words, state, length)
        _count(words, state, np.uint32(1))
        words[NUM_TOKENS] += np.uint32(1)
    text[TEXT_LAST], text[STATE], text[MATCH] = last, state, length
    return num_added


@allocation_free_kernel
def uncount(arena, tokens, counted_tokens):
    """Takes a text out of all counts; its states stay.

    Args:
        arena: int32[words]  see the module.
        tokens: int32[n]  a text that was appended with the same `counted_tokens`, from its first token on.
        counted_tokens: see `append`.
    """
    words = arena.view(np.uint32)
    state, length = np.int64(0), np.int64(0)
    for at in range(tokens.shape[0]):
        state = np.int64(words[find(words, state, np.uint32(tokens[at]))])
        length = min(length + 1, counted_tokens)
        state = _settled(words, state, length)
        _count(words, state, np.uint32(NONE))  # adds -1


@allocation_free_kernel
def follow(arena, place, tokens, max_match_tokens):
    """Moves a place on by tokens of its context: to its longest suffix that some text holds.

    The texts must not have grown since the place was that of the empty context.

    Args:
        arena: int32[words]  see the module.
        place: int64[2]  `STATE` and `MATCH`, moved on.
        tokens: int32[n]  no negative ones.
        max_match_tokens: longer suffixes are not looked for.
    """
    words = arena.view(np.uint32)
    state, length = np.int64(place[STATE]), np.int64(place[MATCH])
    for at in range(tokens.shape[0]):
        token = np.uint32(tokens[at])
        found = seek(words, state, token)
        while words[found] == 0 and state != 0:
            state = np.int64(words[record_of(state) + LINK])
            length = np.int64(words[record_of(state) + LENGTH])
            found = seek(words, state, token)
        if words[found] != 0:
            state = np.int64(words[found])
            length += 1
        length = min(length, max_match_tokens)
        state = _settled(words, state, length)
    place[STATE], place[MATCH] = state, length


@allocation_free_kernel
def find_again(arena, place, tokens, max_match_tokens):
    """Finds a place anew after texts have grown.

    The longest suffix is still the longest one unless the next longer one occurs by now.

    Args:
        arena: int32[words]  see the module.
        place: int64[2]  `STATE` and `MATCH` of the context before they grew, or zeros; changed.
        tokens: int32[n]  the end of the context: all of it, or at least the longest suffix looked for.
        max_match_tokens: as for `follow`.
    """
    length, end = np.int64(place[MATCH]), tokens.shape[0]
    most = min(end, max_match_tokens)
    if length < most and walk(arena, tokens[end - length - 1 :]) >= 0:
        place[STATE] = place[MATCH] = 0
        follow(arena, place, tokens[end - most :], max_match_tokens)
    else:
        place[STATE] = _settled(arena.view(np.uint32), np.int64(place[STATE]), length)
