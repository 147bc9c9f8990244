"""From documents to segments on disk: sorted, written, and put in place when all are there.

One segment is a datastore by itself. Several are written into a folder beside the place that the datastore
is to have, where a build that was killed finds those that are finished. A segment of a build follows from
the plan, the source and its number alone, whoever writes it and however often.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from retrieval_spec import __version__
from retrieval_spec.datastore.atomic import Draft, check_parent, draft_file, sync_folder, writing
from retrieval_spec.datastore.documents import Documents
from retrieval_spec.datastore.generation import SEGMENTS_NAME, Generation, SegmentEntry
from retrieval_spec.datastore.locks import locked
from retrieval_spec.datastore.manifest import MAX_DEPTH_TOKENS, Facts
from retrieval_spec.datastore.progress import Progress
from retrieval_spec.datastore.sealed_json import parse_sealed, sealed_json
from retrieval_spec.datastore.segments import (
    built_place,
    publish_generation,
    segment_at,
    sweep_segments,
    write_segment,
)
from retrieval_spec.datastore.store import Column, open_datastore, replace_datastore, write_datastore
from retrieval_spec.datastore.tokenizer import Tokenizer
from retrieval_spec.encoding import Part
from retrieval_spec.errors import DatastoreError, DatastoreExists, InvalidRequest
from retrieval_spec.structures.context_array import ContextArray
from retrieval_spec.structures.pruning import check_ngram_tokens, pruned

STORE_NAME, PIECES_NAME = "store", "pieces"
"""What stands in the folder of a build that is unfinished."""
_BEGUN_NAME = "begun.json"
_BEGUN_FORMAT, _BEGUN_SEAL = "retrieval-spec-begun", "begun_sha256"


@dataclass(frozen=True, slots=True)
class Plan:
    """Where segments go, what is said of them, and how they are sorted.

    Attributes:
        target: the place of the datastore.
        facts: of every segment.
        threads: threads that sort; all cores if None.
        replace: whether a datastore that stands at `target` gives way.
        progress: told of the stages.
    """

    target: Path
    facts: Facts
    threads: int | None
    replace: bool
    progress: Progress


def facts_of(label: str, tokenizer: Tokenizer, depth_tokens: int, pruned_ngram_tokens: int = 0) -> Facts:
    """Returns what is said of a corpus that a tokenizer encoded."""
    return Facts(
        name=label,
        vocab_size=tokenizer.vocab_size,
        depth_tokens=depth_tokens,
        pruned_ngram_tokens=pruned_ngram_tokens,
        tokenizer=tokenizer.facts,
        created_by=created_by(),
    )


def created_by() -> str:
    """Returns what a manifest says of who wrote it."""
    return f"retrieval-spec {__version__}"


def check_numbers(depth_tokens: int, threads: int | None, pruned_ngram_tokens: int = 0) -> None:
    """Refuses at once what would be refused after the corpus was read."""
    if not 1 <= depth_tokens <= MAX_DEPTH_TOKENS:
        raise InvalidRequest(
            "depth_tokens is out of range", got=depth_tokens, expected=f"1 to {MAX_DEPTH_TOKENS}"
        )
    check_ngram_tokens(pruned_ngram_tokens, depth_tokens)
    if threads is not None and threads < 1:
        raise InvalidRequest("threads is out of range", got=threads, expected="1 or more")


def indexed(documents: Documents, facts: Facts, threads: int | None, progress: Progress) -> dict[str, Column]:
    """Returns the columns of a segment with these documents."""
    progress.start("sorting", len(documents.tokens) - len(documents), "tokens")
    array = ContextArray.build(
        documents.tokens, threads=threads, depth_tokens=facts.depth_tokens, progress=progress.advance
    )
    if facts.pruned_ngram_tokens:
        array = pruned(array, facts.pruned_ngram_tokens)
    return {**array.columns(), **documents.columns()}


def write_alone(plan: Plan, documents: Documents) -> None:
    """Writes a datastore of one segment."""
    columns = indexed(documents, plan.facts, plan.threads, plan.progress)
    (replace_datastore if plan.replace else write_datastore)(plan.target, plan.facts, columns, plan.progress)


def make_segment(
    store: Path, number: int, facts: Facts, documents: Documents, threads: int | None, progress: Progress
) -> SegmentEntry:
    """Sorts and writes the segment of that number, unless it is there already."""
    place = built_place(number)
    found = segment_at(store, place)
    if found is not None:
        return found
    columns = indexed(documents, facts, threads, progress)
    try:
        return write_segment(store, place, facts, columns, progress)
    except DatastoreExists:  # somebody was faster who was taken for dead
        found = segment_at(store, place)
        if found is None:
            raise
        return found


@contextmanager
def unfinished(plan: Plan, source: Mapping[str, object]) -> Iterator[Unfinished]:
    """Yields what an earlier build from the same source finished; a lock keeps other builds out.

    Raises:
        MissingPath: the parent folder does not exist.
        DatastoreError: another process builds there, or the file system refused.
    """
    check_parent(plan.target)
    folder = plan.target.with_name(f".{plan.target.name}.segments")
    with writing(plan.target):
        folder.mkdir(exist_ok=True)
    with locked(folder):
        # Under a name of its own, so that a straggler of another plan never writes among this one's.
        begun = Unfinished(plan, folder / _digest(plan, source))
        _delete_others(folder, begun.folder)
        try:
            yield begun
        except BaseException:  # KeyboardInterrupt too
            if not begun.is_worth_keeping():
                shutil.rmtree(folder, ignore_errors=True)
            raise
        shutil.rmtree(folder, ignore_errors=True)


def _digest(plan: Plan, source: Mapping[str, object]) -> str:
    facts = [
        plan.facts.tokenizer.fingerprint,
        plan.facts.depth_tokens,
        plan.facts.pruned_ngram_tokens,
        plan.facts.name,
        plan.facts.created_by,
    ]
    return hashlib.sha256(json.dumps([facts, source], sort_keys=True).encode()).hexdigest()[:16]


def _delete_others(folder: Path, kept: Path) -> None:
    with writing(folder):
        for path in folder.iterdir():
            if path != kept:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        kept.mkdir(exist_ok=True)
        for name in (STORE_NAME, PIECES_NAME):
            (kept / name).mkdir(exist_ok=True)
        sync_folder(folder)


class Unfinished:
    """The segments of one build; owned by one process at a time.

    Attributes:
        folder: where the work is done; it goes with everything in it when the datastore is in its place.
        store: in it, what is to become the datastore.
        is_published: whether it has become that.
    """

    def __init__(self, plan: Plan, folder: Path) -> None:
        self._plan = plan
        self.folder = folder
        self.store = folder / STORE_NAME
        self.is_published = False
        self._num_read, self._entries = self._resumed()

    @property
    def num_read(self) -> int:
        """Documents of the source that finished segments took, or passed over."""
        return self._num_read[-1] if self._num_read else 0

    def documents(self) -> Iterator[Documents]:
        """Yields the documents of each finished segment."""
        for entry in self._entries:
            yield Documents.from_columns(open_datastore(self.store / entry.place).columns)

    def is_worth_keeping(self) -> bool:
        """Tells whether a later build would find anything that is finished."""
        finished = (self.store.glob(f"{SEGMENTS_NAME}/[!.]*"), self.folder.glob(f"{PIECES_NAME}/[!.]*"))
        return any(True for paths in finished for _ in paths)

    def write(self, parts: Iterator[Part]) -> None:
        """Writes what is left and puts the datastore in its place, unless there is no document."""
        for part in parts:
            if part.is_last and not self._entries:
                write_alone(self._plan, part.documents)
                self.is_published = True
            else:
                self._add(part)
        if self._entries:
            self.publish(self._entries)

    def _add(self, part: Part) -> None:
        plan = self._plan
        number = len(self._entries)
        self._entries.append(
            make_segment(self.store, number, plan.facts, part.documents, plan.threads, plan.progress)
        )
        self._num_read.append(part.num_read)
        _write_begun(self.folder, self._num_read)

    def publish(self, entries: Sequence[SegmentEntry]) -> None:
        """Puts the datastore in its place in one step: these segments, or the only one by itself."""
        with writing(self._plan.target):
            finished = self.store / entries[0].place
            if len(entries) > 1:
                finished = self.store
                publish_generation(self.store, Generation(1, tuple(entries)))
                sweep_segments(self.store)
            fd = os.open(finished, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                draft = Draft(self._plan.target, finished, fd)
                (draft.exchange if self._plan.replace else draft.publish)()
            finally:
                os.close(fd)
        self.is_published = True

    def _resumed(self) -> tuple[list[int], list[SegmentEntry]]:
        """Returns the finished segments from the first one on, and how far each reached in the source."""
        num_read = _read_begun(self.folder)
        entries = []
        for number in range(len(num_read)):
            entry = segment_at(self.store, built_place(number))
            if entry is None:
                break
            entries.append(entry)
        return num_read[: len(entries)], entries


def _write_begun(folder: Path, num_read: list[int]) -> None:
    with draft_file(folder / _BEGUN_NAME) as file:
        file.write(sealed_json({"format": _BEGUN_FORMAT, "version": 2, "num_read": num_read}, _BEGUN_SEAL))


def _read_begun(folder: Path) -> list[int]:
    """Returns how many documents of the source each finished segment reached to."""
    path = folder / _BEGUN_NAME
    if not path.is_file():
        return []
    try:
        fields = parse_sealed(path.read_bytes(), _BEGUN_NAME, _BEGUN_FORMAT, 2, _BEGUN_SEAL)
    except DatastoreError:
        return []
    return list(fields.raw("num_read"))
