"""Drafts from counted n-grams of everything that the sessions of a namespace wrote and were asked.

Learns while they write, so a session drafts from what others wrote before it; what a host takes back
stays learned, and counts again when it is written again. Bounded: what did not come back for some tens
of thousands of tokens is forgotten (`structures.ngram_table`).
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

import numpy as np

from retrieval_spec.datastore.segments import Place
from retrieval_spec.drafters.base import Budget
from retrieval_spec.drafters.bounds import expect_range
from retrieval_spec.drafters.columns import new_columns, tree_of, with_room
from retrieval_spec.drafters.corpus import open_array
from retrieval_spec.drafters.namespaces import Namespaces, pieces
from retrieval_spec.drafters.tail import Tail
from retrieval_spec.feedback import Feedback
from retrieval_spec.kernels.ngram_draft import draft, draft_chain, scratch_words
from retrieval_spec.structures.context_array import separator_of
from retrieval_spec.structures.ngram_table import (
    MAX_CONTEXTS,
    MAX_CORPUS_CONTEXTS,
    NGramTable,
    Shape,
    check_max_contexts,
)
from retrieval_spec.tree import DraftTree, Float32s, Tokens

_MAX_COUNT_BITS = 7

# P(the next token is among those that followed the context) = sigmoid(a + b log2(length) + c log2(count)
# + d if no longer context is counted), fitted on recorded outputs of 13 kinds of text: what matches as
# far as is counted often matches much further.
_FITTED = (
    (-0.6, 0.51, 0.32, 1.7),  # one successor
    (-0.9, 0.12, 0.19, 1.5),  # more than one
    (-1.6, 0.0, 0.21, 0.0),  # those that only a shorter context has, the longer one's being wrong
)


def _worth_table(max_context_tokens: int) -> Float32s:
    """Returns float32[kinds, context lengths, bits of the count], what `kernels.ngram_draft` multiplies."""
    lengths = np.maximum(np.arange(max_context_tokens + 1), 1)[:, None]
    bits = np.arange(_MAX_COUNT_BITS + 1)[None, :]
    is_longest = lengths == max_context_tokens
    return np.stack(
        [1 / (1 + np.exp(-(a + b * np.log2(lengths) + c * bits + d * is_longest))) for a, b, c, d in _FITTED]
    ).astype(np.float32)


@dataclass(frozen=True, slots=True)
class Chain:
    """Drafts one chain: at every token the most frequent successor of the longest known context.

    Attributes:
        max_nodes: tokens of the chain at most.
    """

    max_nodes: int

    def __post_init__(self) -> None:
        expect_range("max_nodes", self.max_nodes, 1)


@dataclass(frozen=True, eq=False)
class _Learned:
    """One namespace's counts; whoever holds the lock may use them."""

    table: NGramTable
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def num_bytes(self) -> int:
        """Bytes that it holds."""
        return self.table.num_bytes


def count_corpus(vocab_size: int, path: Place, shape: Shape) -> tuple[NGramTable, str]:
    """Returns the counts of a datastore's corpus, and its tokenizer's fingerprint.

    Raises:
        DatastoreError, MissingPath: a datastore that cannot be used.
        TokenizerMismatch: it holds token ids that the target model does not have.
        InvalidRequest: a shape out of range, or a datastore of another kind.
    """
    array, tokenizer_fingerprint = open_array(vocab_size, path)
    table = NGramTable(shape, MAX_CORPUS_CONTEXTS)
    table.extend_documents(array.tokens, separator_of(array.tokens.dtype))
    return table, tokenizer_fingerprint


