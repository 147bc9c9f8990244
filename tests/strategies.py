"""Hypothesis strategies for the values that travel: small alphabets, so that repeats happen."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from retrieval_spec.feedback import Feedback
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


@st.composite
def feedbacks(draw: st.DrawFn, vocab_size: int = 5) -> Feedback:
    """Feedback that passes the door, with and without each of its parts."""
    num_nodes, width, length = (draw(st.integers(0, 3)) for _ in range(3))

    def ids(*shape: int) -> np.ndarray:
        size = int(np.prod(shape))
        values = draw(st.lists(st.integers(0, vocab_size - 1), min_size=size, max_size=size))
        return np.array(values, np.int32).reshape(shape)

    parents = [draw(st.integers(0, node - 1)) if node else -1 for node in range(num_nodes)]
    told = (num_nodes, width) if num_nodes and width else (0, 0)
    return Feedback(
        ids(num_nodes),
        np.array(parents, np.int32),
        ids(*told),
        draw(st.sampled_from([np.zeros((0, 0), np.float32), np.full(told, -0.5, np.float32)])),
        np.ones(draw(st.sampled_from([0, 4])), np.float32),
        ids(2, length) if length else ids(0, 0),
    ).check(vocab_size, state_dimensions=4)


def as_int32(values: list[int]) -> np.ndarray:
    """The array that passed the door."""
    return np.array(values, np.int32)
