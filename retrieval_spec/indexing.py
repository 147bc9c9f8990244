"""From documents to segments on disk: sorted, written, and put in place when all are there.

One segment is a datastore by itself. Several are written into a folder beside the place that the datastore
is to have, where a build that was killed finds those that are finished.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from retrieval_spec import __version__
from retrieval_spec.datastore.atomic import Draft, check_parent, draft_file, writing
from retrieval_spec.datastore.documents import Documents
from retrieval_spec.datastore.generation import Generation, SegmentEntry
from retrieval_spec.datastore.manifest import MAX_DEPTH_TOKENS, Facts
from retrieval_spec.datastore.progress import Progress
from retrieval_spec.datastore.sealed_json import parse_sealed, sealed_json
from retrieval_spec.datastore.segments import (
    Segments,
    entries_of,
    has_generation,
    locked,
    open_segments,
    publish_generation,
    sweep_segments,
    write_segment,
)
from retrieval_spec.datastore.store import Column, replace_datastore, write_datastore
from retrieval_spec.datastore.tokenizer import Tokenizer
from retrieval_spec.encoding import Part
from retrieval_spec.errors import DatastoreError, InvalidRequest
from retrieval_spec.structures.context_array import ContextArray

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


def facts_of(label: str, tokenizer: Tokenizer, depth_tokens: int) -> Facts:
    """Returns what is said of a corpus that a tokenizer encoded."""
    return Facts(
        name=label,
        vocab_size=tokenizer.vocab_size,
        depth_tokens=depth_tokens,
        tokenizer=tokenizer.facts,
        created_by=f"retrieval-spec {__version__}",
    )


def check_numbers(depth_tokens: int, threads: int | None) -> None:
    """Refuses at once what would be refused after the corpus was read."""
    if not 1 <= depth_tokens <= MAX_DEPTH_TOKENS:
        raise InvalidRequest(
            "depth_tokens is out of range", got=depth_tokens, expected=f"1 to {MAX_DEPTH_TOKENS}"
        )
    if threads is not None and threads < 1:
        raise InvalidRequest("threads is out of range", got=threads, expected="1 or more")


def indexed(
    documents: Documents, depth_tokens: int, threads: int | None, progress: Progress
) -> dict[str, Column]:
    """Returns the columns of a segment with these documents."""
    progress.start("sorting", len(documents.tokens) - len(documents), "tokens")
    array = ContextArray.build(
        documents.tokens, threads=threads, depth_tokens=depth_tokens, progress=progress.advance
    )
    return {**array.columns(), **documents.columns()}


def write_alone(plan: Plan, documents: Documents) -> None:
    """Writes a datastore of one segment."""
    columns = indexed(documents, plan.facts.depth_tokens, plan.threads, plan.progress)
    (replace_datastore if plan.replace else write_datastore)(plan.target, plan.facts, columns, plan.progress)


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
        try:
            yield Unfinished(plan, folder, _digest(plan, source))
        finally:
            if folder.is_dir() and not has_generation(folder):
                shutil.rmtree(folder, ignore_errors=True)


def _digest(plan: Plan, source: Mapping[str, object]) -> str:
    facts = [plan.facts.tokenizer.fingerprint, plan.facts.depth_tokens, plan.facts.name]
    return hashlib.sha256(json.dumps([facts, source], sort_keys=True).encode()).hexdigest()


class Unfinished:
    """The segments of one build; owned by one process at a time.

    Attributes:
        num_read: documents of the source that finished segments took, or passed over.
    """

    def __init__(self, plan: Plan, folder: Path, digest: str) -> None:
        self._plan = plan
        self._folder = folder
        self._digest = digest
        self._entries: tuple[SegmentEntry, ...] = ()
        self._segments, self._num_read = self._resumed()
        self.num_read = self._num_read[-1] if self._num_read else 0

    def ids(self) -> set[int]:
        """Returns the ids of all documents in finished segments."""
        stores = self._segments.stores if self._segments else ()
        return {number for store in stores for number in store.columns["ids"].tolist()}

    def write(self, parts: Iterator[Part]) -> bool:
        """Writes what is left and puts the datastore in its place; returns whether there is a document."""
        for part in parts:
            if part.is_last and not self._num_read:
                write_alone(self._plan, part.documents)
                return True
            self._add(part)
        if self._num_read:
            self._publish()
        return bool(self._num_read)

    def _add(self, part: Part) -> None:
        plan = self._plan
        columns = indexed(part.documents, plan.facts.depth_tokens, plan.threads, plan.progress)
        entry = write_segment(self._folder, plan.facts, columns, plan.progress)
        before = self._entries
        self._num_read.append(part.num_read)
        # First how far it reaches: a generation without that could not be gone on from.
        _write_begun(self._folder, self._digest, self._num_read)
        publish_generation(self._folder, Generation(len(before) + 1, (*before, entry)))
        self._entries = (*before, entry)

    def _publish(self) -> None:
        with writing(self._plan.target):
            (self._folder / _BEGUN_NAME).unlink()
            fd = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                draft = Draft(self._plan.target, self._folder, fd)
                (draft.exchange if self._plan.replace else draft.publish)()
            finally:
                os.close(fd)

    def _resumed(self) -> tuple[Segments | None, list[int]]:
        """Returns finished segments of the same plan; those of another one are deleted."""
        try:
            num_read = _read_begun(self._folder, self._digest)
            segments = open_segments(self._folder) if num_read and has_generation(self._folder) else None
        except DatastoreError:
            num_read, segments = [], None
        if segments is None or segments.generation > len(num_read):
            for path in self._folder.iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            return None, []
        sweep_segments(self._folder)
        self._entries = entries_of(segments)
        return segments, num_read[: segments.generation]


def _write_begun(folder: Path, digest: str, num_read: list[int]) -> None:
    fields = {"format": _BEGUN_FORMAT, "version": 1, "plan": digest, "num_read": num_read}
    with draft_file(folder / _BEGUN_NAME) as file:
        file.write(sealed_json(fields, _BEGUN_SEAL))


def _read_begun(folder: Path, digest: str) -> list[int]:
    """Returns how many documents of the source each finished segment reached to; none of another plan."""
    path = folder / _BEGUN_NAME
    if not path.is_file():
        return []
    fields = parse_sealed(path.read_bytes(), _BEGUN_NAME, _BEGUN_FORMAT, 1, _BEGUN_SEAL)
    return list(fields.raw("num_read")) if fields.raw("plan") == digest else []
