"""One suffix automaton of many texts that grow side by side, for what several sessions wrote.

Not thread-safe: whoever shares it holds a lock. Arrays and kernels; knows no sessions and no policy.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from retrieval_spec.kernels import automaton as layout
from retrieval_spec.kernels import shared_automaton as kernels
from retrieval_spec.kernels.commonest import ROW_WORDS
from retrieval_spec.kernels.steps import NUM_PARTS
from retrieval_spec.structures.suffix_automaton import add_root, bytes_of, moved_arena, new_arena
from retrieval_spec.tree import Int32s, Tokens

_FIRST_STATES = 1_024
_STATES_OF_A_LEAP = 65_536
"""From here on the arena gets its full size at once: moving a larger one would hold up a step for longer."""
_EDGES_PER_STATE = 0.72
"""Overflow edges: ordinary text has 1.45 states and at most 0.9 such edges a token."""

_COMMON_STATES = 2_048
"""Rows of a table, for states with many continuations: 0.8 MB, of which the system provides what is used."""

Place = NDArray[np.int64]
NO_ROWS: Int32s = np.zeros((1, 0, ROW_WORDS), np.int32)
"""The `commonest` of an automaton that has none."""


class SharedAutomaton:
    """The suffix automaton of int32 texts without negative ids, on flat arrays, of bounded size.

    A text is what `new_text` returned: where it ends. Several may grow by turns; no match crosses from
    one into another, and a text that repeats another one makes no states.

    Attributes:
        commonest: int32[parts, rows, ROW_WORDS]  see `kernels.commonest`.

    Args:
        max_bytes: the arena never grows beyond; a text that finds no room stays as it is.
        counted_tokens: strings up to this length have exact counts; longer ones may have none.
        leaps: whether a large arena grows to its full size at once, as no step may wait for it to be moved
            again and again; else it always doubles.
    """

    __slots__ = ("_counted_tokens", "_leap_states", "_max_states", "arena", "commonest")

    def __init__(self, max_bytes: int, counted_tokens: int, leaps: bool = True) -> None:
        self._counted_tokens = counted_tokens
        bytes_per_state = bytes_of(1_000_000, _edges_for(1_000_000)) / 1_000_000
        self._max_states = max(int((max_bytes - bytes_of(0, 0)) / bytes_per_state), 2)
        self._leap_states = _STATES_OF_A_LEAP if leaps else self._max_states
        first = min(_FIRST_STATES, self._max_states)
        self.arena = new_arena(first, _edges_for(first))
        self.commonest: Int32s = np.zeros((NUM_PARTS, _COMMON_STATES, ROW_WORDS), np.int32)
        add_root(self.arena)

    @staticmethod
    def new_text() -> Place:
        """Returns an empty text."""
        return np.zeros(3, np.int64)

    @staticmethod
    def new_place() -> Place:
        """Returns the place of an empty context."""
        return np.zeros(2, np.int64)

    def extend(self, text: Place, tokens: Tokens) -> bool:
        """Appends tokens to a text; returns whether there was room for them all."""
        num_added = kernels.append(self.arena, text, tokens, 0, self._counted_tokens)
        while num_added < tokens.shape[0] and self._make_room():
            num_added = kernels.append(self.arena, text, tokens, num_added, self._counted_tokens)
        return bool(num_added == tokens.shape[0])

    def uncount(self, tokens: Tokens) -> None:
        """Takes a whole text out of all counts; its states stay, and its strings no longer occur."""
        kernels.uncount(self.arena, tokens, self._counted_tokens)

    def follow(self, place: Place, tokens: Tokens, max_match_tokens: int) -> None:
        """Moves a place on by tokens of its context: to its longest suffix that some text holds.

        Call `find_again` first, with the last `max_match_tokens` of the context, whenever a text has grown.
        """
        kernels.follow(self.arena, place, tokens, max_match_tokens)

    def find_again(self, place: Place, tokens: Tokens, max_match_tokens: int) -> None:
        """Finds anew the place of a context that ends with the tokens, as it was before texts grew."""
        kernels.find_again(self.arena, place, tokens, max_match_tokens)

    def num_occurrences(self, tokens: Tokens) -> int:
        """Returns how often a string that is not empty occurs in the texts."""
        state = layout.walk(self.arena, tokens)
        return (
            int(self.arena[layout.HEADER_WORDS + state * layout.STATE_WORDS + layout.COUNT])
            if state > 0
            else 0
        )

    @property
    def is_half_full(self) -> bool:
        """Whether half of what the byte budget allows is in use."""
        used, edges = int(self.arena[layout.NUM_STATES]), int(self.arena[layout.NUM_EDGES])
        return 2 * used >= self._max_states or 2 * edges >= _edges_for(self._max_states)

    @property
    def num_tokens(self) -> int:
        """Tokens of all texts together."""
        return int(self.arena[layout.NUM_TOKENS])

    @property
    def allocated_bytes(self) -> int:
        """Bytes of the one buffer, room to grow included."""
        return int(self.arena.nbytes)

    def _make_room(self) -> bool:
        """Publishes an arena of twice the size, or of the full one; returns whether it could."""
        max_states = int(self.arena[layout.MAX_STATES])
        if max_states >= self._max_states:
            return False
        wanted = self._max_states if max_states >= self._leap_states else 2 * max_states
        wanted = min(wanted, self._max_states)
        self.arena = moved_arena(self.arena, wanted, _edges_for(wanted))
        return True


def _edges_for(num_states: int) -> int:
    return int(num_states * _EDGES_PER_STATE)
