"""Drafts from a corpus: what followed the longest matching contexts in a datastore.

A corpus never changes, so a cursor is only the last tokens of the context; so it goes on over another one.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import Protocol

import numpy as np

from retrieval_spec.datastore.manifest import CORPUS_KIND, TRANSLATE
from retrieval_spec.datastore.segments import Place, Segments, open_segments
from retrieval_spec.datastore.store import Datastore
from retrieval_spec.drafters.base import Budget, Cursor, own_source
from retrieval_spec.drafters.tail import Tail
from retrieval_spec.errors import InvalidRequest, TokenizerMismatch
from retrieval_spec.feedback import Feedback
from retrieval_spec.structures.context_array import ContextArray
from retrieval_spec.structures.context_arrays import ContextArrays, new_scratch
from retrieval_spec.tree import TOKEN, DraftTree, Tokens


class Rule(Protocol):
    """How a published system reads drafts off a corpus: a frozen dataclass of its parameters."""

    def start(self, array: ContextArray, context: Tokens) -> Cursor:
        """Returns a cursor that has observed `context`."""
        ...


def open_arrays(vocab_size: int, path: Place) -> tuple[ContextArrays, str]:
    """Returns the corpus of a datastore, mapped from disk, and its tokenizer's fingerprint.

    Raises:
        DatastoreError: the datastore is damaged, of another format, or of another kind.
        TokenizerMismatch: it holds token ids that the target model does not have.
    """
    segments = open_segments(path)
    return _arrays_of(vocab_size, segments, segments.stores)


def _arrays_of(vocab_size: int, segments: Segments, stores: Sequence[Datastore]) -> tuple[ContextArrays, str]:
    manifest, path = segments.manifest, segments.path
    if manifest.kind != CORPUS_KIND:
        raise InvalidRequest(f"datastore {path} is of another kind", got=manifest.kind, expected=CORPUS_KIND)
    arrays = ContextArrays(
        [
            ContextArray.from_columns(store.columns, depth_tokens=store.manifest.depth_tokens)
            for store in stores
        ]
    )
    needed = max(manifest.vocab_size, arrays.num_ids)
    if needed > vocab_size:
        raise TokenizerMismatch(
            f"datastore {path} was built for a larger vocabulary",
            got=f"{needed} token ids",
            expected=f"at most {vocab_size}",
            remedy=TRANSLATE,
        )
    return arrays, manifest.tokenizer.fingerprint


def open_array(vocab_size: int, path: Place) -> tuple[ContextArray, str]:
    """Does as `open_arrays` for sources that read one segment.

    Raises:
        InvalidRequest: the datastore has several.
        RetrievalSpecError: as `open_arrays`.
    """
    segments = open_segments(path)
    if segments.manifest.pruned_ngram_tokens:
        raise InvalidRequest(
            f"datastore {segments.path} is pruned, and this source counts how often what follows",
            remedy="build it without --prune, or draft with the source `corpus`",
        )
    arrays, tokenizer_fingerprint = _arrays_of(vocab_size, segments, [segments.only])
    return arrays.arrays[0], tokenizer_fingerprint


class CorpusDrafter:
    """A corpus as a source of drafts, shared by all sessions and threads.

    Attributes:
        corpus: what is drafted from now; immutable itself.
        rule: a published system's way to draft from it; None for ours.
    """

    def __init__(
        self,
        corpus: ContextArray | ContextArrays,
        tokenizer_fingerprint: str = "",
        rule: Rule | None = None,
    ) -> None:
        assert rule is None or isinstance(corpus, ContextArray), "rules read one segment"
        self.corpus = corpus
        self.rule = rule
        self.tokenizer_fingerprint = tokenizer_fingerprint

    @classmethod
    def open(cls, vocab_size: int, path: Place, rule: Rule | None = None) -> CorpusDrafter:
        """Opens a datastore; the corpus stays on disk, mapped, and is shared between processes.

        Args:
            vocab_size: of the target model.
            path: the datastore's folder.
            rule: a published system's way to draft from it; ours by default.

        Raises:
            DatastoreError: the datastore is damaged, of another format, or of another kind.
            InvalidRequest: it has several segments, and the rule reads one.
            TokenizerMismatch: it holds token ids that the target model does not have.
        """
        if rule is None:
            corpus, tokenizer_fingerprint = open_arrays(vocab_size, path)
            return cls(corpus.arrays[0] if len(corpus.arrays) == 1 else corpus, tokenizer_fingerprint)
        return cls(*open_array(vocab_size, path), rule)

    def start(self, context: Tokens, namespace: str = "default") -> Cursor:
        """Returns a cursor that has observed `context`."""
        if self.rule is None:
            return CorpusCursor(self, context)
        assert isinstance(self.corpus, ContextArray)
        return self.rule.start(self.corpus, context)

    @property
    def searchable(self) -> ContextArray | None:
        """What a kernel needs to do as a cursor's `propose` does; None if cursors have to be asked."""
        return self.corpus if isinstance(self.corpus, ContextArray) else None

    def take_up(self, fresh: CorpusDrafter) -> None:
        """Drafts from another drafter's corpus; open sessions of a published rule end with the old one."""
        self.corpus, self.tokenizer_fingerprint = fresh.corpus, fresh.tokenizer_fingerprint

    def let_go(self) -> None:
        """Drafts nothing, until something is taken up."""
        self.corpus = ContextArray.build(np.zeros(0, TOKEN))


class CorpusCursor:
    """One session's position in a corpus: its last tokens. Owned by that session, not thread-safe.

    Holds no corpus, so that one that was replaced is released at once.
    """

    __slots__ = ("_scratch", "_tail", "corpus_source")

    def __init__(self, drafter: CorpusDrafter, context: Tokens) -> None:
        self.corpus_source = drafter
        self._scratch = new_scratch()
        self._tail = Tail(drafter.corpus.depth_tokens)
        self._tail.append(context)

    def observe(self, tokens: Tokens, feedback: Feedback | None = None) -> None:
        """Keeps the newest tokens; a prompt of any length costs the same."""
        self._tail.append(tokens)

    def trial(self) -> CorpusCursor:
        """Returns a cursor whose moves show nowhere else."""
        trial = copy(self)
        trial._tail = self._tail.copy()
        return trial

    def close(self) -> None:
        """Does nothing: the corpus never changes."""

    def propose(self, budget: Budget) -> DraftTree:
        """Returns the most probable continuations of the nearest occurrences; no match, no nodes."""
        context = self._tail.tokens
        if budget.max_nodes <= 0 or not context.shape[0]:
            return DraftTree.empty()
        token_ids, parents, probs = self.corpus_source.corpus.draft(
            context, budget.max_nodes, budget.max_depth_nodes, self._scratch
        )
        return DraftTree(token_ids, parents, probs, own_source(token_ids.shape[0]))
