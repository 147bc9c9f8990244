"""Working in what sessions committed: each learns from its last tree, and moves on in all texts."""

from __future__ import annotations

import numpy as np

from retrieval_spec.kernels.automaton import append, is_nearly_full
from retrieval_spec.kernels.blend_learning import MAX_LEARNED_TOKENS, learn
from retrieval_spec.kernels.blend_tables import NUM_TEXTS, OUTPUTS, OWN, PROMPTS
from retrieval_spec.kernels.card_arrays import (
    arena_of,
    card_at,
    context_of,
    drafted_of,
    newest_tokens,
    place_of,
    records_of,
    tables_of,
    text_of,
    tokens_between,
)
from retrieval_spec.kernels.cards import (
    CONTEXT_LENGTH,
    FLOOR,
    LAST_FLOOR,
    LAST_KEPT,
    NOTICE_LENGTH,
    NUM_DRAFTED,
    NUM_KEPT,
    NUM_ROWS,
    NUM_WORKED_IN,
    NUMBER,
    SEEN_NUMBER,
    SEEN_VERSION,
    VERSION,
)
from retrieval_spec.kernels.jit import allocation_free_kernel, inlined_kernel
from retrieval_spec.kernels.places import MAX_MATCH_TOKENS
from retrieval_spec.kernels.shared_automaton import MATCH, STATE, find_again, follow
from retrieval_spec.kernels.steps import CARD, IS_DUE, NUM_LEFT, prefetch_next


@allocation_free_kernel
def _learn(card, tokens, block):
    """Learns from what became of the tree that was drafted last, and moves on in the texts."""
    token_ids, parents, path_probs = drafted_of(card)
    size = card[NUM_DRAFTED]
    learn(
        arena_of(card, OWN),
        place_of(card, OWN),
        arena_of(card, OUTPUTS),
        place_of(card, OUTPUTS),
        arena_of(card, PROMPTS),
        place_of(card, PROMPTS),
        tables_of(card),
        tokens,
        token_ids[:size],
        parents[:size],
        path_probs[:size],
        card[NUM_KEPT],
        block,
        records_of(card),
    )


@allocation_free_kernel
def _look_up(card, tokens):
    """Finds the place in the texts after tokens that no tree foresaw, or too many to learn from."""
    place_of(card, OWN)[:] = 0  # an anchor that does not move along would mislead
    newest = tokens[max(tokens.shape[0] - MAX_MATCH_TOKENS, 0) :]
    for kind in range(OUTPUTS, NUM_TEXTS):
        if text_of(card, kind)[NUM_ROWS] > 0:
            place = place_of(card, kind)
            if tokens.shape[0] >= MAX_MATCH_TOKENS:
                place[STATE] = place[MATCH] = 0
            follow(arena_of(card, kind), place, newest, MAX_MATCH_TOKENS)


@allocation_free_kernel
def _find_again(card, context):
    """Finds the places anew in texts that have grown since."""
    for kind in range(OUTPUTS, NUM_TEXTS):
        text = text_of(card, kind)
        place = place_of(card, kind)
        if place[SEEN_VERSION] != text[VERSION]:
            if place[SEEN_NUMBER] != text[NUMBER]:
                place[STATE] = place[MATCH] = 0
            before = newest_tokens(context, card[NUM_WORKED_IN], MAX_MATCH_TOKENS)
            find_again(arena_of(card, kind), place, before, MAX_MATCH_TOKENS)
            place[SEEN_VERSION], place[SEEN_NUMBER] = text[VERSION], text[NUMBER]


@allocation_free_kernel
def _move_on(card, tokens, block):
    """Takes in committed tokens; returns for how many the session's own text had no room."""
    if tokens.shape[0] == 0:
        return np.int64(0)
    was_drafted = card[NUM_DRAFTED] >= 0
    if was_drafted:
        _learn(card, tokens, block)
        card[NUM_DRAFTED], card[LAST_KEPT], card[LAST_FLOOR] = -1, card[NUM_KEPT], card[FLOOR]
    if not was_drafted or tokens.shape[0] > MAX_LEARNED_TOKENS:
        _look_up(card, tokens)
    if text_of(card, OWN)[NUM_ROWS] == 0:
        return np.int64(0)
    return np.int64(tokens.shape[0] - append(arena_of(card, OWN), tokens, 0))


@allocation_free_kernel
def _work_in(card, block):
    """Works in what was committed since the last step; returns for how much the own text had no room."""
    context = context_of(card)
    _find_again(card, context)
    num_left = _move_on(card, tokens_between(context, card[NUM_WORKED_IN], context[CONTEXT_LENGTH]), block)
    card[NUM_WORKED_IN] = context[CONTEXT_LENGTH]
    return num_left


@inlined_kernel
def _is_due(card):
    """Whether the session is to be looked at: room is short, or its length was waited for."""
    context = context_of(card)
    has_own_text = text_of(card, OWN)[NUM_ROWS] > 0
    return context[CONTEXT_LENGTH] >= context[NOTICE_LENGTH] or (
        has_own_text and is_nearly_full(arena_of(card, OWN))
    )


@allocation_free_kernel
def work_in_all(steps, block):
    """Works in what sessions committed, one after the other.

    Args:
        steps: int64[n, STEP_WORDS]  (`kernels.steps`); written, for how many tokens each own text had no
            room, and whether the session is to be looked at. Such tokens are to be appended, and the session
            comes again.
        block: int64[..]  scratch memory (`blend.scratch_words`).
    """
    for at in range(steps.shape[0]):
        prefetch_next(steps, at)
        card = card_at(steps[at, CARD])
        steps[at, NUM_LEFT] = _work_in(card, block)
        steps[at, IS_DUE] = _is_due(card)
