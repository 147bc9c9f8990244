"""From a corpus to documents of token ids, part by part, so that memory stays within a limit."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from retrieval_spec.datastore.atomic import writing
from retrieval_spec.datastore.corpus import Corpus, Document
from retrieval_spec.datastore.documents import DocumentFile, Documents, document_id
from retrieval_spec.datastore.progress import Progress
from retrieval_spec.datastore.tokenizer import Tokenizer
from retrieval_spec.errors import InvalidRequest, LimitExceeded
from retrieval_spec.near_duplicates import NearDuplicates
from retrieval_spec.tree import Tokens

MAX_SEGMENT_TOKENS = 1 << 31
MIN_SEGMENT_TOKENS = 1 << 16
BUILD_BYTES_PER_TOKEN = 12
BUILD_BYTES = 500_000_000
"""What building takes beside that, whatever the size."""
_BATCH_CHARACTERS = 1 << 20


class Part(NamedTuple):
    """Documents of one segment.

    Attributes:
        documents: never none.
        num_read: documents that were read up to here, those left out included.
        is_last: whether nothing follows.
    """

    documents: Documents
    num_read: int
    is_last: bool


def segment_tokens_for(memory_limit_bytes: int | None) -> int:
    """Returns how many tokens a segment may have that is built within so much memory.

    Without a limit, half of what the machine has is taken to be free.

    Raises:
        InvalidRequest: too little to build anything.
    """
    if memory_limit_bytes is None:
        memory_limit_bytes = max(
            os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2, 2 * BUILD_BYTES
        )
    tokens = (memory_limit_bytes - BUILD_BYTES) // BUILD_BYTES_PER_TOKEN
    if tokens < MIN_SEGMENT_TOKENS:
        least = BUILD_BYTES + MIN_SEGMENT_TOKENS * BUILD_BYTES_PER_TOKEN
        raise InvalidRequest(
            "too little memory to build with", got=memory_limit_bytes, expected=f">= {least}"
        )
    return min(tokens, MAX_SEGMENT_TOKENS)


class Encoder:
    """Encodes texts into parts of so many tokens at most.

    Args:
        tokenizer: the target model's.
        place: documents wait in a nameless file beside it.
        max_tokens: of a part, separators included; a longer document is one part by itself.
        known_ids: documents with these ids are left out, and so is what comes twice; None keeps all.
        near: documents that are nearly one of these are left out, or nearly one that came before.

    Attributes:
        num_duplicates: documents that were left out for their ids.
        num_near_duplicates: and those for being nearly another one.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        place: Path,
        max_tokens: int,
        known_ids: set[int] | None = None,
        near: NearDuplicates | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self._place = place
        self._max_tokens = max_tokens
        self._known_ids = known_ids
        self._near = near
        self.num_duplicates = 0
        self.num_near_duplicates = 0

    def parts(self, batches: Iterable[list[Document]], num_read: int = 0) -> Iterator[Part]:
        """Yields parts; the first `num_read` documents are passed over.

        Raises:
            DatastoreError: the file system refused.
        """
        with writing(self._place):
            documents = self._wanted(batches, num_read)
            pending = next(documents, None)
            while pending is not None:
                with tempfile.TemporaryFile(dir=self._place.parent) as nameless:
                    file = DocumentFile(nameless)
                    while pending is not None and self.fits(file.num_tokens, len(pending[1])):
                        num_read, token_ids, origin, number = pending
                        file.append(token_ids, origin, number)
                        pending = next(documents, None)
                    part = Part(file.documents(), num_read, pending is None)
                yield part

    def fits(self, num_tokens: int, num_more: int) -> bool:
        """Tells whether a part that has so many tokens, separators included, takes a document of so many."""
        return not num_tokens or num_tokens + num_more < self._max_tokens

    def _wanted(
        self, batches: Iterable[list[Document]], num_passed: int
    ) -> Iterator[tuple[int, Tokens, str, int]]:
        for read in encoded(batches, self._tokenizer, num_passed):
            if self.is_wanted(read[1], read[3]):
                yield read

    def is_wanted(self, token_ids: Tokens, number: int) -> bool:
        """Tells whether a document is none that is left out; those that are asked for next know of it."""
        if self._known_ids is not None and number in self._known_ids:
            self.num_duplicates += 1
            return False
        if self._near is not None and not self._near.add(token_ids):
            self.num_near_duplicates += 1
            return False
        if self._known_ids is not None:
            self._known_ids.add(number)
        return True


