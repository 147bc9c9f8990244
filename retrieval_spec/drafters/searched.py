"""Corpora that kernels search themselves: where they lie now, for all sessions that draft from the same."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from retrieval_spec.drafters.base import CorpusSource, Int64s
from retrieval_spec.kernels.cards import CORPUS_WORDS
from retrieval_spec.structures.context_array import ContextArray
from retrieval_spec.tree import TOKEN

Sources = tuple[tuple[int, CorpusSource], ...]
"""Each with its bit."""


class Searched(NamedTuple):
    """Corpora that are searched now.

    Attributes:
        arrays: themselves: nobody unmaps them as long as this is held.
        rows: int64[n, CORPUS_WORDS]  where they lie (`kernels.cards`).
    """

    arrays: Sequence[ContextArray]
    rows: Int64s


NOTHING = Searched((), np.zeros((0, CORPUS_WORDS), np.int64))


class Corpora:
    """Corpora that are searched together. Safe to share between threads.

    Holds none that was replaced, and rows that were handed out do not change.
    """

    __slots__ = ("_noted", "_sources")

    def __init__(self, sources: Sources) -> None:
        self._sources = sources
        self._noted: tuple[list[Any], Int64s] = ([], NOTHING.rows)

    def now(self) -> Searched | None:
        """Returns them as they are now; None if one of them has to be asked itself."""
        arrays: list[ContextArray] = []
        for _, source in self._sources:
            array = source.searchable
            if array is None:
                return None
            arrays.append(array)
        seen, rows = self._noted
        if [one() for one in seen] != arrays:
            bits = [bit for bit, _ in self._sources]
            words = [[*_words_of(one), bit] for one, bit in zip(arrays, bits, strict=True)]
            rows = np.array(words, np.int64)
            self._noted = [weakref.ref(one) for one in arrays], rows
        return Searched(arrays, rows)


def _words_of(corpus: ContextArray) -> list[int]:
    """Returns what stands in a row, up to the bit."""
    tokens, positions, buckets = corpus.tokens, corpus.positions, corpus.buckets
    return [
        *(tokens.ctypes.data, tokens.shape[0], tokens.dtype.itemsize == TOKEN().itemsize),
        *(positions.ctypes.data, positions.shape[0], buckets.ctypes.data, buckets.shape[0]),
        corpus.depth_tokens,
    ]
