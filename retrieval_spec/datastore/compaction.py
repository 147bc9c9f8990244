"""Compaction: merged segments are written while other writers go on, and put in place in one step.

They are written into a folder that its writer keeps locked, so that other writers know a living compaction
from what a killed one left. Which segments are merged, and how, is decided above.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from retrieval_spec.datastore.atomic import sync_folder, writing
from retrieval_spec.datastore.generation import SEGMENTS_NAME, SegmentEntry
from retrieval_spec.datastore.locks import locked
from retrieval_spec.datastore.manifest import Facts
from retrieval_spec.datastore.progress import Progress
from retrieval_spec.datastore.segments import (
    WORK_NAME,
    Segments,
    changing,
    entries_of,
    entry_of,
    open_segments,
)
from retrieval_spec.datastore.store import Column, open_datastore, write_datastore
from retrieval_spec.errors import DatastoreError, MissingPath


class Compacted(NamedTuple):
    """What a compaction led to.

    Attributes:
        generation: that the datastore has now.
        num_segments: of it.
        num_outdated: merged segments that were thrown away, since what they were made of changed meanwhile.
    """

    generation: int
    num_segments: int
    num_outdated: int = 0


class Compaction:
    """A way to merged segments beside other writers; `compacting` makes one. Owned by one thread.

    Attributes:
        segments: the generation that is compacted, open: it stays readable whatever others do.
        entries: how it lists them.
    """

    def __init__(self, segments: Segments, work: Path) -> None:
        self.segments = segments
        self.entries = entries_of(segments)
        self._work = work
        self._merged: list[tuple[tuple[SegmentEntry, ...], SegmentEntry]] = []

    def write(
        self,
        inputs: Sequence[SegmentEntry],
        facts: Facts,
        columns: Mapping[str, Column],
        progress: Progress | None = None,
    ) -> None:
        """Writes what shall take the place of `inputs`, neighbours in the generation.

        Raises:
            InvalidRequest: the columns are not what the kind asks for.
            DatastoreError: the file system refused.
        """
        name = secrets.token_hex(8)
        write_datastore(self._work / name, facts, columns, progress)
        entry = entry_of(open_datastore(self._work / name), f"{SEGMENTS_NAME}/{name}")
        self._merged.append((tuple(inputs), entry))

    def publish(self) -> Compacted:
        """Puts merged segments in the place of their inputs, where these are still neighbours.

        Waits for another writer. What was appended meanwhile stays behind; without merged segments, only
        what crashed writers left is deleted, unless another writer is at it.

        Raises:
            DatastoreCorrupt: the datastore was damaged meanwhile.
            DatastoreError: the file system refused.
        """
        if self._merged:
            return self._published()
        try:
            with changing(self.segments.path, patience_s=0) as change:
                segments = change.segments
        except DatastoreError:
            segments = open_segments(self.segments.path)
        return Compacted(segments.generation, len(segments.stores))

    def _published(self) -> Compacted:
        with changing(self.segments.path, patience_s=None) as change:
            entries, num_outdated = change.entries, 0
            for inputs, merged in self._merged:
                at = _index_of(inputs, entries)
                if at is None:
                    num_outdated += 1
                    continue
                self._move(merged)
                entries = (*entries[:at], merged, *entries[at + len(inputs) :])
            number = change.segments.generation
            if entries != change.entries:
                change.publish(entries)
                number += 1
            return Compacted(number, len(entries), num_outdated)

    def _move(self, merged: SegmentEntry) -> None:
        """Takes a merged segment to where a generation can list it."""
        target = self.segments.path / merged.place
        with writing(self.segments.path):
            target.parent.mkdir(exist_ok=True)
            os.rename(self._work / target.name, target)
            sync_folder(target.parent)


def _index_of(inputs: tuple[SegmentEntry, ...], entries: tuple[SegmentEntry, ...]) -> int | None:
    for at in range(len(entries) - len(inputs) + 1):
        if entries[at : at + len(inputs)] == inputs:
            return at
    return None


@contextmanager
def compacting(path: str | Path) -> Iterator[Compaction]:
    """Lets one process at a time compact a datastore; other writers go on meanwhile.

    Raises:
        MissingPath: no such folder.
        DatastoreCorrupt: the datastore is damaged.
        DatastoreError: another process is compacting it, or the file system refused.
    """
    folder = Path(path).absolute()
    open_segments(folder)  # a folder that is no datastore is left alone
    work = folder / WORK_NAME
    with ExitStack() as stack:
        _lock_work(stack, folder)
        stack.callback(shutil.rmtree, work, ignore_errors=True)
        for leftover in work.iterdir():
            shutil.rmtree(leftover, ignore_errors=True)
        yield Compaction(open_segments(folder), work)


def _lock_work(stack: ExitStack, folder: Path) -> None:
    work = folder / WORK_NAME
    while True:
        with writing(folder):
            work.mkdir(exist_ok=True)
        try:
            stack.enter_context(locked(work, busy="another process is compacting the datastore"))
            return
        except MissingPath:
            continue  # a writer that took it for a leftover swept it before it was locked
