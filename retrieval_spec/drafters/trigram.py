"""Drafts from trigrams by ADED's store: those of a corpus, and additions for the text of each namespace.

The corpus is never changed: what a namespace adds is kept beside it.
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
from retrieval_spec.kernels.trigram_draft import MAX_NODES, MAX_SUCCESSORS, SCRATCH_WORDS, draft
from retrieval_spec.structures.ngram_table import NGramTable, Shape
from retrieval_spec.tree import DraftTree, Tokens

WINDOW_TOKENS = 16
"""Newest tokens whose trigrams are added to, at every token."""

_CONTEXT_TOKENS = 2
_SHAPE = Shape(_CONTEXT_TOKENS, _CONTEXT_TOKENS, MAX_SUCCESSORS)


@dataclass(frozen=True, eq=False)
class _Additions:
    """How often each trigram of one namespace was added to; whoever holds the lock may use them."""

    table: NGramTable = field(default_factory=lambda: NGramTable(_SHAPE))
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def num_bytes(self) -> int:
        """Bytes that it holds."""
        return self.table.num_bytes


class TrigramDrafter:
    """Trigrams of a corpus, and what every namespace adds; safe to share between threads."""

    tokenizer_fingerprint: str  # of those that count a corpus; the ids of the others mean no text

    def __init__(self, static: NGramTable) -> None:
        self.namespaces = Namespaces(_Additions)
        self.static = static.arena

    @classmethod
    def open(cls, vocab_size: int, path: Place | None = None) -> TrigramDrafter:
        """Returns the drafter, which counts the corpus of a datastore now.

        Args:
            vocab_size: token ids of the target model.
            path: a context array; without one there are additions alone.

        Raises:
            DatastoreError, MissingPath: a datastore that cannot be used.
            TokenizerMismatch: it holds token ids that the target model does not have.
            InvalidRequest: a datastore of another kind.
        """
        if path is None:
            return cls(NGramTable(_SHAPE))
        static, tokenizer_fingerprint = count_corpus(vocab_size, path, _SHAPE)
        drafter = cls(static)
        drafter.tokenizer_fingerprint = tokenizer_fingerprint
        return drafter

    def start(self, context: Tokens, namespace: str = "default") -> TrigramCursor:
        """Returns a cursor that has added for the end of `context`, as for a search."""
        return TrigramCursor(self, self.namespaces.of(namespace), context)


class TrigramCursor:
    """One session's last tokens and its namespace's additions; owned by that session, not thread-safe."""

    __slots__ = ("_additions", "_scratch", "_static", "_tail")

    def __init__(self, drafter: TrigramDrafter, additions: _Additions, context: Tokens) -> None:
        self._static, self._additions = drafter.static, additions
        self._scratch = np.empty(SCRATCH_WORDS, np.int64)
        self._tail = Tail(WINDOW_TOKENS)
        self._tail.append(context)
        with additions.lock:
            additions.table.extend(self._tail.tokens, _CONTEXT_TOKENS)

    def observe(self, tokens: Tokens, feedback: Feedback | None = None) -> None:
        """Adds for the newest tokens, once for every committed one; `feedback` is not used."""
        for begin, end in pieces(0, tokens.shape[0]):
            with self._additions.lock:
                for at in range(begin, end):
                    self._tail.append(tokens[at : at + 1])
                    self._additions.table.extend(self._tail.tokens, _CONTEXT_TOKENS)

    def close(self) -> None:
        """Does nothing: all was added when it was committed."""

    def propose(self, budget: Budget) -> DraftTree:
        """Returns the most probable paths over trigrams."""
        max_nodes = min(budget.max_nodes, MAX_NODES)
        if max_nodes <= 0:
            return DraftTree.empty()
        columns = new_columns(max_nodes)
        table = self._additions.table
        with self._additions.lock:
            size = draft(
                self._static,
                table.arena,
                table.older,
                self._tail.tokens,
                budget.max_depth_nodes,
                self._scratch,
                *columns,
            )
        return tree_of(columns, size)
