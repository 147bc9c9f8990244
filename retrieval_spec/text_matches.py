"""Where the tokens before a place stood before: in the prompts and outputs of earlier generations."""

from __future__ import annotations

from bisect import bisect_right
from typing import NamedTuple

import numpy as np

from retrieval_spec.structures.suffix_automaton import SuffixAutomaton
from retrieval_spec.tree import TOKEN, Tokens


class TextMatch(NamedTuple):
    """The longest run of tokens before a place that stood before.

    Attributes:
        num_tokens: of the run; 0 if there is none.
        generation: the number of the first generation that has it, counted from 0; -1 if there is none.
    """

    num_tokens: int
    generation: int


class TextMatches:
    """The prompts and outputs of a family so far, and what of their end stood in them before.

    Args:
        max_tokens: that are searched, about 100 bytes each; what goes beyond them begins anew with the next
            generation.
    """

    def __init__(self, max_tokens: int) -> None:
        self._max_tokens = max_tokens
        self._automaton = SuffixAutomaton()
        self._starts: list[int] = []
        self._first_number = 0

    def begin(self, prompt: Tokens) -> None:
        """Begins the next generation."""
        if self._automaton.num_tokens > self._max_tokens:
            self._first_number += len(self._starts)
            self._automaton, self._starts = SuffixAutomaton(), []
        # A number of its own before each generation: no run goes on from one to the next.
        self._automaton.extend(np.array([-1 - len(self._starts)], TOKEN))
        self._starts.append(self._automaton.num_tokens)
        self._automaton.extend(prompt)

    def append(self, tokens: Tokens) -> None:
        """Goes on by decided tokens."""
        self._automaton.extend(tokens)

    def here(self) -> TextMatch:
        """Returns what of the text's end stood in it before."""
        num_tokens = self._automaton.match_length
        if not num_tokens:
            return TextMatch(0, -1)
        within = bisect_right(self._starts, self._automaton.match_first_end) - 1
        return TextMatch(num_tokens, self._first_number + within)
