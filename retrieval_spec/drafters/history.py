"""Drafts from what earlier sessions of the namespace wrote: what followed the context's end in it.

Prompts are matched but never learned. Outputs are learned when their session closes, or while they are
written (`learn="live"`). Every namespace has its own automaton, lock and byte budget.
"""

from __future__ import annotations

import threading
from array import array
from copy import copy
from typing import Literal

import numpy as np

from retrieval_spec.drafters.base import MAX_DEPTH_NODES, Budget, Int64s
from retrieval_spec.drafters.columns import new_columns, tree_of, with_room
from retrieval_spec.drafters.namespaces import Namespaces, pieces
from retrieval_spec.drafters.session import MAX_MATCH_TOKENS, WORTH
from retrieval_spec.drafters.text_card import TextCard
from retrieval_spec.errors import InvalidRequest
from retrieval_spec.feedback import Feedback
from retrieval_spec.kernels.automaton_draft import draft_from, scratch_words
from retrieval_spec.kernels.blend_tables import OUTPUTS
from retrieval_spec.kernels.cards import PLACE_WORDS, SEEN_NUMBER, SEEN_VERSION, VERSION
from retrieval_spec.structures.recent_texts import RecentText, RecentTexts
from retrieval_spec.structures.shared_automaton import NO_ROWS, SharedAutomaton
from retrieval_spec.tree import TOKEN, DraftTree, Tokens

When = Literal["close", "live"]
MIN_BYTES = 1 << 20


class HistoryDrafter:
    """What all namespaces wrote; safe to share between threads.

    A live session that is truncated is learned twice as far as it is written again.

    Args:
        max_bytes: of one namespace; the oldest outputs are forgotten (`structures.recent_texts`).
        learn: when an output becomes known to other sessions: as it is written, or when its session closes.
    """

    __slots__ = ("_learn", "namespaces")

    def __init__(self, max_bytes: int, learn: When) -> None:
        self._learn = learn
        self.namespaces = Namespaces(lambda: History(max_bytes))

    @classmethod
    def open(cls, vocab_size: int, max_bytes: int = 64 << 20, learn: When = "close") -> HistoryDrafter:
        """Returns a drafter without history; any vocabulary will do, since drafts repeat what was written.

        Raises:
            InvalidRequest: too small a byte budget, or no such time to learn.
        """
        if max_bytes < MIN_BYTES:
            raise InvalidRequest("too little memory for a history", got=max_bytes, expected=f">= {MIN_BYTES}")
        if learn not in ("close", "live"):
            raise InvalidRequest("unknown time to learn outputs", got=learn, expected="close or live")
        return cls(max_bytes, learn)

    def start(self, context: Tokens, namespace: str = "default") -> HistoryCursor:
        """Returns a cursor that has observed `context`, which is matched but not learned."""
        return HistoryCursor(self.namespaces.of(namespace), self._learn, context)


class History:
    """What one namespace wrote; whoever uses `texts` holds `lock`.

    Attributes:
        texts: what it wrote; nothing once it was released.
        is_released: whether it was, so that nothing is learned into it.
        card: where that lies now.
    """

    def __init__(self, max_bytes: int) -> None:
        self.lock = threading.Lock()
        # No string is longer than the longest match with the deepest draft after it.
        self.texts = RecentTexts(max_bytes, counted_tokens=MAX_MATCH_TOKENS + MAX_DEPTH_NODES)
        self.is_released = False
        self.card = TextCard(self.texts.automaton.arena, self.texts.automaton.commonest)

    @property
    def num_bytes(self) -> int:
        """Bytes that it holds."""
        return 0 if self.is_released else self.texts.num_bytes

    def release(self) -> None:
        """Gives back its memory, although sessions hold it until they end."""
        with self.lock:
            before = self.texts.automaton
            self.texts, self.is_released = RecentTexts.none(), True
            self._show(before)

    def extend(self, text: RecentText, tokens: Tokens) -> None:
        """Appends to a text, unless all was released; call with the lock held."""
        if not self.is_released:
            before = self.texts.automaton
            try:
                self.texts.extend(text, tokens)
            finally:
                self._show(before)

    def _show(self, before: SharedAutomaton) -> None:
        automaton = self.texts.automaton
        self.card.show(automaton.arena, automaton.commonest)
        if automaton is before:
            self.card.has_grown()
        else:
            self.card.is_another()


