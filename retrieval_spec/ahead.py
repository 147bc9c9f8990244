"""Drafts for what may come next, while the target decides: the likely outcomes of a step, and their trees.

Knows the sources of one session as they stand; no sockets and no clock. Nothing here changes them.
"""

from __future__ import annotations

import numpy as np

from retrieval_spec.budget import CostCurve, draft_paying
from retrieval_spec.drafters.base import Budget
from retrieval_spec.drafters.joint import Joint
from retrieval_spec.tree import CONTEXT, TOKEN, DraftTree, Tokens

LEAST_PROB = 0.01
"""An outcome that is less probable is not worth the time of a draft."""

SPARE_NODES = 4
"""So many more nodes than outcomes are looked through, since some continue what is no outcome itself."""


class Lookahead:
    """What a session would draft after tokens that are only supposed. Of no use once it has moved on.

    Args:
        joint: the session's sources.
        num_paid: nodes that pay in its step.
        limit: of any tree.
    """

    def __init__(self, joint: Joint, num_paid: int, limit: Budget) -> None:
        self._joint = joint
        self._base: Joint | None = None
        self._num_paid = num_paid
        self._limit = limit

    def outcomes(self, tree: DraftTree, max_outcomes: int) -> list[Tokens]:
        """Returns what the target may decide in the step that verifies `tree`, the likeliest first.

        An outcome is a path of accepted nodes and a token that the tree does not hold there. A draft
        that is larger than the tree tells which: nodes are found best first, so those left out are what
        the target decides most probably where it leaves the tree.

        Args:
            tree: the session's draft as it goes to the target.
            max_outcomes: at most so many; there may be none.
        """
        trial = self._trial()
        if trial is None:
            return []
        num_nodes = min(len(tree) + max_outcomes + SPARE_NODES, self._limit.max_nodes)
        return _left_out(trial.draft(self._limit._replace(max_nodes=num_nodes)), tree)[:max_outcomes]

    def draft(self, outcome: Tokens, max_nodes: int, cost_curve: CostCurve | None) -> DraftTree | None:
        """Returns what the session would draft if the outcome were committed now; None if nobody can tell.

        That is the same, node by node, as long as nothing else is learned in its namespace meanwhile.
        """
        trial = self._trial()
        if trial is None:
            return None
        trial.observe(outcome)

        def ask(num_nodes: int) -> DraftTree:
            return trial.draft(self._limit._replace(max_nodes=num_nodes))

        max_nodes = min(max_nodes, self._limit.max_nodes)
        return (
            ask(max_nodes) if cost_curve is None else draft_paying(ask, max_nodes, cost_curve, self._num_paid)
        )

    def _trial(self) -> Joint | None:
        """Returns a trial of what was found at the first look: what is dear to copy is copied once."""
        if self._base is None:
            self._base = self._joint.trial()
        return None if self._base is None else self._base.trial()


def _left_out(wide: DraftTree, tree: DraftTree) -> list[Tokens]:
    """Returns the paths to those nodes of a wide tree that only their last token leads out of the other."""
    children = tree.children()
    place_in_tree: list[int | None] = []
    outcomes = []
    token_ids, path_probs = wide.token_ids.tolist(), wide.path_probs().tolist()
    for node, parent in enumerate(wide.parents.tolist()):
        before = CONTEXT if parent == CONTEXT else place_in_tree[parent]
        place = None
        if before is not None:
            place = children.get(before, {}).get(token_ids[node])
            if place is None and path_probs[node] >= LEAST_PROB:
                outcomes.append(np.array([token_ids[at] for at in wide.path_to(node)], TOKEN))
        place_in_tree.append(place)
    return outcomes
