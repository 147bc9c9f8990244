"""How acceptance depends on what was written before: steps of a replay by the longest repeat at their end.

Looks at the texts alone and not at what sources did, so that the figures of two presets can be compared.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from retrieval_spec.structures.suffix_automaton import SuffixAutomaton
from retrieval_spec.traces import Trace
from retrieval_spec.tree import TOKEN, DraftTree

RANGES = ("0", "1", "2-3", "4-7", "8-15", "16+")
"""Match lengths that are counted together."""
MAX_TEXT_TOKENS = 1 << 22
"""Of traces that are looked for repeats in, about 100 bytes each; then begins anew."""


class MatchLengths:
    """Counts steps by match length: an observer of one replay, whose traces come one after the other.

    The match length of a step is that of the longest suffix of its context that occurred before: earlier in
    the context, or in the prompt or output of an earlier trace. It may be longer than any source looks.

    Attributes:
        counts: int64[3, ranges]  steps, drafted nodes and accepted tokens of each of `RANGES`.
    """

    def __init__(self) -> None:
        self.counts: Any = np.zeros((3, len(RANGES)), np.int64)
        self._text = SuffixAutomaton()
        self._trace: Trace | None = None
        self._num_seen = 0
        self._num_traces = 0

    def step(self, trace: Trace, at: int, tree: DraftTree, path: list[int], latency_us: float) -> None:
        """Counts one step."""
        if at == 0:
            self._begin(trace)
        self._text.extend(trace.output[self._num_seen : at])
        self._num_seen = at
        place = min(self._text.match_length.bit_length(), len(RANGES) - 1)
        self.counts[:, place] += (1, len(tree), len(path))

    def _begin(self, trace: Trace) -> None:
        if self._trace is not None:
            self._text.extend(self._trace.output[self._num_seen :])
        if self._text.num_tokens > MAX_TEXT_TOKENS:
            self._text = SuffixAutomaton()
        # A token that comes once ends every match: none goes from one trace into the next.
        self._num_traces += 1
        self._text.extend(np.array([-self._num_traces], TOKEN))
        self._text.extend(trace.prompt)
        self._trace, self._num_seen = trace, 0
