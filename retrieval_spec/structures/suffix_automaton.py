"""A suffix automaton that grows with its text: every substring, how often it occurred and where it ended.

Owned by one session, not thread-safe. Holds arrays and calls kernels; knows no drafts and no policy.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from retrieval_spec.kernels import automaton as kernels
from retrieval_spec.tree import Int32s, Tokens

_STATES_PER_TOKEN = 1.45
"""Measured on source code, English and chat: 1.29 to 1.57; theory: at most 2."""
_EDGES_PER_TOKEN = 1.0
"""Overflow edges: the same texts have 0.52 to 0.89; theory: at most 1."""
_ROWS_PER_EDGE = 1.3
_SPARE = 256
_ALIGNMENT_WORDS = 16
"""Of int32: a cache line, so that no state record straddles two."""


class Occurrences(NamedTuple):
    """Where a string occurred: ends are positions of its last token, counted from 0."""

    num_occurrences: int
    first_end: int
    last_end: int


class SuffixAutomaton:
    """The suffix automaton of an int32 text that only grows, on flat arrays (`kernels.automaton`).

    Counts and last ends are maintained while the text grows, by a walk over at most 64 suffix links a
    token. Ordinary text has no longer chains and its counts are always exact. Runs such as one token
    thousands of times have; from then on some counts are lower bounds (and some last ends too early)
    until the text is a quarter longer at the latest, when one linear pass makes all exact again, or
    until `refresh`. First ends and match lengths are always exact. All of it depends on the text
    alone, not on how it was cut into `extend` calls (unless `refresh` is called in between).
    """

    __slots__ = ("arena",)

    def __init__(self, tokens_ahead: int = 0) -> None:
        """Makes the automaton of the empty text, with room for so many tokens of ordinary text."""
        self.arena = new_arena(_states_for(tokens_ahead), _edges_for(tokens_ahead))
        add_root(self.arena)

    @classmethod
    def from_tokens(cls, tokens: Tokens) -> SuffixAutomaton:
        """Returns the automaton of a whole text."""
        automaton = cls(tokens.shape[0])
        automaton.extend(tokens)
        return automaton

    def extend(self, tokens: Tokens) -> None:
        """Appends tokens to the text: int32[n], any values, contiguous."""
        num_added = kernels.append(self.arena, tokens, 0)
        while num_added < tokens.shape[0]:
            self._make_room(tokens.shape[0] - num_added)
            num_added = kernels.append(self.arena, tokens, num_added)

    def make_room_ahead(self) -> None:
        """Publishes a larger arena where room is short, so that no kernel has to stop for it."""
        if kernels.is_nearly_full(self.arena):
            wanted_edges = int(self.arena[kernels.NUM_EDGES]) + kernels.SPARE_EDGES
            self._move(kernels.SPARE_STATES, wanted_edges, 0)

    def own(self) -> None:
        """Makes sure that nobody else reads the arena: a kernel is about to append to it."""

    def trial(self) -> SuffixAutomaton:
        """Returns one that reads the arena of this one, and copies it before it grows.

        Not to be read any more once this one has grown.
        """
        trial = _Trial.__new__(_Trial)
        trial.arena, trial._is_copy = self.arena, False
        return trial

    def refresh(self) -> None:
        """Makes all counts and last ends exact now; linear in the length of the text."""
        kernels.recount(self.arena)

    def occurrences(self, tokens: Tokens) -> Occurrences | None:
        """Returns how often and where the string occurs in the text; None if it does not, or is empty."""
        state = kernels.walk(self.arena, tokens)
        if state <= 0:
            return None
        record = kernels.HEADER_WORDS + state * kernels.STATE_WORDS
        words = (kernels.COUNT, kernels.FIRST_END, kernels.LAST_END)
        return Occurrences(*(int(self.arena[record + word]) for word in words))

    @property
    def match_length(self) -> int:
        """Length of the longest suffix of the text that occurred before.

        It is the length of the last state's suffix link: that link is by definition the longest suffix
        that also ends elsewhere, so the text can never match itself.
        """
        return int(self.arena[self._match_record + kernels.LENGTH])

    @property
    def match_first_end(self) -> int:
        """Where that suffix ended first: the position of its last token, from 0; -1 if it is empty."""
        return int(self.arena[self._match_record + kernels.FIRST_END])

    @property
    def _match_record(self) -> int:
        last = kernels.HEADER_WORDS + int(self.arena[kernels.LAST]) * kernels.STATE_WORDS
        link = int(self.arena[last + kernels.LINK])
        return kernels.HEADER_WORDS + max(link, 0) * kernels.STATE_WORDS

    @property
    def counts_are_exact(self) -> bool:
        """Whether no count and no last end misses an occurrence."""
        return not self.arena[kernels.IS_LOWER_BOUND]

    @property
    def num_tokens(self) -> int:
        """Length of the text."""
        return int(self.arena[kernels.NUM_TOKENS])

    @property
    def num_states(self) -> int:
        """States in use, the one of the empty string included: at most 2 a token."""
        return int(self.arena[kernels.NUM_STATES])

    @property
    def allocated_bytes(self) -> int:
        """Bytes of the one buffer, room to grow included."""
        return int(self.arena.nbytes)

    @property
    def used_bytes(self) -> int:
        """Bytes of the states in use and of the edges with the rows that they keep free."""
        num_rows = 1 + int(self.arena[kernels.NUM_EDGES] * _ROWS_PER_EDGE)
        edge_words = num_rows * kernels.EDGE_WORDS
        return 4 * (kernels.HEADER_WORDS + self.num_states * kernels.STATE_WORDS + edge_words)

    def _make_room(self, num_tokens: int) -> None:
        """Publishes a larger arena: by a fifth, or what `num_tokens` more of ordinary text need."""
        self._move(2, int(self.arena[kernels.WANTED_EDGES]), num_tokens)

    def _move(self, more_states: int, wanted_edges: int, num_tokens: int) -> None:
        header = self.arena[: kernels.HEADER_WORDS].tolist()
        length = header[kernels.NUM_TOKENS] + num_tokens
        max_states, max_edges = header[kernels.MAX_STATES], header[kernels.MAX_EDGES]
        if header[kernels.NUM_STATES] + more_states > max_states:
            max_states = max(max_states * 6 // 5 + _SPARE, _states_for(length))
        if wanted_edges > max_edges:
            max_edges = max(max_edges * 6 // 5 + _SPARE, _edges_for(length), wanted_edges)
        self.arena = moved_arena(self.arena, max_states, max_edges)


class _Trial(SuffixAutomaton):
    """Grows on a copy of another automaton's arena."""

    __slots__ = ("_is_copy",)

    _is_copy: bool

    def extend(self, tokens: Tokens) -> None:
        self.own()
        super().extend(tokens)

    def own(self) -> None:
        if not self._is_copy:
            self.arena, self._is_copy = self.arena.copy(), True


