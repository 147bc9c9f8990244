"""How the trees of several sources become one draft: the rules of published systems, and ours.

A combination asks the cursors and returns one tree each, in their order; the engine fuses them. Ours
asks all and lets the most probable paths win; others ask one, or fill up in order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from retrieval_spec.drafters.base import Budget, Cursor
from retrieval_spec.tree import DraftTree

Combination = Callable[[Sequence[Cursor], Budget], list[DraftTree]]


def ask_all(cursors: Sequence[Cursor], budget: Budget) -> list[DraftTree]:
    """Asks every source with the whole budget: fusion keeps the most probable paths of them all."""
    return [cursor.propose(budget) for cursor in cursors]
