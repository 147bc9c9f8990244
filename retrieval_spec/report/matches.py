"""Where a datastore has a token, and how long a run before it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from retrieval_spec.datastore.documents import Documents, shown_id
from retrieval_spec.datastore.manifest import CORPUS_KIND
from retrieval_spec.datastore.segments import Segments
from retrieval_spec.drafters.opening import STORE_KINDS, name_of
from retrieval_spec.structures.context_array import ContextArray
from retrieval_spec.tree import TOKEN, Tokens


class CorpusMatch(NamedTuple):
    """A document that has a token, and the longest run before it that a datastore has.

    Attributes:
        num_tokens: of the run, without the token; as far as the datastore is sorted.
        document: the file that it came from, or the document's id.
    """

    num_tokens: int
    document: str


class _Segment:
    """One segment of a datastore, as an index and as documents."""

    def __init__(self, columns: Any, depth_tokens: int) -> None:
        self.array = ContextArray.from_columns(columns, depth_tokens=depth_tokens)
        self._starts = columns["documents"]
        # Of an older store, ids would have to be made first.
        self._documents = Documents.from_columns(columns) if "ids" in columns else None

    def longest(self, before: Tokens, token: int) -> tuple[int, int]:
        """Returns how many tokens of `before` stand before the token somewhere, and where; or -1."""
        newest = before[max(0, before.shape[0] - self.array.depth_tokens + 1) :]
        text = np.append(newest, TOKEN(token))
        low, high, found = 0, text.shape[0], -1
        while low < high:
            length = (low + high + 1) // 2
            first, last = self.array.count_range(np.ascontiguousarray(text[-length:]))
            if first < last:
                low, found = length, int(self.array.positions[first]) - 1
            else:
                high = length - 1
        return low - 1, found

    def name_of(self, position: int) -> str:
        """Returns the origin of the document at a position, or its id."""
        number = int(np.searchsorted(self._starts, position, side="right")) - 1
        if self._documents is None:
            return f"document {number + 1:,}"
        origin = self._documents.origin_names[int(self._documents.origins[number])]
        return origin or shown_id(int(self._documents.ids[number]))


class CorpusMatches:
    """The datastores that drafts come from, by the names of their sources."""

    def __init__(self, stores: Sequence[Segments]) -> None:
        kinds = [kind for kind, needed in STORE_KINDS.items() if needed == CORPUS_KIND]
        self._segments: dict[str, list[_Segment]] = {}
        for store in stores:
            if store.manifest.kind == CORPUS_KIND:
                segments = [_Segment(one.columns, one.manifest.depth_tokens) for one in store.stores]
                self._segments |= {f"{kind}:{name_of(store)}": segments for kind in kinds}

    def knows(self, source_name: str) -> bool:
        """Returns whether a source drafts from one of the datastores."""
        return source_name in self._segments

    def find(self, source_name: str, before: NDArray[Any], token: int) -> CorpusMatch | None:
        """Returns where the source has the token after the longest run; None if it has it nowhere."""
        best, found, where = -1, -1, None
        for segment in self._segments[source_name]:
            length, position = segment.longest(before, token)
            if position >= 0 and length > best:
                best, found, where = length, position, segment
        return CorpusMatch(best, where.name_of(found)) if where is not None else None
