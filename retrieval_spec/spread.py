"""A build spread over a pool of workers: pieces of the corpus are encoded, then segments are sorted.

What lies between the two, which documents make a segment, follows from the lengths of all documents before
it: one process decides it, with the rules of `Encoder`, so that the segments are those of a build without
a pool. Only names and numbers travel; ids lie in files that all workers see. Every function that workers
run leaves its whole result or none, and returns at once where the result is there: it may be run again.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from retrieval_spec import __version__
from retrieval_spec.datastore.atomic import writing
from retrieval_spec.datastore.corpus import Corpus
from retrieval_spec.datastore.documents import DocumentFile
from retrieval_spec.datastore.generation import SegmentEntry
from retrieval_spec.datastore.manifest import Facts
from retrieval_spec.datastore.pieces import Piece, open_piece, write_piece
from retrieval_spec.datastore.progress import NoProgress, Progress
from retrieval_spec.datastore.segments import built_place, segment_at
from retrieval_spec.datastore.tokenizer import Tokenizer, load_tokenizer
from retrieval_spec.encoding import BUILD_BYTES, BUILD_BYTES_PER_TOKEN, Encoder, batches_of, encoded
from retrieval_spec.errors import DatastoreError, MissingPath, TokenizerMismatch
from retrieval_spec.indexing import PIECES_NAME, STORE_NAME, created_by, make_segment

PIECE_BYTES = 64 << 20
"""Files are encoded together until they are so large on disk; a larger one is a piece by itself."""
_SHARE = "keep inputs, tokenizer and target on a file system that all nodes see under the same names"


class Task(NamedTuple):
    """What a pool is asked to do."""

    kind: Literal["encode", "sort"]
    number: int


class Pool(Protocol):
    """Runs functions in other processes, in any order, and again where a process or a machine was lost."""

    def submit(
        self, task: Task, function: Callable[..., Any], *arguments: Any, num_cpus: int, memory_bytes: int
    ) -> None:
        """Has a function run where so much is free."""

    def results(self) -> Iterator[tuple[Task, Any]]:
        """Yields what functions return, as they do, until none is left; more may be submitted meanwhile."""

    def cancel(self) -> None:
        """Gives up what has not returned."""


@dataclass(frozen=True, slots=True)
class Job:
    """What a worker has to know of a build.

    Attributes:
        folder: where the work is done.
        tokenizer: the target model's.
        facts: of every segment.
        threads: threads that sort a segment.
    """

    folder: Path
    tokenizer: Path
    facts: Facts
    threads: int


class Cut(NamedTuple):
    """Documents that become a segment.

    Attributes:
        runs: int64[r, 3]  a piece, a document in it, and the first behind that which is not meant.
        num_tokens: of all of them, separators included.
        num_documents: at least one.
    """

    runs: NDArray[np.int64]
    num_tokens: int
    num_documents: int

    @property
    def num_positions(self) -> int:
        """What there is to sort."""
        return self.num_tokens - self.num_documents


def encode_piece(job: Job, number: int, corpus: Corpus, fingerprint: dict[str, object]) -> None:
    """Encodes the corpus as the piece of that number; `fingerprint` is that of the files it should be."""
    _check_node(job)
    place = _piece_place(job, number)
    if open_piece(place) is not None:
        return
    _check_files(corpus, fingerprint)
    tokenizer = _tokenizer(job.tokenizer, job.facts.tokenizer.fingerprint)
    documents = encoded(batches_of(corpus.documents(None, tokenizer)), tokenizer)
    write_piece(place, ((ids, origin, identity) for _, ids, origin, identity in documents), corpus)


def sort_segment(job: Job, number: int, runs: NDArray[np.int64]) -> SegmentEntry:
    """Makes the segment of that number from the documents of these runs (see `Cut`)."""
    _check_node(job)
    store = job.folder / STORE_NAME
    found = segment_at(store, built_place(number))
    if found is not None:
        return found
    with writing(store), tempfile.TemporaryFile(dir=store) as nameless:
        file = DocumentFile(nameless)
        for piece, first, stop in runs.tolist():
            for token_ids, origin, identity in _piece(job, piece).each(first, stop):
                file.append(token_ids, origin, identity)
        documents = file.documents()
    return make_segment(store, number, job.facts, documents, job.threads, NoProgress())


def _check_node(job: Job) -> None:
    if not (job.folder / STORE_NAME).is_dir():
        raise MissingPath("a node does not see the folder of the build", got=job.folder, remedy=_SHARE)
    if job.facts.created_by != created_by():
        raise DatastoreError(
            "a node has another version of retrieval-spec",
            got=__version__,
            expected=job.facts.created_by,
            remedy="install the same one on all nodes",
        )


def _check_files(corpus: Corpus, fingerprint: dict[str, object]) -> None:
    """Refuses what reading would take for damage, and pass over where that was asked for."""
    try:
        is_same = corpus.fingerprint() == fingerprint
    except OSError as error:
        raise MissingPath("a node does not see an input", got=error, remedy=_SHARE) from error
    if not is_same:
        raise MissingPath("a node sees other inputs than the one where the build began", remedy=_SHARE)


@lru_cache(maxsize=1)
def _tokenizer(path: Path, fingerprint: str) -> Tokenizer:
    tokenizer = load_tokenizer(path)
    if tokenizer.fingerprint != fingerprint:
        raise TokenizerMismatch("a node sees another tokenizer", got=path, remedy=_SHARE)
    return tokenizer


def _piece_place(job: Job, number: int) -> Path:
    return job.folder / PIECES_NAME / f"{number:06d}"


def _piece(job: Job, number: int) -> Piece:
    piece = open_piece(_piece_place(job, number))
    if piece is None:
        raise DatastoreError("an encoded part is gone", got=_piece_place(job, number), remedy="build again")
    return piece


class Cutter:
    """Cuts documents, which come in their order, into segments.

    Args:
        encoder: says which documents are wanted, and which still fit.
    """

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self._runs: list[list[int]] = []
        self._num_tokens = 0
        self._num_documents = 0

    def add(self, number: int, piece: Piece) -> Iterator[Cut]:
        """Takes the documents of the next piece, and yields the segments that are full."""
        for index, (token_ids, _, identity) in enumerate(piece.each(0, len(piece))):
            if not self._encoder.is_wanted(token_ids, identity):
                continue
            if not self._encoder.fits(self._num_tokens, len(token_ids)):
                yield from self.rest()
            self._take(number, index, len(token_ids))

    def rest(self) -> Iterator[Cut]:
        """Yields the segment that is not full, if there is a document."""
        if self._num_documents:
            yield Cut(np.array(self._runs, np.int64), self._num_tokens, self._num_documents)
        self._runs, self._num_tokens, self._num_documents = [], 0, 0

    def _take(self, piece: int, index: int, num_tokens: int) -> None:
        if self._runs and self._runs[-1][0] == piece and self._runs[-1][2] == index:
            self._runs[-1][2] = index + 1
        else:
            self._runs.append([piece, index, index + 1])
        self._num_tokens += num_tokens + 1
        self._num_documents += 1


class SpreadBuild:
    """One build on a pool; `run` it once.

    Args:
        job: what workers have to know.
        corpus: the documents; told what was left out of it.
        encoder: the rules of `Cutter`.
        pool: where the work is done.
        progress: told of the stages.
    """

    def __init__(self, job: Job, corpus: Corpus, encoder: Encoder, pool: Pool, progress: Progress) -> None:
        self._job = job
        self._corpus = corpus
        self._cutter = Cutter(encoder)
        self._pool = pool
        self._progress = progress
        self._pieces = corpus.slices(PIECE_BYTES)
        self._encoded: set[int] = set()
        self._num_cut = 0
        self._cuts: list[Cut] = []
        self._entries: dict[int, SegmentEntry] = {}

    def run(self) -> list[SegmentEntry]:
        """Returns the finished segments in their order; none if there is no document.

        Raises:
            RetrievalSpecError: a function could not do its work, or the pool could not.
        """
        try:
            for number, piece in enumerate(self._pieces):
                self._submit(Task("encode", number), encode_piece, piece, piece.fingerprint())
            for task, result in self._pool.results():
                (self._note_encoded if task.kind == "encode" else self._note_sorted)(task.number, result)
        finally:
            self._pool.cancel()
        self._corpus.tell_skipped()
        return [self._entries[number] for number in range(len(self._cuts))]

    def _submit(self, task: Task, function: Callable[..., Any], *arguments: Any, num_tokens: int = 0) -> None:
        num_cpus = self._job.threads if task.kind == "sort" else 1
        memory_bytes = BUILD_BYTES + num_tokens * BUILD_BYTES_PER_TOKEN
        arguments = (self._job, task.number, *arguments)
        self._pool.submit(task, function, *arguments, num_cpus=num_cpus, memory_bytes=memory_bytes)

    def _note_encoded(self, number: int, _: None) -> None:
        self._progress.advance(self._pieces[number].num_bytes)
        self._encoded.add(number)
        while self._num_cut in self._encoded:
            self._cut_piece(self._num_cut)
            self._num_cut += 1
        if self._num_cut == len(self._pieces):
            self._sort(self._cutter.rest())
            self._progress.start("sorting", sum(cut.num_positions for cut in self._cuts), "tokens")
            self._progress.advance(sum(self._cuts[done].num_positions for done in self._entries))

    def _cut_piece(self, number: int) -> None:
        piece = _piece(self._job, number)
        self._corpus.note_skipped(piece.num_skipped_files, piece.skipped)
        self._sort(self._cutter.add(number, piece))

    def _sort(self, cuts: Iterator[Cut]) -> None:
        for cut in cuts:
            task = Task("sort", len(self._cuts))
            self._cuts.append(cut)
            self._submit(task, sort_segment, cut.runs, num_tokens=cut.num_tokens)

    def _note_sorted(self, number: int, entry: SegmentEntry) -> None:
        self._entries[number] = entry
        if self._num_cut == len(self._pieces):
            self._progress.advance(self._cuts[number].num_positions)
