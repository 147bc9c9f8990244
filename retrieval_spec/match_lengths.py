"""How acceptance depends on what was written before: steps of a replay by the longest repeat at their end.

Looks at the texts alone and not at what sources did, so that the figures of two presets can be compared.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from retrieval_spec.text_matches import TextMatches
from retrieval_spec.traces import Trace
from retrieval_spec.tree import DraftTree

RANGES = ("0", "1", "2-3", "4-7", "8-15", "16+")
"""Match lengths that are counted together."""
MAX_TEXT_TOKENS = 1 << 22
"""Of traces that are looked for repeats in; then begins anew."""


class MatchLengths:
    """Counts steps by match length: an observer of one replay, whose traces come one after the other.

    The match length of a step is that of the longest suffix of its context that occurred before: earlier in
    the context, or in the prompt or output of an earlier trace. It may be longer than any source looks.

    Attributes:
        counts: int64[3, ranges]  steps, drafted nodes and accepted tokens of each of `RANGES`.
    """

    def __init__(self) -> None:
        self.counts: Any = np.zeros((3, len(RANGES)), np.int64)
        self._texts = TextMatches(MAX_TEXT_TOKENS)

    def step(self, trace: Trace, at: int, tree: DraftTree, path: list[int], latency_us: float) -> None:
        """Counts one step."""
        if at == 0:
            self._texts.begin(trace.prompt)
        place = min(self._texts.here().num_tokens.bit_length(), len(RANGES) - 1)
        self.counts[:, place] += (1, len(tree), len(path))
        self._texts.append(trace.output[at : at + len(path) + 1])
