"""Outcomes of drafted trees: set aside when they are known, and learned from before the next ones are.

What the tables learn from one outcome hardly changes the draft that comes next, and somebody waits for that.
So whoever has time between two drafts learns there.
"""

from __future__ import annotations

from retrieval_spec.kernels.blend_learning import learn
from retrieval_spec.kernels.card_arrays import (
    card_at,
    context_of,
    drafted_of,
    records_of,
    tables_of,
    tokens_between,
)
from retrieval_spec.kernels.cards import (
    CONTEXT_LENGTH,
    FLOOR,
    LAST_FLOOR,
    LAST_KEPT,
    NUM_DRAFTED,
    NUM_KEPT,
    NUM_UNLEARNED,
    NUM_WORKED_IN,
    OUTCOME_BEGIN,
    OUTCOME_END,
    SIDE,
)
from retrieval_spec.kernels.jit import allocation_free_kernel, inlined_kernel


@allocation_free_kernel
def _learn(card):
    """Learns from the outcome that was set aside, if it has not been learned yet."""
    side, size = 1 - card[SIDE], card[NUM_UNLEARNED]
    if size >= 0:
        token_ids, parents, path_probs = drafted_of(card, side)
        learn(
            tables_of(card),
            tokens_between(context_of(card), card[OUTCOME_BEGIN], card[OUTCOME_END]),
            token_ids[:size],
            parents[:size],
            path_probs[:size],
            card[LAST_KEPT],
            records_of(card, side),
        )
        card[NUM_UNLEARNED] = -1


@inlined_kernel
def set_aside(card):
    """Notes what became of the tree that was drafted last, if anything was committed since."""
    end = context_of(card)[CONTEXT_LENGTH]
    if end == card[NUM_WORKED_IN]:
        return
    _learn(card)
    if card[NUM_DRAFTED] >= 0:
        card[NUM_UNLEARNED], card[NUM_DRAFTED] = card[NUM_DRAFTED], -1
        card[LAST_KEPT], card[LAST_FLOOR] = card[NUM_KEPT], card[FLOOR]
        card[OUTCOME_BEGIN], card[OUTCOME_END] = card[NUM_WORKED_IN], end
        card[SIDE] = 1 - card[SIDE]


@allocation_free_kernel
def learn_outcomes(cards):
    """Learns from all outcomes that sessions have set aside, one after the other.

    Args:
        cards: int64[n]  where those of the sessions lie.
    """
    for address in cards:
        _learn(card_at(address))
