"""What repeats in documents, counted in plain Python."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

Documents = Sequence[Sequence[int]]


def ngram_counts(documents: Documents, size: int) -> Counter[tuple[int, ...]]:
    """How often every n-gram occurs inside a document."""
    return Counter(
        tuple(document[start : start + size])
        for document in documents
        for start in range(len(document) - size + 1)
    )


def repeat_lengths(documents: Documents, depth_tokens: int) -> Counter[int]:
    """Of how many places the tokens before it, at most so many, stand elsewhere too."""
    counts = [ngram_counts(documents, size) for size in range(1, depth_tokens + 1)]
    return Counter(
        max(
            (
                size
                for size in range(1, min(end, depth_tokens) + 1)
                if counts[size - 1][tuple(document[end - size : end])] > 1
            ),
            default=0,
        )
        for document in documents
        for end in range(1, len(document) + 1)
    )