class HistoryCursor:
    """One session's place in its namespace's history; owned by that session, not thread-safe."""

    __slots__ = (
        "_history",
        "_num_learned",
        "_num_new_tokens",
        "_scratch",
        "_text",
        "_written",
        "card",
        "learns_at_once",
        "lock",
        "place",
    )

    kind = OUTPUTS

    def __init__(self, history: History, learn: When, context: Tokens) -> None:
        self._history = history
        self.lock = history.lock
        self.card = history.card
        self.learns_at_once = learn == "live"
        self._written = array("i", context[-MAX_MATCH_TOKENS:].tobytes())  # and then the output
        self._num_learned = len(self._written)  # of what is written: the prompt never is
        self._text = RecentText()
        self.place: Int64s = np.zeros(PLACE_WORDS, np.int64)
        self.place[SEEN_VERSION:] = -1
        self._num_new_tokens = 0  # since the place was found
        self._scratch = np.empty(0, np.int64)

    @property
    def num_bytes(self) -> int:
        """Bytes of the output that it keeps."""
        return 4 * (len(self._written) + self._text.num_tokens)

    def observe(self, tokens: Tokens, feedback: Feedback | None = None) -> None:
        """Moves on by output; `feedback` is not used."""
        self._num_new_tokens += tokens.shape[0]
        self.advance(tokens)

    def advance(self, tokens: Tokens) -> None:
        """Notes output by which kernels have moved the place on."""
        self._written.frombytes(tokens.tobytes())
        if self.learns_at_once:
            self._learn_output()

    def make_room(self, left: Tokens) -> None:
        """Does nothing: only the context's own text grows with every step."""

    def trial(self) -> HistoryCursor | None:
        """Returns a cursor whose moves show nowhere else; None if outputs are learned as they are written."""
        if self.learns_at_once:
            return None
        trial = copy(self)
        trial.place = self.place.copy()
        trial._written = self._written[-MAX_MATCH_TOKENS:]
        if self.card is self._history.card and not self._history.texts.is_empty:
            # Drafts note there what they looked for; trials of a trial share what it has.
            trial.card = TextCard(self._history.texts.automaton.arena, NO_ROWS)
            trial.card.words[VERSION] = -1
            with self._history.lock:
                trial.refresh(0)
        return trial

    def refresh(self, num_new: int) -> None:
        """Brings the card of a trial up to date, its own; call with the lock held."""
        known = self._history.card
        if self.card.words[VERSION] != known.words[VERSION]:
            automaton = self._history.texts.automaton
            # Nobody drafts for trials in parts, so one table is enough.
            self.card.show(automaton.arena, automaton.commonest[:1].copy())
            self.card.words[VERSION:] = known.words[VERSION:]

    def close(self) -> None:
        """Lets later sessions of the namespace draft from this one's output."""
        self._learn_output()

    def propose(self, budget: Budget) -> DraftTree:
        """Returns the most probable continuations among those that earlier outputs hold."""
        max_nodes = budget.max_nodes
        if max_nodes <= 0 or self._history.texts.is_empty:
            return DraftTree.empty()
        self._scratch = with_room(self._scratch, scratch_words(max_nodes))
        columns = new_columns(max_nodes)
        with self._history.lock:
            automaton = self._history.texts.automaton
            self._catch_up(automaton)
            state, match_tokens = self.place[:SEEN_VERSION].tolist()
            limits = (WORTH, budget.max_depth_nodes)
            size = draft_from(automaton.arena, state, match_tokens, *limits, self._scratch, *columns)
        return tree_of(columns, size)

    def _catch_up(self, automaton: SharedAutomaton) -> None:
        """Does to the place what kernels do in texts that have grown, and moves it on by output."""
        shown = self._history.card.words[VERSION:]
        if np.array_equal(self.place[SEEN_VERSION:], shown):
            if self._num_new_tokens >= MAX_MATCH_TOKENS:
                self.place[:SEEN_VERSION] = 0
            automaton.follow(self.place, self._newest(self._num_new_tokens), MAX_MATCH_TOKENS)
        else:
            if self._num_new_tokens or self.place[SEEN_NUMBER] != shown[-1]:
                self.place[:SEEN_VERSION] = 0
            automaton.find_again(self.place, self._newest(MAX_MATCH_TOKENS), MAX_MATCH_TOKENS)
            self.place[SEEN_VERSION:] = shown
        self._num_new_tokens = 0

    def _newest(self, num_tokens: int) -> Tokens:
        newest = self._written[len(self._written) - min(num_tokens, MAX_MATCH_TOKENS, len(self._written)) :]
        return np.array(newest, TOKEN)

    def _learn_output(self) -> None:
        output = self._written[self._num_learned :]
        del self._written[:-MAX_MATCH_TOKENS]
        self._num_learned = len(self._written)
        self._learn(output)

    def _learn(self, text: array[int]) -> None:
        tokens = np.frombuffer(text, TOKEN)
        for begin, end in pieces(0, tokens.shape[0]):
            with self._history.lock:
                self._history.extend(self._text, tokens[begin:end])
