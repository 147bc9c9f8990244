"""A trie of every substring of many texts up to a length, of bounded size: the oldest leaf makes room.

Not thread-safe: whoever shares it holds a lock. Arrays and kernels; knows no sessions and no policy.
"""

from __future__ import annotations

import numpy as np

from retrieval_spec.kernels import recency_trie as kernels
from retrieval_spec.tree import Tokens


class RecencyTrie:
    """Substrings with frequencies, children by recency.

    Memory is reserved at once, and used as far as nodes are.

    Args:
        max_nodes: strings that are kept.
    """

    __slots__ = ("arena",)

    def __init__(self, max_nodes: int) -> None:
        slots_at = kernels.HEADER_WORDS + (1 + max_nodes) * kernels.NODE_WORDS
        num_slots = 1 << (2 * max_nodes - 1).bit_length()
        self.arena = np.zeros(slots_at + num_slots, np.int32)
        self.arena[kernels.MAX_NODES] = max_nodes
        self.arena[kernels.SLOTS_AT] = slots_at
        self.arena[kernels.SLOT_MASK] = num_slots - 1

    def add_suffixes(self, tokens: Tokens) -> None:
        """Counts the last tokens of a text and all suffixes of them, the newest token being new."""
        kernels.add_suffixes(self.arena, tokens)

    @property
    def num_nodes(self) -> int:
        """Strings that are kept now."""
        return int(self.arena[kernels.NUM_NODES])
