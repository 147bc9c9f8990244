"""Changes a datastore that exists: documents come, go, and segments become one. Readers notice nothing.

Every change writes new segments and then, in one step, the next generation. A crash at any point leaves
the generation before or the one after.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from retrieval_spec import __version__
from retrieval_spec.datastore.corpus import Corpus
from retrieval_spec.datastore.documents import Documents, joined
from retrieval_spec.datastore.generation import SegmentEntry
from retrieval_spec.datastore.manifest import CORPUS_KIND, Facts, Manifest
from retrieval_spec.datastore.progress import NoProgress, Progress
from retrieval_spec.datastore.segments import Change, changing
from retrieval_spec.datastore.store import Datastore
from retrieval_spec.datastore.tokenizer import check_same_tokenizer, load_tokenizer
from retrieval_spec.encoding import (
    Encoder,
    batches_of,
    ids_of,
    near_duplicates_of,
    no_documents,
    segment_tokens_for,
)
from retrieval_spec.errors import InvalidRequest
from retrieval_spec.indexing import indexed
from retrieval_spec.near_duplicates import check_threshold


@dataclass(frozen=True, slots=True)
class Changed:
    """What a change did.

    Attributes:
        generation: that the datastore has now.
        num_segments: of it.
        num_added: documents that came.
        num_removed: documents that went.
        num_duplicates: documents that were left out, since the datastore holds them.
        num_near_duplicates: documents that were left out, since it holds what is nearly the same.
    """

    generation: int
    num_segments: int
    num_added: int = 0
    num_removed: int = 0
    num_duplicates: int = 0
    num_near_duplicates: int = 0


def append_documents(
    datastore: str | Path,
    corpus: Corpus,
    *,
    tokenizer: str | Path,
    threads: int | None = None,
    memory_limit_bytes: int | None = None,
    drop_near_duplicates: float | None = None,
    progress: Progress | None = None,
) -> Changed:
    """Adds documents that the datastore does not hold yet, as new segments.

    Args:
        datastore: its folder.
        corpus: the documents.
        tokenizer: the one that the datastore was built with.
        threads: threads that sort; all cores by default.
        memory_limit_bytes: what the work may take.
        drop_near_duplicates: as of `build.build_datastore`; the datastore's own documents are read for it.
        progress: told of the stages.

    Raises:
        TokenizerMismatch: the tokenizer is another one.
        RetrievalSpecError: as `build.build_datastore`, and `DatastoreError` if another process is at it.
    """
    progress = progress or NoProgress()
    max_tokens = segment_tokens_for(memory_limit_bytes)
    if drop_near_duplicates is not None:
        check_threshold(drop_near_duplicates)
    with changing(datastore) as change:
        facts = _facts_of(change)
        encoder = load_tokenizer(tokenizer)
        check_same_tokenizer(encoder, change.segments.manifest, change.segments.path)
        progress.start("encoding", corpus.num_bytes, "B")
        known_ids = ids_of(_documents_of(change))
        near = near_duplicates_of(_documents_of(change), drop_near_duplicates)
        encoding = Encoder(encoder, change.segments.path, max_tokens, known_ids, near)
        entries = []
        for part in encoding.parts(batches_of(corpus.documents(progress.advance, encoder))):
            columns = indexed(part.documents, facts.depth_tokens, threads, progress)
            entries.append(change.write(facts, columns, progress))
        if not entries and not (encoding.num_duplicates or encoding.num_near_duplicates):
            raise no_documents(corpus)
        return _published(
            change,
            change.entries,
            entries,
            num_added=sum(entry.num_documents for entry in entries),
            num_duplicates=encoding.num_duplicates,
            num_near_duplicates=encoding.num_near_duplicates,
        )


def remove_documents(
    datastore: str | Path,
    *,
    ids: Collection[int] = (),
    origins: Collection[str] = (),
    threads: int | None = None,
    progress: Progress | None = None,
) -> Changed:
    """Takes documents out for good: segments that hold one are written again without it.

    Args:
        datastore: its folder.
        ids: of documents (`datastore.documents.document_id`).
        origins: files that documents came from, as they were named then; `*` and `?` stand for anything.
        threads: threads that sort; all cores by default.
        progress: told of the stages.

    Raises:
        InvalidRequest: nothing is to be removed, or nothing would remain.
        DatastoreError: another process is changing the datastore.
    """
    progress = progress or NoProgress()
    with changing(datastore) as change:
        facts = _facts_of(change)
        kept, written, num_removed = [], [], 0
        for store, entry in zip(change.segments.stores, change.entries, strict=True):
            documents = Documents.from_columns(store.columns)
            is_kept = ~_chosen(documents, ids, origins)
            if is_kept.all():
                kept.append(entry)
                continue
            num_removed += int((~is_kept).sum())
            if is_kept.any():
                columns = indexed(documents.kept(is_kept), facts.depth_tokens, threads, progress)
                written.append(change.write(facts, columns, progress))
        _check_removal(num_removed, len(kept) + len(written))
        return _published(change, kept, written, num_removed=num_removed)


def compact(
    datastore: str | Path,
    *,
    threads: int | None = None,
    memory_limit_bytes: int | None = None,
    progress: Progress | None = None,
) -> Changed:
    """Makes one of neighbouring segments, as far as memory allows; what they hold stays the same.

    Raises:
        DatastoreError: another process is changing the datastore.
    """
    progress = progress or NoProgress()
    max_tokens = segment_tokens_for(memory_limit_bytes)
    with changing(datastore) as change:
        facts = _facts_of(change)
        entries = []
        for group in _groups(change, max_tokens):
            if len(group) == 1:
                entries.append(group[0][1])
                continue
            documents = joined([Documents.from_columns(store.columns) for store, _ in group])
            columns = indexed(documents, facts.depth_tokens, threads, progress)
            entries.append(change.write(facts, columns, progress))
        return _published(change, entries, [])


def _published(
    change: Change,
    kept: Sequence[SegmentEntry],
    written: Sequence[SegmentEntry],
    **counts: int,
) -> Changed:
    """Makes the segments the next generation, unless they are those of this one; counts say what changed."""
    entries = (*kept, *written)
    number = change.segments.generation
    if entries != change.entries:
        change.publish(entries)
        number += 1
    return Changed(number, len(entries), **counts)


def _groups(change: Change, max_tokens: int) -> Iterator[list[tuple[Datastore, SegmentEntry]]]:
    group: list[tuple[Datastore, SegmentEntry]] = []
    num_tokens = 0
    for store, entry in zip(change.segments.stores, change.entries, strict=True):
        if group and num_tokens + entry.num_tokens > max_tokens:
            yield group
            group, num_tokens = [], 0
        group.append((store, entry))
        num_tokens += entry.num_tokens
    yield group


def _facts_of(change: Change) -> Facts:
    manifest: Manifest = change.segments.manifest
    if manifest.kind != CORPUS_KIND:
        raise InvalidRequest(
            "only a corpus can be changed", got=f"a datastore of kind {manifest.kind}", expected=CORPUS_KIND
        )
    return Facts(
        name=manifest.name,
        vocab_size=manifest.vocab_size,
        depth_tokens=manifest.depth_tokens,
        tokenizer=manifest.tokenizer,
        created_by=f"retrieval-spec {__version__}",
    )


def _documents_of(change: Change) -> Iterator[Documents]:
    for store in change.segments.stores:
        yield Documents.from_columns(store.columns)


def _chosen(documents: Documents, ids: Collection[int], origins: Collection[str]) -> NDArray[np.bool_]:
    return documents.come_from(origins) | np.isin(documents.ids, np.array(sorted(ids), np.int64))


def _check_removal(num_removed: int, num_left: int) -> None:
    if not num_removed:
        raise InvalidRequest(
            "no document is to be removed", remedy="`retrieval-spec inspect DIR --documents` lists them"
        )
    if not num_left:
        raise InvalidRequest("no document would remain", remedy="delete the folder")
