"""Where the arrays of a text lie, for kernels that read the texts of many sessions."""

from __future__ import annotations

import numpy as np

from retrieval_spec.drafters.base import Int64s
from retrieval_spec.kernels.cards import NUMBER, TABLE_BYTES, TEXT_WORDS, VERSION
from retrieval_spec.tree import Int32s


class TextCard:
    """The words of a text (`kernels.cards`); keeps alive what they point to.

    Whoever changes a text shows it anew, and where sessions share it, before others may draft from it.
    """

    __slots__ = ("_arena", "_rows", "address", "words")

    def __init__(self, arena: Int32s, rows: Int32s) -> None:
        self.words: Int64s = np.zeros(TEXT_WORDS, np.int64)
        self.address = self.words.ctypes.data
        self._arena = self._rows = rows  # another object than any arena
        self.show(arena, rows)

    def show(self, arena: Int32s, rows: Int32s) -> None:
        """Shows an automaton, and its commonest continuations: int32[parts, rows, ROW_WORDS]."""
        if arena is not self._arena or rows is not self._rows:
            self._arena, self._rows = arena, rows
            num_tables, num_rows, _ = rows.shape
            self.words[: TABLE_BYTES + 1] = (
                *(arena.ctypes.data, arena.shape[0]),
                *(rows.ctypes.data, num_rows, rows.strides[0] if num_tables > 1 else 0),
            )

    def has_grown(self) -> None:
        """Says that places in the text are to be found anew."""
        self.words[VERSION] += 1

    def is_another(self) -> None:
        """Says that the automaton is another one: places in it begin anew."""
        self.words[NUMBER] += 1
        self.words[VERSION] += 1
