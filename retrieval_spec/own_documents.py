"""Replays over a corpus that holds what is replayed: no output is drafted from the documents that hold it.

Exact for the source `corpus`: what it drafts is what it would draft had the documents never been there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from retrieval_spec.corpus_stats import Part, open_parts
from retrieval_spec.datastore.segments import Segments, open_segments
from retrieval_spec.drafters.base import Budget, Drafter
from retrieval_spec.drafters.corpus import CorpusCursor, CorpusDrafter
from retrieval_spec.drafters.opening import name_of
from retrieval_spec.errors import InvalidRequest
from retrieval_spec.leave_one_out import Window
from retrieval_spec.structures.context_arrays import ContextArrays
from retrieval_spec.tree import DraftTree, Tokens

EDGE_TOKENS = 4
"""The first and last tokens of a text may be others where something stands before or after it."""
_LONG_TOKENS = 32


def own_documents(part: Part, output: Tokens) -> NDArray[np.int64]:
    """Returns the documents that hold an output, alone or within, rising; of a long one all but its edges."""
    sought = output[EDGE_TOKENS:-EDGE_TOKENS] if output.shape[0] >= _LONG_TOKENS else output
    array = part.array
    if not sought.shape[0] or int(sought.max()) >= array.num_ids:
        return np.zeros(0, np.int64)
    by_rarity = np.argsort(array.buckets[sought + 1] - array.buckets[sought], kind="stable")
    rarest = int(by_rarity[0])
    first, last = array.buckets[sought[rarest]], array.buckets[sought[rarest] + 1]
    begins = array.positions[first:last].astype(np.int64) - 1 - rarest
    begins = begins[(begins >= 0) & (begins + sought.shape[0] <= array.tokens.shape[0])]
    for offset in by_rarity[1:].tolist():
        if not begins.shape[0]:
            break
        begins = begins[array.tokens[begins + offset] == sought[offset]]
    return np.unique(np.searchsorted(part.starts, begins, side="right") - 1)


class OthersCorpus(CorpusDrafter):
    """The corpus of a datastore as a source for one replay, used by one thread: one session at a time."""

    def __init__(self, parts: Sequence[Part], tokenizer_fingerprint: str) -> None:
        self._parts = parts
        self._windows = [Window(part) for part in parts]
        arrays = [window.array for window in self._windows]
        super().__init__(arrays[0] if len(arrays) == 1 else ContextArrays(arrays), tokenizer_fingerprint)

    def leave_out(self, output: Tokens) -> None:
        """Drafts from here on from all documents but those that hold an output; before a session opens."""
        for part, window in zip(self._parts, self._windows, strict=True):
            window.leave_out_documents(own_documents(part, output))

    @property
    def searchable(self) -> None:
        """Nothing: each draft is from another part of the corpus, so that cursors have to be asked."""

    def start(self, context: Tokens, namespace: str = "default") -> CorpusCursor:
        """Returns a cursor that has observed `context`."""
        return _OthersCursor(self, context)

    def move(self, context: Tokens) -> None:
        """Looks at what stands near a context; before each draft."""
        if context.shape[0]:
            for window in self._windows:
                window.move(context)


class _OthersCursor(CorpusCursor):
    """Shows the drafter where the context is before anybody drafts from it."""

    __slots__ = ("_others",)

    def __init__(self, drafter: OthersCorpus, context: Tokens) -> None:
        super().__init__(drafter, context)
        self._others = drafter

    def propose(self, budget: Budget) -> DraftTree:
        self._others.move(self._tail.tokens)
        return super().propose(budget)


def without_own(drafters: Mapping[str, Drafter], datastores: Sequence[str]) -> dict[str, OthersCorpus]:
    """Returns what takes the place of an engine's sources that draft from datastores, by their names.

    Raises:
        InvalidRequest: one of them is not the source `corpus`, follows a published rule, or is pruned.
        DatastoreError, MissingPath: a datastore that cannot be used.
    """
    stores = {name_of(store): store for store in map(open_segments, datastores)}
    others = {}
    for name, drafter in drafters.items():
        _, is_of_a_store, folder = name.partition(":")
        if is_of_a_store:
            others[name] = _others(name, drafter, stores[folder])
    return others


def _others(name: str, drafter: Drafter, store: Segments) -> OthersCorpus:
    if not isinstance(drafter, CorpusDrafter) or drafter.rule is not None:
        raise InvalidRequest(
            "a source that cannot leave documents out",
            got=name,
            expected="corpus, as the default preset reads it",
            remedy="build a datastore without the outputs",
        )
    if store.manifest.pruned_ngram_tokens:
        raise InvalidRequest(
            f"datastore {store.path} is pruned: of what came often only some places are left",
            remedy="build it without --prune, or without the outputs",
        )
    return OthersCorpus(open_parts(store.stores), drafter.tokenizer_fingerprint)