def encoded(
    batches: Iterable[list[Document]], tokenizer: Tokenizer, num_passed: int = 0
) -> Iterator[tuple[int, Tokens, str, int]]:
    """Yields documents that have tokens: how many were read with it, its ids, its origin, and its id.

    Args:
        batches: documents, those of a batch encoded together.
        tokenizer: the target model's.
        num_passed: as many documents are passed over first.
    """
    num_read = 0
    for batch in batches:
        skipped = min(max(num_passed - num_read, 0), len(batch))
        num_read += skipped
        for document, token_ids in _encoded_batch(batch[skipped:], tokenizer):
            num_read += 1
            if len(token_ids):
                yield num_read, token_ids, document.source, document_id(token_ids)


def _encoded_batch(batch: list[Document], tokenizer: Tokenizer) -> Iterator[tuple[Document, Tokens]]:
    """Yields documents with their ids; those that are texts are encoded together."""
    texts = [document.text for document in batch if document.text is not None]
    ids = iter(tokenizer.encode_batch(texts))
    for document in batch:
        yield document, next(ids) if document.token_ids is None else document.token_ids


def ids_of(parts: Iterable[Documents]) -> set[int]:
    """Returns the ids of the documents of all parts."""
    return {number for documents in parts for number in documents.ids.tolist()}


def near_duplicates_of(parts: Iterable[Documents], threshold: float | None) -> NearDuplicates | None:
    """Returns the documents of all parts as what others may be nearly the same as; None if nobody asks.

    Their signatures are made anew: that takes a second for some 20 million tokens or more.
    """
    if threshold is None:
        return None
    near = NearDuplicates(threshold)
    for documents in parts:
        for token_ids, _ in documents.each():
            near.know(token_ids)
    return near


def batches_of(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """Yields documents by the million characters: enough for all cores, and little memory."""
    batch: list[Document] = []
    characters = 0
    for document in documents:
        batch.append(document)
        characters += len(document.text or ())
        characters += 0 if document.token_ids is None else 4 * len(document.token_ids)
        if characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def encode_corpus(corpus: Corpus, tokenizer: Tokenizer, target: Path, progress: Progress) -> Documents:
    """Returns a corpus that is one part.

    Raises:
        InvalidRequest: the inputs hold no text.
        LimitExceeded: more tokens than one segment holds.
    """
    progress.start("encoding", corpus.num_bytes, "B")
    encoder = Encoder(tokenizer, target, MAX_SEGMENT_TOKENS)
    documents = only_part(encoder.parts(batches_of(corpus.documents(progress.advance, tokenizer))))
    if documents is None:
        raise no_documents(corpus)
    return documents


def only_part(parts: Iterator[Part]) -> Documents | None:
    """Returns the documents of the only part; None if there is none.

    Raises:
        LimitExceeded: there are more.
    """
    part = next(parts, None)
    if part is not None and not part.is_last:
        raise LimitExceeded(
            "the corpus is too long for one segment", expected=f"at most {MAX_SEGMENT_TOKENS} tokens"
        )
    return part.documents if part else None


def no_documents(corpus: Corpus) -> InvalidRequest:
    """Returns the error for inputs without text."""
    return InvalidRequest(
        "no documents found: the inputs hold no text",
        got=f"{corpus.num_skipped_files} files that are no UTF-8 text",
        remedy="name other inputs",
    )
