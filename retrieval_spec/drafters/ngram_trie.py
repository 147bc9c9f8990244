"""Drafts from a trie of every n-gram that the namespace's sessions write, as SGLang's NGRAM does.

All suffixes of the context add to one tree, the longest first. What is learned are the n-grams that end in
an output; the first ones reach back into its prompt, of which no more is learned.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Literal

import numpy as np

from retrieval_spec.drafters.base import Budget, own_source
from retrieval_spec.drafters.namespaces import Namespaces
from retrieval_spec.drafters.tail import Tail
from retrieval_spec.errors import InvalidRequest
from retrieval_spec.feedback import Feedback
from retrieval_spec.kernels.trie_draft import draft_frequent, draft_newest, scratch_words
from retrieval_spec.structures.recency_trie import RecencyTrie
from retrieval_spec.tree import DraftTree, Float32s, Int32s, Tokens

MIN_TRIE_NODES = 1_024
_PATH_PROB = 0.99
"""The trie knows no probabilities: each node of a draft is a little less probable than the one before."""


@dataclass(frozen=True, slots=True)
class SuffixTrie:
    """How SGLang's NGRAM drafts.

    Attributes:
        max_length_tokens: of the n-grams that are kept.
        min_breadth: children followed in recency order below the longest suffix, at least.
        max_breadth: children followed below the shortest suffix, at most.
        order: level by level, newest first (BFS), or by shares of frequency (PROB).
    """

    max_length_tokens: int = 18
    min_breadth: int = 1
    max_breadth: int = 10
    order: Literal["recency", "frequency"] = "recency"


class NGramTrieDrafter:
    """One trie a namespace, learned while outputs are written; safe to share between threads.

    An output that is written again after a truncation counts again.
    """

    def __init__(self, rule: SuffixTrie, max_trie_nodes: int) -> None:
        self._rule = rule
        self.namespaces = Namespaces(lambda: _SharedTrie(max_trie_nodes))

    @classmethod
    def open(
        cls, vocab_size: int, rule: SuffixTrie | None = None, max_trie_nodes: int = 1_000_000
    ) -> NGramTrieDrafter:
        """Returns a drafter that knows nothing yet; a node of the trie takes 40 to 48 bytes.

        Raises:
            InvalidRequest: a trie too small for the n-grams of one step.
        """
        if max_trie_nodes < MIN_TRIE_NODES:
            raise InvalidRequest(
                "too small a trie", got=max_trie_nodes, expected=f">= {MIN_TRIE_NODES} nodes"
            )
        return cls(rule or SuffixTrie(), max_trie_nodes)

    def start(self, context: Tokens, namespace: str = "default") -> NGramTrieCursor:
        """Returns a cursor that has observed `context`; of that, only what output follows soon is learned."""
        return NGramTrieCursor(self._rule, self.namespaces.of(namespace), context)


class _SharedTrie:
    """What one namespace wrote; whoever uses `trie` holds `lock`."""

    def __init__(self, max_nodes: int) -> None:
        self.lock = threading.Lock()
        self.trie = RecencyTrie(max_nodes)

    @property
    def num_bytes(self) -> int:
        """Bytes that it holds."""
        return int(self.trie.arena.nbytes)


class NGramTrieCursor:
    """One session's last tokens; owned by that session, not thread-safe."""

    __slots__ = ("_rule", "_scratch", "_shared", "_tail")

    def __init__(self, rule: SuffixTrie, shared: _SharedTrie, context: Tokens) -> None:
        self._rule = rule
        self._shared = shared
        self._scratch = np.empty(0, np.int64)
        self._tail = Tail(rule.max_length_tokens)
        self._tail.append(context)

    def observe(self, tokens: Tokens, feedback: Feedback | None = None) -> None:
        """Adds output that other sessions draft from at once; `feedback` is not used."""
        for at in range(tokens.shape[0]):
            self._tail.append(tokens[at : at + 1])
            with self._shared.lock:
                self._shared.trie.add_suffixes(self._tail.tokens)

    def close(self) -> None:
        """Does nothing: the output is learned already."""

    def propose(self, budget: Budget) -> DraftTree:
        """Returns continuations of all suffixes of the context, those of the longest first."""
        max_nodes = budget.max_nodes
        if max_nodes <= 0:
            return DraftTree.empty()
        num_words = scratch_words(max_nodes, self._rule.max_breadth)
        if self._scratch.shape[0] < num_words:
            self._scratch = np.empty(num_words, np.int64)
        token_ids, parents = np.empty(max_nodes, np.int32), np.empty(max_nodes, np.int32)
        size = self._draft(budget.max_depth_nodes, token_ids, parents)
        parents = parents[:size]
        return DraftTree(token_ids[:size], parents, _probs_by_rank(parents), own_source(size))

    def _draft(self, max_depth: int, token_ids: Tokens, parents: Int32s) -> int:
        rule, context = self._rule, self._tail.tokens
        longest, widest = rule.max_length_tokens, rule.max_breadth
        out = (max_depth, self._scratch, token_ids, parents)
        with self._shared.lock:
            arena = self._shared.trie.arena
            if rule.order == "recency":
                return int(draft_newest(arena, context, longest, rule.min_breadth, widest, *out))
            return int(draft_frequent(arena, context, longest, widest, *out))


def _probs_by_rank(parents: Int32s) -> Float32s:
    """Returns probabilities under which the nodes stand best first."""
    ranks = np.arange(parents.shape[0])
    probs: Float32s = (_PATH_PROB ** (ranks - parents)).astype(np.float32)
    return probs
