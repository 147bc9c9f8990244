"""Hierarchy Drafting's rule for a corpus: whole rows that followed the last two tokens, then the last one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from retrieval_spec.drafters.base import Budget
from retrieval_spec.drafters.bounds import expect_range
from retrieval_spec.drafters.corpus_rest import MAX_OCCURRENCES
from retrieval_spec.drafters.rows import Row, is_known, survival, tree_of_rows
from retrieval_spec.drafters.tail import Tail
from retrieval_spec.feedback import Feedback
from retrieval_spec.structures.context_array import ContextArray
from retrieval_spec.tree import DraftTree, Tokens

_WORTH = 0.3
_SURVIVAL = survival((0.45, 0.55, 0.65, 0.75))


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of equal length behind the last tokens, the most frequent first, filled up with fewer tokens.

    Equally frequent rows rank by token ids; rows that a document's end cuts short are left out.

    Attributes:
        span_tokens: so many last tokens are looked for, and one fewer each time rows are missing.
        row_tokens: tokens in a row.
        max_rows: rows in all.
        max_occurrences: occurrences of a span that are read at most: an evenly strided sample of more.
    """

    span_tokens: int = 2
    row_tokens: int = 4
    max_rows: int = 7
    max_occurrences: int = 256

    def __post_init__(self) -> None:
        for name in ("span_tokens", "row_tokens", "max_rows"):
            expect_range(name, getattr(self, name), 1, 32)
        expect_range("max_occurrences", self.max_occurrences, 1, MAX_OCCURRENCES)

    def start(self, array: ContextArray, context: Tokens) -> RowsCursor:
        """Returns a cursor that has observed `context`."""
        return RowsCursor(self, array, context)


class RowsCursor:
    """One session's position in a corpus: its last tokens. Owned by that session, not thread-safe."""

    __slots__ = ("_array", "_rule", "_tail")

    def __init__(self, rule: Rows, array: ContextArray, context: Tokens) -> None:
        self._rule = rule
        self._array = array
        self._tail = Tail(min(rule.span_tokens, array.depth_tokens))
        self._tail.append(context)

    def observe(self, tokens: Tokens, feedback: Feedback | None = None) -> None:
        """Keeps the newest tokens."""
        self._tail.append(tokens)

    def close(self) -> None:
        """Does nothing: the corpus never changes."""

    def propose(self, budget: Budget) -> DraftTree:
        """Returns the rows of the longest span as the most probable ones; no span found, no nodes."""
        if budget.max_nodes <= 0:
            return DraftTree.empty()
        rows = self._rows(self._tail.tokens)
        return tree_of_rows(rows, _WORTH, _SURVIVAL, budget)

    def _rows(self, context: Tokens) -> list[Row]:
        kept: list[Row] = []
        for span_tokens in range(context.shape[0], 0, -1):
            for row in self._ranked(context[-span_tokens:]):
                if len(kept) == self._rule.max_rows:
                    return kept
                if not is_known(row, kept):
                    kept.append(row)
        return kept

    def _ranked(self, span: Tokens) -> list[Row]:
        counts = Counter(self._occurrences(span))
        return sorted(counts, key=lambda row: (-counts[row], row))

    def _occurrences(self, span: Tokens) -> Iterator[Row]:
        """Yields the row behind every occurrence that is read."""
        array, rule = self._array, self._rule
        first, last = array.count_range(span)
        taken = min(last - first, rule.max_occurrences)
        if taken == 0:
            return
        positions = array.positions[first + np.arange(taken) * (last - first) // taken].astype(np.int64)
        inside = np.minimum(positions[:, None] + np.arange(rule.row_tokens), array.tokens.shape[0] - 1)
        rows = array.tokens[inside]
        whole = ((rows >= 0) & (rows < array.num_ids)).all(axis=1)
        yield from map(tuple, rows[whole].tolist())
