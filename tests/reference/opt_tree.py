"""OPT-Tree as its description says: keep the n most probable paths, grow while they gain."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

Path = tuple[int, ...]


def opt_tree(
    law: Callable[[list[int]], np.ndarray],
    context: list[int],
    max_nodes: int,
    threshold: float = 0.5,
    max_depth: int = 10,
) -> dict[Path, np.float32]:
    """The drafted paths, best first -> probability of the last token.

    Every node of a layer is continued by every token; a path whose probability is 0 in float32 is none. Of
    all paths so far the `max_nodes` most probable ones are kept. A layer that raises their sum by
    `threshold` or less is the last.
    """
    probs: dict[Path, np.float32] = {}
    weights: dict[Path, np.float32] = {(): np.float32(1)}
    layer: list[Path] = [()]
    best: list[Path] = []
    total = 0.0
    for depth in range(1, max_depth + 1):
        for path in layer:
            after = law([*context, *path]).astype(np.float32)
            for token in np.flatnonzero(weights[path] * after).tolist():
                probs[(*path, token)] = after[token]
                weights[(*path, token)] = weights[path] * after[token]
        best = sorted(probs, key=lambda path: (-weights[path], len(path), path[-1]))[:max_nodes]
        new_total = math.fsum(weights[path] for path in best)
        layer = [path for path in best if len(path) == depth]
        if new_total - total <= threshold or not layer:
            break
        total = new_total
    return {path: probs[path] for path in best}
