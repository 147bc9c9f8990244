"""REST's rule for a corpus: the most frequent continuations of the longest span that occurs in it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from retrieval_spec.drafters.base import MAX_DEPTH_NODES, Budget
from retrieval_spec.drafters.bounds import expect_range
from retrieval_spec.drafters.columns import new_columns, tree_of, with_room
from retrieval_spec.drafters.tail import Tail
from retrieval_spec.errors import InvalidRequest
from retrieval_spec.feedback import Feedback
from retrieval_spec.kernels.frequency_draft import draft, scratch_words
from retrieval_spec.structures.context_array import ContextArray
from retrieval_spec.tree import DraftTree, Tokens

MAX_OCCURRENCES = 1 << 20
"""A draft works in 16 bytes an occurrence."""


@dataclass(frozen=True, slots=True)
class Rest:
    """Spans of the context from the longest to the shortest: the first one that the corpus holds is read on.

    The tree holds the most frequent prefixes of its occurrences' continuations; a node's probability is
    its share of its parent's occurrences. Equally frequent ones rank by depth, then by token ids.

    Attributes:
        longest_span_tokens: the span that is tried first; a datastore's depth may bound it.
        shortest_span_tokens: the last one; without it there is no draft.
        max_occurrences: occurrences that are read at most. Of more, an evenly strided sample in the
            order of their left contexts is read: no continuation is preferred.
        continuation_tokens: tokens that are read behind each, not beyond the end of a document.
    """

    longest_span_tokens: int = 16
    shortest_span_tokens: int = 2
    max_occurrences: int = 5_000
    continuation_tokens: int = 10

    def __post_init__(self) -> None:
        if not 1 <= self.shortest_span_tokens <= self.longest_span_tokens:
            raise InvalidRequest(
                "the spans are out of range",
                got=f"{self.longest_span_tokens} to {self.shortest_span_tokens} tokens",
                expected="falling, and 1 or more",
            )
        expect_range("max_occurrences", self.max_occurrences, 1, MAX_OCCURRENCES)
        expect_range("continuation_tokens", self.continuation_tokens, 1, MAX_DEPTH_NODES)

    def start(self, array: ContextArray, context: Tokens) -> RestCursor:
        """Returns a cursor that has observed `context`."""
        return RestCursor(self, array, context)


class RestCursor:
    """One session's position in a corpus: its last tokens. Owned by that session, not thread-safe."""

    __slots__ = ("_array", "_longest", "_rule", "_scratch", "_tail")

    def __init__(self, rule: Rest, array: ContextArray, context: Tokens) -> None:
        self._rule = rule
        self._array = array
        self._longest = min(rule.longest_span_tokens, array.depth_tokens)
        self._scratch = np.empty(0, np.int64)
        self._tail = Tail(self._longest)
        self._tail.append(context)

    def observe(self, tokens: Tokens, feedback: Feedback | None = None) -> None:
        """Keeps the newest tokens."""
        self._tail.append(tokens)

    def close(self) -> None:
        """Does nothing: the corpus never changes."""

    def propose(self, budget: Budget) -> DraftTree:
        """Returns the most frequent continuations; no span found, no nodes."""
        max_nodes = budget.max_nodes
        if max_nodes <= 0:
            return DraftTree.empty()
        rule, array = self._rule, self._array
        self._scratch = with_room(self._scratch, scratch_words(rule.max_occurrences, max_nodes))
        columns = new_columns(max_nodes)
        size = draft(
            array.tokens,
            array.positions,
            array.buckets,
            self._tail.tokens,
            self._longest,
            rule.shortest_span_tokens,
            rule.max_occurrences,
            min(rule.continuation_tokens, budget.max_depth_nodes),
            self._scratch,
            *columns,
        )
        return tree_of(columns, size)
