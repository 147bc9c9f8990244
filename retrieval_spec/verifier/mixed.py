"""Acceptance at a node where some children were drawn from a draft model and others were not.

The drawn ones are tested first, each against the ratio of target to draft probability; if all fail, one
token is drawn from what they left of the target's distribution, and it is accepted if the tree has it.
Knows numpy alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval_spec.model_tree import Proposal
from retrieval_spec.verifier.sampling import KeyedSampler

Float64s = NDArray[np.float64]

_RATIO_STREAM = 0x6A09E667F3BCC909
"""Sets the noise of the ratio tests apart from that of the draws."""


def ratio_tests(
    p: Float64s, q: Float64s, drawn: NDArray[Any], uniforms: Float64s
) -> tuple[NDArray[np.int64], Float64s]:
    """Tests drawn tokens in the order of their draws, for many nodes at once.

    A token passes with probability min(1, p/q). After one that fails, the target's distribution is what
    `q` does not cover, and `q` loses the token, both scaled to the sum 1 again: the recursion of
    sampling without replacement (MCSD, arXiv 2401.06706; RSD, arXiv 2402.14160). Drawing from the
    residual wherever none passed makes the output follow `p` exactly, and with one drawn token
    accepts as often as any lossless rule can: p(D) + the sum over tokens outside D of min(p, q), where D
    are the children that were not drawn. A frequency in a corpus is no `q`: nothing was drawn from it.

    Args:
        p: float64[n, v]  the target's distributions.
        q: float64[n, v]  the distribution of the first draw.
        drawn: int[n, k]  different tokens, drawn from `q` without replacement.
        uniforms: float64[n, k]  uniform in [0, 1), independent of everything else.

    Returns:
        int64[n], the token that passed or -1, and float64[n, v], the residual where none did.
    """
    rows = np.arange(drawn.shape[0])
    passed = np.full(drawn.shape[0], -1)
    p, q = p.copy(), q.copy()
    for turn in range(drawn.shape[1]):
        tokens = drawn[:, turn]
        passes = (passed < 0) & (uniforms[:, turn] * q[rows, tokens] < p[rows, tokens])
        passed[passes] = tokens[passes]
        p = _scaled(np.maximum(p - q, 0), p)
        q[rows, tokens] = 0
        q = _scaled(q, q)
    return passed, p


def _scaled(weights: Float64s, otherwise: Float64s) -> Float64s:
    """Rows with the sum 1; a row that is all zero, which chance reaches with probability 0, is replaced."""
    sums = weights.sum(axis=1, keepdims=True)
    return np.where(sums > 0, weights / np.where(sums > 0, sums, 1), otherwise)


class MixedSampler:
    """Chooses a token from one node's scores where children of the node were drawn at random.

    All its noise is a pure function of seed, position and token, as in `KeyedSampler`. The source of the
    draws must not use the same noise.

    Args:
        seed: any integer; equal seeds and equal drafts give equal tokens.
    """

    def __init__(self, seed: int) -> None:
        self._sampler = KeyedSampler(seed)
        self._ratios = KeyedSampler(seed ^ _RATIO_STREAM)

    def __call__(self, scores: Any, position: int, proposal: Proposal) -> int:
        """Returns the token for `position`; its law is softmax(scores), float32[1, vocab_size]."""
        p = _softmax(scores[0].cpu().numpy())
        q = np.zeros_like(p)
        q[: proposal.q.shape[0]] = proposal.q
        tokens = proposal.token_ids.astype(np.int64)
        uniforms = self._ratios.uniforms(position, tokens)
        passed, residual = ratio_tests(p[None], q[None] / q.sum(), tokens[None], uniforms[None])
        if passed[0] >= 0:
            return int(passed[0])
        with np.errstate(divide="ignore"):
            return self._sampler.draw(np.log(residual[0]).astype(np.float32), position)


def _softmax(scores: NDArray[np.float32]) -> Float64s:
    exponentials = np.exp(scores.astype(np.float64) - scores.max())
    distribution: Float64s = exponentials / exponentials.sum()
    return distribution
