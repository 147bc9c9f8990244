"""How many nodes each session of an engine step may have.

Knows trees and nothing of sessions; costs nothing measurable beside the drafts themselves.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from retrieval_spec.tree import DraftTree


def share_nodes(trees: Sequence[DraftTree], total_nodes: int) -> list[DraftTree]:
    """Returns the trees cut so that together they hold the `total_nodes` most probable paths.

    One selection over all sessions (TETRIS, arXiv 2502.15197): a session with a sure continuation gets
    nodes that a session without one cannot use. Trees are stored best first, so a cut is a prefix;
    ties go to the earlier session.
    """
    if sum(map(len, trees)) <= total_nodes:
        return list(trees)
    path_probs = np.concatenate([tree.path_probs() for tree in trees])
    owners = np.repeat(np.arange(len(trees)), [len(tree) for tree in trees])
    chosen = np.argsort(-path_probs, kind="stable")[:total_nodes]
    counts = np.bincount(owners[chosen], minlength=len(trees)).tolist()
    return [tree.prefix(count) for tree, count in zip(trees, counts, strict=True)]
