"""The last tokens of a context, for sources that look no further back."""

from __future__ import annotations

import numpy as np

from retrieval_spec.tree import TOKEN, Tokens

_ROOM = 4
"""Buffer length in tails: only every so many tokens is the tail moved to the front."""


class Tail:
    """The newest tokens of a growing context, at most `max_tokens`. Owned by one cursor, not thread-safe.

    Attributes:
        tokens: these, as a view.
        address: where they lie.
    """

    __slots__ = ("_buffer", "_buffer_address", "_end", "_max_tokens", "address", "tokens")

    def __init__(self, max_tokens: int) -> None:
        self._max_tokens = max_tokens
        self._buffer = np.zeros(_ROOM * max_tokens, TOKEN)
        self._end = 0
        self.tokens: Tokens = self._buffer[:0]
        self.address = self._buffer_address = self._buffer.ctypes.data

    def copy(self) -> Tail:
        """Returns another one with the same tokens."""
        tail = Tail(self._max_tokens)
        tail.append(self.tokens)
        return tail

    def append(self, tokens: Tokens) -> None:
        """Moves on by committed tokens; `tokens` is then a new view of the newest ones."""
        newest = tokens[-self._max_tokens :] if tokens.shape[0] > self._max_tokens else tokens
        end = self._end + newest.shape[0]
        if end > self._buffer.shape[0]:
            kept = self.tokens.copy()
            self._buffer[: kept.shape[0]] = kept
            end = kept.shape[0] + newest.shape[0]
        self._buffer[end - newest.shape[0] : end] = newest
        self._end = end
        begin = max(0, end - self._max_tokens)
        self.tokens = self._buffer[begin:end]
        self.address = self._buffer_address + begin * self._buffer.itemsize
