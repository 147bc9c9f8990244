"""Hypothesis strategies for the values that travel: small alphabets, so that repeats happen."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from retrieval_spec.tree import DraftTree


def token_streams(max_size: int = 200, alphabet: int = 3) -> st.SearchStrategy[list[int]]:
    """Token ids from a small alphabet, sometimes mapped to ids above 65,536."""
    small = st.lists(st.integers(0, alphabet - 1), max_size=max_size)
    return st.builds(
        lambda tokens, offset: [token + offset for token in tokens], small, st.sampled_from([0, 70_000])
    )


@st.composite
def draft_trees(draw: st.DrawFn, max_nodes: int = 12, vocab_size: int = 5) -> DraftTree:
    """Trees that keep the contract, with probabilities from a grid so that ties happen."""
    tokens: list[int] = []
    parents: list[int] = []
    for _ in range(draw(st.integers(0, max_nodes))):
        parent = draw(st.integers(-1, len(tokens) - 1))
        taken = {tokens[node] for node in range(len(tokens)) if parents[node] == parent}
        free = [token for token in range(vocab_size) if token not in taken]
        if free:
            tokens.append(draw(st.sampled_from(free)))
            parents.append(parent)
    grid = st.sampled_from([0.0, 0.25, 0.5, 1.0])
    probs = [draw(grid) for _ in tokens]
    sources = [draw(st.integers(1, 7)) for _ in tokens]
    tree = DraftTree.from_lists(tokens, parents, probs, sources)
    return tree if len(tree) else DraftTree.empty()


def as_int32(values: list[int]) -> np.ndarray:
    """The array that passed the door."""
    return np.array(values, np.int32)
