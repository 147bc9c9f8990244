"""Drafts the phrases that are most common in a namespace's earlier outputs after the last token.

Hierarchy Drafting's model database (arXiv 2502.05609), learned from the outputs of finished sessions.
"""

from __future__ import annotations

import threading
from collections import OrderedDict

import numpy as np

from retrieval_spec.drafters.base import Budget
from retrieval_spec.drafters.bounds import expect_range
from retrieval_spec.drafters.namespaces import Namespaces, pieces
from retrieval_spec.drafters.phrase_pool import phrases_bytes
from retrieval_spec.drafters.rows import Row, survival, tree_of_rows
from retrieval_spec.feedback import Feedback
from retrieval_spec.tree import DraftTree, Tokens

MAX_KEYS = 65_536
"""Tokens that a namespace remembers phrases of; the one unused longest is forgotten first."""
MAX_COUNTED = 32
"""Phrases that are counted of one token; the least common one is forgotten, the oldest of equals."""
MAX_LEARNED_TOKENS = 16_384
"""Newest tokens of an output that are learned: the time to close a session is bounded."""
MAX_PHRASE_TOKENS = 16

_WORTH = 0.36
_SURVIVAL = survival((0.41, 0.48, 0.64, 0.72))


class PhraseCounts:
    """How often which phrase followed a token. Safe to share between threads."""

    __slots__ = ("__weakref__", "_by_token", "_lock", "_num_phrases")

    def __init__(self) -> None:
        self._by_token: OrderedDict[int, dict[Row, int]] = OrderedDict()
        self._lock = threading.Lock()
        self._num_phrases = 0

    @property
    def num_bytes(self) -> int:
        """Bytes that it holds, estimated."""
        return phrases_bytes(len(self._by_token), self._num_phrases)

    def learn(self, output: list[int], phrase_tokens: int) -> None:
        """Counts every phrase of a text, the last one too."""
        for begin, end in pieces(1, len(output) - phrase_tokens + 1):
            with self._lock:
                for start in range(begin, end):
                    self._count(output[start - 1], tuple(output[start : start + phrase_tokens]))

    def commonest(self, token: int, max_phrases: int) -> list[Row]:
        """Returns what followed a token most often, equally common phrases by token ids."""
        with self._lock:
            counts = list(self._by_token.get(token, {}).items())
        counts.sort(key=lambda counted: (-counted[1], counted[0]))
        return [phrase for phrase, _ in counts[:max_phrases]]

    def _count(self, token: int, phrase: Row) -> None:
        counts = self._by_token.setdefault(token, {})
        self._by_token.move_to_end(token)
        num_before = len(counts)
        counts[phrase] = counts.get(phrase, 0) + 1
        if len(counts) > MAX_COUNTED:
            del counts[min(counts, key=counts.__getitem__)]
        self._num_phrases += len(counts) - num_before
        if len(self._by_token) > MAX_KEYS:
            self._num_phrases -= len(self._by_token.popitem(last=False)[1])


class FrequentDrafter:
    """Counts of phrases, kept apart by namespace; safe to share between threads."""

    def __init__(self, phrase_tokens: int, max_phrases: int) -> None:
        self._phrase_tokens = phrase_tokens
        self._max_phrases = max_phrases
        self.namespaces = Namespaces(PhraseCounts)

    @classmethod
    def open(cls, vocab_size: int, phrase_tokens: int = 4, max_phrases: int = 7) -> FrequentDrafter:
        """Returns the drafter; any vocabulary will do, since phrases hold ids that were seen.

        Raises:
            InvalidRequest: a number out of range.
        """
        expect_range("phrase_tokens", phrase_tokens, 1, MAX_PHRASE_TOKENS)
        expect_range("max_phrases", max_phrases, 1, MAX_COUNTED)
        return cls(phrase_tokens, max_phrases)

    def start(self, context: Tokens, namespace: str = "default") -> FrequentCursor:
        """Returns a cursor after the prompt `context`, which is not learned."""
        return FrequentCursor(self.namespaces.of(namespace), self._phrase_tokens, self._max_phrases, context)


class FrequentCursor:
    """One session's output so far. Owned by that session, not thread-safe."""

    __slots__ = ("_counts", "_last", "_max_phrases", "_outputs", "_phrase_tokens")

    def __init__(self, counts: PhraseCounts, phrase_tokens: int, max_phrases: int, context: Tokens) -> None:
        self._counts = counts
        self._phrase_tokens = phrase_tokens
        self._max_phrases = max_phrases
        self._outputs: list[Tokens] = []
        self._last = context[-1:].tolist()

    def observe(self, tokens: Tokens, feedback: Feedback | None = None) -> None:
        """Keeps the output for the end of the session; `feedback` is not used."""
        self._outputs.append(tokens.copy())
        self._last = tokens[-1:].tolist() or self._last

    def close(self) -> None:
        """Counts the phrases of the output."""
        if self._outputs:
            output = np.concatenate(self._outputs)[-MAX_LEARNED_TOKENS:]
            self._counts.learn(output.tolist(), self._phrase_tokens)
            self._outputs = []

    def propose(self, budget: Budget) -> DraftTree:
        """Returns the commonest phrases after the last token, the most common ones as the most probable."""
        if budget.max_nodes <= 0 or not self._last:
            return DraftTree.empty()
        rows = self._counts.commonest(self._last[0], self._max_phrases)
        return tree_of_rows(rows, _WORTH, _SURVIVAL, budget)
