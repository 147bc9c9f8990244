"""Datastores that grow: a list of immutable segments, and writers that put the next list in its place.

A reader keeps the generation that it opened, whatever writers do meanwhile. Knows files; what is in a
segment, and which documents go into a new one, is decided above.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from retrieval_spec.datastore.atomic import draft_file, sync_folder, writing
from retrieval_spec.datastore.generation import (
    GENERATION_NAME,
    MAX_SEGMENTS,
    OWN_FOLDER,
    SEGMENTS_NAME,
    Generation,
    SegmentEntry,
    format_generation,
    parse_generation,
)
from retrieval_spec.datastore.loading import Load
from retrieval_spec.datastore.locks import locked
from retrieval_spec.datastore.manifest import MANIFEST_NAME, Facts, Manifest
from retrieval_spec.datastore.progress import Progress
from retrieval_spec.datastore.sealed_json import MAX_BYTES, corrupt
from retrieval_spec.datastore.store import (
    Column,
    Datastore,
    open_datastore,
    write_datastore,
)
from retrieval_spec.errors import DatastoreCorrupt, DatastoreError, InvalidRequest, LimitExceeded, MissingPath

WORK_NAME = ".compacting"
"""Where a compaction writes while others change the datastore; locked as long as it lives."""
PATIENCE_S = 1.0
"""How long a writer waits for another one: a compaction needs the lock for less than that."""
_MAX_TRIES = 8


@dataclass(frozen=True)
class Segments:
    """One generation of a datastore, open: it stays readable when later ones replace it.

    Attributes:
        path: the datastore's folder.
        generation: its number; 0 for a store that never changed.
        stores: the segments, oldest first; at least one.
    """

    path: Path
    generation: int
    stores: tuple[Datastore, ...]

    @property
    def manifest(self) -> Manifest:
        """The facts that all segments share, with the numbers of all of them together."""
        manifests = [store.manifest for store in self.stores]
        return replace(
            manifests[0],
            vocab_size=max(manifest.vocab_size for manifest in manifests),
            num_tokens=sum(manifest.num_tokens for manifest in manifests),
            num_documents=sum(manifest.num_documents for manifest in manifests),
        )

    @property
    def num_bytes(self) -> int:
        """The size of all columns."""
        return sum(store.num_bytes for store in self.stores)

    @property
    def only(self) -> Datastore:
        """The one segment.

        Raises:
            InvalidRequest: there are several, and whoever asks reads one.
        """
        if len(self.stores) > 1:
            raise InvalidRequest(
                f"datastore {self.path} has several segments, which this source does not read",
                got=len(self.stores),
                expected=1,
                remedy=f"retrieval-spec compact --all {self.path}",
            )
        return self.stores[0]

    def prefault(self) -> None:
        """Reads one byte a page, so that the first drafts do not wait for the system to map them."""
        for store in self.stores:
            store.prefault()

    def check(self, progress: Progress | None = None) -> None:
        """Reads every byte of every segment; see `Datastore.check`.

        Raises:
            DatastoreCorrupt: a byte was altered, or columns contradict each other.
        """
        for store in self.stores:
            store.check(progress)


Place = str | Path | Segments
"""A datastore's folder, or what was opened of it."""


def open_segments(place: Place, load: Load = "auto") -> Segments:
    """Opens the current generation of a datastore as `open_datastore` opens a segment: in milliseconds.

    Args:
        place: its folder; what is open already is returned as it is.
        load: mapped, or read into memory that nobody else can change.

    Raises:
        MissingPath: no such folder.
        DatastoreCorrupt: the generation or a segment is not what was written.
        DatastoreVersion: a format or a kind that this version does not read.
    """
    if isinstance(place, Segments):
        return place
    folder = Path(place)
    for _ in range(_MAX_TRIES):
        before = _generation_bytes(folder)
        try:
            return _opened(folder, before, load)
        except (DatastoreCorrupt, MissingPath):
            # A segment may have been deleted because a newer generation does without it.
            if _generation_bytes(folder) == before:
                raise
    raise DatastoreError("the datastore changed again and again while it was opened", got=folder)


