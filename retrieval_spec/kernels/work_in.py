"""Working in what sessions committed: each moves on in all texts."""

from __future__ import annotations

import numpy as np

from retrieval_spec.kernels.anchor import ANCHOR_WORDS
from retrieval_spec.kernels.automaton import append, is_nearly_full
from retrieval_spec.kernels.blend import PLACES
from retrieval_spec.kernels.blend_learning import MAX_LEARNED_TOKENS
from retrieval_spec.kernels.blend_tables import NUM_TEXTS, OUTPUTS, OWN, PROMPTS
from retrieval_spec.kernels.card_arrays import (
    arena_of,
    context_of,
    newest_tokens,
    place_of,
    text_of,
    tokens_between,
)
from retrieval_spec.kernels.cards import (
    CONTEXT_LENGTH,
    NOTICE_LENGTH,
    NUM_ROWS,
    NUM_UNLEARNED,
    NUM_WORKED_IN,
    NUMBER,
    SEEN_NUMBER,
    SEEN_VERSION,
    VERSION,
)
from retrieval_spec.kernels.jit import allocation_free_kernel, inlined_kernel
from retrieval_spec.kernels.places import ANCHOR, MAX_MATCH_TOKENS, begin, follow_texts
from retrieval_spec.kernels.shared_automaton import MATCH, STATE, find_again, follow


@allocation_free_kernel
def _follow(card, tokens, block):
    """Moves on in the texts by tokens that followed a draft, before the own text grows."""
    anchor = place_of(card, OWN)
    output_place, prompt_place = place_of(card, OUTPUTS), place_of(card, PROMPTS)
    own, outputs = arena_of(card, OWN).view(np.uint32), arena_of(card, OUTPUTS).view(np.uint32)
    prompts = arena_of(card, PROMPTS).view(np.uint32)
    begin(own, anchor, output_place, prompt_place, block, PLACES)
    for depth in range(min(tokens.shape[0], MAX_LEARNED_TOKENS)):
        follow_texts(own, outputs, prompts, block, np.int64(PLACES), np.int64(tokens[depth]))
    for word in range(ANCHOR_WORDS):
        anchor[word] = block[PLACES + ANCHOR + word]
    for word in range(2):
        output_place[word] = block[PLACES + 2 * OUTPUTS + word]
        prompt_place[word] = block[PLACES + 2 * PROMPTS + word]


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
    was_drafted = card[NUM_UNLEARNED] >= 0
    if was_drafted:
        _follow(card, tokens, block)
    if not was_drafted or tokens.shape[0] > MAX_LEARNED_TOKENS:
        _look_up(card, tokens)
    if text_of(card, OWN)[NUM_ROWS] == 0:
        return np.int64(0)
    return np.int64(tokens.shape[0] - append(arena_of(card, OWN), tokens, 0))


@allocation_free_kernel
def work_in(card, block):
    """Works in what was committed since the last step; returns for how many tokens the own text had no room.

    Args:
        card: int64[CARD_WORDS]  of the session; the outcome of its last tree is set aside (`outcomes`).
        block: int64[..]  scratch memory (`blend.scratch_words`).
    """
    context = context_of(card)
    _find_again(card, context)
    num_left = _move_on(card, tokens_between(context, card[NUM_WORKED_IN], context[CONTEXT_LENGTH]), block)
    card[NUM_WORKED_IN] = context[CONTEXT_LENGTH]
    return num_left


@inlined_kernel
def is_due(card):
    """Whether the session is to be looked at: room is short, or its length was waited for."""
    context = context_of(card)
    has_own_text = text_of(card, OWN)[NUM_ROWS] > 0
    return context[CONTEXT_LENGTH] >= context[NOTICE_LENGTH] or (
        has_own_text and is_nearly_full(arena_of(card, OWN))
    )
