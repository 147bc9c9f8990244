"""Fusion as one would explain it: a dictionary of paths, then the most probable ones."""

from __future__ import annotations

from math import inf

import numpy as np

from retrieval_spec.tree import DraftTree

Path = tuple[int, ...]


def paths_of(tree: DraftTree) -> dict[Path, tuple[np.float32, int]]:
    """Every path of a tree -> (probability of its last node, source mask)."""
    paths: dict[Path, tuple[np.float32, int]] = {}
    for node in range(len(tree)):
        path = tuple(int(tree.token_ids[step]) for step in tree.path_to(node))
        paths[path] = (tree.probs[node], int(tree.sources[node]))
    return paths


def fuse_reference(trees: list[DraftTree], max_nodes: int) -> list[tuple[Path, np.float32, int]]:
    """The kept paths, best first, with node probability and source mask."""
    merged: dict[Path, tuple[np.float32, int]] = {}
    for tree in trees:
        for path, (prob, sources) in paths_of(tree).items():
            known_prob, known_sources = merged.get(path, (np.float32(-inf), 0))
            merged[path] = (max(prob, known_prob), sources | known_sources)

    def path_prob(path: Path) -> np.float32:
        product = np.float32(1)
        for depth in range(1, len(path) + 1):
            product = product * merged[path[:depth]][0]
        return product

    ranked = sorted(merged, key=lambda path: (-path_prob(path), len(path), path[-1]))
    return [(path, *merged[path]) for path in ranked[:max_nodes]]
