"""SAM-Decoding's rules for a corpus: after the longest match, a tree by shares or a chain.

The published static automaton knows matches of any length, a datastore those up to its depth.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from retrieval_spec.drafters.base import MAX_DEPTH_NODES, Budget
from retrieval_spec.drafters.bounds import expect_range
from retrieval_spec.drafters.columns import new_columns, tree_of
from retrieval_spec.drafters.copying import chain_after_match
from retrieval_spec.drafters.tail import Tail
from retrieval_spec.feedback import Feedback
from retrieval_spec.kernels.frequency_draft import longest_span
from retrieval_spec.kernels.share_draft import draft, scratch_words
from retrieval_spec.structures.context_array import ContextArray, Scratch, new_scratch
from retrieval_spec.tree import DraftTree, Tokens

MAX_OCCURRENCES = 4096
"""Occurrences that are read at most; of more, an evenly strided sample in the order of their contexts."""
MAX_WIDTH = 64
MAX_NODES = 4096


class _Reading(Protocol):
    """What to read off the corpus after a match."""

    def new_scratch(self) -> Scratch:
        """Returns memory that one cursor works in."""
        ...

    def read(
        self, array: ContextArray, context: Tokens, match_length: int, budget: Budget, scratch: Scratch
    ) -> DraftTree:
        """Returns a draft within the budget."""
        ...


@dataclass(frozen=True, slots=True)
class SamTree:
    """The paths with the largest products of shares, cnt(child) / cnt(parent), from the longest match on.

    Equal products rank by depth, then by token id. The tree grows with the match: it has
    `int(nodes_per_match_token * (match length - bias_tokens))` nodes.

    Attributes:
        nodes_per_match_token: nodes for each matched token above the bias.
        bias_tokens: matched tokens that count nothing.
        width: most frequent children that a node has, and nodes at one depth, at most.
        max_nodes: nodes at most.
    """

    nodes_per_match_token: float = 4.0
    bias_tokens: int = 5
    width: int = 8
    max_nodes: int = 59

    def __post_init__(self) -> None:
        expect_range("width", self.width, 1, MAX_WIDTH)
        expect_range("max_nodes", self.max_nodes, 1, MAX_NODES)

    def start(self, array: ContextArray, context: Tokens) -> SamCursor:
        """Returns a cursor that has observed `context`."""
        return SamCursor(self, array, context)

    def new_scratch(self) -> Scratch:
        """Returns memory that one cursor works in; only what a draft needs of it is ever touched."""
        return np.empty(scratch_words(MAX_OCCURRENCES, self.width, self.max_nodes), np.int64)

    def read(
        self, array: ContextArray, context: Tokens, match_length: int, budget: Budget, scratch: Scratch
    ) -> DraftTree:
        """Returns the tree after a match."""
        wanted_nodes = int(self.nodes_per_match_token * (match_length - self.bias_tokens))
        max_nodes = min(wanted_nodes, self.max_nodes, budget.max_nodes)
        if max_nodes <= 0:
            return DraftTree.empty()
        columns = new_columns(max_nodes)
        size = draft(
            array.tokens,
            array.positions,
            array.buckets,
            context,
            match_length,
            self.width,
            MAX_OCCURRENCES,
            budget.max_depth_nodes,
            scratch,
            *columns,
        )
        return tree_of(columns, size)


@dataclass(frozen=True, slots=True)
class SamChain:
    """What followed the longest match where it stands first in the corpus, up to the end of the document.

    Attributes:
        chain_tokens: the length of the chain.
    """

    chain_tokens: int = 39

    def __post_init__(self) -> None:
        expect_range("chain_tokens", self.chain_tokens, 1, MAX_DEPTH_NODES)

    def start(self, array: ContextArray, context: Tokens) -> SamCursor:
        """Returns a cursor that has observed `context`."""
        return SamCursor(self, array, context)

    def new_scratch(self) -> Scratch:
        """Returns memory that one cursor works in."""
        return new_scratch()

    def read(
        self, array: ContextArray, context: Tokens, match_length: int, budget: Budget, scratch: Scratch
    ) -> DraftTree:
        """Returns the chain after a match."""
        size = min(self.chain_tokens, budget.max_nodes, budget.max_depth_nodes)
        first, last = array.count_range(context[context.shape[0] - match_length :])
        step = max(1, -(-(last - first) // MAX_OCCURRENCES))
        begin = int(array.positions[first:last:step].min(initial=array.tokens.shape[0]))
        following = array.tokens[begin : begin + max(size, 0)].astype(np.int32)
        ends = np.flatnonzero((following < 0) | (following >= array.num_ids))
        chain = following[: ends[0]] if ends.shape[0] else following
        return chain_after_match(chain, match_length)


class SamCursor:
    """One session's position in a corpus: its last tokens. Owned by that session, not thread-safe."""

    __slots__ = ("_array", "_match_length", "_reading", "_scratch", "_tail")

    def __init__(self, reading: _Reading, array: ContextArray, context: Tokens) -> None:
        self._reading = reading
        self._array = array
        self._scratch = reading.new_scratch()
        self._tail = Tail(array.depth_tokens)
        self._match_length: int | None = None
        self._tail.append(context)

    def observe(self, tokens: Tokens, feedback: Feedback | None = None) -> None:
        """Keeps the newest tokens; a prompt of any length costs the same."""
        self._tail.append(tokens)
        self._match_length = None

    def close(self) -> None:
        """Does nothing: the corpus never changes."""

    @property
    def match_length(self) -> int:
        """How many last tokens of the context the corpus holds, as far as its order considers them."""
        if self._match_length is None:
            array = self._array
            self._match_length = int(
                longest_span(
                    array.tokens,
                    array.positions,
                    array.buckets,
                    self._tail.tokens,
                    array.depth_tokens,
                    self._scratch,
                )
            )
        return self._match_length

    def propose(self, budget: Budget) -> DraftTree:
        """Returns what the rule reads after the longest match; no match, no nodes."""
        if budget.max_nodes <= 0 or self.match_length == 0:
            return DraftTree.empty()
        tokens, length = self._tail.tokens, self.match_length
        return self._reading.read(self._array, tokens, length, budget, self._scratch)
