"""Rows of steps: where each session's card lies, what it asks for and what came of it.

A step is int64[STEP_WORDS]. Trees lie one after the other in common columns, each where its words say.
"""

from __future__ import annotations

import numpy as np

from retrieval_spec.kernels.card_arrays import card_at
from retrieval_spec.kernels.card_prefetch import (
    prefetch_ends,
    prefetch_named,
    prefetch_states,
)
from retrieval_spec.kernels.cards import FLOOR, LAST_KEPT, NUM_KEPT
from retrieval_spec.kernels.jit import inlined_kernel
from retrieval_spec.kernels.selection import cut, num_at_floor

(
    CARD,  # where it lies (`kernels.cards`)
    LENGTH,  # how long the context is taken to be
    END,  # where its tokens end among those of all
    MAX_NODES,  # of its tree, 0 if none is wanted
    FIRST,  # where its tree begins
    NUM_LEFT,  # for so many tokens its own text had no room
    SIZE,  # nodes of its tree
    IS_DUE,  # whether the session is to be looked at
    TURN,  # who drafts in its place
    STEP_WORDS,
) = range(10)


WHOLE = -1
"""No part: all sessions."""
NUM_PARTS = 2
"""Of a large step: every other turn belongs to the second."""


@inlined_kernel
def take_turns(steps):
    """Finds who drafts when: first those of whose nodes most were kept last time.

    They go on as they did, mostly, and the others learn early what a node must reach.
    """
    for at in range(steps.shape[0]):
        steps[at, SIZE] = card_at(steps[at, CARD])[LAST_KEPT]
        turn = at
        while turn > 0 and steps[steps[turn - 1, TURN], SIZE] < steps[at, SIZE]:
            steps[turn, TURN] = steps[turn - 1, TURN]
            turn -= 1
        steps[turn, TURN] = at


@inlined_kernel
def prefetch_next(steps, turn, stride):
    """Asks for what those will read whose turns come next, one stride after the other."""
    left = (steps.shape[0] - 1 - turn) // stride
    if left > 2:
        prefetch_named(steps[steps[turn + 3 * stride, TURN], CARD])
    if left > 1:
        prefetch_ends(steps[steps[turn + 2 * stride, TURN], CARD])
    if left > 0:
        prefetch_states(steps[steps[turn + stride, TURN], CARD])


@inlined_kernel
def note_floor(steps, floor):
    """Notes what nodes had to reach, for the next step."""
    for at in range(steps.shape[0]):
        card_at(steps[at, CARD]).view(np.float64)[FLOOR] = floor


@inlined_kernel
def cut_all(steps, best, reached):
    """Keeps the nodes that are among the best."""
    at_floor = num_at_floor(best)
    for at in range(steps.shape[0]):
        if steps[at, SIZE] > 0:
            path_probs = reached[steps[at, FIRST] : steps[at, FIRST] + steps[at, SIZE]]
            steps[at, SIZE], at_floor = cut(best, path_probs, at_floor)
            card_at(steps[at, CARD])[NUM_KEPT] = steps[at, SIZE]


@inlined_kernel
def pack(steps, token_ids, parents, probs, sources):
    """Puts each tree right behind the one before; returns how many nodes they have together."""
    end = np.int64(0)
    for at in range(steps.shape[0]):
        ahead = steps[at, FIRST] - end
        for node in range(end, end + steps[at, SIZE]):
            token_ids[node], parents[node] = token_ids[node + ahead], parents[node + ahead]
            probs[node], sources[node] = probs[node + ahead], sources[node + ahead]
        end += steps[at, SIZE]
    return end