def verify_segments(path: str | Path, progress: Progress | None = None) -> Manifest:
    """Reads every byte of the current generation; returns what the manifests say of it together.

    Raises:
        MissingPath: no such folder.
        DatastoreCorrupt: a byte was altered, or columns contradict each other.
        DatastoreVersion: a format or a kind that this version does not read.
    """
    segments = open_segments(path)
    segments.check(progress)
    return segments.manifest


def inspect_segments(segments: Segments) -> dict[str, Any]:
    """Returns what the manifests say as plain values, ready for JSON: of all segments, then of each."""
    if not segments.generation:
        return segments.only.inspect()
    each = {os.path.relpath(store.path, segments.path): store.inspect() for store in segments.stores}
    first, manifest = next(iter(each.values())), segments.manifest
    return {
        **{key: value for key, value in first.items() if key not in ("files", "stray_files")},
        "path": str(segments.path),
        "generation": segments.generation,
        "num_tokens": manifest.num_tokens,
        "num_documents": manifest.num_documents,
        "num_bytes": segments.num_bytes,
        "bytes_per_token": round(segments.num_bytes / max(manifest.num_tokens, 1), 3),
        "segments": each,
    }


def _opened(folder: Path, generation_bytes: bytes | None, load: Load) -> Segments:
    if generation_bytes is None:
        return Segments(folder, 0, (open_datastore(folder, load),))
    generation = parse_generation(generation_bytes)
    stores = tuple(_open_segment(folder, entry, load) for entry in generation.segments)
    _check_alike([store.manifest for store in stores])
    return Segments(folder, generation.number, stores)


def _open_segment(folder: Path, entry: SegmentEntry, load: Load) -> Datastore:
    place = folder / entry.place
    try:
        store = open_datastore(place, load)
    except MissingPath as error:
        raise corrupt("a segment is missing", entry.place, "a folder") from error
    found = entry_of(store, entry.place)
    if found != entry:
        raise corrupt(f"segment {entry.place} is another one", found.manifest_sha256, entry.manifest_sha256)
    return store


def _check_alike(manifests: Sequence[Manifest]) -> None:
    first = manifests[0]
    for manifest in manifests[1:]:
        if _nature(manifest) != _nature(first):
            raise corrupt(
                "the segments do not fit each other",
                manifest.name,
                "one kind, tokenizer, model, depth and pruning",
            )


def _nature(manifest: Manifest) -> tuple[object, ...]:
    return (
        manifest.kind,
        manifest.tokenizer.fingerprint,
        manifest.model_fingerprint,
        manifest.depth_tokens,
        manifest.pruned_ngram_tokens,
    )


def entry_of(store: Datastore, place: str) -> SegmentEntry:
    """Returns how a generation lists an open segment that lies at `place`."""
    manifest = store.manifest
    return SegmentEntry(place, store.manifest_sha256, manifest.num_tokens, manifest.num_documents)


