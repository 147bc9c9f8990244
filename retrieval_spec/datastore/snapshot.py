"""Copies of a datastore's generation that cost next to nothing: its files never change, so they are linked.

What is copied is what somebody has open, whatever writers do meanwhile; where a link cannot be made, as to
another file system, bytes are copied.
"""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

from retrieval_spec.datastore.atomic import Draft, check_free, draft_folder, sync_folder
from retrieval_spec.datastore.generation import GENERATION_NAME, SEGMENTS_NAME, Generation, format_generation
from retrieval_spec.datastore.locks import locked
from retrieval_spec.datastore.manifest import MANIFEST_NAME
from retrieval_spec.datastore.segments import PATIENCE_S, Segments, entries_of
from retrieval_spec.datastore.store import Datastore, open_datastore
from retrieval_spec.errors import DatastoreError

_NO_LINK = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP)


def snapshot(segments: Segments, target: str | Path) -> None:
    """Makes a datastore at a free place of the generation that is open, whole or not at all.

    Raises:
        DatastoreExists: the place is taken.
        MissingPath: its parent folder does not exist.
        DatastoreError: a writer has deleted a segment of it, or is at work; or the file system refused.
    """
    check_free(Path(target))
    # No writer deletes what is being linked.
    with locked(segments.path.absolute(), PATIENCE_S), draft_folder(Path(target)) as draft:
        if segments.generation:
            (draft.path / SEGMENTS_NAME).mkdir()
        for store, entry in zip(segments.stores, entries_of(segments), strict=True):
            _copy_segment(store, draft.path / entry.place)
        if segments.generation:
            sync_folder(draft.path / SEGMENTS_NAME)
            _write_generation(draft, Generation(segments.generation, entries_of(segments)))
        draft.publish()


def _write_generation(draft: Draft, generation: Generation) -> None:
    data = format_generation(generation)
    draft.write_file(GENERATION_NAME, lambda fd: _write(fd, data))


def _write(fd: int, data: bytes) -> None:
    with open(fd, "wb", closefd=False) as file:
        file.write(data)


def _copy_segment(store: Datastore, target: Path) -> None:
    _expect_there(store)
    target.mkdir(exist_ok=True)
    for name in (*store.manifest.files, MANIFEST_NAME):
        _link(store.path / name, target / name)
    sync_folder(target)


def _expect_there(store: Datastore) -> None:
    try:
        if open_datastore(store.path).manifest_sha256 == store.manifest_sha256:
            return
    except DatastoreError:
        pass
    raise DatastoreError(
        "the generation that is open is no longer on disk", got=store.path, remedy="take up the current one"
    )


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError as error:
        if error.errno not in _NO_LINK:
            raise
        shutil.copyfile(source, target, follow_symlinks=False)
        with open(target, "rb") as file:
            os.fsync(file.fileno())
