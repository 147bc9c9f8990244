"""Drafts from the session's own context: what followed the last tokens when they occurred before.

Needs no datastore. Knows its own automaton and nothing of other sessions.
"""

from __future__ import annotations

from copy import copy

import numpy as np

from retrieval_spec.drafters.base import Budget, Cursor, Int64s
from retrieval_spec.drafters.columns import new_columns, tree_of, with_room
from retrieval_spec.drafters.copying import Copy
from retrieval_spec.drafters.text_card import TextCard
from retrieval_spec.feedback import Feedback
from retrieval_spec.kernels.anchor import ANCHOR_WORDS
from retrieval_spec.kernels.automaton_draft import draft, scratch_words
from retrieval_spec.kernels.blend_tables import OWN
from retrieval_spec.kernels.commonest import ROW_WORDS
from retrieval_spec.structures.suffix_automaton import SuffixAutomaton
from retrieval_spec.tree import DraftTree, Float32s, Int32s, Tokens

MAX_MATCH_TOKENS = 64
_MAX_COUNT_BITS = 7

# P(the next token is among those that followed the match) = sigmoid(a + b log2(length) + c log2(count)),
# fitted on recorded outputs of 13 kinds of text. A single continuation is trusted more the
# longer the match and the more often it came; several at once mean that the text branches here.
_FITTED = (
    (-0.9, 0.82, 0.74),  # one continuation
    (-1.0, 0.28, 0.26),  # more than one
    (-1.5, 0.28, 0.28),  # those that only a shorter match has, the longer one's being wrong
)


def _worth_table() -> Float32s:
    """Returns float32[kinds, match lengths, bits of the count], what `kernels.automaton_draft` multiplies."""
    lengths = np.log2(np.maximum(np.arange(MAX_MATCH_TOKENS + 1), 1))[:, None]
    bits = np.arange(_MAX_COUNT_BITS + 1)[None, :]
    return np.stack([1 / (1 + np.exp(-(a + b * lengths + c * bits))) for a, b, c in _FITTED]).astype(
        np.float32
    )


WORTH = _worth_table()


class SessionDrafter:
    """Opens one automaton a session; holds no text itself and is safe to share."""

    __slots__ = ("_rule",)

    def __init__(self, rule: Copy | None = None) -> None:
        self._rule = rule

    @classmethod
    def open(cls, vocab_size: int, rule: Copy | None = None) -> SessionDrafter:
        """Returns the drafter; any vocabulary will do, since the drafts repeat the context.

        Args:
            vocab_size: ids lie below it.
            rule: a published way of copying, in place of the calibrated tree.
        """
        return cls(rule)

    def start(self, context: Tokens, namespace: str = "default") -> Cursor:
        """Returns a cursor that has observed `context`, which may be empty."""
        return SessionCursor(context) if self._rule is None else self._rule.start(context)


class SessionCursor:
    """One session's text as an automaton; owned by that session, not thread-safe."""

    __slots__ = ("_card", "_commonest", "_scratch", "automaton", "place")

    kind = OWN
    lock = None
    learns_at_once = False

    def __init__(self, context: Tokens) -> None:
        self.automaton = SuffixAutomaton.from_tokens(context)
        self.place: Int64s = np.zeros(ANCHOR_WORDS, np.int64)
        self._commonest: Int32s = np.zeros((1, 1, ROW_WORDS), np.int32)
        self._scratch = np.empty(0, np.int64)
        self._card: TextCard | None = None

    @property
    def card(self) -> TextCard:
        """Where the automaton lies, for kernels; a cursor that proposes itself has none."""
        if self._card is None:
            self._card = TextCard(self.automaton.arena, self._commonest)
        return self._card

    def observe(self, tokens: Tokens, feedback: Feedback | None = None) -> None:
        """Appends committed tokens; `feedback` is not used."""
        self.automaton.extend(tokens)
        if tokens.shape[0]:
            self.place[:] = 0  # one that does not move along would mislead

    def advance(self, tokens: Tokens) -> None:
        """Does nothing: kernels append to the automaton itself, and move the anchor on."""

    def make_room(self, left: Tokens) -> None:
        """Appends the committed tokens for which kernels found no room, and makes room for further ones."""
        try:
            self.automaton.extend(left)
            self.automaton.make_room_ahead()
        finally:
            self.card.show(self.automaton.arena, self._commonest)

    def refresh(self, num_new: int) -> None:
        """Copies what a trial is about to change."""
        if num_new:
            self.automaton.own()
            self.card.show(self.automaton.arena, self._commonest)

    def trial(self) -> SessionCursor:
        """Returns a cursor whose moves show nowhere else."""
        trial = copy(self)
        trial._card = None
        trial.automaton = self.automaton.trial()
        trial.place, trial._commonest = self.place.copy(), self._commonest.copy()
        return trial

    def close(self) -> None:
        """Does nothing: what the session wrote ends with it."""

    @property
    def num_bytes(self) -> int:
        """Bytes of the automaton, room to grow included."""
        return self.automaton.allocated_bytes

    @property
    def match_length(self) -> int:
        """How many last tokens of the context occurred before."""
        return self.automaton.match_length

    def propose(self, budget: Budget) -> DraftTree:
        """Returns the most probable continuations among those that the context holds."""
        max_nodes = budget.max_nodes
        if max_nodes <= 0:
            return DraftTree.empty()
        self._scratch = with_room(self._scratch, scratch_words(max_nodes))
        columns = new_columns(max_nodes)
        arena = self.automaton.arena
        size = draft(arena, WORTH, budget.max_depth_nodes, self._scratch, *columns)
        return tree_of(columns, size)