def _generation_bytes(folder: Path) -> bytes | None:
    try:
        fd = os.open(folder / GENERATION_NAME, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise corrupt(f"cannot open {GENERATION_NAME}", error, "a regular file") from error
    try:
        with open(fd, "rb", closefd=False) as file:
            return file.read(MAX_BYTES + 1)
    except OSError as error:
        raise corrupt(f"cannot read {GENERATION_NAME}", error, "a regular file") from error
    finally:
        os.close(fd)  # also where a folder is no file


def entries_of(segments: Segments) -> tuple[SegmentEntry, ...]:
    """Returns how a generation lists these segments."""
    return tuple(entry_of(store, os.path.relpath(store.path, segments.path)) for store in segments.stores)


class Change:
    """A writer's way to the next generation; `changing` makes one. Owned by one thread."""

    def __init__(self, segments: Segments) -> None:
        self.segments = segments
        self.entries = entries_of(segments)

    def write(
        self, facts: Facts, columns: Mapping[str, Column], progress: Progress | None = None
    ) -> SegmentEntry:
        """Writes a segment that no generation lists yet.

        Raises:
            InvalidRequest: the columns are not what the kind asks for.
            DatastoreError: the file system refused.
        """
        place = f"{SEGMENTS_NAME}/{secrets.token_hex(8)}"
        return write_segment(self.segments.path, place, facts, columns, progress)

    def publish(self, entries: Sequence[SegmentEntry]) -> None:
        """Makes these segments the next generation, in one step; then deletes what it does without.

        Raises:
            LimitExceeded: more segments than a generation lists.
            DatastoreError: the file system refused.
        """
        publish_generation(self.segments.path, Generation(self.segments.generation + 1, tuple(entries)))
        sweep_segments(self.segments.path)


@contextmanager
def changing(path: str | Path, patience_s: float | None = PATIENCE_S) -> Iterator[Change]:
    """Lets one writer at a time change a datastore; what crashed writers left is deleted first.

    Args:
        path: its folder.
        patience_s: how long another writer is waited for; None waits until it is done.

    Raises:
        MissingPath: no such folder.
        DatastoreCorrupt: the datastore is damaged.
        DatastoreError: another process is changing it, or the file system refused.
    """
    folder = Path(path).absolute()
    with locked(folder, patience_s):
        segments = open_segments(folder)
        sweep_segments(folder)
        yield Change(segments)


def write_segment(
    folder: Path,
    place: str,
    facts: Facts,
    columns: Mapping[str, Column],
    progress: Progress | None = None,
) -> SegmentEntry:
    """Writes a segment into a store's folder, whole or not at all, and returns how to list it.

    Raises:
        DatastoreExists: the place is taken.
        InvalidRequest: the columns are not what the kind asks for.
        DatastoreError: the file system refused.
    """
    parent = folder / SEGMENTS_NAME
    with writing(folder):
        parent.mkdir(exist_ok=True)
        sync_folder(folder)
    write_datastore(folder / place, facts, columns, progress)
    return entry_of(open_datastore(folder / place), place)


def built_place(number: int) -> str:
    """Returns where a build writes its segment of that number: the same in every build of one corpus."""
    return f"{SEGMENTS_NAME}/{number:016x}"


def segment_at(folder: Path, place: str) -> SegmentEntry | None:
    """Returns how to list the segment that is there; what is there and cannot be opened is deleted."""
    try:
        return entry_of(open_datastore(folder / place), place)
    except MissingPath:
        return None
    except DatastoreError:
        shutil.rmtree(folder / place, ignore_errors=True)
        return None


def publish_generation(folder: Path, generation: Generation) -> None:
    """Puts a generation in the place of the one before, in one step.

    Raises:
        LimitExceeded: more segments than a generation lists.
        DatastoreError: the file system refused.
    """
    if len(generation.segments) > MAX_SEGMENTS:
        raise LimitExceeded(
            "too many segments",
            got=len(generation.segments),
            expected=f"<= {MAX_SEGMENTS}",
            remedy="run `retrieval-spec compact`, or build with more memory",
        )
    with draft_file(folder / GENERATION_NAME) as file:
        file.write(format_generation(generation))


def sweep_segments(folder: Path) -> None:
    """Deletes segments that the current generation does not list; call with the lock held.

    Raises:
        DatastoreError: the file system refused.
    """
    data = _generation_bytes(folder)
    places = {OWN_FOLDER} if data is None else {entry.place for entry in parse_generation(data).segments}
    with writing(folder):
        # A writer may have been killed before it synced the list that others are deleted by.
        sync_folder(folder)
        for path in folder.glob(f".{GENERATION_NAME}.tmp-*"):
            path.unlink()
        _sweep_compaction(folder)
        if OWN_FOLDER not in places:
            _delete_own_segment(folder)
        parent = folder / SEGMENTS_NAME
        for path in sorted(parent.iterdir()) if parent.is_dir() else ():
            if f"{SEGMENTS_NAME}/{path.name}" not in places:
                shutil.rmtree(path, ignore_errors=True)


def _sweep_compaction(folder: Path) -> None:
    """Deletes what a killed compaction left; that of a living one stays."""
    with suppress(MissingPath, DatastoreError), locked(folder / WORK_NAME):
        shutil.rmtree(folder / WORK_NAME, ignore_errors=True)


def _delete_own_segment(folder: Path) -> None:
    """Deletes the columns beside `generation.json`; the manifest goes last, it says which they are."""
    if not (folder / MANIFEST_NAME).is_file():
        return
    try:
        names = list(open_datastore(folder).manifest.files)
    except DatastoreCorrupt:  # a part is gone already: the rest are files of our names
        names = [path.name for path in folder.glob("*.bin")]
    for name in (*names, MANIFEST_NAME):
        (folder / name).unlink(missing_ok=True)
