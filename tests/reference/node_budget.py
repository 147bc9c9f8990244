"""The nodes that pay, by trying every selection that could be verified."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations, pairwise

Tree = tuple[Sequence[int], Sequence[float]]
"""Parents and path probabilities."""


def selections(trees: Sequence[Tree]) -> Iterator[list[tuple[int, int]]]:
    """Yields every set of nodes, as (tree, node), in which no node comes without its parent."""
    nodes = [(tree, node) for tree, (parents, _) in enumerate(trees) for node in range(len(parents))]
    for size in range(len(nodes) + 1):
        for chosen in combinations(nodes, size):
            held = set(chosen)
            if all(trees[t][0][n] < 0 or (t, trees[t][0][n]) in held for t, n in chosen):
                yield list(chosen)


def cost_at(curve: Sequence[tuple[int, float]], num_nodes: int) -> float:
    """The cost between two points, or beyond the last one, of a curve that never falls."""
    if len(curve) == 1:
        return curve[0][1]
    pieces = list(pairwise(curve))
    (begin, low), (end, high) = next((piece for piece in pieces if num_nodes <= piece[1][0]), pieces[-1])
    return low + (high - low) * (num_nodes - begin) / (end - begin)


def worth(tokens: float, cost: float) -> float:
    """What a step is worth: costs weigh more than tokens, since tokens behind accepted ones are cheap."""
    return tokens / cost**1.3


def best_worth(
    trees: Sequence[Tree], curve: Sequence[tuple[int, float]], total_nodes: int
) -> tuple[float, int]:
    """The most that a step can be worth, and the fewest nodes that it takes."""
    best = (0.0, 0)
    for chosen in selections(trees):
        if len(chosen) <= total_nodes:
            tokens = len(trees) + sum(trees[t][1][n] for t, n in chosen)
            rate = worth(tokens, cost_at(curve, len(chosen)))
            if rate > best[0] * (1 + 1e-12):
                best = (rate, len(chosen))
    return best
