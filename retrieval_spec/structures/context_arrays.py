"""Several context arrays as one corpus: what a datastore that grew by segments drafts from.

Knows context arrays and kernels; nothing of files or of how the segments came to be.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from retrieval_spec.calibration import reliability_by_match_length
from retrieval_spec.kernels.context_draft import best_first
from retrieval_spec.kernels.context_merge import MAX_ROW_TOKENS, MERGE_WORDS, ROWS, add_nearest
from retrieval_spec.structures.context_array import DEPTH_TOKENS, ContextArray, Scratch, TreeColumns
from retrieval_spec.tree import Tokens


def new_scratch() -> Scratch:
    """Returns memory that `ContextArrays.draft` works in."""
    return np.empty(MERGE_WORDS, np.int64)


class ContextArrays:
    """Immutable segments that draft as if all were one corpus; any number of threads may query at once.

    Of all occurrences, those with the longest match count; of equal lengths those of the earlier segment,
    and within it those that `ContextArray.draft` prefers.

    Attributes:
        arrays: the segments, of either token type, each searched as deep as it is sorted.
        depth_tokens: how many tokens of a context any of them considers.
        num_ids: all token ids of the segments are below this.
    """

    __slots__ = ("_reliability", "arrays", "depth_tokens", "num_ids")

    def __init__(self, arrays: Sequence[ContextArray]) -> None:
        self.arrays = tuple(arrays)
        self.depth_tokens = max((array.depth_tokens for array in self.arrays), default=DEPTH_TOKENS)
        self.num_ids = max((array.num_ids for array in self.arrays), default=0)
        self._reliability = reliability_by_match_length()

    @property
    def num_bytes(self) -> int:
        """The size of all columns of all segments."""
        return sum(array.num_bytes for array in self.arrays)

    def draft(
        self, context: Tokens, max_nodes: int, max_depth_nodes: int, scratch: Scratch | None = None
    ) -> TreeColumns:
        """Returns token ids, parents and probabilities of the most probable continuations, best first.

        Args:
            context: int32[c]  the tokens before the draft, the newest last.
            max_nodes: nodes of the tree at most.
            max_depth_nodes: nodes on one path at most; no more than 64 are looked for.
            scratch: from `new_scratch`, in use by one caller at a time; saves making it.
        """
        if scratch is None:
            scratch = new_scratch()
        depth = max(0, min(max_nodes, max_depth_nodes, MAX_ROW_TOKENS))
        num_kept = self._find(context, depth, scratch)
        token_ids = np.empty(max_nodes, np.int32)
        parents = np.empty(max_nodes, np.int32)
        probs = np.empty(max_nodes, np.float32)
        rows = scratch[ROWS:]
        size = best_first(
            rows, self.num_ids, num_kept, self._reliability, depth, scratch, token_ids, parents, probs
        )
        return token_ids[:size], parents[:size], probs[:size]

    def _find(self, context: Tokens, row_tokens: int, scratch: Scratch) -> int:
        """Writes the nearest occurrences of all segments and what followed them; returns how many."""
        num_kept = 0
        for array in self.arrays:
            num_kept = add_nearest(
                array.tokens,
                array.positions,
                array.buckets,
                context,
                array.depth_tokens,
                row_tokens,
                scratch,
                num_kept,
            )
        return num_kept
