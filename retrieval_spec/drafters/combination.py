"""How the trees of several sources become one draft: the rules of published systems, and ours.

A combination asks the cursors and returns one tree each, in their order; the engine fuses them. Ours
asks all and lets the most probable paths win; others ask one, or fill up in order.

Some rules choose by how long a source's match is: `match_length`, a property of cursors that copy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from retrieval_spec.drafters.base import Budget, Cursor
from retrieval_spec.tree import DraftTree

Combination = Callable[[Sequence[Cursor], Budget], list[DraftTree]]


def ask_all(cursors: Sequence[Cursor], budget: Budget) -> list[DraftTree]:
    """Asks every source with the whole budget: fusion keeps the most probable paths of them all."""
    return [cursor.propose(budget) for cursor in cursors]


def longer_match(cursors: Sequence[Cursor], budget: Budget, *, corpus_bias_tokens: int) -> list[DraftTree]:
    """Asks the source with the longest match alone: the first one unless a corpus has a clearly longer one.

    SAM-Decoding's rule without a tree model. The first cursor is that of the own context, the others are
    corpora, whose matches count `corpus_bias_tokens` less; of equal ones the earlier is asked.
    """
    chosen, _ = _longest_match(cursors, corpus_bias_tokens)
    return _ask_one(cursors, chosen, budget)


def longer_match_or_last(
    cursors: Sequence[Cursor], budget: Budget, *, corpus_bias_tokens: int, min_match_tokens: int
) -> list[DraftTree]:
    """Asks as `longer_match` does, but the last source if no match has `min_match_tokens` after the bias.

    SAM-Decoding's rule with a tree model, which is the last cursor.
    """
    last = len(cursors) - 1
    chosen, length = _longest_match(cursors[:last], corpus_bias_tokens)
    return _ask_one(cursors, chosen if length >= min_match_tokens else last, budget)


def _longest_match(cursors: Sequence[Cursor], corpus_bias_tokens: int) -> tuple[int, int]:
    """Returns which cursor has the longest match, and its length after the bias."""
    lengths = [int(getattr(cursor, "match_length", 0)) for cursor in cursors]
    lengths[1:] = [length - corpus_bias_tokens for length in lengths[1:]]
    longest = max(lengths, default=0)
    return (lengths.index(longest) if lengths else 0), longest


def _ask_one(cursors: Sequence[Cursor], chosen: int, budget: Budget) -> list[DraftTree]:
    trees = [DraftTree.empty()] * len(cursors)
    if cursors:
        trees[chosen] = cursors[chosen].propose(budget)
    return trees
