"""All tokens of one generation in one place, for Python and for kernels that append to them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from retrieval_spec.kernels.cards import (
    CONTEXT_AT,
    CONTEXT_LENGTH,
    CONTEXT_ROOM,
    CONTEXT_WORDS,
    NOTICE_LENGTH,
)
from retrieval_spec.tree import TOKEN, Tokens

NEVER = 2**62
_SPARE_TOKENS, _LITTLE_TOKENS = 256, 64
"""Room for tokens to come: so much is made, and where so little is left there should be more."""


class Context:
    """A text that grows; owned by one session, not thread-safe.

    Attributes:
        words: int64[CONTEXT_WORDS]  where the tokens lie, for kernels (`kernels.cards`).
        notice_length: from which on somebody wants to look at it.
    """

    __slots__ = ("_buffer", "notice_length", "words")

    def __init__(self, tokens: Tokens) -> None:
        self.words: NDArray[np.int64] = np.zeros(CONTEXT_WORDS, np.int64)
        self.words[CONTEXT_LENGTH] = tokens.shape[0]
        self.notice_length = NEVER
        self._move(tokens, tokens.shape[0] + _SPARE_TOKENS)

    @property
    def length(self) -> int:
        """How many tokens there are."""
        return self.words.item(CONTEXT_LENGTH)

    @property
    def tokens(self) -> Tokens:
        """All of them, as a view: int32[length]."""
        return self._buffer[: self.length]

    @property
    def num_bytes(self) -> int:
        """Bytes that it holds, room to grow included."""
        return self._buffer.nbytes

    def append(self, tokens: Tokens) -> None:
        """Appends committed tokens."""
        length = self.length
        end = length + tokens.shape[0]
        if end > self._buffer.shape[0]:
            self._move(self.tokens, max(end + _SPARE_TOKENS, 2 * length))
        self._buffer[length:end] = tokens
        self.words[CONTEXT_LENGTH] = end

    def make_room(self) -> None:
        """Makes room ahead where little is left: kernels append only where there is some."""
        if self.length + _LITTLE_TOKENS >= self._buffer.shape[0]:
            self._move(self.tokens, 2 * self.length + _SPARE_TOKENS)

    def notice_at(self, length: int) -> None:
        """Lets kernels say so when the context is so long; as they do when little room is left."""
        self.notice_length = length
        self.words[NOTICE_LENGTH] = min(length, self._buffer.shape[0] - _LITTLE_TOKENS)

    def _move(self, tokens: Tokens, room_tokens: int) -> None:
        buffer = np.empty(room_tokens, TOKEN)
        buffer[: tokens.shape[0]] = tokens
        self._buffer = buffer
        self.words[CONTEXT_AT], self.words[CONTEXT_ROOM] = buffer.ctypes.data, room_tokens
        self.notice_at(self.notice_length)
