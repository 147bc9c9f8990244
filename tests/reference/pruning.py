"""Pruning the plain way: a set of the n-grams that were seen, in the order of the contexts."""

from __future__ import annotations


def pruned(tokens: list[int], positions: list[int], separator: int, ngram_tokens: int) -> list[int]:
    """The sorted places without those whose n-gram came before; what is too short for one stays."""
    seen: set[tuple[int, ...]] = set()
    kept = []
    for place in positions:
        before = tokens[max(place - ngram_tokens + 1, 0) : place]
        if separator in before or len(before) < ngram_tokens - 1:
            kept.append(place)
            continue
        ngram = (*before, tokens[place])
        if ngram not in seen:
            kept.append(place)
        seen.add(ngram)
    return kept
