"""How a token is chosen from one node's processed scores: greedily, or with position-keyed noise.

The draw depends on the seed, the position and the scores, never on how many tokens a step decided:
so a run over draft trees draws what the plain run draws.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval_spec.errors import UnsupportedModel

_WORD = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_UNIT = 2.0**-52
# Gumbel noise from 52 bits lies in [-3.61, 36.75]: a token further behind than this can never win.
_MAX_GAP = 41.0


def greedy(scores: Any, position: int) -> int:
    """Returns the token with the highest of `scores : float32[1, vocab_size]`, the first one of several."""
    return highest(scores)[0]


def highest(scores: Any) -> list[int]:
    """Returns the token with the highest score of each row of `scores : float32[n, vocab_size]`."""
    if scores.device.type == "cpu":
        scores = scores.numpy()  # the same answer, ties and NaN included, some ten times faster
    token_ids: list[int] = scores.argmax(-1).tolist()
    return token_ids


def row_seed(seed: int, row: int) -> int:
    """Returns the seed of a row of a batch: that of the batch for the first, others for the others."""
    return seed + row * _GOLDEN


class KeyedSampler:
    """Draws from softmax(scores) with noise that is a pure function of seed, position and token.

    The winner is the largest `score + Gumbel noise` (the Gumbel-max rule, whose law is the softmax).
    Inverting the distribution function with one uniform has the same law but is fragile: a rounding
    error in one probability moves the border of every later token. Here it moves one comparison.

    Args:
        seed: any integer; equal seeds give equal draws.
    """

    def __init__(self, seed: int) -> None:
        self._seed = _mix(np.array([seed & _WORD], np.uint64))

    def __call__(self, scores: Any, position: int) -> int:
        """Returns the token drawn for `position` from `scores : float32[1, vocab_size]`."""
        return self.draw(scores[0].cpu().numpy(), position)

    def draw(self, scores: NDArray[np.float32], position: int) -> int:
        """Returns the token drawn for `position` from the scores of the whole vocabulary."""
        candidates = np.flatnonzero(scores > scores.max() - _MAX_GAP)
        if candidates.size == 0:
            raise UnsupportedModel("no token has a finite score", remedy="check weights and processors")
        noise = -np.log(-np.log(self.uniforms(position, candidates)))
        return int(candidates[np.argmax(scores[candidates] + noise)])

    def uniforms(self, position: int, token_ids: NDArray[np.int64]) -> NDArray[np.float64]:
        """Returns one uniform in (0, 1) a token: SplitMix64 in counter mode, keyed by seed and position."""
        key = _mix(self._seed + np.uint64(position * _GOLDEN & _WORD))
        bits = _mix(key + (token_ids.astype(np.uint64) + np.uint64(1)) * np.uint64(_GOLDEN))
        # 52 bits and a half: neither 0 nor 1 can come out, so both logarithms are finite.
        uniforms: NDArray[np.float64] = ((bits >> np.uint64(12)).astype(np.float64) + 0.5) * _UNIT
        return uniforms


def _mix(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: NDArray[np.uint64] = words ^ (words >> np.uint64(31))
    return mixed
