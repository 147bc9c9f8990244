"""The columns of one segment made from segments: some of their documents, in their order.

Texts are sorted anew; states are copied as they are, so no model is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from retrieval_spec.datastore.documents import Documents, joined
from retrieval_spec.datastore.manifest import CORPUS_KIND
from retrieval_spec.datastore.progress import Progress
from retrieval_spec.datastore.store import Column, Datastore
from retrieval_spec.errors import DatastoreCorrupt
from retrieval_spec.indexing import indexed
from retrieval_spec.structures.dense_index import DenseIndex


class Kept(NamedTuple):
    """What of a segment is to be kept.

    Attributes:
        store: the segment.
        documents: all of it.
        is_kept: bool[d]  which of them.
    """

    store: Datastore
    documents: Documents
    is_kept: NDArray[np.bool_]

    @classmethod
    def whole(cls, store: Datastore) -> Kept:
        """Returns a segment of which all is kept."""
        documents = Documents.from_columns(store.columns)
        return cls(store, documents, np.ones(len(documents), np.bool_))


def rewritten(parts: Sequence[Kept], threads: int | None, progress: Progress) -> dict[str, Column]:
    """Returns the columns of one segment with the kept documents of all parts, one after the other.

    Raises:
        DatastoreCorrupt: a part is damaged.
        MissingDependency: states need FAISS.
    """
    chosen = [part.documents if part.is_kept.all() else part.documents.kept(part.is_kept) for part in parts]
    documents = chosen[0] if len(chosen) == 1 else joined(chosen)
    manifest = parts[0].store.manifest
    if manifest.kind == CORPUS_KIND:
        return indexed(documents, manifest, threads, progress)
    progress.start("index", None, "vectors")
    return {"tokens": documents.tokens, **documents.columns(), **_states_of(parts)}


def _states_of(parts: Sequence[Kept]) -> dict[str, Column]:
    """Returns the columns about states: their places, the index, and what projected them."""
    positions, indexes = [], []
    num_tokens = 0
    for part in parts:
        kept_positions, is_kept = _positions_of(part, num_tokens)
        positions.append(kept_positions)
        indexes.append((_index_of(part.store), is_kept))
        num_tokens += int(_lengths(part.documents)[part.is_kept].sum())
    columns = parts[0].store.columns
    return {
        "positions": np.concatenate(positions),
        "index": DenseIndex.joined(indexes).to_bytes(),
        **{name: columns[name] for name in ("mean", "scale", "components")},
    }


def _positions_of(part: Kept, offset: int) -> tuple[NDArray[np.uint32], NDArray[np.bool_]]:
    """Returns where the kept states' tokens are behind `offset` tokens, and bool[m] which states are kept."""
    documents, positions = part.documents, part.store.columns["positions"]
    if positions.max(initial=0) >= max(len(documents.tokens), 1):
        raise DatastoreCorrupt(
            f"column 'positions' of {part.store.path} leaves the corpus",
            got=int(positions.max()),
            expected=f"below {len(documents.tokens)}",
        )
    lengths = np.where(part.is_kept, _lengths(documents), 0)
    shift = np.cumsum(lengths) - lengths - documents.starts + offset
    owners = np.searchsorted(documents.starts, positions, side="right") - 1
    is_kept = part.is_kept[owners]
    return (positions[is_kept] + shift[owners[is_kept]]).astype(np.uint32), is_kept


def _lengths(documents: Documents) -> NDArray[np.int64]:
    return np.diff(documents.starts, append=len(documents.tokens))


def _index_of(store: Datastore) -> DenseIndex:
    store.check_sha256("index")
    columns = store.columns
    dimensions = columns["components"].shape[0] // max(columns["mean"].shape[0], 1)
    return DenseIndex.from_bytes(columns["index"], dimensions, columns["positions"].shape[0])
