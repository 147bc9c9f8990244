"""Near-duplicates the plain way: sets of shingles, and their exact Jaccard similarity."""

from __future__ import annotations

from collections.abc import Sequence

SHINGLE_TOKENS = 5


def shingles(document: Sequence[int]) -> set[tuple[int, ...]]:
    """Every five tokens in a row; a shorter document is one shingle."""
    last = max(len(document) - SHINGLE_TOKENS, 0)
    return {tuple(document[at : at + SHINGLE_TOKENS]) for at in range(last + 1)}


def jaccard(one: Sequence[int], other: Sequence[int]) -> float:
    """The share of all shingles that both have."""
    mine, theirs = shingles(one), shingles(other)
    return len(mine & theirs) / len(mine | theirs)


def most_similar(document: Sequence[int], others: Sequence[Sequence[int]]) -> float:
    """The similarity to the most similar of the others; 0 if there are none."""
    return max((jaccard(document, other) for other in others), default=0.0)
