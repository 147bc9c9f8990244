"""Drafts from a corpus: what followed the longest matching contexts in a datastore.

The corpus never changes, so a cursor is only the last tokens of the context.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from retrieval_spec.datastore.manifest import TRANSLATE
from retrieval_spec.datastore.store import open_datastore
from retrieval_spec.drafters.base import Budget, Cursor, own_source
from retrieval_spec.drafters.tail import Tail
from retrieval_spec.errors import InvalidRequest, TokenizerMismatch
from retrieval_spec.feedback import Feedback
from retrieval_spec.structures.context_array import ContextArray, new_scratch
from retrieval_spec.tree import DraftTree, Tokens

KIND = "context_array"


class Rule(Protocol):
    """How a published system reads drafts off a corpus: a frozen dataclass of its parameters."""

    def start(self, array: ContextArray, context: Tokens) -> Cursor:
        """Returns a cursor that has observed `context`."""
        ...


def open_array(vocab_size: int, path: str | Path) -> tuple[ContextArray, str]:
    """Returns the corpus of a datastore, mapped from disk, and its tokenizer's fingerprint.

    Raises:
        DatastoreError: the datastore is damaged, of another format, or of another kind.
        TokenizerMismatch: it holds token ids that the target model does not have.
    """
    datastore = open_datastore(path)
    manifest = datastore.manifest
    if manifest.kind != KIND:
        raise InvalidRequest(f"datastore {path} is of another kind", got=manifest.kind, expected=KIND)
    array = ContextArray.from_columns(datastore.columns, depth_tokens=manifest.depth_tokens)
    needed = max(manifest.vocab_size, array.num_ids)
    if needed > vocab_size:
        raise TokenizerMismatch(
            f"datastore {path} was built for a larger vocabulary",
            got=f"{needed} token ids",
            expected=f"at most {vocab_size}",
            remedy=TRANSLATE,
        )
    return array, manifest.tokenizer.fingerprint


class CorpusDrafter:
    """One context array as a source of drafts; immutable, shared by all sessions and threads."""

    def __init__(
        self, array: ContextArray, tokenizer_fingerprint: str = "", rule: Rule | None = None
    ) -> None:
        self._array = array
        self._rule = rule
        self.tokenizer_fingerprint = tokenizer_fingerprint

    @classmethod
    def open(cls, vocab_size: int, path: str | Path, rule: Rule | None = None) -> CorpusDrafter:
        """Opens a datastore; the corpus stays on disk, mapped, and is shared between processes.

        Args:
            vocab_size: of the target model.
            path: the datastore's folder.
            rule: a published system's way to draft from it; ours by default.

        Raises:
            DatastoreError: the datastore is damaged, of another format, or of another kind.
            TokenizerMismatch: it holds token ids that the target model does not have.
        """
        array, tokenizer_fingerprint = open_array(vocab_size, path)
        return cls(array, tokenizer_fingerprint, rule)

    def start(self, context: Tokens, namespace: str = "default") -> Cursor:
        """Returns a cursor that has observed `context`."""
        if self._rule is not None:
            return self._rule.start(self._array, context)
        return CorpusCursor(self._array, context)


class CorpusCursor:
    """One session's position in a corpus: its last tokens. Owned by that session, not thread-safe."""

    __slots__ = ("_array", "_scratch", "_tail")

    def __init__(self, array: ContextArray, context: Tokens) -> None:
        self._array = array
        self._scratch = new_scratch()
        self._tail = Tail(array.depth_tokens)
        self._tail.append(context)

    def observe(self, tokens: Tokens, feedback: Feedback | None = None) -> None:
        """Keeps the newest tokens; a prompt of any length costs the same."""
        self._tail.append(tokens)

    def close(self) -> None:
        """Does nothing: the corpus never changes."""

    def propose(self, budget: Budget) -> DraftTree:
        """Returns the most probable continuations of the nearest occurrences; no match, no nodes."""
        context = self._tail.tokens
        if budget.max_nodes <= 0 or not context.shape[0]:
            return DraftTree.empty()
        token_ids, parents, probs = self._array.draft(
            context, budget.max_nodes, budget.max_depth_nodes, self._scratch
        )
        return DraftTree(token_ids, parents, probs, own_source(token_ids.shape[0]))
