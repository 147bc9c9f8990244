"""What followed each context of a few tokens, and how often: bounded memory, the oldest forgotten.

Holds arrays and calls kernels; knows no drafts, no namespaces and no policy. Not thread-safe.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from retrieval_spec.errors import InvalidRequest
from retrieval_spec.kernels import ngram as kernels
from retrieval_spec.tree import TOKEN, Int32s, Tokens

_FIRST_ROWS = 256
_SLOTS_PER_ROW = 2
_FIRST_SPILLED = 64
"""Text has four times as many contexts as successors without a place in a row; both grow apart."""
_CHUNK_TOKENS = 1 << 20

MAX_CONTEXTS = 1 << 16
"""Contexts of one generation of a table that learns: about 5 MiB, the text of some 25,000 tokens."""
MAX_CORPUS_CONTEXTS = 1 << 21
"""Contexts of a table that counts a corpus: about 170 MiB. No generation can have more."""


class Shape(NamedTuple):
    """What a table counts.

    Attributes:
        max_context_tokens: the longest context; n-grams are one token longer.
        min_context_tokens: the shortest one.
        max_kept: successors of one context that can be listed; the counts of all can be asked for.
    """

    max_context_tokens: int
    min_context_tokens: int = 1
    max_kept: int = 6

    def check(self) -> Shape:
        """Returns the shape itself if a table can have it.

        Raises:
            InvalidRequest: context lengths or a number of successors out of range.
        """
        longest = kernels.MAX_CONTEXT_TOKENS
        if not 1 <= self.min_context_tokens <= self.max_context_tokens <= longest:
            raise InvalidRequest("context length out of range", got=self, expected=f"1 to {longest} tokens")
        if not 1 <= self.max_kept <= kernels.MAX_KEPT_SUCCESSORS:
            raise InvalidRequest(
                "number of successors out of range",
                got=self.max_kept,
                expected=f"1 to {kernels.MAX_KEPT_SUCCESSORS}",
            )
        return self


def check_max_contexts(max_contexts: int) -> int:
    """Returns the number itself if one generation of a table can have so many contexts.

    Raises:
        InvalidRequest: it is out of range.
    """
    if not 1 <= max_contexts <= MAX_CORPUS_CONTEXTS:
        raise InvalidRequest(
            "number of contexts out of range", got=max_contexts, expected=f"1 to {MAX_CORPUS_CONTEXTS}"
        )
    return max_contexts


class Successors(NamedTuple):
    """What followed one context."""

    total: int
    num_distinct: int
    counts: dict[int, int]


class NGramTable:
    """Counts of n-grams in text that only grows, in two generations of at most `max_contexts` each.

    While one generation has room, all counts are exact. When it is full it becomes the older one, the
    one before is forgotten, and an empty one begins; a context that is seen again starts there with half
    the counts of its `max_kept` most frequent successors. So learning a token never takes longer than
    copying what one generation holds, and text that does not come back fades away.

    All depends on the text alone, not on how it was cut into `extend` calls.

    Args:
        shape: what is counted.
        max_contexts: contexts of one generation, 1 to `MAX_CORPUS_CONTEXTS`; room for 256 there is always.
        base: a table that never changes: contexts that are not learned start with half its counts.

    Raises:
        InvalidRequest: a shape or a number of contexts out of range.

    Attributes:
        arena: int32[words]  the newest counts (`kernels.ngram`).
        older: int32[words]  the generation before, for contexts that `arena` does not hold.
        base: int32[words]  for contexts that neither holds.
    """

    __slots__ = ("_max_contexts", "_shape", "arena", "base", "older")

    def __init__(
        self, shape: Shape, max_contexts: int = MAX_CONTEXTS, base: NGramTable | None = None
    ) -> None:
        self._shape, self._max_contexts = shape.check(), max(check_max_contexts(max_contexts), _FIRST_ROWS)
        empty = _new_arena(shape, 1, 1)
        self.arena = _new_arena(shape, _FIRST_ROWS, _FIRST_SPILLED)
        self.older: Int32s = empty
        self.base: Int32s = empty if base is None else base.arena

    def extend(self, text: Tokens, start: int = 0) -> None:
        """Counts the tokens from `start` on; those before it, and `NO_TOKEN`, are context alone."""
        at = kernels.learn(self.arena, self.older, self.base, text, start)
        while at < text.shape[0]:
            if not self._grow():
                self._turn()
            at = kernels.learn(self.arena, self.older, self.base, text, at)

    def extend_documents(self, tokens: NDArray[Any], separator: int) -> None:
        """Counts the documents of a corpus, as many tokens as one generation holds.

        No context reaches across a separator.

        Args:
            tokens: uint16[n] or int32[n]  documents, each ended by `separator`; mapped or not.
            separator: not a token id.
        """
        reach = self._shape.max_context_tokens
        for start in range(0, tokens.shape[0], _CHUNK_TOKENS):
            begin = max(0, start - reach)
            text = tokens[begin : start + _CHUNK_TOKENS].astype(np.int64)
            text[text == separator] = kernels.NO_TOKEN
            if not self._extend_while_there_is_room(text.astype(TOKEN), start - begin):
                break

    def successors(self, context: Tokens) -> Successors | None:
        """Returns what followed a context, the most frequent first; None if it is not known."""
        for arena in (self.arena, self.older, self.base):
            row = kernels.walk(arena, context)
            if row > 0:
                return _read(arena, row)
        return None

    def contexts(self) -> Iterator[tuple[int, ...]]:
        """Yields every context of the newest generation, in the order in which they were first seen."""
        for row in range(1, self.num_contexts + 1):
            tokens = []
            while row > 0:
                record = int(kernels.HEADER_WORDS + row * self.arena[kernels.ROW_WORDS])
                tokens.append(int(self.arena[record + kernels.OLDER_TOKEN]))
                row = int(self.arena[record + kernels.SHORTER])
            yield tuple(tokens)

    @property
    def num_contexts(self) -> int:
        """Contexts in the newest generation."""
        return int(self.arena[kernels.NUM_ROWS]) - 1

    @property
    def num_bytes(self) -> int:
        """Bytes of both generations, room to grow included."""
        return int(self.arena.nbytes + self.older.nbytes)

    def _extend_while_there_is_room(self, text: Tokens, start: int) -> bool:
        at = kernels.learn(self.arena, self.older, self.base, text, start)
        while at < text.shape[0] and self._grow():
            at = kernels.learn(self.arena, self.older, self.base, text, at)
        return bool(at == text.shape[0])

    def _grow(self) -> bool:
        """Publishes an arena of twice the size where this one is full, unless it is as large as it may be."""
        header = self.arena[: kernels.HEADER_WORDS].tolist()
        max_rows, max_spilled = header[kernels.MAX_ROWS], header[kernels.MAX_SPILLED]
        if header[kernels.NUM_ROWS] + self._shape.max_context_tokens > max_rows:
            max_rows *= 2
        else:
            max_spilled *= 2
        if max(max_rows, max_spilled) > self._max_contexts:
            return False
        self.arena = _moved(self.arena, self._shape, max_rows, max_spilled)
        return True

    def _turn(self) -> None:
        self.older = self.arena
        self.arena = _new_arena(self._shape, _FIRST_ROWS, _FIRST_SPILLED)


def _new_arena(shape: Shape, max_rows: int, max_spilled: int) -> Int32s:
    row_words = kernels.SUCCESSORS + shape.max_kept * kernels.SUCCESSOR_WORDS
    num_slots, num_spill_slots = _SLOTS_PER_ROW * max_rows, _SLOTS_PER_ROW * max_spilled
    index_at = kernels.HEADER_WORDS + max_rows * row_words
    spilled_at = index_at + num_slots
    # Zeroed by the operating system: pages that no row reaches take no memory.
    arena: Int32s = np.zeros(spilled_at + num_spill_slots * kernels.SPILL_WORDS, np.int32)
    header = {
        kernels.NUM_ROWS: 1,
        kernels.MAX_ROWS: max_rows,
        kernels.NUM_SLOTS: num_slots,
        kernels.INDEX_AT: index_at,
        kernels.MAX_SPILLED: max_spilled,
        kernels.NUM_SPILL_SLOTS: num_spill_slots,
        kernels.SPILLED_AT: spilled_at,
        kernels.MIN_CONTEXT: shape.min_context_tokens,
        kernels.MAX_CONTEXT: shape.max_context_tokens,
        kernels.MAX_KEPT: shape.max_kept,
        kernels.ROW_WORDS: row_words,
    }
    for word, value in header.items():
        arena[word] = value
    return arena


def _moved(old: Int32s, shape: Shape, max_rows: int, max_spilled: int) -> Int32s:
    new = _new_arena(shape, max_rows, max_spilled)
    num_rows = int(old[kernels.NUM_ROWS])
    rows = slice(kernels.HEADER_WORDS, kernels.HEADER_WORDS + num_rows * int(old[kernels.ROW_WORDS]))
    new[rows] = old[rows]
    new[kernels.NUM_ROWS] = num_rows
    kernels.rebuild_index(new, old)
    return new


def _read(arena: Int32s, row: int) -> Successors:
    record = int(kernels.HEADER_WORDS + row * arena[kernels.ROW_WORDS])
    total, num_distinct = int(arena[record + kernels.TOTAL]), int(arena[record + kernels.DISTINCT])
    kept = min(num_distinct, int(arena[kernels.MAX_KEPT]))
    first = record + kernels.SUCCESSORS
    pairs = arena[first : first + kept * kernels.SUCCESSOR_WORDS].reshape(-1, 2).tolist()
    return Successors(total, num_distinct, {token: count for token, count in pairs})
