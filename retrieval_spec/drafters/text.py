"""A whole context, for sources that copy from it."""

from __future__ import annotations

import numpy as np

from retrieval_spec.tree import TOKEN, Tokens

_MIN_ROOM_TOKENS = 256


class Text:
    """All tokens of a growing context. Owned by one cursor, not thread-safe."""

    __slots__ = ("_buffer", "tokens")

    def __init__(self) -> None:
        self._buffer = np.empty(0, TOKEN)
        self.tokens: Tokens = self._buffer

    def append(self, tokens: Tokens) -> None:
        """Moves on by committed tokens; `tokens` is then a new view of all of them."""
        begin = self.tokens.shape[0]
        end = begin + tokens.shape[0]
        if end > self._buffer.shape[0]:
            grown = np.empty(max(end, 2 * begin, _MIN_ROOM_TOKENS), TOKEN)
            grown[:begin] = self.tokens
            self._buffer = grown
        self._buffer[begin:end] = tokens
        self.tokens = self._buffer[:end]
