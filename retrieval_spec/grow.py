"""Changes a datastore that exists: documents come, go, and segments become one. Readers notice nothing.

Every change writes new segments and then, in one step, the next generation. A crash at any point leaves
the generation before or the one after.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from retrieval_spec import __version__
from retrieval_spec.datastore.atomic import writing
from retrieval_spec.datastore.compaction import compacting
from retrieval_spec.datastore.corpus import Corpus
from retrieval_spec.datastore.documents import DocumentFile, Documents, document_id
from retrieval_spec.datastore.generation import SegmentEntry
from retrieval_spec.datastore.manifest import CORPUS_KIND, DOCUMENT_KINDS, TRANSLATE, Facts
from retrieval_spec.datastore.progress import NoProgress, Progress
from retrieval_spec.datastore.segments import Change, Segments, changing
from retrieval_spec.datastore.tokenizer import check_same_tokenizer, load_tokenizer
from retrieval_spec.encoding import (
    Encoder,
    batches_of,
    ids_of,
    near_duplicates_of,
    no_documents,
    segment_tokens_for,
)
from retrieval_spec.errors import InvalidRequest, TokenizerMismatch
from retrieval_spec.indexing import indexed
from retrieval_spec.near_duplicates import check_threshold
from retrieval_spec.rewriting import Kept, rewritten
from retrieval_spec.tree import Tokens, as_tokens

MAX_RATIO = 4.0
"""How many times as large as those behind it together a segment may be that is merged with them."""


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
        num_outdated: merged segments that were thrown away, since what they were made of changed meanwhile.
    """

    generation: int
    num_segments: int
    num_added: int = 0
    num_removed: int = 0
    num_duplicates: int = 0
    num_near_duplicates: int = 0
    num_outdated: int = 0


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
        facts = facts_of(change.segments, CORPUS_KIND)
        encoder = load_tokenizer(tokenizer)
        check_same_tokenizer(encoder, change.segments.manifest, change.segments.path)
        progress.start("encoding", corpus.num_bytes, "B")
        known = ids_of(documents_of(change.segments))
        near = near_duplicates_of(documents_of(change.segments), drop_near_duplicates)
        encoding = Encoder(encoder, change.segments.path, max_tokens, known, near)
        entries = []
        for part in encoding.parts(batches_of(corpus.documents(progress.advance, encoder))):
            columns = indexed(part.documents, facts, threads, progress)
            entries.append(change.write(facts, columns, progress))
        if not entries and not (encoding.num_duplicates or encoding.num_near_duplicates):
            raise no_documents(corpus)
        return published(
            change,
            change.entries,
            entries,
            num_added=sum(entry.num_documents for entry in entries),
            num_duplicates=encoding.num_duplicates,
            num_near_duplicates=encoding.num_near_duplicates,
        )


def append_token_documents(
    datastore: str | Path,
    documents: Sequence[Tokens],
    origin: str,
    *,
    tokenizer_fingerprint: str,
    threads: int | None = None,
) -> Changed:
    """Adds documents that are token ids already, as one new segment; those that it holds are left out.

    Args:
        datastore: its folder.
        documents: ids; those without any are left out.
        origin: what is said of where they came from.
        tokenizer_fingerprint: of the tokenizer that the ids are of, which must be the datastore's.
        threads: threads that sort; all cores by default.

    Raises:
        TokenizerMismatch: the tokenizer is another one.
        InvalidTokens: an id is none of the tokenizer's.
        DatastoreError: another process is changing the datastore, or the file system refused.
    """
    with changing(datastore) as change:
        facts = facts_of(change.segments, CORPUS_KIND)
        _expect_tokenizer(facts, tokenizer_fingerprint, change.segments.path)
        tokens = [as_tokens(document, facts.vocab_size) for document in documents]
        numbers = np.array([document_id(token_ids) for token_ids in tokens], np.int64)
        known = _known_among(numbers, change.segments)
        with writing(change.segments.path), tempfile.TemporaryFile(dir=change.segments.path) as nameless:
            file = DocumentFile(nameless)
            for token_ids, number in zip(tokens, numbers.tolist(), strict=True):
                if len(token_ids) and number not in known:
                    known.add(number)
                    file.append(token_ids, origin, number)
            num_added = len(file)
            columns = indexed(file.documents(), facts, threads, NoProgress()) if num_added else {}
        entries = [change.write(facts, columns)] if num_added else []
        return published(
            change,
            change.entries,
            entries,
            num_added=num_added,
            num_duplicates=sum(map(bool, map(len, documents))) - num_added,
        )