def _states_for(num_tokens: int) -> int:
    return int(num_tokens * _STATES_PER_TOKEN) + _SPARE


def _edges_for(num_tokens: int) -> int:
    return int(num_tokens * _EDGES_PER_TOKEN) + _SPARE


def bytes_of(max_states: int, max_edges: int) -> int:
    """Returns the size of an arena with so much room."""
    num_rows = int(max_edges * _ROWS_PER_EDGE)
    edge_words = (1 + num_rows) * kernels.EDGE_WORDS
    return 4 * (kernels.HEADER_WORDS + max_states * kernels.STATE_WORDS + edge_words)


def new_arena(max_states: int, max_edges: int) -> Int32s:
    """Returns an arena without any state."""
    num_rows = int(max_edges * _ROWS_PER_EDGE)
    edges_at = kernels.HEADER_WORDS + max_states * kernels.STATE_WORDS
    num_words = bytes_of(max_states, max_edges) // 4
    buffer = np.empty(num_words + _ALIGNMENT_WORDS, np.int32)  # states are written before they are read
    skipped = -buffer.ctypes.data // buffer.itemsize % _ALIGNMENT_WORDS
    arena: Int32s = buffer[skipped : skipped + num_words]
    arena[: kernels.HEADER_WORDS] = 0
    arena[edges_at:] = 0
    arena[kernels.EDGES_AT] = edges_at
    arena[kernels.MAX_STATES] = max_states
    arena[kernels.MAX_EDGES] = max_edges
    arena[kernels.NUM_ROWS] = num_rows
    return arena


def add_root(arena: Int32s) -> None:
    """Gives a fresh arena the state of the empty string."""
    arena[kernels.NUM_STATES] = 1
    arena[kernels.NEXT_BOUNDARY] = kernels.FIRST_BOUNDARY
    arena[kernels.RESUME_STATE] = -1
    root = kernels.HEADER_WORDS
    arena[root : root + kernels.STATE_WORDS] = 0
    for word in (kernels.LINK, kernels.TOKEN, kernels.TARGET, kernels.FIRST_END, kernels.LAST_END):
        arena[root + word] = -1


_OF_THE_BUFFER = {kernels.EDGES_AT, kernels.MAX_STATES, kernels.MAX_EDGES, kernels.NUM_ROWS}


def moved_arena(old: Int32s, max_states: int, max_edges: int) -> Int32s:
    """Returns a copy with room for more states or edges; states keep their numbers."""
    new = new_arena(max_states, max_edges)
    for word in set(range(kernels.HEADER_WORDS)) - _OF_THE_BUFFER:
        new[word] = old[word]
    # The state that is being added when the edges run out is written but not counted yet.
    num_states = min(int(old[kernels.NUM_STATES]) + 1, int(old[kernels.MAX_STATES]))
    states = slice(kernels.HEADER_WORDS, kernels.HEADER_WORDS + num_states * kernels.STATE_WORDS)
    new[states] = old[states]
    if new[kernels.NUM_ROWS] == old[kernels.NUM_ROWS]:
        new[new[kernels.EDGES_AT] :] = old[old[kernels.EDGES_AT] :]
    else:
        kernels.rehash(new, old)
    return new