class NGramDrafter:
    """N-gram counts of every namespace, shared by its sessions; safe to share between threads."""

    tokenizer_fingerprint: str  # of those that count a corpus; the ids of the others mean no text

    def __init__(self, max_order: int, max_contexts: int, base: NGramTable | None, chain: Chain | None):
        shape = Shape(max_order - 1).check()
        self.namespaces = Namespaces(lambda: _Learned(NGramTable(shape, max_contexts, base)))
        self.chain = chain
        self.max_context_tokens = shape.max_context_tokens
        self.worth = _worth_table(shape.max_context_tokens)

    @classmethod
    def open(
        cls,
        vocab_size: int,
        path: Place | None = None,
        max_order: int = 5,
        max_contexts: int = MAX_CONTEXTS,
        chain: Chain | None = None,
    ) -> NGramDrafter:
        """Returns the drafter; the corpus of a datastore is counted now, all else while sessions write.

        Args:
            vocab_size: token ids of the target model.
            path: a context array, whose corpus every namespace starts from; none by default.
            max_order: tokens of the longest n-grams, from 2.
            max_contexts: contexts of one generation (`structures.ngram_table`), for each namespace.
            chain: drafts chains; trees by default.

        Raises:
            DatastoreError, MissingPath: a datastore that cannot be used.
            TokenizerMismatch: it holds token ids that the target model does not have.
            InvalidRequest: an order or a number of contexts out of range, or a datastore of another kind.
        """
        check_max_contexts(max_contexts)  # before a corpus is counted or a session is opened
        if path is None:
            return cls(max_order, max_contexts, None, chain)
        base, tokenizer_fingerprint = count_corpus(vocab_size, path, Shape(max_order - 1))
        drafter = cls(max_order, max_contexts, base, chain)
        drafter.tokenizer_fingerprint = tokenizer_fingerprint
        return drafter

    def start(self, context: Tokens, namespace: str = "default") -> NGramCursor:
        """Returns a cursor that has learned `context`."""
        return NGramCursor(self, self.namespaces.of(namespace), context)


class NGramCursor:
    """One session's last tokens and its namespace's counts; owned by that session, not thread-safe."""

    __slots__ = ("_chain", "_learned", "_max_context_tokens", "_scratch", "_tail", "_worth")

    def __init__(self, drafter: NGramDrafter, learned: _Learned, context: Tokens) -> None:
        self._chain, self._worth = drafter.chain, drafter.worth
        self._learned = learned
        self._max_context_tokens = drafter.max_context_tokens
        self._scratch = np.empty(scratch_words(0), np.int64)
        self._tail = Tail(self._max_context_tokens)
        self.observe(context)

    def observe(self, tokens: Tokens, feedback: Feedback | None = None) -> None:
        """Learns committed tokens after the contexts that they had; `feedback` is not used."""
        before = self._tail.tokens
        text = np.concatenate((before, tokens))
        for begin, end in pieces(before.shape[0], text.shape[0]):
            with self._learned.lock:
                self._learned.table.extend(text[:end], begin)
        self._tail.append(tokens)

    def close(self) -> None:
        """Does nothing: all was learned when it was committed."""

    def propose(self, budget: Budget) -> DraftTree:
        """Returns what followed the last tokens most often, in this session and others of its namespace."""
        if budget.max_nodes <= 0:
            return DraftTree.empty()
        if self._chain is not None:
            return self._drafted_chain(min(budget.max_nodes, budget.max_depth_nodes, self._chain.max_nodes))
        return self._drafted_tree(budget)

    def _drafted_tree(self, budget: Budget) -> DraftTree:
        max_nodes = budget.max_nodes
        self._scratch = with_room(self._scratch, scratch_words(max_nodes))
        columns = new_columns(max_nodes)
        table, context = self._learned.table, self._tail.tokens
        with self._learned.lock:
            size = draft(
                table.arena,
                table.older,
                table.base,
                self._worth,
                context,
                budget.max_depth_nodes,
                self._scratch,
                *columns,
            )
        return tree_of(columns, size)

    def _drafted_chain(self, max_nodes: int) -> DraftTree:
        columns = new_columns(max_nodes)
        table, context = self._learned.table, self._tail.tokens
        with self._learned.lock:
            size = draft_chain(table.arena, table.older, table.base, context, self._scratch, *columns)
        return tree_of(columns, size)