def _known_among(numbers: NDArray[np.int64], segments: Segments) -> set[int]:
    """Returns which of the ids a datastore has documents of; the interpreter is free meanwhile."""
    known: set[int] = set()
    for documents in documents_of(segments):
        known.update(documents.ids[np.isin(documents.ids, numbers)].tolist())
    return known


def _expect_tokenizer(facts: Facts, fingerprint: str, path: Path) -> None:
    if fingerprint != facts.tokenizer.fingerprint:
        raise TokenizerMismatch(
            f"datastore {path} was built with another tokenizer",
            got=fingerprint[:80],
            expected=facts.tokenizer.fingerprint,
            remedy=TRANSLATE,
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
        facts = facts_of(change.segments, *DOCUMENT_KINDS)
        kept, written, num_removed = [], [], 0
        for store, entry in zip(change.segments.stores, change.entries, strict=True):
            documents = Documents.from_columns(store.columns)
            is_kept = ~_chosen(documents, ids, origins)
            if is_kept.all():
                kept.append(entry)
                continue
            num_removed += int((~is_kept).sum())
            if is_kept.any():
                columns = rewritten([Kept(store, documents, is_kept)], threads, progress)
                written.append(change.write(facts, columns, progress))
        _check_removal(num_removed, len(kept) + len(written))
        return published(change, kept, written, num_removed=num_removed)


def compact(
    datastore: str | Path,
    *,
    max_ratio: float = MAX_RATIO,
    threads: int | None = None,
    memory_limit_bytes: int | None = None,
    progress: Progress | None = None,
) -> Changed:
    """Makes one of neighbouring segments where it pays; what they hold, and its order, stay the same.

    Other writers go on meanwhile. Merged segments whose inputs they removed or changed are thrown away.

    Args:
        datastore: its folder.
        max_ratio: see `groups_of`; infinite: all become one, as far as memory allows.
        threads: threads that sort; all cores by default.
        memory_limit_bytes: what the work may take.
        progress: told of the stages.

    Raises:
        DatastoreError: another process is compacting the datastore.
    """
    progress = progress or NoProgress()
    max_tokens = segment_tokens_for(memory_limit_bytes)
    with compacting(datastore) as compaction:
        facts = facts_of(compaction.segments, *DOCUMENT_KINDS)
        stores = dict(zip(compaction.entries, compaction.segments.stores, strict=True))
        for group in groups_of(compaction.entries, max_tokens, max_ratio):
            if len(group) > 1:
                columns = rewritten([Kept.whole(stores[entry]) for entry in group], threads, progress)
                compaction.write(group, facts, columns, progress)
        done = compaction.publish()
    return Changed(done.generation, done.num_segments, num_outdated=done.num_outdated)


def groups_of(
    entries: Sequence[SegmentEntry], max_tokens: int, max_ratio: float = MAX_RATIO
) -> list[list[SegmentEntry]]:
    """Returns the segments in groups of neighbours that are worth becoming one each.

    From the newest one back, a segment joins those behind it unless it is more than `max_ratio` times as
    large as they are together: then writing it again would cost more than one segment less is worth. So
    segments stay few, each several times as large as all behind it, and a token is written again only when
    the segment that holds it grows by a quarter or more.
    """
    groups: list[list[SegmentEntry]] = []
    num_tokens = 0
    for entry in reversed(entries):
        is_small = entry.num_tokens <= max_ratio * max(num_tokens, 1)
        if not groups or not is_small or num_tokens + entry.num_tokens > max_tokens:
            groups.append([])
            num_tokens = 0
        groups[-1].append(entry)
        num_tokens += entry.num_tokens
    return [group[::-1] for group in reversed(groups)]


def published(
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


def facts_of(segments: Segments, *kinds: str) -> Facts:
    """Returns what is said of a new segment of a datastore of one of these kinds.

    Raises:
        InvalidRequest: it is of another kind.
    """
    manifest = segments.manifest
    if manifest.kind not in kinds:
        raise InvalidRequest(
            "the datastore cannot be changed so",
            got=f"a datastore of kind {manifest.kind}",
            expected=" or ".join(kinds),
        )
    return Facts(
        name=manifest.name,
        vocab_size=manifest.vocab_size,
        depth_tokens=manifest.depth_tokens,
        tokenizer=manifest.tokenizer,
        created_by=f"retrieval-spec {__version__}",
        kind=manifest.kind,
        model_fingerprint=manifest.model_fingerprint,
        pruned_ngram_tokens=manifest.pruned_ngram_tokens,
    )


def documents_of(segments: Segments) -> Iterator[Documents]:
    """Yields the documents of each segment."""
    for store in segments.stores:
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
