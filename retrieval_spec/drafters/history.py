"""Drafts from what earlier sessions of the namespace wrote: what followed the context's end in it.

Prompts are matched but never learned. Outputs are learned when their session closes, or while they are
written (`learn="live"`). Every namespace has its own automaton, lock and byte budget.
"""

from __future__ import annotations

import threading
import weakref
from array import array
from collections.abc import Callable
from copy import copy
from typing import Literal

import numpy as np

from retrieval_spec.drafters.base import MAX_DEPTH_NODES, NO_SPAN, Budget, Int64s, Span
from retrieval_spec.drafters.columns import new_columns, tree_of, with_room
from retrieval_spec.drafters.namespaces import Namespaces, pieces
from retrieval_spec.drafters.session import MAX_MATCH_TOKENS, WORTH
from retrieval_spec.errors import InvalidRequest
from retrieval_spec.feedback import Feedback
from retrieval_spec.kernels.automaton_draft import draft_from, scratch_words
from retrieval_spec.kernels.blend_tables import OUTPUTS
from retrieval_spec.structures.recent_texts import RecentText, RecentTexts
from retrieval_spec.structures.shared_automaton import SharedAutomaton
from retrieval_spec.tree import TOKEN, DraftTree, Int32s, Tokens

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
    """

    def __init__(self, max_bytes: int) -> None:
        self.lock = threading.Lock()
        # No string is longer than the longest match with the deepest draft after it.
        self.texts = RecentTexts(max_bytes, counted_tokens=MAX_MATCH_TOKENS + MAX_DEPTH_NODES)
        self.is_released = False

    @property
    def num_bytes(self) -> int:
        """Bytes that it holds."""
        return 0 if self.is_released else self.texts.num_bytes

    def release(self) -> None:
        """Gives back its memory, although sessions hold it until they end."""
        with self.lock:
            self.texts, self.is_released = RecentTexts.none(), True


class HistoryCursor:
    """One session's place in its namespace's history; owned by that session, not thread-safe."""

    __slots__ = (
        "_automaton",
        "_history",
        "_is_live",
        "_num_learned",
        "_num_new_tokens",
        "_own_rows",
        "_place",
        "_scratch",
        "_text",
        "_version",
        "_written",
        "lock",
    )

    kind = OUTPUTS

    def __init__(self, history: History, learn: When, context: Tokens) -> None:
        self._history = history
        self.lock = history.lock
        self._is_live = learn == "live"
        self._written = array("i", context[-MAX_MATCH_TOKENS:].tobytes())  # and then the output
        self._num_learned = len(self._written)  # of what is written: the prompt never is
        self._text = RecentText()
        self._own_rows: Int32s | None = None  # of commonest continuations, in place of the history's
        self._place = SharedAutomaton.new_place()
        self._num_new_tokens = 0  # since the place was found
        self._version = -1  # of the history in which it was found
        self._automaton: Callable[[], SharedAutomaton | None] = _nothing  # likewise
        self._scratch = np.empty(0, np.int64)

    @property
    def num_bytes(self) -> int:
        """Bytes of the output that it keeps."""
        return 4 * (len(self._written) + self._text.num_tokens)

    def observe(self, tokens: Tokens, feedback: Feedback | None = None) -> None:
        """Moves on by output; `feedback` is not used."""
        self._num_new_tokens += tokens.shape[0]
        self.advance(tokens, 0)

    def advance(self, tokens: Tokens, num_added: int) -> None:
        """Moves on by output by which a kernel has moved the place on."""
        self._written.frombytes(tokens.tobytes())
        if self._is_live:
            self._learn_output()

    def trial(self) -> HistoryCursor | None:
        """Returns a cursor whose moves show nowhere else; None if outputs are learned as they are written."""
        if self._is_live:
            return None
        trial = copy(self)
        trial._place = self._place.copy()
        trial._written = self._written[-MAX_MATCH_TOKENS:]
        if self._own_rows is None and self._history.texts.version:
            # Drafts note there what they looked for; trials of a trial share what it has.
            with self._history.lock:
                trial._own_rows = self._history.texts.automaton.commonest.copy()
        return trial

    def close(self) -> None:
        """Lets later sessions of the namespace draft from this one's output."""
        self._learn_output()

    def propose(self, budget: Budget) -> DraftTree:
        """Returns the most probable continuations among those that earlier outputs hold."""
        max_nodes = budget.max_nodes
        if max_nodes <= 0 or not self._history.texts.version:
            return DraftTree.empty()
        self._scratch = with_room(self._scratch, scratch_words(max_nodes))
        columns = new_columns(max_nodes)
        with self._history.lock:
            arena, _, place, suffix = self.find_place(0)
            self._catch_up(suffix)
            state, match_tokens = place.tolist()
            max_depth_nodes = budget.max_depth_nodes
            size = draft_from(arena, state, match_tokens, WORTH, max_depth_nodes, self._scratch, *columns)
        return tree_of(columns, size)

    def find_place(self, num_new: int) -> tuple[Int32s, Int32s, Int64s, Span]:
        """Returns the history's automaton, and where the context stands in it; call with the lock held."""
        texts, suffix = self._history.texts, NO_SPAN
        if self._version != texts.version:
            suffix = self._begin_again(texts)
        rows = texts.automaton.commonest if self._own_rows is None else self._own_rows
        return texts.automaton.arena, rows, self._place, suffix

    def _begin_again(self, texts: RecentTexts) -> Span:
        """Returns the last tokens of the context, with which to find the place in texts that have grown."""
        if self._own_rows is not None:
            self._own_rows = texts.automaton.commonest.copy()
        if self._num_new_tokens or self._automaton() is not texts.automaton:
            self._place[:] = 0
            self._automaton = weakref.ref(texts.automaton)
        self._version, self._num_new_tokens = texts.version, 0
        address, num_written = self._written.buffer_info()
        num_suffix = min(num_written, MAX_MATCH_TOKENS)
        return address + self._written.itemsize * (num_written - num_suffix), num_suffix

    def _catch_up(self, suffix: Span) -> None:
        """Does to the place what kernels do that are told of the suffix, and moves it on by output."""
        automaton = self._history.texts.automaton
        if suffix is not NO_SPAN:
            automaton.find_again(self._place, self._newest(MAX_MATCH_TOKENS), MAX_MATCH_TOKENS)
        elif self._num_new_tokens:
            if self._num_new_tokens >= MAX_MATCH_TOKENS:
                self._place[:] = 0
            automaton.follow(self._place, self._newest(self._num_new_tokens), MAX_MATCH_TOKENS)
            self._num_new_tokens = 0

    def _newest(self, num_tokens: int) -> Tokens:
        return np.array(self._written[-min(num_tokens, MAX_MATCH_TOKENS) :], TOKEN)

    def _learn_output(self) -> None:
        output = self._written[self._num_learned :]
        del self._written[:-MAX_MATCH_TOKENS]
        self._num_learned = len(self._written)
        self._learn(output)

    def _learn(self, text: array[int]) -> None:
        tokens = np.frombuffer(text, TOKEN)
        for begin, end in pieces(0, tokens.shape[0]):
            with self._history.lock:
                if not self._history.is_released:
                    self._history.texts.extend(self._text, tokens[begin:end])


def _nothing() -> None:
    """Stands for a reference to an automaton that is gone."""
