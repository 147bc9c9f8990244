"""The acceptance walk: the target chooses at every node, the tree only decides how far one pass reaches.

Drafted tokens are fixed before any randomness of the step, so drawing x from the target's distribution
and following the child x if it exists is lossless, and no lossless rule accepts more. Knows no tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from retrieval_spec.verifier.layout import Layout


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one step decided.

    Attributes:
        token_ids: the decided tokens: accepted drafts, then the bonus token unless a stop came first.
        path: the nodes whose keys and values stay, the root first; as many as tokens.
        num_accepted: how many of the tokens were drafted.
    """

    token_ids: list[int]
    path: list[int]
    num_accepted: int


def accept(layout: Layout, choose: Callable[[int], int], stops: Callable[[int], bool]) -> Outcome:
    """Returns the tokens that the target decides along the tree.

    Args:
        layout: the nodes whose logits are known.
        choose: node -> the target's own next token after the path to it; called along the path only.
        stops: called with every decided token at once; True ends the walk, and a last token that was
            drafted too keeps no node: its keys would belong to a token that nobody continues.
    """
    node, token_ids, path = 0, [], [0]
    while True:
        token_id = choose(node)
        token_ids.append(token_id)
        child = layout.children[node].get(token_id)
        if stops(token_id) or child is None:
            return Outcome(token_ids, path, len(path) - 1 + (child is not None))
        path.append(child)
        node = child
