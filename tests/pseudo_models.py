"""Deterministic stand-ins for a draft model: a distribution for every context, from its tokens alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise

import numpy as np

from retrieval_spec.model_tree import Path
from retrieval_spec.tree import Float32s, Tokens

NextProbs = Callable[[list[int]], np.ndarray]


class PseudoModel:
    """A draft model that answers `law(context with the path)`; keeps the predictions that it started."""

    def __init__(self, vocab_size: int, law: NextProbs) -> None:
        self.vocab_size = vocab_size
        self.law = law
        self.started: list[PseudoPredictions] = []

    def start(self) -> PseudoPredictions:
        self.started.append(PseudoPredictions(self.law))
        return self.started[-1]


class PseudoPredictions:
    def __init__(self, law: NextProbs) -> None:
        self.law = law
        self.context: list[int] = []
        self.calls: list[list[Path]] = []
        self.known: set[Path] = set()

    def observe(self, tokens: Tokens) -> None:
        self.context.extend(tokens.tolist())
        self.known = set()

    def truncate(self, length: int) -> None:
        del self.context[length:]
        self.known = set()

    def next_probs(self, paths: Sequence[Path]) -> Float32s:
        assert all(path == () or path[:-1] in self.known for path in paths), "asked for out of turn"
        self.known.update(paths)
        self.calls.append(list(paths))
        return np.stack([self.law([*self.context, *path]) for path in paths]).astype(np.float32)


def hashed_law(vocab_size: int, sharpness: float = 2.0) -> NextProbs:
    """Distributions that look random and follow from the last three tokens, with exact ties among them."""

    @cache
    def after(*newest: int) -> np.ndarray:
        scores = np.random.default_rng([vocab_size, *newest]).integers(0, 5, vocab_size)
        weights = np.exp(sharpness * scores)
        return weights / weights.sum()

    return lambda context: after(*context[-3:])


def repeating_law(vocab_size: int, smoothing: float = 0.01) -> NextProbs:
    """What followed the last token earlier in the context, by counts, with a little for every token.

    Without smoothing, a token that nothing followed yet is followed by token 0.
    """

    def law(context: list[int]) -> np.ndarray:
        counts = np.full(vocab_size, smoothing / vocab_size)
        for token, following in pairwise(context):
            counts[following] += token == context[-1]
        counts[0] += counts.sum() == 0
        return counts / counts.sum()

    return law


def counting_law(vocab_size: int) -> NextProbs:
    """The next number follows with probability 0.9."""

    def law(context: list[int]) -> np.ndarray:
        probs = np.full(vocab_size, 0.1 / (vocab_size - 1))
        probs[(context[-1] + 1) % vocab_size] = 0.9
        return probs

    return law
