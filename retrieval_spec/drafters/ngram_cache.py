"""Drafts a chain by llama.cpp's n-gram cache: the own text, earlier outputs and a corpus, in this order.

The session's own counts end with it; its output joins those of its namespace when it closes.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

import numpy as np

from retrieval_spec.datastore.segments import Place
from retrieval_spec.drafters.base import Budget
from retrieval_spec.drafters.columns import new_columns, tree_of
from retrieval_spec.drafters.namespaces import Namespaces, pieces
from retrieval_spec.drafters.ngram import count_corpus
from retrieval_spec.drafters.tail import Tail
from retrieval_spec.feedback import Feedback
from retrieval_spec.kernels.ngram_cache import STATIC_CONTEXT_TOKENS, draft_cached
from retrieval_spec.kernels.ngram_draft import scratch_words
from retrieval_spec.structures.ngram_table import NGramTable, Shape
from retrieval_spec.tree import DraftTree, Int32s, Tokens

_SHAPE = Shape(max_context_tokens=4)
_STATIC_SHAPE = Shape(STATIC_CONTEXT_TOKENS, STATIC_CONTEXT_TOKENS, max_kept=16)
_MAX_SESSION_CONTEXTS = 1 << 20


def _thresholds(min_samples: tuple[int, ...], min_percent: tuple[int, ...]) -> Int32s:
    """Returns int32[2, 4]  for contexts of 1 to 4 tokens."""
    return np.array([min_samples, min_percent], np.int32)


# How often a context must have occurred, and how large the share of its successor must be, in percent.
_LAX = _thresholds((2, 2, 1, 1), (66, 50, 50, 50))
_STRICT = _thresholds((4, 3, 2, 2), (75, 66, 66, 66))


@dataclass(frozen=True, eq=False)
class _Outputs:
    """Counts of one namespace's earlier outputs; whoever holds the lock may use them."""

    table: NGramTable = field(default_factory=lambda: NGramTable(_SHAPE))
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def num_bytes(self) -> int:
        """Bytes that it holds."""
        return self.table.num_bytes


class NGramCacheDrafter:
    """Counts of a corpus and of every namespace's outputs; safe to share between threads."""

    tokenizer_fingerprint: str  # of those that count a corpus; the ids of the others mean no text

    def __init__(self, max_nodes: int, static: NGramTable) -> None:
        self.namespaces = Namespaces(_Outputs)
        self.max_nodes = max_nodes
        self.static = static.arena

    @classmethod
    def open(cls, vocab_size: int, path: Place | None = None, max_nodes: int = 16) -> NGramCacheDrafter:
        """Returns the drafter, which counts the corpus of a datastore now.

        Args:
            vocab_size: token ids of the target model.
            path: a context array, for the static counts; none by default.
            max_nodes: tokens of a chain at most.

        Raises:
            DatastoreError, MissingPath: a datastore that cannot be used.
            TokenizerMismatch: it holds token ids that the target model does not have.
            InvalidRequest: a datastore of another kind.
        """
        if path is None:
            return cls(max_nodes, NGramTable(_STATIC_SHAPE))
        static, tokenizer_fingerprint = count_corpus(vocab_size, path, _STATIC_SHAPE)
        drafter = cls(max_nodes, static)
        drafter.tokenizer_fingerprint = tokenizer_fingerprint
        return drafter

    def start(self, context: Tokens, namespace: str = "default") -> NGramCacheCursor:
        """Returns a cursor that has counted `context`."""
        return NGramCacheCursor(self, self.namespaces.of(namespace), context)


class NGramCacheCursor:
    """One session's counts and its output so far; owned by that session, not thread-safe."""

    __slots__ = ("_drafter", "_outputs", "_scratch", "_table", "_tail", "_unlearned")

    def __init__(self, drafter: NGramCacheDrafter, outputs: _Outputs, context: Tokens) -> None:
        self._drafter, self._outputs = drafter, outputs
        self._scratch = np.empty(scratch_words(0), np.int64)
        self._table = NGramTable(_SHAPE, _MAX_SESSION_CONTEXTS)
        self._table.extend(context.copy())  # a read-only one would compile the kernel once more
        self._tail = Tail(_SHAPE.max_context_tokens)
        self._tail.append(context)
        self._unlearned = [self._tail.tokens.copy()]

    def observe(self, tokens: Tokens, feedback: Feedback | None = None) -> None:
        """Counts committed tokens after the contexts that they had; `feedback` is not used."""
        before = self._tail.tokens
        self._table.extend(np.concatenate((before, tokens)), before.shape[0])
        self._tail.append(tokens)
        self._unlearned.append(tokens.copy())

    def close(self) -> None:
        """Counts the session's output, after the contexts that it had, for the sessions that follow."""
        text = np.concatenate(self._unlearned)
        for begin, end in pieces(self._unlearned[0].shape[0], text.shape[0]):
            with self._outputs.lock:
                self._outputs.table.extend(text[:end], begin)
        self._unlearned = [self._tail.tokens.copy()]

    def propose(self, budget: Budget) -> DraftTree:
        """Returns the chain of those tokens that were frequent enough after their contexts."""
        max_nodes = min(budget.max_nodes, budget.max_depth_nodes, self._drafter.max_nodes)
        if max_nodes <= 0:
            return DraftTree.empty()
        columns = new_columns(max_nodes)
        own, dynamic = self._table, self._outputs.table
        with self._outputs.lock:
            size = draft_cached(
                own.arena,
                own.older,
                _LAX,
                dynamic.arena,
                dynamic.older,
                _STRICT,
                self._drafter.static,
                own.base,
                self._tail.tokens,
                self._scratch,
                *columns,
            )
        return tree_of(columns, size)
