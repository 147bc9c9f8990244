"""RASD as its description says: judge retrieved paths by a draft model, fuse them with the model's tree."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tests.reference.opt_tree import opt_tree

Path = tuple[int, ...]


def rasd(
    retrieved: list[dict[Path, np.float32]],
    law: Callable[[list[int]], np.ndarray],
    context: list[int],
    max_nodes: int,
    top_k: int = 10,
) -> list[Path]:
    """The drafted paths, best first.

    Args:
        retrieved: the paths of each retrieval source -> probability of the last token.
        law: the draft model, context -> probabilities of the next token.
        context: all tokens so far.
        max_nodes: most paths to keep.
        top_k: a retrieved path stays if its first token is one of that many most probable ones.
    """
    first = law(context).astype(np.float32)
    likely = sorted(range(first.size), key=lambda token: (-first[token], token))[:top_k]
    fused: dict[Path, np.float32] = {}
    for tree in retrieved:
        for path, prob in tree.items():
            if path[0] in likely:
                fused[path] = max(prob, fused.get(path, prob))
    for path, prob in opt_tree(law, context, max_nodes).items():
        fused[path] = max(prob, fused.get(path, prob))

    def worth(path: Path) -> np.float32:
        product = np.float32(1)
        for depth in range(1, len(path) + 1):
            product *= fused[path[:depth]]
        return product

    return sorted(fused, key=lambda path: (-worth(path), len(path), path[-1]))[:max_nodes]
