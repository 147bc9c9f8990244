"""Where a long copy stood when the text left it: the place that edited text often returns to (skip-match).

After a mismatch the longest match is short, and what follows it is mostly from elsewhere. An anchor is a
state of the same automaton: where the copy stood. A token that follows there, or a few tokens on, moves it
along; until one does, the copy may go on where it stood (something was inserted) or as many tokens on as
were missed (something was replaced).
"""

from __future__ import annotations

import numpy as np

from retrieval_spec.kernels.automaton import NONE, TARGET, record_of, seek
from retrieval_spec.kernels.jit import allocation_free_kernel, inlined_kernel

MIN_COPY_TOKENS = 6
"""A shorter match that ends is no copy that was edited; a match of that length needs no anchor."""
MAX_SKIPPED = 8
"""Tokens of the copy that a text may leave out."""
MAX_MISSES = 8

STATE, FOLLOWED, MISSED, ANCHOR_WORDS = range(4)
"""State or 0, tokens in turn that followed there since, tokens that did not since the last one that did."""

INSERTED, REPLACED, WAYS = range(3)
MOST_FOLLOWED, MOST_MISSED = 5, 4
"""Stages are told apart up to here."""
NUM_SUPPORTS = 4 + MOST_FOLLOWED + 2 * MOST_MISSED


@inlined_kernel
def target_of(words, state, token):
    """Returns where a token leads from a state, 0 if nowhere."""
    target = words[seek(words, state, np.uint32(token))]
    return np.int64(0) if target == NONE else np.int64(target)


@inlined_kernel
def _oldest(words, state):
    """Returns where the oldest continuation of a state leads, 0 if it has none."""
    target = words[record_of(state) + TARGET]
    return np.int64(0) if target == NONE else np.int64(target)


@inlined_kernel
def _move(words, block, anchor, token):
    state = block[anchor + STATE]
    for skipped in range(MAX_SKIPPED):
        target = target_of(words, state, token)
        if target > 0:
            block[anchor + STATE] = target
            block[anchor + FOLLOWED] = block[anchor + FOLLOWED] + 1 if skipped == 0 else 1
            block[anchor + MISSED] = 0
            return
        state = _oldest(words, state)
        if state == 0:
            break
    block[anchor + FOLLOWED] = 0
    block[anchor + MISSED] += 1
    if block[anchor + MISSED] > MAX_MISSES:
        block[anchor + STATE] = 0


@allocation_free_kernel
def follow_anchor(words, block, place, anchor, token):
    """Moves an anchor on by a token; `place` is that in the same text, which has not moved yet."""
    state, length = block[place], block[place + 1]
    if target_of(words, state, token) > 0:
        if length + 1 >= MIN_COPY_TOKENS:
            block[anchor + STATE] = 0
    elif length >= MIN_COPY_TOKENS:
        block[anchor + STATE] = state
        block[anchor + FOLLOWED] = 0
        block[anchor + MISSED] = 0
    if block[anchor + STATE] > 0:
        _move(words, block, anchor, token)


@inlined_kernel
def state_of(words, block, anchor, way):
    """Returns the state where the copy goes on if something was inserted or replaced, 0 for none."""
    state = block[anchor + STATE]
    if way == REPLACED:
        if block[anchor + FOLLOWED] > 0:
            return np.int64(0)
        for _ in range(block[anchor + MISSED]):
            if state > 0:
                state = _oldest(words, state)
    return state


@inlined_kernel
def stage_of(block, anchor, way):
    """Returns the bin of what happened since the mismatch: 13 of them."""
    followed, missed = block[anchor + FOLLOWED], block[anchor + MISSED]
    if followed > 0:
        return min(followed, MOST_FOLLOWED) - 1
    return MOST_FOLLOWED + MOST_MISSED * way + min(missed, MOST_MISSED) - 1


@allocation_free_kernel
def anchor_support(words, block, anchor, token):
    """Returns a bin of what an anchor says of a token: 0 without one, then whether it speaks against it."""
    if block[anchor + STATE] == 0:
        return 0
    for way in range(WAYS):
        state = state_of(words, block, anchor, way)
        if state > 0 and target_of(words, state, token) > 0:
            return 4 + stage_of(block, anchor, way)
    return 1 + min(block[anchor + FOLLOWED], 2)
