"""The newest of many texts in bounded memory: two generations of one automaton.

Not thread-safe: whoever shares it holds a lock. Knows no sessions.
"""

from __future__ import annotations

from array import array

import numpy as np

from retrieval_spec.structures.shared_automaton import NO_ROWS, Place, SharedAutomaton
from retrieval_spec.tree import TOKEN, Tokens


class RecentText:
    """One text, and where it stands in the automata that it went into."""

    __slots__ = ("_begins", "_ends", "_tokens")

    def __init__(self) -> None:
        self._tokens = array("i")
        self._begins: dict[int, int] = {}
        self._ends: dict[int, Place] = {}

    @property
    def num_tokens(self) -> int:
        """Length of the text."""
        return len(self._tokens)

    def end_in(self, generation: int) -> Place:
        """Returns where the text ends in an automaton; before its first tokens there, it is empty."""
        if generation not in self._ends:
            self._ends.pop(generation - 2, None)
            self._begins.pop(generation - 2, None)
            self._ends[generation] = SharedAutomaton.new_text()
            self._begins[generation] = len(self._tokens)
        return self._ends[generation]

    def note(self, tokens: Tokens) -> None:
        """Keeps tokens that went into the automata, for `tokens_in`."""
        self._tokens.frombytes(tokens.tobytes())

    def tokens_in(self, generation: int) -> Tokens:
        """Returns the tokens that went into an automaton."""
        begin = self._begins.get(generation, len(self._tokens))
        return np.frombuffer(self._tokens, TOKEN)[begin:]


class RecentTexts:
    """Texts that grow side by side, the oldest of which are forgotten.

    What is asked is the first automaton. When that is half full, the texts go into a second one too,
    from where they are; it replaces the full one. So between a half and the whole of what one automaton
    holds is remembered, and no step pays for forgetting.

    Attributes:
        automaton: what drafts are made from, until the next text grows.

    Args:
        max_bytes: of both automata together.
        counted_tokens: strings up to this length have exact counts.
    """

    __slots__ = ("_automata", "_counted_tokens", "_generation", "_max_bytes", "automaton")

    def __init__(self, max_bytes: int, counted_tokens: int) -> None:
        self._max_bytes = max_bytes
        self._counted_tokens = counted_tokens
        self._generation = 0
        self._automata = [self._fresh()]
        self.automaton = self._automata[0]

    @classmethod
    def none(cls) -> RecentTexts:
        """Returns one that takes next to no memory, for what must not grow any more."""
        texts = cls(0, 0)
        texts.automaton.commonest = NO_ROWS
        return texts

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to draft from."""
        return not self.automaton.num_tokens

    @property
    def allocated_bytes(self) -> int:
        """Bytes of both automata."""
        return sum(automaton.allocated_bytes for automaton in self._automata)

    @property
    def num_bytes(self) -> int:
        """Bytes of both automata with their tables of commonest continuations, as if those were full."""
        return self.allocated_bytes + sum(automaton.commonest.nbytes for automaton in self._automata)

    def extend(self, text: RecentText, tokens: Tokens) -> None:
        """Appends a few hundred tokens at most to a text."""
        if self.automaton.is_half_full and len(self._automata) == 1:
            self._automata.append(self._fresh())
        has_room = [
            automaton.extend(text.end_in(self._generation + at), tokens)
            for at, automaton in enumerate(self._automata)
        ]
        text.note(tokens)
        if not has_room[0]:
            self._generation += 1
            self._automata = self._automata[1:] or [self._fresh()]
            self.automaton = self._automata[0]

    def remove(self, text: RecentText) -> None:
        """Takes a text out of all counts; it must not grow any more."""
        for at, automaton in enumerate(self._automata):
            automaton.uncount(text.tokens_in(self._generation + at))

    def _fresh(self) -> SharedAutomaton:
        return SharedAutomaton(self._max_bytes // 2, self._counted_tokens)
